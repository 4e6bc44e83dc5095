"""Whether contenders compute the same: equal weights, equal data, and a few steps must lead to equal losses."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.works import Work
from ppgen.errors import PpgenError

LARGEST_Z = 4.5


class DifferentLossError(PpgenError):
    """A contender whose losses are not those of the reference: its times would be those of another work."""


def losses(step: Callable[[], Any], work: Work, *, seed: int = 0) -> list[float]:
    """Takes the first steps of a contender and returns their losses, in nats per datum."""
    torch.manual_seed(seed)
    found: list[float] = []
    while len(found) < work.calls:
        found += np.atleast_1d(step()).tolist()
    return found[: work.calls]


def check(
    name: str,
    found: Sequence[float],
    references: Sequence[Sequence[float]],
    *,
    tolerance: float,
    drift: float = 0.0,
) -> None:
    """Compares the losses of the first and the last few steps with several runs of the reference.

    The first shows the loss at the initial weights, the last whether gradients and optimizer are the same too.

    Args:
        name: of the contender.
        found: its losses, step by step.
        references: the same of runs of the reference with other noise.
        tolerance: share of the loss that is no difference; where there is but one reference it is all there is.
        drift: the same for the last steps, in addition.

    Raises:
        DifferentLossError: if one differs by more than 4.5 standard errors and the tolerance.
    """
    for where, part, share in (
        ("first", slice(0, 1), tolerance),
        ("last", slice(len(found) // 2, None), tolerance + drift),
    ):
        values = [float(np.mean(run[part])) for run in references]
        expected, own = float(np.mean(values)), float(np.mean(found[part]))
        spread = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values)) if len(values) > 1 else 0.0
        allowed = LARGEST_Z * spread + share * abs(expected)
        if not abs(own - expected) <= allowed:
            raise DifferentLossError(
                f"contender '{name}' computes another loss: expected {expected:.3f} ± {allowed:.3f} nats in its"
                f" {where} steps; got {own:.3f}"
            )
