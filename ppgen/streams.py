"""What a user calls batches: as one iterator, and as the tensors that one batch holds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import DataError


def stream(batches: Any, *, endless: bool) -> Iterator[Any]:
    """Returns an iterator of batches.

    Args:
        batches: an iterator, taken as it is; an iterable of batches, gone through again and again; or one batch as a
            dict of columns, given again and again.
        endless: False goes through an iterable, or gives one batch, once.

    Raises:
        DataError: if a pass through an iterable gives no batch.

    Example:
        >>> from itertools import islice
        >>> list(islice(stream(["a", "b"], endless=True), 3))
        ['a', 'b', 'a']
    """
    if isinstance(batches, Iterator):
        return batches
    if isinstance(batches, Mapping):
        batches = [batches]
    return _passes(batches) if endless else iter(batches)


def _passes(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise DataError("expected batches to train on; got none")


def has_rows(column: Any) -> bool:
    """Whether a column has an entry for each row, rather than one for all.

    >>> import torch
    >>> has_rows(torch.zeros(3)), has_rows(torch.tensor(0.1)), has_rows(0.1)
    (True, False, False)
    """
    return isinstance(column, Tensor) and column.dim() > 0


def tensors_of(batch: Any) -> list[Tensor]:
    """Returns the tensors of a batch: nested dicts, tuples and lists of tensors and anything else.

    Torch's own functions for trees do the same, in several times the time: a tenth of a small step's.
    """
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def place(batch: Any, device: torch.device) -> Any:
    """Returns a batch whose tensors are on a device."""
    return map_tensors(lambda tensor: tensor.to(device), batch)


def rows_in(batch: Any) -> int:
    """Returns the length of the longest column of a batch; 1 if it has none.

    >>> import torch
    >>> rows_in({"x": torch.zeros(3, 2), "scale": torch.tensor(1.0)})
    3
    """
    return max((len(tensor) for tensor in tensors_of(batch) if tensor.dim()), default=1)


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Returns a batch with ``function`` applied to its tensors, in the order of `tensors_of`.

    >>> import torch
    >>> map_tensors(lambda tensor: tensor + 1, {"x": torch.tensor([1, 2]), "name": "a"})
    {'x': tensor([2, 3]), 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: map_tensors(function, part) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, part) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, part) for part in batch)
    return batch
