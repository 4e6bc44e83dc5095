"""Many draws in one run: a batch whose rows are repeated."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppgen import programs
from ppgen.programs import Batch, Program


def repeated(batch: Batch, times: int, *, rows: int) -> Any:
    """Returns a batch with its rows so many times over, block after block.

    >>> repeated({"x": torch.tensor([1, 2]), "scale": torch.tensor(3.0)}, 2, rows=2)
    {'x': tensor([1, 2, 1, 2]), 'scale': tensor(3.)}
    """

    def repeat(column: Tensor) -> Tensor:
        return column.repeat(times, *[1] * (column.dim() - 1)) if column.dim() and len(column) == rows else column

    return pytree.tree_map_only(Tensor, repeat, batch)


def rows_of(model: Program, guide: Program, batch: Batch) -> tuple[int, bool]:
    """Returns how many rows a batch has, and whether repeating them gives independent draws of each."""
    with torch.no_grad():
        joint = programs.run(model, guide, batch, check=False)
        if joint.plate is None:
            return 1, False
        rows = joint.plate.rows
        if not all(joint.is_local(name) for name in joint.latents):
            return rows, False
        try:
            twice = programs.run(model, guide, repeated(batch, 2, rows=rows), check=False)
        except Exception:  # a user's program may fix the number of rows in many ways
            return rows, False
        return rows, twice.plate is not None and twice.plate.rows == 2 * rows
