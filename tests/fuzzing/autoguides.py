"""Where the parameters of an autoguide stand, by the place of each value."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .affine import Affine
from .description import FEATURE_COUNT, UNSEEN, Description, Site

JOINT = ("AutoDiagonalNormal", "AutoMultivariateNormal")


@dataclass
class Auto:
    """What an autoguide draws.

    Attributes:
        values: parameters as an own guide would have them, by their names there.
        joint: affine values by place, where all sites are drawn at once.
        entropy: of all that is drawn at once.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    joint: dict[str, Affine] = field(default_factory=dict)
    entropy: float = 0.0


def read(described: Description, guide: Any) -> Auto:
    """Returns what an autoguide draws at the parameters that it has, float64."""
    if described.auto in JOINT:
        return _joint(described, guide)
    found = Auto()
    for number, site in enumerate(described.guide):
        part, kind = guide, described.auto
        if kind == "AutoGuideList":
            part, kind = (guide[0], "AutoNormal") if number == 0 else (guide[1], "AutoDelta")
        ends = {"": part.locs, "_scale": part.scales} if kind == "AutoNormal" else {"": part}
        for end, holder in ends.items():
            for place, value in _placed(described, site, holder).items():
                found.values[f"g_{place}{end}"] = value
    return found


def names_in_trace(described: Description, site: Site) -> list[str]:
    """Returns the names that a site has in a trace."""
    along = described.features == "sequential" and "m" in site.index
    return [f"{site.name}_{m}" for m in range(FEATURE_COUNT)] if along else [site.name]


def _placed(described: Description, site: Site, holder: Any) -> dict[str, Tensor]:
    names = names_in_trace(described, site)
    flat = [functools.reduce(getattr, name.split("."), holder).detach().double().flatten() for name in names]
    if len(names) > 1:
        return {f"{site.name}.{m}": one if "r" in site.index else one[0] for m, one in enumerate(flat)}
    return split(described, site, flat[0])


def split(described: Description, site: Site, flat: Tensor) -> dict[str, Tensor]:
    """Returns the values of a site by place: ``(rows, ...)`` or ``(...)`` each, from all of them in one line."""
    local = "r" in site.index
    if "m" not in site.index:
        return {site.name: flat if local else flat[0]}
    rows, rest = (described.rows if local else 1), flat.shape[1:]
    if described.flipped or described.features == "event":
        found = flat.reshape(rows, FEATURE_COUNT, *rest).transpose(0, 1)
    else:
        found = flat.reshape(FEATURE_COUNT, rows, *rest)
    return {f"{site.name}.{m}": found[m] if local else found[m, 0] for m in range(FEATURE_COUNT)}


def _joint(described: Description, guide: Any) -> Auto:
    loc = guide.loc.detach().double()
    scale = guide.scale.detach().double()
    factor = scale.diag() if described.auto == "AutoDiagonalNormal" else scale.unsqueeze(-1) * guide.scale_tril.detach()
    found, start = Auto(), 0
    for site in _in_order(described):
        for place, mean, row in _of_site(described, site, loc[start:], factor[start:]):
            noises = {f"joint.{n}": row[..., n] for n in range(len(loc))}
            found.joint[place] = Affine(mean, noises)
        start += _count(described, site)
    found.entropy = float(factor.diagonal().log().sum()) + 0.5 * len(loc) * (1 + math.log(2 * math.pi))
    return found


def _in_order(described: Description) -> list[Site]:
    """The latents in the order in which the model draws them."""
    by_name = {site.name: site for site in described.guide}
    names = [site.name if not site.observed else site.name + UNSEEN for site in described.model]
    return [by_name[name] for name in names if name in by_name]


def _count(described: Description, site: Site) -> int:
    return (described.rows if "r" in site.index else 1) * (FEATURE_COUNT if "m" in site.index else 1)


def _of_site(described: Description, site: Site, loc: Tensor, factor: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    count = _count(described, site)
    if len(names_in_trace(described, site)) > 1:  # one after the other, so features come first
        shape = (FEATURE_COUNT, count // FEATURE_COUNT)
        means, rows = loc[:count].reshape(shape), factor[:count].reshape(*shape, -1)
        take = slice(None) if "r" in site.index else 0
        return [(f"{site.name}.{m}", means[m, take], rows[m, take]) for m in range(FEATURE_COUNT)]
    means_, rows_ = split(described, site, loc[:count]), split(described, site, factor[:count])
    return [(place, means_[place], rows_[place]) for place in means_]


def move(guide: Any) -> None:
    """Gives an autoguide parameters that are neither its first nor too narrow, so that weights have a variance."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            shift = 1.0 if "scale" in name and "tril" not in name else 0.0
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + shift)
