"""Whether the values that a program observes are ones that their distribution can have."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.errors import DataError
from ppgen.programs.sites import is_data

_WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)
_SLACK = 1e-5


def require_support(site: Mapping[str, Any]) -> None:
    """Checks that observed values lie in the support of their distribution, whatever its ``validate_args`` says.

    Without ``validate_args`` a likelihood of counts or of yes and no is taken for its continuous relaxation, as is
    common for intensities from 0 to 1; values outside of the range of its support are refused all the same. Values that
    are masked do not count.

    Raises:
        DataError: naming site, row and value.
    """
    if not is_data(site) or not isinstance(site["value"], Tensor) or site["value"].numel() == 0:
        return
    base, masks = _unwrapped(site)
    if isinstance(base, torch.distributions.Bernoulli) and not site["value"].is_floating_point():
        kind = str(site["value"].dtype).removeprefix("torch.")
        raise DataError(
            f"site '{site['name']}' observes {kind} values, and a Bernoulli scores floats: pass y.float(), say"
        )
    inside = _inside(base, site["value"])
    if inside is None:
        return
    for mask, own in masks:
        mask = torch.as_tensor(mask, device=inside.device)
        inside = inside | ~mask.reshape(mask.shape + (1,) * own)
    if not inside.all():
        raise DataError(_message(site, base, inside))


def _unwrapped(site: Mapping[str, Any]) -> tuple[Any, list[tuple[Any, int]]]:
    """Returns a distribution without its wrappers, and each mask with how many dimensions of single values it spans."""
    distribution = site["fn"]
    masks = [] if site["mask"] is None else [(site["mask"], distribution)]
    while isinstance(distribution, _WRAPPERS):
        if isinstance(distribution, MaskedDistribution):
            masks.append((distribution._mask, distribution))
        distribution = distribution.base_dist
    base = len(distribution.event_shape)
    return distribution, [(mask, len(masked.event_shape) - base) for mask, masked in masks]


def _inside(base: Any, value: Tensor) -> Tensor | None:
    """Returns which values, each an event of ``base``, lie in its support; None where nobody knows."""
    try:
        support = base.support
        inside: Tensor = support.check(value)
        if not inside.all() and base._validate_args is False:
            inside = inside | _relaxed(base, value)
    except (NotImplementedError, RuntimeError, ValueError, TypeError):  # shapes that do not fit are named elsewhere
        return None
    return inside


def _relaxed(base: Any, value: Tensor) -> Tensor:
    """Returns which values lie in the range of a discrete support, between its values."""
    if isinstance(base, torch.distributions.Multinomial):  # its density takes the number of trials from the value
        counts: Tensor = ((value >= 0) & value.isfinite()).all(-1)
        return counts
    support = base.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return (value >= 0) & (value <= 1)
    if support is constraints.one_hot:
        return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() <= _SLACK)
    if isinstance(support, constraints.integer_interval) and not isinstance(base, torch.distributions.Categorical):
        between: Tensor = (value >= support.lower_bound) & (value <= support.upper_bound)
        return between
    if isinstance(support, type(constraints.nonnegative_integer)):
        above: Tensor = (value >= support.lower_bound) & value.isfinite()
        return above
    return torch.zeros((), dtype=torch.bool, device=value.device)


def _message(site: Mapping[str, Any], base: Any, inside: Tensor) -> str:
    dims = len(base.event_shape)
    place = [int(number) for number in (~inside).nonzero()[0]]
    value = site["value"].expand(inside.shape + site["value"].shape[site["value"].dim() - dims :])[tuple(place)]
    found = f"{value.item():.6g}" if value.dim() == 0 else f"a vector of {value.min():.6g} to {value.max():.6g}"
    batch = len(place) - (len(site["fn"].event_shape) - dims)
    row = f"row {place[batch - 1]}" if batch > 0 else "its value"
    inner = f", position {tuple(place[batch:])}" if place[batch:] else ""
    count = int((~inside).sum())
    such = f"{count} such value{'s' if count > 1 else ''}"
    return (
        f"site '{site['name']}' observes {found} at {row}{inner} (counted from 0; {such}), which a"
        f" {type(base).__name__} cannot be: {_remedy(base, value)}"
    )


def _remedy(base: Any, value: Tensor) -> str:
    if value.isnan().any():
        return "fill it in, and mask it by poutine.mask"
    unit = base.support is constraints.boolean or isinstance(base.support, type(constraints.unit_interval))
    if unit and value.dim() == 0 and 1 < value <= 255 and value == value.round():
        return "divide pixels of 0 to 255 by 255, or choose a distribution on such values"
    if base.support is constraints.boolean and 0 <= value <= 1:
        return "draw or round it to 0 or 1, or take Bernoulli(..., validate_args=False) for intensities"
    return (
        f"its support is {' '.join(str(base.support).split())[:80]}: change the column, or choose another distribution"
    )
