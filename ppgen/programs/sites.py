"""Sites of a program by what they are: data, and values that a program gives a name."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution, Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor


def is_named(site: Mapping[str, Any]) -> bool:
    """Whether a site is nothing drawn but a value that the program gives a name, by ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a site is a ``pyro.factor``, from which nothing can be drawn."""
    distribution = site["fn"]
    while isinstance(distribution, (Independent, MaskedDistribution)):
        distribution = distribution.base_dist
    return isinstance(distribution, Unit)


def is_data(site: Mapping[str, Any]) -> bool:
    """Whether a sample site has a value given to it, of which its distribution could draw another."""
    return bool(site["is_observed"]) and not is_named(site) and not is_factor(site)


class Unobserved(Messenger):
    """Within it, data are drawn instead of observed, as many rows as there were.

    Unlike ``poutine.uncondition`` it leaves alone what is no data: a ``pyro.deterministic``, whose distribution a plate
    has expanded, and a ``pyro.factor``.
    """

    def _pyro_sample(self, site: Any) -> None:
        if not is_data(site):
            return
        site["fn"] = _expanded(site["fn"], site["value"])
        site["infer"]["was_observed"] = True
        site["is_observed"], site["value"], site["done"] = False, None, False


def unobserved(program: Any) -> Any:
    """Returns a program that draws its data; see `Unobserved`."""
    return Unobserved()(program)


def _expanded(distribution: Any, observed: Any) -> Any:
    """Returns a distribution of as many draws as there are observed values, which a plate without size cannot know."""
    own = distribution.batch_shape
    if not isinstance(observed, Tensor):
        return distribution
    try:
        wanted = torch.broadcast_shapes(own, observed.shape[: observed.dim() - len(distribution.event_shape)])
    except RuntimeError:  # values that the distribution cannot have, as the program's own run will say
        return distribution
    return distribution if wanted == own else distribution.expand(wanted)


def plated_value(site: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Returns the value of a site with all dimensions of its plates, and how many dimensions are not an event's.

    A ``pyro.deterministic`` takes all dimensions of its value for an event unless it is told otherwise; those that are
    as long as the plates that it lies in are theirs.
    """
    value: Tensor = site["value"]
    batch, event = site["fn"].batch_shape, site["fn"].event_shape
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    rank = max((-dim for dim in sizes), default=0)
    fits = value.dim() >= rank and all(size in (-1, value.shape[rank + dim]) for dim, size in sizes.items())
    if is_named(site) and len(event) == value.dim() and fits:
        return value, rank
    shape = torch.broadcast_shapes(batch + event, value.shape)
    return value.expand(shape), len(shape) - len(event)
