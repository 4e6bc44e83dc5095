"""Whether a guide infers what a model has: the same latents, of the same shapes, in the same plates."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Delta, Independent, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution

from ppgen.errors import ConfigError
from ppgen.programs.joint import UNCONSTRAINED, Joint
from ppgen.programs.rows import vectorized

CHOICE = "ppgen_choice"
"""Key of an auxiliary site's ``infer``: it chooses among equally likely points, so it has no density to account for."""

_WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)


def require_match(joint: Joint, *, summing: bool = False) -> None:
    """Checks that every latent site of one program is a site of the other, of the same shape and in the same plates.

    Values are looked at, so it is nothing for a training step: see `require_same_sites`.

    Args:
        joint: a run of both.
        summing: whether discrete sites that only the model has are going to be summed out.

    Raises:
        ConfigError: if not.
    """
    require_same_sites(joint, summing=summing)
    for name in joint.latents:
        if name in joint.model.nodes:
            _require_same_shape(name, joint.model.nodes[name], joint.guide.nodes[name])
            _require_mask(name, joint.model.nodes[name], joint.guide.nodes[name])
    _require_volume(joint, [name for name in joint.latents if name not in joint.model.nodes])


def require_same_sites(joint: Joint, *, summing: bool = False) -> None:
    """Checks that every latent site of one program is a site of the other, by name.

    Raises:
        ConfigError: if not.
    """
    for name, site in joint.model.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name in joint.guide.nodes:
            continue
        enumerated = site["infer"].get("_enumerate_dim") is not None
        if not (enumerated or (summing and site["fn"].has_enumerate_support)):
            raise ConfigError(
                f"model site '{name}' is neither observed nor sampled by the guide: add it to the guide"
                " (a discrete site can be summed out exactly by EnumeratedELBO)"
            )
    for name in joint.latents:
        if name not in joint.model.nodes and not joint.guide.nodes[name]["infer"].get("is_auxiliary"):
            raise ConfigError(
                f"guide site '{name}' is not in the model: rename it, or give the model its reverse density, a sample"
                f" statement '{name}' given what the guide draws after it"
            )


def _require_same_shape(name: str, model: Mapping[str, Any], guide: Mapping[str, Any]) -> None:
    if model["is_observed"]:
        return
    p, q = model["fn"].event_shape, guide["fn"].event_shape
    if p != q:
        raise ConfigError(
            f"site '{name}' has events of shape {tuple(p)} in the model and {tuple(q)} in the guide: give both the same"
            " shape, with .to_event(...) where several numbers are one event"
        )
    sizes, own = _sizes(model), _sizes(guide)
    for dim in sorted({*sizes, *own}, reverse=True):
        one, two = sizes.get(dim, 1), own.get(dim, 1)
        if -1 not in (one, two) and one != two:
            where = [f"{size} of them" if size > 1 else "one of it" for size in (one, two)]
            raise ConfigError(
                f"site '{name}' has {where[0]} along dimension {dim} in the model and {where[1]} in the guide: sample"
                " it in the same plates in both"
            )


def _sizes(site: Mapping[str, Any]) -> dict[int, int]:
    return {frame.dim: int(frame.size) for frame in vectorized(site)}


def _require_mask(name: str, model: Mapping[str, Any], guide: Mapping[str, Any]) -> None:
    """Checks that log q counts wherever the model's term does; masks of a run are both masks at once by now."""
    p, q = (torch.as_tensor(True if site["mask"] is None else site["mask"]) for site in (model, guide))
    if (p & ~q).any():
        raise ConfigError(
            f"site '{name}' is masked in the guide where the model's is not, so that its log q is missing there: mask"
            " it in the model too, or not in the guide"
        )


def _require_volume(joint: Joint, auxiliary: list[str]) -> None:
    """Checks that sites that only the guide has are its latents in other coordinates, or choose among points."""
    noise = [joint.guide.nodes[name] for name in auxiliary if not joint.guide.nodes[name]["infer"].get(CHOICE)]
    _require_noise_of_its_own(joint, {site["name"] for site in noise})
    if noise and not is_change_of_variables(joint, noise):
        name = noise[0]["name"]
        raise ConfigError(
            f"guide site '{name}' is auxiliary, and the model has no reverse density of it, without which there is no"
            f" bound: add a sample statement '{name}' to the model, given what the guide draws after it, or draw the"
            " latents as Delta sites that bring the log_density of the change of variables along"
        )


def _require_noise_of_its_own(joint: Joint, noise: set[str]) -> None:
    """Checks that a latent that the model masks is not computed from noise that it shares with others."""
    for name in joint.latents if noise else ():
        mask = joint.guide.nodes[name]["mask"]
        shared = isinstance(unwrapped(joint.guide.nodes[name]["fn"]), Delta) and name + UNCONSTRAINED not in noise
        if name in joint.model.nodes and shared and mask is not None and not torch.as_tensor(mask).all():
            raise ConfigError(
                f"latent '{name}' is masked in the model, and the guide computes it from '{min(noise)}', which has no"
                " part that could be masked with it: draw it by AutoNormal, or by a site of its own"
            )


def is_change_of_variables(joint: Joint, noise: Sequence[Mapping[str, Any]]) -> bool:
    """Whether latents are auxiliary sites in other coordinates, with the volume in the log density of their Deltas."""
    names = {site["name"] for site in noise}
    points = [joint.guide.nodes[name] for name in joint.latents if name not in names]
    points = [site for site in points if isinstance(unwrapped(site["fn"]), Delta)]
    if any((torch.as_tensor(unwrapped(site["fn"]).log_density) != 0).any() for site in points):
        return True
    ones, others = (
        torch.cat([torch.zeros(0), *(s["value"].flatten().cpu() for s in part)]) for part in (noise, points)
    )
    return ones.shape == others.shape and torch.equal(ones.sort().values, others.sort().values)


def unwrapped(distribution: Any) -> Any:
    """Returns what Pyro's wrappers (``to_event``, ``mask``, ``expand``) are around."""
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    return distribution
