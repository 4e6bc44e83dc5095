"""Numbers that carry their uncertainty."""

import math
from dataclasses import dataclass

from torch import Tensor

from ppgen.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A mean over rows.

    Attributes:
        value: the mean, in nats per row.
        stderr: its standard error over rows; nan for a single row.
        particles: draws of the latents per row.
    """

    value: float
    stderr: float
    particles: int

    @classmethod
    def of(cls, values: Tensor, *, particles: int) -> "Estimate":
        """Summarises one value per row, ``(rows,)``.

        >>> import torch
        >>> Estimate.of(torch.tensor([1.0, 3.0]), particles=5)
        Estimate(value=2.0, stderr=1.0, particles=5)
        """
        rows = len(values)
        if rows == 0:
            raise DataError("expected rows to average over; got none")
        stderr = float(values.double().std()) / math.sqrt(rows) if rows > 1 else math.nan
        return cls(float(values.double().mean()), stderr, particles)

    def as_dict(self) -> dict[str, float | int | None]:
        """Returns what JSON can hold: a number that is not finite becomes None."""
        finite = {"value": self.value, "stderr": self.stderr}
        return {k: v if math.isfinite(v) else None for k, v in finite.items()} | {"particles": self.particles}


@dataclass(frozen=True)
class Proportion:
    """A proportion with its 95 % Wilson interval, ``low <= value <= high``."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, successes: int, trials: int) -> "Proportion":
        """Estimates a proportion from counts.

        >>> share = Proportion.of(9, 10)
        >>> share.value, round(share.low, 3), round(share.high, 3)
        (0.9, 0.596, 0.982)

        Raises:
            DataError: if there are no trials.
        """
        from scipy.stats import binomtest

        if trials == 0:
            raise DataError("expected labelled rows to count over; got none")
        interval = binomtest(successes, trials).proportion_ci(method="wilson")
        return cls(successes / trials, float(interval.low), float(interval.high))

    def as_dict(self) -> dict[str, float]:
        """Returns ``{"value", "low", "high"}``."""
        return {"value": self.value, "low": self.low, "high": self.high}
