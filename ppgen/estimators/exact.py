"""The exact gradient of a bound, by running a pair with its latents held in every joint state."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.estimators.rows import repeated
from ppgen.gradients.base import base_of
from ppgen.programs import Batch, Joint, Program

MOST_STATES = 4096
"""Joint states of all latents of a row that are gone through."""
MOST_COMBINATIONS = 200_000
"""Combinations of so many particles' states that are."""


class NotEnumerableError(Exception):
    """A pair whose bound is not summed, with the reason."""


@dataclass(frozen=True)
class Enumeration:
    """The log probabilities of a batch in every joint state: tensors ``(states, rows)``.

    Attributes:
        log_p: of the model.
        log_q: of the guide.
    """

    log_p: Tensor
    log_q: Tensor

    def loss(self, particles: int) -> Tensor:
        """Returns minus the bound of so many particles (1 is the ELBO), in nats per datum.

        Raises:
            NotEnumerableError: if they have too many combinations of states.
        """
        log_w = self.log_p - self.log_q
        if particles == 1:
            return -(self.log_q.exp() * log_w).sum(0).mean()
        states = len(log_w)
        if math.comb(states + particles - 1, particles) > MOST_COMBINATIONS:
            raise NotEnumerableError(f"{particles} particles of {states} states have too many combinations")
        places = torch.tensor(list(itertools.combinations_with_replacement(range(states), particles)))
        counts = torch.nn.functional.one_hot(places, states).sum(1)
        orders = math.lgamma(particles + 1) - torch.lgamma(counts.double() + 1).sum(1).to(log_w.dtype)
        probability = (self.log_q[places].sum(1) + orders[:, None]).exp()
        bounds = log_w[places].logsumexp(1) - math.log(particles)
        return -(probability * bounds).sum(0).mean()


def enumeration(model: Program, guide: Program, batch: Batch) -> Enumeration:
    """Runs a pair with its latents in every joint state.

    Raises:
        NotEnumerableError: if a latent is not discrete or not one of each row's own, or there are too many states.
    """
    with torch.no_grad():
        joint = programs.run(model, guide, batch, check=False)
    states = _joint_states(joint)
    plate = joint.plate
    if plate is None:
        raise NotEnumerableError("there is no data plate")
    count = len(next(iter(states.values())))
    rows = repeated(batch, count, rows=plate.rows)
    held = {name: values.repeat_interleave(plate.rows, 0) for name, values in states.items()}
    log_q = _log_probability(guide, rows, held, plate.name, only=held)
    log_p = _log_probability(model, rows, held, plate.name, only=None)
    return Enumeration(log_p.reshape(count, plate.rows), log_q.reshape(count, plate.rows))


def _joint_states(joint: Joint) -> dict[str, Tensor]:
    """Every joint state of a row's latents, ``(states, *event shape)`` by site."""
    if joint.factors or any(
        site["type"] == "sample" and name not in joint.guide.nodes and not site["is_observed"]
        for name, site in joint.model.nodes.items()
    ):
        raise NotEnumerableError("model and guide do not have the same latents")
    own = {name: _states(joint, name) for name in joint.latents}
    if not own:
        raise NotEnumerableError("there are no latents")
    if math.prod(len(values) for values in own.values()) > MOST_STATES:
        raise NotEnumerableError(_TOO_MANY)
    grid = torch.cartesian_prod(*(torch.arange(len(values)) for values in own.values()))
    places = grid.reshape(-1, len(own)).unbind(1)
    return {name: values[place] for (name, values), place in zip(own.items(), places, strict=True)}


_TOO_MANY = f"its latents have more than {MOST_STATES:,} joint states"


def _states(joint: Joint, name: str) -> Tensor:
    fn = joint.guide.nodes[name]["fn"]
    base = base_of(fn)
    if not base.has_enumerate_support:
        raise NotEnumerableError(f"site '{name}' is not discrete")
    if not joint.is_local(name) or len(joint.guide.nodes[name]["cond_indep_stack"]) > 1:
        raise NotEnumerableError(f"site '{name}' is not one of each row's own")
    support: Tensor = base.enumerate_support(expand=False)
    single = support.reshape(len(support), *base.event_shape)
    copies = fn.event_shape.numel() // max(1, base.event_shape.numel())
    if copies * math.log(len(single)) > math.log(MOST_STATES):
        raise NotEnumerableError(_TOO_MANY)
    places = torch.cartesian_prod(*[torch.arange(len(single))] * copies).reshape(-1, copies)
    return single[places].reshape(len(places), *fn.event_shape)


def _log_probability(
    program: Program, batch: Batch, held: Mapping[str, Tensor], plate: str, *, only: Mapping[str, Tensor] | None
) -> Tensor:
    """The log probability of each row of a program whose latents are held."""
    args, kwargs = programs.arguments(program, batch)
    trace = poutine.trace(poutine.condition(program, data=dict(held))).get_trace(*args, **kwargs)
    total: Tensor | None = None
    for name, site in programs.joint.prune(trace).nodes.items():
        if site["type"] != "sample" or (only is not None and name not in only):
            continue
        if programs.frames(site) != {plate}:
            raise NotEnumerableError(f"site '{name}' is not one of each row's own")
        if not site["is_observed"] and name not in held:
            raise ConfigError(f"site '{name}' was not there before: its presence depends on other draws")
        term = scale_and_mask(programs.log_prob_of(site), mask=site["mask"])
        total = term if total is None else total + term
    if total is None:
        raise NotEnumerableError("a program has no sites")
    return total
