"""Which plates of a pair run along the rows of a batch."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.utils import _pytree as pytree

from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.tracing import traced

OWN = "ppgen_"
"""Begins the names of plates that no program has written: those of particles."""


@dataclass(frozen=True)
class Rows:
    """The plates that run along the rows of a batch.

    Attributes:
        names: of the plates; latents may lie in one and data in another.
        dim: the dimension that they share, counted from the right.
        doubtful: other plates of the same length of which nobody can tell whether they do too.
    """

    names: frozenset[str]
    dim: int = -1
    doubtful: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Structure:
    """The plates of a pair.

    Attributes:
        nesting: how many dimensions from the right they take.
        rows: those that run along the rows of a batch; None if none does.
    """

    nesting: int
    rows: Rows | None


def joined(one: Structure, other: Structure) -> Structure:
    """Returns the plates that a pair has in one of two runs."""
    rows, more = one.rows, other.rows
    if rows is not None and more is not None and rows.dim == more.dim:
        names = rows.names | more.names
        rows = Rows(names, rows.dim, (rows.doubtful | more.doubtful) - names)
    return Structure(max(one.nesting, other.nesting), rows or more)


@dataclass(frozen=True)
class DataPlate:
    """The plates over data, as one.

    Attributes:
        name: of the one that data lie in.
        rows: how many of them the batch has.
        size: how many the whole data set has.
        names: of all plates that run along the rows.
        dim: their dimension, counted from the right.
    """

    name: str
    rows: int
    size: int
    names: frozenset[str]
    dim: int = -1

    @property
    def scale(self) -> float:
        """What a sum over the batch is multiplied by to stand for the whole data set (N/B)."""
        return self.size / self.rows


def plate_nesting(*traces: poutine.Trace) -> int:
    """Returns how many dimensions from the right the plates of the traces take."""
    dims = [-frame.dim for trace in traces for site in _sites(trace) for frame in vectorized(site)]
    return max(dims, default=0)


def vectorized(site: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the plates of a site that take a dimension."""
    return (frame for frame in site["cond_indep_stack"] if frame.vectorized)


def data_plate_of(model: poutine.Trace, rows: Rows | None) -> DataPlate | None:
    """Returns the data plate of a run, whose name and sizes are those of the first data site in it."""
    if rows is None:
        return None
    for site in sorted(_sites(model), key=lambda site: not _is_data(site)):
        for frame in vectorized(site):
            if frame.name in rows.names:
                count = _length(site, frame)
                size = frame.size if frame.full_size is None else frame.full_size
                return DataPlate(frame.name, count, count if size == -1 else int(size), rows.names, rows.dim)
    return None


def as_one_plate(trace: poutine.Trace, plate: DataPlate) -> None:
    """Gives all plates along the rows one name in a trace, so that what compares plates knows them for one."""
    for site in _sites(trace) if len(plate.names) > 1 else ():
        stack = site["cond_indep_stack"]
        if any(frame.name in plate.names for frame in stack):
            # a trace's own record of its site
            site["cond_indep_stack"] = tuple(
                frame._replace(name=plate.name) if frame.name in plate.names else frame for frame in stack
            )


def _length(site: Mapping[str, Any], frame: Any) -> int:
    """The length of a plate in a run; a plate without a size, whose size is -1, has that of its sites."""
    if frame.size != -1:
        return int(frame.size)
    shape = _batch_shape(site)
    return shape[frame.dim] if len(shape) >= -frame.dim else 1


def _batch_shape(site: Mapping[str, Any]) -> torch.Size:
    fn, shape = site["fn"], site["value"].shape
    own: torch.Size = torch.broadcast_shapes(fn.batch_shape, shape[: len(shape) - len(fn.event_shape)])
    return own


def _sites(trace: poutine.Trace) -> list[Any]:
    return [
        site for site in trace.nodes.values() if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    ]


def _is_data(site: Mapping[str, Any]) -> bool:
    return bool(site["is_observed"]) and not site["infer"].get("_deterministic")


# ------------------------------------------------------------------------------------------------------- finding


