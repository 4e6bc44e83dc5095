"""Columns that stay on disk: rows of a memory-mapped array, read when they are asked for."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data.checking import Array, memory_limit, reading
from ppgen.data.surveys import Survey, stamp, survey
from ppgen.errors import DataError

WINDOW = 2**27
"""How many bytes of rows are held at a time; as much again is read ahead."""
PIECE = 2**22
"""How many bytes are read before it is seen again whether that still makes sense."""
_KEPT = {np.dtype(kind) for kind in ("u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?")}  # those torch can index


@dataclasses.dataclass(frozen=True)
class Source:
    """A memory-mapped array of rows, its numbers checked.

    Attributes:
        path: The file.
        array: Its rows (n, *shape) in the file's dtype, never held in memory.
        survey: What was found when it was first read.
        divisor: What its numbers are divided by, once they are float32.
    """

    path: Path
    array: Array
    survey: Survey
    divisor: int = 1

    @classmethod
    def of(cls, path: Path, array: Array) -> "Source":
        """Check all numbers of a file, reading it once; grey levels 0..255 are to be divided by 255.

        Raises:
            DataError: naming row and position of the first number that is not finite.
        """
        found = survey(path, array)
        return cls(path, array, found, 255 if array.dtype == np.uint8 and found.high > 1 else 1)

    def buffer(self, rows: int) -> Array:
        """Returns memory for rows that `read` can use again and again."""
        dtype = self.array.dtype if self.array.dtype in _KEPT else np.dtype(np.float32)
        return np.empty((rows, *self.array.shape[1:]), dtype)

    def read(self, rows: Array, out: Array | None = None) -> Tensor:
        """Reads rows as they are in the file; those of dtypes that torch cannot index become float32.

        Args:
            rows: Their numbers (m,).
            out: What `buffer` returned, of m rows at least; the result lies in it.

        Raises:
            DataError: if the file cannot be read, or has changed since it was checked.
        """
        result = self.buffer(len(rows)) if out is None else out[: len(rows)]
        size = max(1, PIECE // max(1, result[:1].nbytes))
        for start in range(0, len(rows), size):
            # a process that ends waits for its threads
            if not threading.main_thread().is_alive():
                raise DataError(f"{self.path}: expected to be read to the end; the process ends")
            self._require_unchanged()
            with reading(self.path):
                result[start : start + size] = self.array[rows[start : start + size]]
        return torch.from_numpy(result)

    def _require_unchanged(self) -> None:
        # the map of a file that was cut off ends the process when it is read
        with reading(self.path):
            if stamp(self.path) != self.survey.stamp:
                raise DataError(f"{self.path}: expected a file that stays as it was; it has changed while being used")

    def finished(self, raw: Tensor) -> Tensor:
        """Casts what `read` returned to float32 and scales it, on its device."""
        x = raw.to(torch.float32)
        # by a tensor on the device: a GPU multiplies by the inverse of a plain number, which differs in the last bit
        return x if self.divisor == 1 else x.div_(torch.full((), float(self.divisor), device=x.device))


class Streamed(Tensor):
    """A column float32 (n, *shape) whose rows lie in a file: it has a shape, but holds nothing.

    Index it by rows to read them: `column[3]`, `column[:10]`, `column[numbers]`; a mask over all rows chooses rows
    without reading them. `min()` and `max()` are those of the whole file. Anything else needs its numbers in memory
    and is refused.

    Raises:
        DataError: if it is used as if it were held in memory.
    """

    source: Source
    rows: Array

    @classmethod
    def of(cls, source: Source, rows: Array) -> "Streamed":
        """Choose rows of a source, by their numbers in ascending order."""
        column = torch.empty((len(rows), *source.array.shape[1:]), device="meta").as_subclass(cls)
        column.source, column.rows = source, rows
        return column

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answers what can be said without the numbers, and refuses the rest."""
        if func in _DESCRIPTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        column = next((value for value in args if isinstance(value, cls)), None)
        if column is not None and func in _ANSWERS:
            return _ANSWERS[func](column, *args[1:])
        where = column.source.path if column is not None else "data"
        name = getattr(func, "__name__", "this")
        raise DataError(f"{where}: expected data held in memory, for {name}; got data streamed from disk: index rows")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Streamed({tuple(self.shape)} of {self.source.path})"


def held_if_small(column: Tensor) -> Tensor:
    """Reads a streamed column that takes no more memory than a window; others are returned as they are."""
    small = isinstance(column, Streamed) and column.numel() * column.element_size() <= WINDOW
    return column[:] if small else column


def _rows(column: Streamed, key: Any) -> Tensor:
    chosen, *position = key if isinstance(key, tuple) else (key,)
    rows = column.rows[chosen.cpu().numpy() if isinstance(chosen, Tensor) else chosen]
    mask = isinstance(chosen, Tensor | np.ndarray) and str(chosen.dtype).endswith("bool")
    if mask and not position:
        return Streamed.of(column.source, rows)
    needed = rows.size * math.prod(column.source.array.shape[1:]) * 4
    if needed > memory_limit():
        raise DataError(
            f"{column.source.path}: expected at most {memory_limit():,} bytes of rows at a time; got {needed:,}: "
            "it is streamed from disk, use slices of it"
        )
    values = column.source.finished(column.source.read(np.atleast_1d(rows)))
    whole = values if rows.ndim else values[0]
    return whole[(slice(None), *position) if rows.ndim else tuple(position)] if position else whole


def _to(column: Streamed, *given: Any) -> Tensor:
    if any(isinstance(value, torch.dtype) and value != column.dtype for value in given):
        raise DataError(f"{column.source.path}: expected float32 of data streamed from disk; got {given[0]}")
    return column  # its rows come to the device as they are read


_DESCRIPTIONS = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.__len__,
    Tensor.dim,
    Tensor.size,
    Tensor.numel,
    Tensor.element_size,
    Tensor.nelement,
    Tensor.is_floating_point,
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
}
_ANSWERS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _rows,
    Tensor.to: _to,
    Tensor.cpu: _to,
    Tensor.min: lambda column: torch.tensor(column.source.survey.low / column.source.divisor),
    Tensor.max: lambda column: torch.tensor(column.source.survey.high / column.source.divisor),
    Tensor.device.__get__: lambda column, *_: torch.device("cpu"),  # type: ignore[attr-defined]
}
