"""Whether a pair has a density for its data: an adversarial one often has none, and is judged by its samples."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from ppgen import programs
from ppgen.evaluation.slices import few
from ppgen.programs import Joint
from ppgen.programs.matching import unwrapped
from ppgen.randomness import forked

logger = logging.getLogger("ppgen")


def missing_density(trained: Any, columns: Mapping[str, Tensor], *, label: str = "y") -> str | None:
    """Says why a pair has no density for its rows, so that neither NLL nor ELBO has a meaning; None if it has one.

    There is none if a data site of the model is a `Delta` (a generator), if the guide does not draw a latent of the
    model that cannot be summed out (a generator without an encoder), or if the guide's density is not known: a row's
    latent is a `Delta` (a deterministic encoder) or drawn through auxiliary noise (an implicit one), or has a
    distribution that cannot be scored.

    Args:
        trained: the pair; a `ppgen.Trainer`, say.
        columns: ``(rows, ...)`` by name, of which two rows are run.
        label: the column that is withheld if the guide infers it.

    Returns:
        A sentence such as "its data site 'x' is a Delta", or None, also where the pair does not run.
    """
    batch = few(columns, 2, trained.device)
    try:
        with forked(0), trained.evaluating():
            return _reason(_run(trained, batch, label))
    except Exception as error:  # a user's program may fail in any way; what fails here fails again, with a reason
        logger.debug("no word on a density: %s", error)
        return None


def _run(trained: Any, batch: Mapping[str, Tensor], label: str) -> Joint:
    rest = {name: column for name, column in batch.items() if name != label}
    try:
        inferred = label in batch and label in programs.posterior(trained.guide, rest)
    except Exception:  # a guide that cannot do without labels may fail in any way
        inferred = False
    return programs.run(trained.model, trained.guide, rest if inferred else batch, check=False)


def _reason(joint: Joint) -> str | None:
    model, guide = joint.model.nodes, joint.guide.nodes
    for name in joint.observed:
        if _is_delta(model[name]) and not _is_computed(model[name]):
            return f"its data site '{name}' is a Delta"
    for name, site in model.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in guide and not _can_be_summed(site):
            return f"its guide does not draw the latent '{name}'"
    auxiliary = [name for name in joint.latents if guide[name]["infer"].get("is_auxiliary")]
    noise = [name for name in auxiliary if joint.is_local(name)]
    points = [name for name in joint.latents if joint.is_local(name) and _is_delta(guide[name])]
    changed = [name for name in points if _is_change_of_variables(guide[name], [guide[n]["value"] for n in noise])]
    if noise and not changed:
        return f"its guide is implicit, by way of its auxiliary site '{noise[0]}'"
    for name in points:
        # an autoguide keeps the density of all its points in one auxiliary site outside the data plate
        if name not in changed and not auxiliary and not (name in model and _is_delta(model[name])):
            return f"the site '{name}' of its guide is a Delta"
    return _unknown(joint)


def _unknown(joint: Joint) -> str | None:
    """Names a site that can be drawn from but not scored, such as a prior of a shape of its own."""
    for name in joint.latents:
        for program, log_prob in (("model", joint.log_p), ("guide", joint.log_q)):
            try:
                if name in getattr(joint, program).nodes:
                    log_prob(name)
            except NotImplementedError:
                return f"the density of the site '{name}' of its {program} is not known"
    return None


def _is_delta(site: Mapping[str, Any]) -> bool:
    return isinstance(unwrapped(site["fn"]), Delta)


def _is_computed(site: Mapping[str, Any]) -> bool:
    """Whether the value of a `Delta` is the program's own: of `pyro.deterministic`, say."""
    return torch.equal(*torch.broadcast_tensors(site["value"], unwrapped(site["fn"]).v))


def _is_change_of_variables(site: Mapping[str, Any], noise: list[Tensor]) -> bool:
    """Whether a `Delta` is an auxiliary site in other coordinates, and brings the volume along, as autoguides do it."""
    with_volume = bool((torch.as_tensor(unwrapped(site["fn"]).log_density) != 0).any())
    return with_volume or any(torch.equal(site["value"], value) for value in noise)


def _can_be_summed(site: Mapping[str, Any]) -> bool:
    return bool(site["fn"].has_enumerate_support)
