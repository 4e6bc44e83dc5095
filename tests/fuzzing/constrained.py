"""Parameters as functions of what is optimised, written out in float64."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .description import Description
from .source import parameters


def values_of(described: Description, unconstrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns constrained parameters, float64, as functions of the tensors that are optimised."""
    found = {}
    for name, (_, constraint) in parameters(described).items():
        if name in unconstrained:
            kind, _, limits = constraint.rstrip(")").partition("(")
            numbers = [float(part) for part in limits.split(",") if part]
            found[name] = _KINDS[kind](numbers, unconstrained[name].double())
    return found


_KINDS: dict[str, Callable[[list[float], Tensor], Tensor]] = {
    "real": lambda _, free: free,
    "positive": lambda _, free: free.exp(),
    "softplus_positive": lambda _, free: torch.nn.functional.softplus(free),
    "greater_than": lambda limits, free: limits[0] + free.exp(),
    "less_than": lambda limits, free: limits[0] - free.exp(),
    "unit_interval": lambda _, free: free.sigmoid(),
    "interval": lambda limits, free: limits[0] + (limits[1] - limits[0]) * free.sigmoid(),
    "simplex": lambda _, free: free.softmax(-1),
}
