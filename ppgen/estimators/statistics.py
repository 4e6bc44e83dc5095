"""What draws of a gradient say about its bias and variance, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLAGGED = 4.5
"""The |z| above which an estimator is taken to be biased."""
_NORMAL = 1.96
_SHARE = 3
"""One in so many groups of draws finds the direction of the bias, the others measure it there."""
_ROUNDING = 3e-6
"""Relative error of a gradient in single precision."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, error: float) -> "Interval":
        """Returns the interval of a standard error.

        >>> Interval.around(1.0, 0.5)
        Interval(value=1.0, low=0.020000000000000018, high=1.98)
        """
        return cls(value, value - _NORMAL * error, value + _NORMAL * error)

    def scaled(self, factor: float) -> "Interval":
        """Returns it in another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)

    def as_dict(self) -> dict[str, float | None]:
        """Returns what JSON can hold: a number that is not finite becomes None."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {name: part if math.isfinite(part) else None for name, part in parts.items()}


@dataclass(frozen=True)
class Reference:
    """The gradient that estimates are compared with.

    Attributes:
        name: "exact", or the unbiased estimator whose long-run mean it is.
        mean: the gradient, flat: ``(parameters,)``.
        groups: means of the independent groups of draws behind it, ``(groups, parameters)``; None if it is exact.
        draws: how many there were; 0 if it is exact.
        rounding: absolute error that it may have, where large terms cancel.
    """

    name: str
    mean: Tensor
    groups: Tensor | None = None
    draws: int = 0
    rounding: float = 0.0

    def norm(self, *parts: slice) -> float:
        """Returns the norm of parts of the gradient; what noise adds to it is taken out."""
        squares = (float(self.mean[part].double().square().sum()) - self._noise(part) for part in parts)
        return math.sqrt(max(0.0, sum(squares)))

    def error(self) -> float:
        """Returns the standard error of the gradient, relative to its norm; 0 if it is exact."""
        everything = slice(0, len(self.mean))
        norm = self.norm(everything)
        return math.sqrt(self._noise(everything)) / norm if norm else math.inf

    def _noise(self, part: slice) -> float:
        if self.groups is None:
            return 0.0
        return float(self.groups[:, part].var(0).sum(dtype=torch.float64)) / len(self.groups)

    def halves(self, part: slice) -> tuple[Tensor, Tensor]:
        """Returns a part of the gradient, and independent estimates of it, ``(groups, size)``."""
        if self.groups is None:
            return self.mean[part].double(), self.mean[None, part]
        first, rest = _halves(self.groups[:, part])
        return first.mean(0, dtype=torch.float64), rest


@dataclass(frozen=True)
class Bias:
    """How far the mean of an estimator lies from the reference.

    Groups of draws are parted: one third finds the direction in which the mean departs, the others measure how far it
    departs there. So an unbiased estimator is as often below 0 as above, however many parameters there are.

    Attributes:
        relative: distance along that direction for all parameters together, in norms of the reference.
        z: the largest |z| of the same over tensors of parameters.
        tensor: the tensor it is of.
    """

    relative: Interval
    z: float
    tensor: str

    @property
    def flagged(self) -> bool:
        """Whether the estimator is biased, by what was drawn."""
        return self.z > FLAGGED

    @classmethod
    def of(cls, groups: Tensor, reference: Reference, tensors: Mapping[str, slice]) -> "Bias":
        """Compares means of groups of draws, ``(groups, parameters)``, with the reference."""
        everything = slice(0, groups.shape[1])
        norm = reference.norm(everything)
        distance, error = _distance(groups, reference, everything, floor=_ROUNDING * norm + reference.rounding)
        scale = norm or 1.0
        scores = {}
        for name, part in tensors.items():
            floor = _ROUNDING * reference.norm(part) + reference.rounding + 1e-12
            found, its_error = _distance(groups, reference, part, floor=floor)
            scores[name] = abs(found) / its_error
        worst = max(scores, key=lambda name: scores[name])
        return cls(Interval.around(distance / scale, error / scale), scores[worst], worst)


def _halves(groups: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.arange(len(groups)) % _SHARE == 0
    return groups[chosen], groups[~chosen]


def _distance(groups: Tensor, reference: Reference, part: slice, *, floor: float) -> tuple[float, float]:
    """How far the mean lies from the reference along the direction that one part of the draws finds; its error."""
    first, rest = _halves(groups[:, part])
    start, further = reference.halves(part)
    direction = first.mean(0, dtype=torch.float64) - start
    norm = float(direction.norm())
    if norm == 0:
        return 0.0, max(floor, 1e-30)
    direction = (direction / norm).to(rest.dtype)
    ours, theirs = (rest @ direction).double(), (further @ direction).double()
    square = float(ours.var()) / len(ours) + (float(theirs.var()) / len(theirs) if len(theirs) > 1 else 0.0)
    return float(ours.mean() - theirs.mean()), math.hypot(math.sqrt(square), floor)


def variance(groups: Tensor, parts: Sequence[slice], *, draws: int) -> Interval:
    """Returns the variance of one draw, summed over parts of the parameters, with its jackknife interval.

    Args:
        groups: means of groups of draws, ``(groups, parameters)``.
        parts: of the parameters.
        draws: of each group.
    """
    count = len(groups)
    squares = torch.zeros(count, dtype=torch.float64)
    for part in parts:
        chosen = groups[:, part]
        squares += (chosen - chosen.mean(0)).square().sum(1, dtype=torch.float64)
    without = (squares.sum() - count / (count - 1) * squares) / (count - 2)
    error = float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())
    found = Interval.around(float(squares.sum()) / (count - 1), error).scaled(draws)
    return Interval(found.value, max(0.0, found.low), found.high)
