"""Export to ArviZ, in either of its generations: 0.23 (InferenceData) and 1.x (xarray.DataTree)."""

import contextlib
import datetime
import importlib.metadata
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.evaluation.measures import Trained
from ppgen.files import replacing, storage_errors
from ppgen.programs.draws import Draws, joint_draws
from ppgen.randomness import forked

SAMPLE_DIMS = ("chain", "draw")
LOG_WEIGHTS = ("log_weight", "global_log_weight")


def to_arviz(
    trained: Trained,
    columns: Mapping[str, Any] | Sequence[Any],
    *,
    draws: int = 100,
    seed: int = 0,
    rows: slice | Sequence[int] | None = None,
    label: str | None = "y",
) -> Any:
    """Returns what a trained pair says about chosen data, as ArviZ holds it.

    Groups:
        ``posterior``: the latents given the data, drawn from the guide, and what the model computes from them.
        ``posterior_predictive``: the data, redrawn by the model given those latents.
        ``prior``, ``prior_predictive``: the same, drawn from the model alone; left out where a prior is improper.
        ``observed_data``: the data, as the model observes them.
        ``constant_data``: labels that were withheld.
        ``log_weights``: ``log_weight``, which is ``log p(x, z) - log q(z | x)`` in nats for each draw and row, and
        ``global_log_weight`` for what belongs to no row.

    Every dimension has a name and coordinates: ``chain`` (one), ``draw``, the plates by their names, ``SITE_dim_0`` and
    so on within a site. The coordinates of the data plate are row numbers in ``columns``.

    There is no ``log_likelihood`` group: of local latents drawn from a guide, ``az.loo`` and ``az.waic`` would make
    numbers that are far from the truth. Compare models by held-out importance-weighted bounds.

    Args:
        trained: what holds the pair: a `Trainer`.
        columns: the data, a dict of columns or a tuple of positional arguments.
        draws: how many draws of everything; memory grows with draws times rows.
        seed: of the draws; no random stream outside is moved.
        rows: which rows of the data; all unless told.
        label: the column of labels, withheld from the programs if the guide draws a site of that name, so that labels
            are inferred. None withholds nothing.

    Returns:
        ``arviz.InferenceData`` on ArviZ 0.23, ``xarray.DataTree`` on 1.x.

    Raises:
        ConfigError: if ``draws`` or ``rows`` are out of range, or the programs cannot be drawn from row by row.
    """
    if draws < 1:
        raise ConfigError(f"expected at least 1 draw; got {draws}")
    batch, chosen = _chosen(columns, rows, trained.device)
    with trained.evaluating(), forked(seed):
        batch, withheld = _without_label(trained.guide, batch, label)
        drawn = joint_draws(trained.model, trained.guide, batch, draws)
    plate = drawn.weights.plate
    if plate is not None and plate.rows != len(chosen):
        raise ConfigError(
            f"expected the plate '{plate.name}' to hold the {len(chosen)} rows given; got {plate.rows}:"
            " the program draws a subsample of its own; make its subsample_size an option and train with it only"
        )
    return container(_groups(drawn, withheld, chosen))


def _chosen(columns: Any, rows: Any, device: torch.device) -> tuple[Any, np.ndarray[Any, Any]]:
    """Returns the chosen rows of every column, as a batch on the device, and their numbers."""
    values = columns.values() if isinstance(columns, Mapping) else columns
    length = next((len(v) for v in values if isinstance(v, (Tensor, np.ndarray)) and v.ndim), 0)
    numbers = np.arange(length)
    try:
        chosen = numbers if rows is None else numbers[rows if isinstance(rows, slice) else list(rows)]
    except IndexError as error:
        raise ConfigError(f"expected rows from 0 to {length - 1}; got {rows}") from error
    if not len(chosen):
        raise ConfigError(f"expected at least 1 row; got {rows} of {length} rows")

    def placed(column: Any) -> Any:
        if not isinstance(column, (Tensor, np.ndarray)):
            return column
        column = torch.as_tensor(column)
        # a column of another length has something other than rows
        return (column[torch.as_tensor(chosen)] if column.ndim and len(column) == length else column).to(device)

    if isinstance(columns, Mapping):
        return {name: placed(column) for name, column in columns.items()}, chosen
    return tuple(placed(column) for column in columns), chosen


def _without_label(guide: Any, batch: Any, label: str | None) -> tuple[Any, dict[str, Tensor]]:
    if label is None or not isinstance(batch, Mapping) or batch.get(label) is None:
        return batch, {}
    if label not in programs.posterior(guide, batch):
        return batch, {}
    return {name: column for name, column in batch.items() if name != label}, {label: batch[label]}


