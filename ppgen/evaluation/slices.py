"""Held-out rows in slices that fit into memory, and random streams that evaluation leaves as they were."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen.data import Columns, columns_to
from ppgen.errors import DataError
from ppgen.streams import has_rows

LARGEST = 1e6
"""How many values the largest intermediate tensor of a slice may have on a CPU, so that caches hold it."""


def count_rows(columns: Mapping[str, Tensor]) -> int:
    """Returns the number of rows; a column that is a number or a scalar tensor has none.

    Raises:
        DataError: if there are none, or columns differ in length.
    """
    lengths = {name: len(column) for name, column in columns.items() if has_rows(column)}
    if not lengths or 0 in lengths.values():
        raise DataError(f"expected rows to evaluate; got {lengths or 'no columns'}")
    if len(set(lengths.values())) > 1:
        raise DataError(f"expected columns of one length; got {lengths}")
    return next(iter(lengths.values()))


def taken(columns: Mapping[str, Tensor], rows: Any, device: str | torch.device | None = None) -> Columns:
    """Returns some rows of all columns, on ``device`` if one is given; one value for all rows stays as it is."""
    chosen: Columns = {}
    for name, column in columns.items():
        own = rows.to(column.device) if isinstance(rows, Tensor) and has_rows(column) else rows
        chosen[name] = column[own] if has_rows(column) else column
    return chosen if device is None else columns_to(chosen, device)


def few(columns: Mapping[str, Tensor], rows: int, device: torch.device) -> Columns:
    """Returns ``rows`` rows to try something on, repeated where there are fewer."""
    chosen = torch.arange(rows) % count_rows(columns)
    return taken(columns, chosen, device)


def slices(columns: Mapping[str, Tensor], size: int, device: torch.device) -> Iterator[tuple[slice, Columns]]:
    """Yields the columns on ``device``, ``size`` rows at a time, with their place."""
    for start in range(0, count_rows(columns), size):
        place = slice(start, start + size)
        yield place, taken(columns, place, device)


def without(columns: Mapping[str, Tensor], name: str) -> Columns:
    """Returns the columns but one."""
    return {key: column for key, column in columns.items() if key != name}


class _Sizes(TorchDispatchMode):
    """Notes how many values every tensor has that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.sizes += [leaf.numel() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


def values_per_row(compute: Callable[[Columns], object], columns: Mapping[str, Tensor], device: torch.device) -> float:
    """Returns by how much the largest intermediate tensor of ``compute`` grows with each row."""
    noted: list[list[int]] = []
    for rows in (2, 4):
        with _Sizes() as mode:
            compute(few(columns, rows, device))
        noted.append(mode.sizes)
    small, large = noted
    if len(small) != len(large):  # the computation depends on the rows: bound it by the sum
        small, large = [sum(small)], [sum(large)]
    return max([1.0, *((b - a) / 2 for a, b in zip(small, large, strict=True))])


def fitting(values: float, device: torch.device) -> int:
    """Returns how many rows of so many ``values`` make a slice; a GPU takes larger ones (80 MB of float32)."""
    return max(1, int(LARGEST * (1 if device.type == "cpu" else 20) / values))
