"""Files of features: what the guide of a run makes of rows, as arrays or as a table."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen import data as datasets
from ppgen.data import Columns, Dataset
from ppgen.data.datasets import SPLITS
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation.embedding import embed
from ppgen.exports import LABEL, write_file
from ppgen.runs import Run

FORMATS = (".npz", ".csv")
ROW = "row"
"""Name of the numbers of the rows in their source."""


@dataclass(frozen=True)
class Rows:
    """Rows to embed.

    Attributes:
        columns: ``(rows, ...)`` by name.
        numbers: of the rows in their source ``(rows,)``; None if not known, or of more than one source.
    """

    columns: Columns
    numbers: Tensor | None


def rows_of(
    run: Run,
    name: str | None = None,
    *,
    split: str = "test",
    label_column: str | None = None,
    data_root: str | Path | None = None,
) -> Rows:
    """Returns rows of the data of a run, or of other data, as its guide saw them in training.

    Args:
        run: the run.
        name: of a data set, or path of the user's own; the run's data unless told.
        split: "train", "validation", "test" or "all": the whole of a file in its own order, else one after the other.
        label_column: column of labels of a .csv file.
        data_root: where data sets lie.

    Raises:
        ConfigError: if there is no such data set.
        DataError: if its rows have another shape, or it cannot be used.
    """
    data = run.data
    if name is not None:
        data = datasets.load(name, data_root=data_root or run.config.data.root, label_column=label_column)
        _require_same_shape(data, run.data)
    if run.data.binarization != "none" and not data.streamed:
        data = data.binarized("static")  # the guide has learnt from binary rows
    if split != "all":
        return Rows(data.splits[split], data.rows.get(split))
    names = [name for name in data.test if all(name in columns for columns in data.splits.values())]
    columns = {name: torch.cat([data.splits[part][name][:] for part in SPLITS]) for name in names}
    numbers = torch.cat([data.rows[part] for part in SPLITS]) if set(SPLITS) <= set(data.rows) else torch.empty(0)
    if not torch.equal(numbers.sort().values, torch.arange(len(columns["x"]))):
        return Rows(columns, None)  # of several sources
    order = numbers.argsort()
    return Rows({name: column[order] for name, column in columns.items()}, numbers[order])


def _require_same_shape(data: Dataset, trained_on: Dataset) -> None:
    if data.shape != trained_on.shape:
        raise DataError(
            f"expected rows of shape {trained_on.shape}, as in {trained_on.name}, which the run was trained on; got"
            f" {data.shape} in {data.name}"
        )


def write_features(run: Run, rows: Rows, path: Path, *, label: str = LABEL, seed: int = 0) -> str:
    """Writes the features of rows; says what it wrote.

    Args:
        run: the run.
        rows: of the shape that its guide takes.
        path: ``.npz``: an array for each latent site, float32, with the labels and the row numbers in the source as
            int64 ``y`` and ``row``, where they are known; ``.csv``: the same with a column for each number.
        label: the column of labels.
        seed: of the draws, where there are any.

    Raises:
        ConfigError: if the guide draws no latents of single rows.
        StorageError: if the file cannot be written.
    """
    try:
        features = embed(run.trainer, rows.columns, label=label, seed=seed)
    except ConfigError as error:
        raise ConfigError(f"cannot embed by {run.folder.path.name}: {error}") from error
    arrays = {name: value.numpy() for name, value in features.items()}
    known = {ROW: rows.numbers, label: rows.columns.get(label)}
    for name, column in known.items():
        if column is not None:
            arrays[f"{name}_known" if name in arrays else name] = column.cpu().numpy()
    write_file(path, _npz(arrays) if path.suffix == ".npz" else _csv(arrays))
    sizes = ", ".join(f"{name} ({' x '.join(map(str, value.shape[1:])) or '1'})" for name, value in features.items())
    return f"features of {len(next(iter(features.values()))):,} rows: {sizes}"


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _csv(arrays: Mapping[str, Any]) -> bytes:
    columns: dict[str, Any] = {}
    for name, value in arrays.items():
        for place in np.ndindex(value.shape[1:]):
            columns["_".join([name, *map(str, place)])] = value[(slice(None), *place)]
    formats = ["%d" if column.dtype.kind == "i" else "%.9g" for column in columns.values()]
    buffer = io.BytesIO()
    np.savetxt(
        buffer,
        np.column_stack([column.astype(np.float64) for column in columns.values()]),
        delimiter=",",
        header=",".join(columns),
        comments="",
        fmt=formats,
    )
    return buffer.getvalue()
