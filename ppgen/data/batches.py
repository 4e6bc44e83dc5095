"""Endless batches whose content is a pure function of (seed, position)."""

import functools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType

import numpy as np
import torch
from torch import Tensor

from ppgen.data.datasets import Columns
from ppgen.data.streaming import Streamed, held_if_small
from ppgen.data.windows import Windows
from ppgen.errors import ConfigError, DataError
from ppgen.streams import has_rows, map_tensors

_ORDER, _NOISE, _WINDOW = 0, 1, 2  # separate random streams


def columns_to(columns: Mapping[str, Tensor], device: str | torch.device) -> Columns:
    """Move every column to a device; what is no tensor stays as it is."""
    moved: Columns = map_tensors(lambda column: column.to(device), columns)
    return moved


class Batches(Iterator[Columns]):
    """Endless batches of a fixed size, each epoch in a new order, held and indexed on the device.

    An epoch drops the rows that do not fill a batch. The batch at a position depends on the columns, the seed and
    the position only, and no global random state is read or changed: set `position` to resume exactly.

    Columns that are streamed from disk come in windows of 128 MB (see `Windows`), of which the next one is read while
    batches are drawn from the present one; streamed columns that fit into a window are read at once, and held.

    Args:
        columns: Tensors (n, ...) by name; numbers and scalar tensors (a temperature, say) are given to every batch.
        batch_size: Rows in a batch; no more than n are used.
        seed: Seed of order and binarization.
        device: Where the columns are held.
        binarization: "dynamic" replaces intensities by a new Bernoulli draw in every batch; "none" and "static"
            leave the columns as they are.
        binarize: Names of the columns to binarize.

    Raises:
        ConfigError: if a batch would be empty, the seed is negative, or an option is unknown.
        DataError: if there are no rows, columns differ in length, or a column to binarize leaves [0, 1].

    Example:
        >>> batches = Batches({"x": torch.arange(6.0)}, 3, seed=0)
        >>> batches.steps_per_epoch
        2
        >>> first, second = next(batches)["x"], next(batches)["x"]
        >>> sorted(torch.cat([first, second]).tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        >>> batches.position = 1
        >>> torch.equal(next(batches)["x"], second)
        True
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        batch_size: int,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        binarization: str = "none",
        binarize: Sequence[str] = ("x",),
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected a batch size of at least 1; got {batch_size}")
        if seed < 0:
            raise ConfigError(f"expected a seed of at least 0; got {seed}")
        if binarization not in ("none", "static", "dynamic"):
            raise ConfigError(f"expected binarization none, static or dynamic; got {binarization!r}")
        self._rows = _length(columns)
        self._binarize = tuple(binarize) if binarization == "dynamic" else ()
        for name in self._binarize:
            _require_probabilities(columns, name)
        self.seed = seed
        self.batch_size = min(batch_size, self._rows)
        self.steps_per_epoch = self._rows // self.batch_size
        self._position = 0
        self._device = torch.empty(0, device=device).device
        self._constants = columns_to({n: column for n, column in columns.items() if not has_rows(column)}, device)
        columns = {name: held_if_small(column) for name, column in columns.items() if has_rows(column)}
        self._streamed = {name: column for name, column in columns.items() if isinstance(column, Streamed)}
        self._windows: Windows | None = None
        if self._streamed:
            self._windows = Windows(columns, self.batch_size, functools.partial(self._entropy, _WINDOW))
        self._steps = self._windows.steps if self._windows else self.steps_per_epoch
        self._place = (-1, -1)
        self._columns = {} if self._streamed else columns_to(columns, device)
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Number of rows in all."""
        return self._rows

    @property
    def position(self) -> int:
        """Number of batches drawn so far."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        if position < 0:
            raise ConfigError(f"expected a position of at least 0; got {position}")
        self._position = position

    def __next__(self) -> Columns:
        epoch, step = divmod(self._position, self.steps_per_epoch)
        number, step = divmod(step, self._steps)
        if (epoch, number) != self._place:
            self._enter(epoch, number)
        rows = self._order[step]
        batch = {name: column.index_select(0, rows) for name, column in self._columns.items()}
        for name, column in self._streamed.items():
            batch[name] = column.source.finished(batch[name])
        if self._binarize:
            self._draw(batch)
        self._position += 1
        return batch | self._constants

    def _enter(self, epoch: int, number: int) -> None:
        if self._windows is None:
            self._shuffle(epoch)
        else:
            window = self._windows.take(epoch, number)
            self._columns = columns_to(window.columns, self._device)
            self._order = window.order.to(self._device)
        self._place = (epoch, number)

    def _shuffle(self, epoch: int) -> None:
        # always on the CPU, so that the order does not depend on the device
        generator = torch.Generator().manual_seed(_number(self._entropy(_ORDER, epoch)))
        order = torch.randperm(self._rows, generator=generator)[: self.steps_per_epoch * self.batch_size]
        self._order = order.view(self.steps_per_epoch, self.batch_size).to(self._device)

    def _draw(self, batch: Columns) -> None:
        """Replaces intensities by Bernoulli draws, in place."""
        noise = _Uniform(self._entropy(_NOISE, self._position), self._device)
        for name in self._binarize:
            intensities = batch[name]
            intensities.mul_(noise.top).gt_(noise(tuple(intensities.shape)))

    def _entropy(self, stream: int, *numbers: int) -> np.random.SeedSequence:
        # the number of rows is mixed in, so that labelled and unlabelled batches of one seed do not share noise
        return np.random.SeedSequence(self.seed, spawn_key=(stream, *numbers, self._rows))


class _Uniform:
    """Uniform numbers from 0 up to, but not, `top`; on a CPU with 24 random bits, several times as fast as torch's."""

    def __init__(self, entropy: np.random.SeedSequence, device: torch.device) -> None:
        if device.type == "cpu":
            self.top = 2.0**24
            self._bits = np.random.SFC64(entropy)
        else:
            self.top = 1.0
            self._generator = torch.Generator(device).manual_seed(_number(entropy))
        self._device = device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        if self._device.type != "cpu":
            return torch.rand(shape, generator=self._generator, device=self._device)
        count = math.prod(shape)
        bits = torch.from_numpy(self._bits.random_raw((count + 1) // 2).view(np.int32))
        return bits[:count].bitwise_and_(2**24 - 1).float().view(shape)


class Together(Iterator[dict[str, Columns]]):
    """Draw from several `Batches` at once, each with its own order: `{"labelled": {...}, "unlabelled": {...}}`.

    Args:
        parts: `Batches` by name, all at the same position.

    Raises:
        ConfigError: if there are none, or their positions differ.
    """

    def __init__(self, **parts: Batches) -> None:
        if not parts:
            raise ConfigError("expected at least one Batches; got none")
        if len({part.position for part in parts.values()}) > 1:
            found = ", ".join(f"{name}: {part.position}" for name, part in parts.items())
            raise ConfigError(f"expected Batches at one position; got {found}")
        self._parts = parts
        self.steps_per_epoch = max(part.steps_per_epoch for part in parts.values())

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows in all, by part."""
        return {name: part.rows for name, part in self._parts.items()}

    @property
    def position(self) -> int:
        """Number of draws so far."""
        return next(iter(self._parts.values())).position

    @position.setter
    def position(self, position: int) -> None:
        for part in self._parts.values():
            part.position = position

    def __next__(self) -> dict[str, Columns]:
        return {name: next(part) for name, part in self._parts.items()}


def _number(entropy: np.random.SeedSequence) -> int:
    return int(entropy.generate_state(1, np.uint64)[0])


def _length(columns: Mapping[str, Tensor]) -> int:
    if not columns:
        raise DataError("expected columns to draw batches from; got none")
    for name, column in columns.items():
        if not isinstance(column, (Tensor, numbers.Number, str, NoneType)):
            kind = type(column).__name__
            raise DataError(f"expected column {name!r} as a tensor, or one number for all rows; got a {kind}")
    lengths = {name: len(column) for name, column in columns.items() if has_rows(column)}
    if not lengths:
        raise DataError(f"expected a column of rows to draw batches from; got {', '.join(columns)}, one value each")
    (first, rows), *rest = lengths.items()
    for name, length in rest:
        if length != rows:
            raise DataError(f"expected columns of one length; got {first}: {rows}, {name}: {length}")
    if rows == 0:
        raise DataError(f"expected rows to draw batches from; got none in {', '.join(columns)}")
    return rows


def _require_probabilities(columns: Mapping[str, Tensor], name: str) -> None:
    if name not in columns:
        raise ConfigError(f"expected a column {name!r} to binarize; got {', '.join(columns)}")
    low, high = columns[name].min().item(), columns[name].max().item()
    if not 0 <= low <= high <= 1:
        raise DataError(f"expected {name} in [0, 1] to binarize it; got {low:g} to {high:g}")