def find_rows(model: Program, batch: Batch, run: poutine.Trace) -> Rows | None:
    """Returns the plates whose length follows that of the batch.

    The model is run once more, on a batch of another length. Where it runs on batches of one length only, or no plate
    follows, those of the first data site are taken, and plates of the same length beside it are doubtful.

    Args:
        model: the generative program.
        batch: what the run was on.
        run: its trace.
    """
    for length in _lengths(batch):
        for other in (3 if length == 2 else 2, 2 * length):
            with contextlib.suppress(Exception):  # a program may ask for batches of one length in many ways
                if found := _following(run, _trace(model, with_rows(batch, length, other)), length, other):
                    return found
                break
    return guessed(run)


def guessed(model: poutine.Trace) -> Rows | None:
    """Returns the plate at dim -1 of the first data site that has one, by a run alone."""
    for site in _sites(model):
        # where there are no plates, that of particles takes the last dimension
        own = [f for f in vectorized(site) if f.dim == -1 and not f.name.startswith(OWN)] if _is_data(site) else []
        for frame in own:
            alike = {
                other.name
                for beside in _sites(model)
                for other in vectorized(beside)
                if other.dim == -1 and (other.size, other.full_size) == (frame.size, frame.full_size)
            }
            return Rows(frozenset({frame.name}), -1, frozenset(alike - {frame.name}))
    return None


def with_rows(batch: Batch, length: int, count: int) -> Any:
    """Returns a batch with ``count`` of its rows, over and over where there are fewer; what has no rows stays."""

    def chosen(column: Tensor) -> Tensor:
        if not column.dim() or len(column) != length:
            return column
        return column[torch.arange(count, device=column.device) % length]

    return pytree.tree_map_only(Tensor, chosen, batch)


def _lengths(batch: Batch) -> list[int]:
    """What the number of rows may be: the lengths of the columns, each once."""
    columns = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf)]
    return list(dict.fromkeys(len(column) for column in columns))


def _trace(model: Program, batch: Batch) -> poutine.Trace:
    args, kwargs = arguments(model, batch)
    return traced(model, args, kwargs)


def _following(one: poutine.Trace, two: poutine.Trace, length: int, other: int) -> Rows | None:
    """The plates that are as long as the batch in both runs, if data lie in one."""
    first, second = _plates(one), _plates(two)
    dims = {
        name: dim
        for name, (dim, sizes) in first.items()
        if length in sizes and name in second and other in second[name][1]
    }
    own = [frame for site in _sites(one) if _is_data(site) for frame in vectorized(site) if frame.name in dims]
    if not own:
        return None
    dim = own[0].dim
    names = frozenset(name for name in dims if dims[name] == dim)
    return Rows(names, dim, frozenset(dims) - names)


def _plates(trace: poutine.Trace) -> dict[str, tuple[int, set[int]]]:
    """Dimension and lengths (in the run, and in full) of every plate."""
    found: dict[str, tuple[int, set[int]]] = {}
    for site in _sites(trace):
        for frame in vectorized(site):
            _, sizes = found.setdefault(frame.name, (frame.dim, set()))
            sizes |= {_length(site, frame), *(() if frame.full_size in (None, -1) else (int(frame.full_size),))}
    return found


def rows_of_guide(guide: poutine.Trace, model: poutine.Trace, rows: Rows) -> Rows:
    """Returns the plates with those of the guide in which it draws what the model has in them, by whatever name."""
    plate = data_plate_of(model, rows)
    names = {
        frame.name
        for site in _sites(guide)
        for frame in vectorized(site)
        if frame.dim == rows.dim and _lies_along(site, frame, model, plate)
    }
    return Rows(rows.names | names, rows.dim, rows.doubtful - names)


def _lies_along(site: Mapping[str, Any], frame: Any, model: poutine.Trace, plate: DataPlate | None) -> bool:
    if plate is None or site["name"] not in model.nodes:
        return plate is not None and _length(site, frame) == plate.rows
    return not plate.names.isdisjoint(names_of(vectorized(model.nodes[site["name"]])))


def names_of(frames: Iterable[Any]) -> frozenset[str]:
    """Returns the names of plates."""
    return frozenset(frame.name for frame in frames)
