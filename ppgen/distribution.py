"""Rows shared out among processes that train together: equal programs, each on its own rows of every batch.

All processes hold all parameters, optimizer states and random streams; only gradients, losses and metrics cross
between them, in one message a phase.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppgen.errors import ConfigError
from ppgen.normalization import SharedStatistics
from ppgen.processes import Processes
from ppgen.sharing import Draw, Recorder, SharedNoise, Sharing, most_choices, shared_draws
from ppgen.streams import map_tensors, tensors_of

VERIFIED_STEPS = frozenset({2, 10, 100, 1_000, 10_000})
"""Steps at which what processes compute together is compared with what one computes alone, as at the first."""
STRICTNESS = 0.03
"""By how much smaller a difference they may have at first, before gradients become small sums of large terms."""

Batch = Any
Scalars = dict[str, Tensor]
Gradients = dict[str, list[Tensor | None]]


@dataclass(frozen=True)
class Outcome:
    """What one run of a phase on some rows comes to.

    Attributes:
        losses: by player; means over rows.
        gradients: by the name of their leaf; means over rows.
        kept: buffers and running statistics by name, which are alike in all processes.
        streams: the states of the random streams after it.
    """

    losses: Scalars
    gradients: Scalars
    kept: Scalars
    streams: tuple[Tensor, ...]

    @classmethod
    def of(cls, losses: Scalars, gradients: Scalars, kept: Scalars, streams: tuple[Tensor, ...]) -> "Outcome":
        """Returns an outcome that later runs leave as it is."""
        return cls(_held(losses), _held(gradients), _held(kept), streams)


def _held(tensors: Scalars) -> Scalars:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class DataParallel:
    """Every process takes its share of the rows of a batch, and their gradients are averaged.

    Args:
        processes: those that train together; None for one alone.
        run: runs the phase of that number on some rows, and changes nothing.
        tolerance: largest relative difference that reordered sums make in a step, with much to spare.
    """

    def __init__(
        self, processes: Processes | None, run: Callable[[int, Batch], Outcome], *, tolerance: float = 1e-3
    ) -> None:
        self.processes = processes or Processes()
        self._run = run
        self._tolerance = tolerance
        self._sharings: dict[Any, Sharing] = {}
        self._choices: dict[Any, int] = {}

    def part(self, index: int, batch: Batch, *, step: int) -> Batch:
        """Returns the rows of this process, having made sure that processes compute what one would.

        Args:
            index: the number of the phase.
            batch: the rows of all processes.
            step: the number of the step.

        Raises:
            ConfigError: if rows cannot be divided evenly, or the phase cannot be divided by rows.
        """
        if self.processes.size == 1:
            return batch
        part = rows_of(batch, self.processes)
        key = _key(index, part)
        if key not in self._sharings or step in VERIFIED_STEPS:
            self._verify(key, batch, part, step)
        return part

    @contextlib.contextmanager
    def shared(self, index: int, part: Batch) -> Iterator[None]:
        """Within it, random draws and batch statistics are those of all processes."""
        sharing = self._sharings.get(_key(index, part)) if self.processes.size > 1 else None
        if sharing is None:
            yield
            return
        with SharedStatistics(self.processes), SharedNoise(sharing):
            yield

    def mean(self, losses: Scalars, gradients: Gradients, metrics: Scalars) -> tuple[Scalars, Gradients, Scalars]:
        """Returns the means of everything over all processes, in one message."""
        if self.processes.size == 1:
            return losses, gradients, metrics
        leaves, spec = pytree.tree_flatten((losses, gradients, metrics))
        means = iter(self.processes.mean([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
        filled = [next(means) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        averaged: tuple[Scalars, Gradients, Scalars] = pytree.tree_unflatten(filled, spec)
        return averaged

    def _verify(self, key: Any, batch: Batch, part: Batch, step: int) -> None:
        run = functools.partial(self._run, key[0])
        for rows in (batch, part):
            run(rows)  # what is found out once and remembered draws only now
        with Recorder() as of_whole:
            whole = run(batch)
        with Recorder() as of_part:
            run(part)
        lengths = _lengths(part)
        # where rows share a dimension with something else, the layout that gives the right gradients is the right one
        choices = (
            [self._choices[key]] if step > 2 and key in self._choices else range(most_choices(of_part.draws, lengths))
        )
        reason: str | None = None
        for choice in choices:
            sharing = self._sharing(of_part.draws, of_whole.draws, lengths, choice)
            with SharedStatistics(self.processes), SharedNoise(sharing):
                together = run(part)
            reason = self._difference(whole, together, first=step <= 2)
            if reason is None:
                self._sharings[key], self._choices[key] = sharing, choice
                return
        raise self._refusal(str(reason))

    def _sharing(self, part: Sequence[Draw], whole: Sequence[Draw], rows: frozenset[int], choice: int) -> Sharing:
        team = self.processes
        try:
            draws = shared_draws(part, whole, rows=rows, size=team.size, choice=choice)
        except ConfigError as error:
            raise self._refusal(str(error)) from error
        return Sharing(team.rank, team.size, draws, team.join)

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.processes.size} processes cannot train this as one would: {reason}; use one process")

    def _difference(self, whole: Outcome, part: Outcome, *, first: bool) -> str | None:
        tolerance = self._tolerance * (STRICTNESS if first else 1.0)
        if reason := self.processes.first(_own_difference(whole, part, self._tolerance)):
            return reason
        means = self.processes.mean([*part.losses.values(), *part.gradients.values()])
        losses, gradients = means[: len(part.losses)], means[len(part.losses) :]
        return self.processes.first(
            _farthest("the loss of player '{}'", whole.losses, losses, tolerance, each=True)
            or _farthest("the gradient of '{}'", whole.gradients, gradients, tolerance, each=False)
        )


def _own_difference(whole: Outcome, part: Outcome, tolerance: float) -> str | None:
    """Says what already differs without a look at other processes."""
    if whole.gradients.keys() != part.gradients.keys() or whole.losses.keys() != part.losses.keys():
        return "which parameters have a gradient depends on the rows"
    for name, tensor in whole.kept.items():
        other = part.kept.get(name)
        if other is None or other.shape != tensor.shape or not _close(other, tensor, tolerance):
            return f"'{name}' keeps a statistic of the rows of its own process"
    if any(not torch.equal(one, other) for one, other in zip(whole.streams, part.streams, strict=True)):
        return "how many random numbers it draws depends on the number of rows"
    return None


def _farthest(text: str, whole: Scalars, together: Sequence[Tensor], tolerance: float, *, each: bool) -> str | None:
    """Says which tensor is too far from its twin; a gradient that is 0 but for rounding is measured by all of them."""
    sizes = [float(tensor.double().norm()) for tensor in whole.values()]
    for (name, tensor), other, size in zip(whole.items(), together, sizes, strict=True):
        distance = float((tensor.double() - other.double()).norm())
        allowed = tolerance * (max(size, 1.0) if each else math.hypot(*sizes))
        if not distance <= allowed and math.isfinite(math.hypot(*sizes)):
            apart = 100 * distance / max(size, 1e-30)
            return (
                f"{text.format(name)} would differ by {apart:.2g} %, so the loss is no mean over independent rows;"
                " where terms lie outside the data plate, it needs pyro.plate('data', all_rows, subsample_size=rows)"
            )
    return None


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def rows_of(batch: Batch, processes: Processes) -> Batch:
    """Returns the rows of one process: the same share of every column.

    Raises:
        ConfigError: if rows cannot be divided evenly.

    >>> rows_of({"x": torch.arange(6)}, Processes(rank=1, size=2))
    {'x': tensor([3, 4, 5])}
    """

    def own(column: Tensor) -> Tensor:
        if column.dim() == 0:
            return column
        count, rest = divmod(len(column), processes.size)
        if rest:
            raise ConfigError(uneven(len(column), processes.size))
        return column.narrow(0, processes.rank * count, count)

    return map_tensors(own, batch)


def uneven(rows: int, size: int) -> str:
    """Says that a batch cannot be divided evenly, and which near it can.

    >>> uneven(100, 3)
    'a batch of 100 rows cannot be divided evenly among 3 processes: use 99 (--set batch_size=99, say)'
    """
    near = max(size, round(rows / size) * size)
    return (
        f"a batch of {rows} rows cannot be divided evenly among {size} processes:"
        f" use {near} (--set batch_size={near}, say)"
    )


def _lengths(batch: Batch) -> frozenset[int]:
    return frozenset(len(column) for column in tensors_of(batch) if column.dim() > 0)


def _key(index: int, batch: Batch) -> Any:
    return index, tuple(tuple(column.shape) for column in tensors_of(batch))
