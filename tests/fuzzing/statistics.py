"""When a figure that is drawn by chance is another than it should be."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SUSPICIOUS = 4.5
"""Standard errors beyond which a figure is computed again, with fresh draws, ten times as many."""
ROUNDING = 2e-5
"""Of a float32 sum, relative to one and its size."""


class WrongError(Exception):
    """A figure is not what it should be."""


def require(draw: Callable[[], Mapping[str, float]], expected: Mapping[str, float], *, draws: int) -> None:
    """Checks that figures have these means.

    Args:
        draw: makes the figures once.
        expected: their means by name.
        draws: how many to make first.

    Raises:
        WrongError: if they are others.
    """
    for count in (draws, 10 * draws, 60 * draws):
        torch.manual_seed(count)
        drawn = [draw() for _ in range(count)]
        worst, name = max((_distance([d[n] for d in drawn], value), n) for n, value in expected.items())
        if worst < SUSPICIOUS:
            return
        if math.isinf(worst) or worst > 1e4:
            break
    found = sum(d[name] for d in drawn) / len(drawn)
    raise WrongError(f"{name} is {found:.5g}, and should be {expected[name]:.5g} (z = {worst:.1f}, {len(drawn)} draws)")


def _distance(drawn: list[float], value: float) -> float:
    values = torch.tensor(drawn, dtype=torch.float64)
    if not values.isfinite().all() or not math.isfinite(value):
        return math.inf
    error = float(values.std()) / math.sqrt(len(drawn)) if len(drawn) > 1 else 0.0
    return abs(float(values.mean()) - value) / math.hypot(error, ROUNDING * (1 + abs(value)))


def require_mean_one(draw: Callable[[int], Tensor], what: str) -> None:
    """Checks that draws ``(count, rows)`` have mean 1 in every row.

    Raises:
        WrongError: if not.
    """
    for count in (4_000, 40_000, 400_000):
        torch.manual_seed(count)
        ratios = draw(count)
        error = (ratios.var(0) / count + 1e-9).sqrt()
        apart = (ratios.mean(0) - 1).abs() / error
        worst = float(apart.max())
        if worst < SUSPICIOUS:
            return
        if not math.isfinite(worst) or worst > 1e4:
            break
    row = int(apart.argmax())
    found = float(ratios.mean(0)[row])
    raise WrongError(f"the {what} of row {row} is {found:.5g} times what it should be (z = {worst:.1f})")


def distance_of_logs(log_ratios: Tensor, spread: Tensor, count: int) -> float:
    """Returns by how many standard errors logs of means of so many draws are from 0, at most."""
    apart = (log_ratios.exp() - 1).abs() / (spread.square() / count + 1e-8).sqrt()
    return float(apart.max())
