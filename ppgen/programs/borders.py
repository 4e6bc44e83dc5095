"""Draws that rounding takes to the border of their support, where a density is infinite."""

from typing import Any

from torch import Tensor
from torch.distributions import constraints


def border_of(site: Any, bad: Tensor) -> str | None:
    """Says so if values of a site whose log density is not finite lie at the border of its support.

    Args:
        site: a sample site of a trace.
        bad: where its log density is not finite, ``(plates)``.

    >>> import torch, pyro.distributions as dist
    >>> site = {"fn": dist.Beta(0.1, 0.1), "value": torch.tensor([0.5, 1.0]), "is_observed": False}
    >>> border_of(site, torch.tensor([False, True]))
    'its value 1 is the border of the support of Beta, to which draws round: clamp them, or use float64'
    """
    support, value = site["fn"].support, site["value"]
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    for _ in range(value.dim() - bad.dim()):
        bad = bad.unsqueeze(-1)
    if bad.dim() > value.dim():
        return None
    found = value[bad.expand(value.shape)] if value.dim() else value.reshape(1)
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    if support is constraints.simplex:
        bounds = [0.0]
    for bound in bounds:
        if isinstance(bound, (int, float)) and bool((found == bound).any()):
            kind = _kind(site["fn"])
            if site["is_observed"]:
                return f"the datum {bound:g} is the border of the support of {kind}, where its density is infinite or 0"
            return (
                f"its value {bound:g} is the border of the support of {kind}, to which draws round: clamp them, or use"
                " float64"
            )
    return None


def _kind(distribution: Any) -> str:
    while type(distribution).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        distribution = distribution.base_dist
    return type(distribution).__name__
