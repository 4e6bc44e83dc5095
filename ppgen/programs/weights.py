"""Log importance weights: the quantity most objectives and measures are short reductions of."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program
from ppgen.programs.joint import LOCAL_PARTICLES, PARTICLES, Joint, frames, log_prob_of, log_prob_of_states
from ppgen.programs.matching import require_match
from ppgen.programs.rows import DataPlate, Structure
from ppgen.programs.running import Enumerated, run
from ppgen.programs.scales import Scale, is_scaled, of_rows, own_scale, plate_scale, require_one_scale
from ppgen.programs.states import require_size

logger = logging.getLogger("ppgen")

_NEVER, _NOTHING = -1e38, -1e30
"""The log probability, and the log weight, of what is impossible: unlike infinities they can be subtracted."""


@dataclass(frozen=True)
class Weights:
    """The log weights of a joint run, with the states of enumerated sites apart.

    Attributes:
        local: ``(enumerated..., particles, local particles, batch)``, per datum: ``log p - log q`` in nats without the
            N/B scale of a subsampled plate, and without what the program itself scales rows by; in a run that tells
            no local particles apart, without their dimension.
        log_q: log probability of each state of the enumerated sites, of the same dimensions; None without such sites.
        global_: ``(particles,)``.
        plate: the data plate, None if the program has none (all terms are then global).
        row_scale: what the program scales rows by (``poutine.scale``): a number or ``(batch,)``.
        counted: ``log_q``, as a function of parameters only where it is a part of ``local``: masked states are not.
    """

    local: Tensor
    log_q: Tensor | None
    global_: Tensor
    plate: DataPlate | None
    row_scale: Scale = 1.0
    counted: Tensor | None = None


@dataclass(frozen=True)
class LogWeights:
    """Log importance weights ``log p - log q`` in nats, local terms kept apart from global ones.

    A likelihood does not depend on what a program scales its sites by (``poutine.scale``), so neither do these.

    Attributes:
        local: ``(particles, batch)``, per datum: without the N/B scale of a subsampled plate.
        global_: ``(particles,)``.
        plate: the data plate, None if the program has none (all terms are then global).
    """

    local: Tensor
    global_: Tensor
    plate: DataPlate | None


def weights_of(joint: Joint, *, scaled: bool = False) -> Weights:
    """Returns the log weights of a joint run.

    Args:
        joint: the run.
        scaled: whether terms outside the data plate have the scale that the program gives them.

    Raises:
        ConfigError: if an enumerated site of the guide is global or lies in a plate inside the data plate.
    """
    _require_local_states(joint)
    local, global_, row_scale = list[Tensor](), list[Tensor](), None
    for node, site, log_prob in _terms(joint):
        is_local = joint.is_local_node(node)
        scale = site["scale"] if scaled and not is_local else _plate_scale(joint, site)
        term = scale_and_mask(log_prob, scale=scale, mask=site.get("mask"))
        joint.require_states(node, term.shape)
        if row_scale is None and (is_local or joint.plate is None):
            row_scale = _row_scale(joint, site)
        if is_local:
            local.append(joint.sum_inner_plates(term))
        else:
            global_.append(joint.reduce_plates(node, term))
    require_size("the weight of a row", torch.broadcast_shapes(*(term.shape for term in local)), joint.layout.rank)
    rows = joint.plate.rows if joint.plate else 0
    nothing = (*local, *global_, torch.zeros(()))[0].new_zeros(())
    log_w, (log_q, counted) = sum(local[1:], local[0]) if local else nothing, _states(joint)
    if log_q is not None and counted is not None:
        # a state without probability has no weight either
        log_w = torch.where(log_q > _NEVER, log_w, torch.full_like(log_w, _NOTHING))
        log_q, counted = joint.collapsed(log_q, rows), joint.collapsed(counted, rows)
    return Weights(
        local=joint.collapsed(log_w, rows),
        log_q=log_q,
        global_=(sum(global_[1:], global_[0]) if global_ else nothing).expand(joint.layout.particles),
        plate=joint.plate,
        row_scale=1.0 if row_scale is None else row_scale,
        counted=counted,
    )


def _terms(joint: Joint) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], Tensor]]:
    """Yields what a weight is made of: what says where a term lies, the site that it is of, the term without scale."""
    for name in (*joint.observed, *joint.latents):
        if joint.has_log_p(name):
            yield joint.node(name), joint.model.nodes[name], log_prob_of(joint.model.nodes[name])
    for name in (*joint.latents, *joint.factors):
        yield joint.node(name), joint.guide.nodes[name], -log_prob_of(joint.guide.nodes[name])
    for summed in joint.summed:
        yield summed.node, summed.node, summed.unscaled


def _plate_scale(joint: Joint, site: Mapping[str, Any]) -> float:
    return plate_scale(site, without=joint.plate.names if joint.plate else ())


def _row_scale(joint: Joint, site: Mapping[str, Any]) -> Scale:
    return of_rows(own_scale(site), joint.nesting, joint.plate.dim if joint.plate else -1)


def require_known_rows(joint: Joint) -> None:
    """Checks that nobody has to guess which plates run along the rows.

    Raises:
        ConfigError: if there are several plates of one length, and the program runs on batches of this length only.
    """
    if joint.plate is None or joint.rows is None or not joint.rows.doubtful:
        return
    raise ConfigError(
        f"plates '{joint.plate.name}' and '{min(joint.rows.doubtful)}' are equally long ({joint.plate.rows}), and which"
        " of them runs along the rows cannot be told, since the model runs on batches of this length only: put rows"
        " into one plate, or write pyro.plate('data', len(x)) for every plate of rows"
    )


def require_one_weight(joint: Joint, *, whole: bool, linear: bool) -> None:
    """Checks that the terms of a row make one importance weight, or a power of it.

    Args:
        joint: a run.
        whole: whether there is one weight for all rows and all that they share.
        linear: whether only the mean of log weights is taken, of which a part may stand for the whole.

    Raises:
        ConfigError: if a row's sites are scaled differently, or subsampled.
    """
    scales: dict[str, Scale] = {}
    for node, site, _ in _terms(joint):
        if not (whole or joint.is_local_node(node)):
            continue
        scales[site["name"]] = own_scale(site)
        if not linear and _plate_scale(joint, site) != 1:
            raise ConfigError(
                f"site '{site['name']}' lies in a plate that is subsampled within a row: the weight of a draw needs all"
                " of it, and no scale makes that a bound. Take ELBO, or the whole plate"
            )
    require_one_scale(scales, joint.nesting, joint.plate.dim if joint.plate else -1)
    if whole and any(isinstance(scale, Tensor) and scale.numel() > 1 for scale in scales.values()):
        raise ConfigError(
            f"site '{next(iter(scales))}' is scaled row by row, and the draw of a global latent has one weight for all"
            " rows: scale the program as a whole, or take ELBO"
        )


def report_scales(joint: Joint) -> None:
    """Says in a line that a likelihood is without what the program scales its data by."""
    names = [name for name in (*joint.observed, *joint.absorbed) if is_scaled(joint.model.nodes[name])]
    if names:
        logger.info(
            "the likelihood is that of the model as it is drawn from, without the scale (poutine.scale) of site '%s'",
            names[0],
        )


def _states(joint: Joint) -> tuple[Tensor | None, Tensor | None]:
    """Returns the log probability of each state, and the same as no function of parameters where it is masked."""
    found, counted = [], []
    for name in joint.enumerated:
        log_prob, mask = log_prob_of_states(joint.guide.nodes[name]), joint.guide.nodes[name]["mask"]
        found.append(joint.padded(log_prob))
        if isinstance(mask, Tensor):
            log_prob = torch.where(mask, log_prob, log_prob.detach())
        counted.append(joint.padded(log_prob.detach() if mask is False else log_prob))
    if not found:
        return None, None
    total, masked = (sum(terms[1:], terms[0]).clamp(min=_NEVER) for terms in (found, counted))
    return total, masked


def _require_local_states(joint: Joint) -> None:
    own = {*(joint.plate.names if joint.plate else ()), PARTICLES, LOCAL_PARTICLES}
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
    structure: Structure | None = None,
) -> LogWeights:
    """Draws from the guide and returns the log weights of the draws.

    With ``enumerate_discrete``, discrete local sites of the guide are summed out of each weight:
    ``w = sum_y p(x, y, z_y) / q(z_y | x, y)``, whose mean over draws is ``p(x)`` as well; so are discrete sites that
    only the model has.

    ``structure`` are the plates of the pair, found by further runs unless told.

    Raises:
        ConfigError: if an enumerated site is global or lies in a plate inside the data plate, or it cannot be told
            which plates run along the rows.

    References:
        Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519.
    """
    joint = run(model, guide, batch, particles=particles, enumerate_discrete=enumerate_discrete, structure=structure)
    require_match(joint)
    require_known_rows(joint)
    found = weights_of(joint)
    local = found.local
    if found.log_q is not None:
        local = (local + found.log_q).logsumexp(tuple(range(-local.dim(), -2)))
    return LogWeights(local, found.global_, found.plate)
