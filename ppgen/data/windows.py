"""Shuffled rows of columns on disk: read in long stretches, a window of them at a time, the next one ahead of time."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.data import streaming
from ppgen.data.checking import Array
from ppgen.data.streaming import Streamed

STRETCHES = 256
"""From how many places of the file the rows of a window come."""
_INDEX = 24  # bytes that a row's numbers take while a window is made

Entropy = Callable[..., np.random.SeedSequence]


class Window(NamedTuple):
    """Rows of consecutive batches.

    Attributes:
        columns: The rows (m, ...) by name, in the dtype of the file.
        order: Which of them make each batch, int64 (batches, rows of a batch).
    """

    columns: Mapping[str, Tensor]
    order: Tensor


class Windows:
    """All rows once an epoch, in an order that is a pure function of the epoch.

    The file is cut into stretches, which are shuffled and laid end to end; consecutive windows are cut from that row
    of stretches, and the rows of each window are shuffled. So a batch mixes rows from `STRETCHES` places, and the disk
    reads long pieces only. Where all rows fit into one window, any order of them can come up.

    Args:
        columns: Columns of one length by name, one of them `Streamed` at least.
        batch_size: Rows in a batch.
        entropy: Numbers to a seed.

    Attributes:
        steps: Batches in a window, but the last one of an epoch.
    """

    def __init__(self, columns: Mapping[str, Tensor], batch_size: int, entropy: Entropy) -> None:
        self._columns = {
            name: column if isinstance(column, Streamed) else column.cpu().numpy() for name, column in columns.items()
        }
        self._rows = len(next(iter(columns.values())))
        self._batch_size, self._entropy = batch_size, entropy
        size = sum(c.source.array[:1].nbytes for c in columns.values() if isinstance(c, Streamed)) + _INDEX
        self._used = self._rows // batch_size * batch_size
        self.steps = max(1, min(streaming.WINDOW // size, self._used) // batch_size)
        self._stretch = max(1, self.steps * batch_size // STRETCHES)
        self._ahead: _Ahead | None = None
        # the first is that of the window in use, the second that of the next one
        self._buffers = [self._new_buffers(), self._new_buffers()]

    def _new_buffers(self) -> dict[str, Array]:
        rows = self.steps * self._batch_size
        return {n: c.source.buffer(rows) for n, c in self._columns.items() if isinstance(c, Streamed)}

    def take(self, epoch: int, number: int) -> Window:
        """Returns a window of an epoch, and begins to read the one after it; the window returned before is lost.

        Raises:
            DataError: if the file cannot be read or has changed.
        """
        ahead, self._ahead = self._ahead, None
        window = ahead.window((epoch, number)) if ahead is not None else None
        if window is None:
            window = self._read(epoch, number)
        self._buffers.reverse()
        following = (number + 1) * self.steps * self._batch_size
        self._ahead = _Ahead(self._read, (epoch, number + 1) if following < self._used else (epoch + 1, 0))
        return window

    def _read(self, epoch: int, number: int) -> Window:
        """Reads a window; numpy alone is used, as torch would start threads of its own beside those of the steps."""
        rows = self._stretches(epoch, number * self.steps * self._batch_size)
        order = _shuffled(len(rows), self._entropy(epoch, number + 1)).reshape(-1, self._batch_size)
        # in the order of the file: a disk need not go back and forth
        needed, places = np.unique(order.ravel(), return_inverse=True)
        rows = rows[needed]
        columns = {
            name: column.source.read(column.rows[rows], self._buffers[1][name])
            if isinstance(column, Streamed)
            else torch.from_numpy(column[rows])
            for name, column in self._columns.items()
        }
        return Window(columns, torch.from_numpy(places.reshape(order.shape)))

    def _stretches(self, epoch: int, start: int) -> Array:
        """Returns the numbers of the rows of the window that begins at `start`, ascending."""
        stop = min(start + self.steps * self._batch_size, self._used)
        shuffled = _shuffled(-(-self._rows // self._stretch), self._entropy(epoch, 0)) * self._stretch
        ends = np.cumsum(np.minimum(shuffled + self._stretch, self._rows) - shuffled)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        rows = [np.arange(begin, min(begin + self._stretch, self._rows)) for begin in shuffled[first : last + 1]]
        before = int(ends[first]) - len(rows[0])
        return np.sort(np.concatenate(rows)[start - before : stop - before])


class _Ahead:
    """A window that a thread of its own reads; the thread ends with its window.

    No daemon: a thread that the end of the process finds inside torch would abort it.
    """

    def __init__(self, read: Callable[[int, int], Window], place: tuple[int, int]) -> None:
        self.place = place
        self._window: Window | None = None
        self._thread = threading.Thread(target=self._run, args=(read,), name="ppgen-read-ahead")
        self._thread.start()

    def _run(self, read: Callable[[int, int], Window]) -> None:
        with contextlib.suppress(Exception):  # the step that needs the window tries again, and shows what it meets
            self._window = read(*self.place)

    def window(self, place: tuple[int, int]) -> Window | None:
        """Waits for the thread; None if it failed, read another place, or was left behind by a fork."""
        self._thread.join()
        return self._window if place == self.place else None


def _shuffled(count: int, entropy: np.random.SeedSequence) -> Any:
    generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
    return torch.randperm(count, generator=generator).numpy()