def _groups(drawn: Draws, withheld: Mapping[str, Tensor], rows: np.ndarray[Any, Any]) -> dict[str, Any]:
    plate = drawn.weights.plate
    names = {*drawn.dims, *withheld, *SAMPLE_DIMS, *LOG_WEIGHTS}
    dims = {site: _dims(site, plates, names) for site, plates in drawn.dims.items()}
    sampled = {site: (*SAMPLE_DIMS, *own) for site, own in dims.items()}
    data = "data" if plate is None else _dim(plate.name, names)
    weights, weight_dims = {}, dict(zip(LOG_WEIGHTS, [(*SAMPLE_DIMS, data), SAMPLE_DIMS], strict=True))
    if plate is not None:
        weights["log_weight"] = drawn.weights.local
    if plate is None or drawn.weights.global_.any():
        weights["global_log_weight"] = drawn.weights.global_
    coords = {data: rows} | {_dim(name, names): rows for name in (plate.names if plate else ())}
    groups = {
        "posterior": _dataset(drawn.posterior, sampled, coords),
        "posterior_predictive": _dataset(drawn.predictive, sampled, coords),
        "prior": _dataset(drawn.prior, sampled, coords),
        "prior_predictive": _dataset(drawn.prior_predictive, sampled, coords),
        "observed_data": _dataset(drawn.observed, dims, coords),
        "constant_data": _dataset(withheld, dict.fromkeys(withheld, (data,)), coords),
        "log_weights": _dataset(weights, weight_dims, coords),
    }
    for variable in groups["log_weights"].values():
        variable.attrs["units"] = "nat"
    return {name: dataset for name, dataset in groups.items() if dataset.data_vars}


def _plain(name: str) -> str:
    """A slash would be a path within the file."""
    return name.replace("/", ".")


def _dim(plate: str, names: set[str]) -> str:
    """A dimension must not bear the name of a variable that has others."""
    return _plain(f"{plate}_plate" if plate in names else plate)


def _dims(site: str, plates: Sequence[str | None], names: set[str]) -> tuple[str, ...]:
    own = iter(range(len(plates)))
    return tuple(f"{_plain(site)}_dim_{next(own)}" if plate is None else _dim(plate, names) for plate in plates)


def _dataset(values: Mapping[str, Tensor], dims: Mapping[str, tuple[str, ...]], coords: Mapping[str, Any]) -> Any:
    import xarray

    variables = {}
    sizes: dict[str, int] = {}
    for site, value in values.items():
        array = value.detach().cpu().numpy()
        array = array[np.newaxis] if dims[site][:1] == SAMPLE_DIMS[:1] else array
        variables[_plain(site)] = (dims[site], array)
        sizes |= dict(zip(dims[site], array.shape, strict=True))
    numbers = {dim: coords.get(dim, np.arange(size)) for dim, size in sizes.items()}
    return xarray.Dataset(variables, coords=numbers, attrs=_attributes())


def _attributes() -> dict[str, str]:
    attributes = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "creation_library": "ppgen",
        "creation_library_language": "Python",
        "inference_library": "ppgen",
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a clone that is not installed
        version = importlib.metadata.version("ppgen")
        attributes |= {"creation_library_version": version, "inference_library_version": version}
    return attributes


# ------------------------------------------------------------------------------------ the two generations of ArviZ


def container(groups: Mapping[str, Any]) -> Any:
    """Puts datasets, by group, into what the installed ArviZ works with."""
    import xarray

    az = _arviz()
    return az.InferenceData(**groups) if _is_old(az) else xarray.DataTree.from_dict(dict(groups))


def to_netcdf(data: Any, path: str | os.PathLike[str]) -> Path:
    """Writes what `to_arviz` returns into a NetCDF file, which either generation of ArviZ reads; returns its path.

    Raises:
        StorageError: if it cannot be written; a file that was there is then as it was.
    """
    path = Path(path)
    large = sum(group.nbytes for group in data.values()) > 1e6  # compression makes a small file larger
    with storage_errors(path, "choose another folder", doing="write"), replacing(path) as temporary:
        if _is_old(_arviz()):
            data.to_netcdf(str(temporary), engine="h5netcdf", compress=large)
        else:
            data.to_netcdf(temporary, engine="h5netcdf", encoding=_compressed(data) if large else {})
    return path


def _compressed(tree: Any) -> dict[str, Any]:
    return {group.path: {name: {"zlib": True} for name in group.data_vars} for group in tree.children.values()}


def _is_old(az: Any) -> bool:
    return int(az.__version__.split(".")[0]) < 1


def _arviz() -> Any:
    with warnings.catch_warnings():
        # 0.23 announces 1.x at import
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz

    return arviz
