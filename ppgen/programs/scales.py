"""What weighs a site: the plates that it lies in, and what a program scales and masks it by."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from ppgen.errors import ConfigError

Scale = float | Tensor


def plate_scale(site: Mapping[str, Any], *, without: Collection[str] = ()) -> float:
    """Returns what subsampled plates multiply the log probability of a site by (the N/B of each).

    Args:
        site: of a run.
        without: plates that are left out.
    """
    scale = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.name not in without:
            scale *= frame.full_size / frame.size
    return scale


def own_scale(site: Mapping[str, Any]) -> Scale:
    """Returns what the program itself multiplies the log probability of a site by: ``poutine.scale``."""
    scale, by_plates = site["scale"], plate_scale(site)
    if isinstance(scale, Tensor):
        return scale / by_plates if by_plates != 1 else scale
    # the plates' share went in by several products, so what is left of it is rounded
    own = scale / by_plates
    return 1.0 if math.isclose(own, 1.0, rel_tol=1e-9) else float(own)


def is_scaled(site: Mapping[str, Any]) -> bool:
    """Whether a program scales a site itself; it reads the values of tensors."""
    scale = own_scale(site)
    return bool((scale != 1).any()) if isinstance(scale, Tensor) else scale != 1


def both_masks(one: Any, other: Any) -> Any:
    """Returns the mask of what both masks count."""
    if one is None or other is None or one is other:
        return other if one is None else one
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.as_tensor(one) & torch.as_tensor(other)
    return bool(one and other)


def without_mask(fn: Any) -> Any:
    """Returns a distribution without its own mask (``.mask``)."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


def own_mask(fn: Any) -> Any:
    """Returns the mask of a distribution itself; None if it masks nothing."""
    mask: Any = None
    while isinstance(fn, MaskedDistribution):
        mask, fn = both_masks(mask, None if fn._mask is True else fn._mask), fn.base_dist
    return mask


def of_rows(scale: Scale, nesting: int, dim: int) -> Scale:
    """Returns the scale of each row, ``(rows,)``, of a scale in the dimensions of plates; a number stays."""
    if not isinstance(scale, Tensor) or not scale.dim():
        return scale
    wide = scale.reshape((1,) * (nesting - scale.dim()) + scale.shape)
    for other in range(-wide.dim(), 0):
        if other != dim:
            wide = wide.narrow(other, 0, 1)
    return wide.flatten()


def require_one_scale(scales: Mapping[str, Scale], nesting: int, dim: int) -> None:
    """Checks that sites whose log probabilities make one weight are scaled alike, and rows as a whole.

    A weight is then the power of an importance weight, whose exponent stands outside the logarithm.

    Args:
        scales: own scales by site, in the dimensions of plates.
        nesting: how many of these dimensions there are.
        dim: that of the rows.

    Raises:
        ConfigError: if not.
    """
    found: dict[str, Scale] = {}
    for name, scale in scales.items():
        row = of_rows(scale, nesting, dim)
        whole = torch.as_tensor(scale)
        spread = whole if whole.dim() < 2 else whole - torch.as_tensor(row).reshape(_along(dim, whole.dim()))
        if whole.dim() >= 2 and not torch.allclose(spread, torch.zeros_like(spread)):
            raise ConfigError(
                f"site '{name}' is scaled by different numbers within one row, so that no bound of several draws can"
                " be made of it: scale rows as a whole, or take ELBO"
            )
        found[name] = row
    first, *rest = found
    for name in rest:
        one, two = torch.as_tensor(found[first]).double(), torch.as_tensor(found[name]).double()
        if not ((one - two).abs() <= 1e-5 * one.abs()).all():
            raise ConfigError(
                f"sites '{first}' and '{name}' are scaled differently ({_named(found[first])} and"
                f" {_named(found[name])}), so that no bound of several draws can be made of them: scale model and"
                " guide as a whole, or take ELBO (its beta weighs the divergence)"
            )


def _along(dim: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if place == dim else 1 for place in range(-rank, 0))


def _named(scale: Scale) -> str:
    if isinstance(scale, Tensor) and scale.numel() > 1:
        return "a number for each row"
    return f"{float(scale):.4g}"
