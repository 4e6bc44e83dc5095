"""What a user calls batches, as one iterator."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
