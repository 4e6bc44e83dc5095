"""Log importance weights: the quantity most objectives and measures are short reductions of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program
from ppgen.programs.joint import LOCAL_PARTICLES, PARTICLES, DataPlate, Joint, frames, log_prob_of
from ppgen.programs.running import Enumerated, run


@dataclass(frozen=True)
class Weights:
    """The log weights of a joint run, with the states of enumerated sites apart.

    Attributes:
        local: ``(enumerated..., particles, local particles, batch)``, per datum: ``log p - log q`` in nats without the
            N/B scale of a subsampled plate; in a run that tells no local particles apart, without their dimension.
        log_q: log probability of each state of the enumerated sites, of the same dimensions; None without such sites.
        global_: ``(particles,)``.
        plate: the data plate, None if the program has none (all terms are then global).
    """

    local: Tensor
    log_q: Tensor | None
    global_: Tensor
    plate: DataPlate | None


@dataclass(frozen=True)
class LogWeights:
    """Log importance weights ``log p - log q`` in nats, local terms kept apart from global ones.

    Attributes:
        local: ``(particles, batch)``, per datum: without the N/B scale of a subsampled plate.
        global_: ``(particles,)``.
        plate: the data plate, None if the program has none (all terms are then global).
    """

    local: Tensor
    global_: Tensor
    plate: DataPlate | None


def weights_of(joint: Joint) -> Weights:
    """Returns the log weights of a joint run.

    Raises:
        ConfigError: if an enumerated site of the guide is global or lies in a plate inside the data plate.
    """
    _require_local_states(joint)
    terms = [(name, joint.log_p(name)) for name in (*joint.observed, *joint.latents) if joint.has_log_p(name)]
    terms += [(name, -joint.log_q(name)) for name in (*joint.latents, *joint.factors)]
    for name, term in terms:
        joint.require_states(joint.node(name), term.shape)
    local = [joint.sum_inner_plates(term) for name, term in terms if joint.is_local(name)]
    global_ = [joint.reduce(name, term) for name, term in terms if not joint.is_local(name)]
    for summed in joint.summed:
        if joint.is_local_node(summed.node):
            local.append(joint.sum_inner_plates(summed.term))
        else:
            global_.append(joint.reduce_plates(summed.node, summed.term))
    rows = joint.plate.rows if joint.plate else 0
    scale = joint.plate.scale if joint.plate else 1.0
    states = [joint.padded(_of_states(joint.guide.nodes[name])) for name in joint.enumerated]
    log_q = joint.collapsed(sum(states, torch.zeros(())), rows) if states else None
    total = joint.collapsed(sum(local, torch.zeros(())) / scale, rows)
    return Weights(
        local=total,
        log_q=log_q,
        global_=sum(global_, torch.zeros(())).expand(joint.layout.particles),
        plate=joint.plate,
    )


def _of_states(site: Mapping[str, Any]) -> Tensor:
    """The log probability of each state; in rows that do not count, no function of parameters."""
    log_prob, mask = log_prob_of(site), site["mask"]
    return torch.where(mask, log_prob, log_prob.detach()) if isinstance(mask, Tensor) else log_prob


def _require_local_states(joint: Joint) -> None:
    own = {joint.plate.name if joint.plate else "", PARTICLES, LOCAL_PARTICLES}
    for name in joint.enumerated:
        if not joint.is_local(name) or frames(joint.guide.nodes[name]) - own:
            raise ConfigError(
                f"site '{name}' cannot be summed out of a weight: it does not lie in the data plate alone"
            )


def log_weights(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    particles: int = 1,
    enumerate_discrete: Enumerated = False,
    nesting: int | None = None,
) -> LogWeights:
    """Draws from the guide and returns the log weights of the draws.

    With ``enumerate_discrete``, discrete local sites of the guide are summed out of each weight:
    ``w = sum_y p(x, y, z_y) / q(z_y | x, y)``, whose mean over draws is ``p(x)`` as well; so are discrete sites that
    only the model has.

    Raises:
        ConfigError: if an enumerated site is global or lies in a plate inside the data plate.

    References:
        Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519.
    """
    joint = run(model, guide, batch, particles=particles, enumerate_discrete=enumerate_discrete, nesting=nesting)
    found = weights_of(joint)
    local = found.local
    if found.log_q is not None:
        local = (local + found.log_q).logsumexp(tuple(range(-local.dim(), -2)))
    return LogWeights(local, found.global_, found.plate)
