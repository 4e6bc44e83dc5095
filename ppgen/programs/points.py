"""Latents of a model by kind, and runs of a model as the guide of itself, its latents set to values."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments, call
from ppgen.programs.generation import posterior
from ppgen.programs.joint import Joint, frames, prune
from ppgen.programs.rows import data_plate_of, find_rows, plate_nesting
from ppgen.programs.running import run
from ppgen.programs.tracing import aside
from ppgen.programs.weights import weights_of

MOST_NUMBERS = 1_000
"""Numbers of a latent site that a summary has a line for each of."""


@dataclass(frozen=True)
class Latents:
    """The latent sites of a model, given a batch.

    Attributes:
        continuous: those with a density.
        discrete: those whose states can be enumerated.
        local: those of both kinds that lie in the data plate.
        dims: for each, and each dimension of its value, the name of the plate; None where it is no plate's.
        shapes: for each, that of its value.
        ranks: for each, how many dimensions of its value lie left of those of one event.
        nesting: how many dimensions the plates take.
        rows: of the data plate in this batch, 0 without one.
        scaled: whether the data plate stands for more rows than the batch has.
    """

    continuous: tuple[str, ...]
    discrete: tuple[str, ...]
    local: frozenset[str]
    dims: Mapping[str, tuple[str | None, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    ranks: Mapping[str, int]
    nesting: int
    rows: int
    scaled: bool

    @property
    def global_(self) -> tuple[str, ...]:
        """The continuous ones outside the data plate."""
        return tuple(name for name in self.continuous if name not in self.local)

    @property
    def summarized(self) -> tuple[str, ...]:
        """The continuous ones that are worth a line for each number: global ones first, and no large ones."""
        ordered = (*self.global_, *(name for name in self.continuous if name in self.local))
        return tuple(name for name in ordered if math.prod(self.shapes[name]) <= MOST_NUMBERS)


def latents_of(model: Program, batch: Batch) -> Latents:
    """Runs a model once and says what latent sites it has; no random stream moves.

    Raises:
        ConfigError: if one is discrete and has no end of states, or a prior is improper.
    """
    with aside():
        traced = _trace(model, batch)
        plate = data_plate_of(traced, find_rows(model, batch, traced))
    trace = prune(traced)
    sites = {k: v for k, v in trace.nodes.items() if v["type"] == "sample" and not v["is_observed"]}
    discrete = tuple(name for name, site in sites.items() if site["fn"].has_enumerate_support)
    for name, site in sites.items():
        if name not in discrete and _is_discrete(site["fn"]):
            raise ConfigError(
                f"latent '{name}' ({type(site['fn']).__name__}) is discrete and has no end of states, so they cannot be"
                " summed: bound it (Categorical, Bernoulli, Binomial), or train a guide"
            )
    return Latents(
        continuous=tuple(name for name in sites if name not in discrete),
        discrete=discrete,
        local=frozenset(name for name, site in sites.items() if plate is not None and plate.names & frames(site)),
        dims={name: _dims(site) for name, site in sites.items()},
        shapes={name: tuple(site["value"].shape) for name, site in sites.items()},
        ranks={name: len(site["fn"].batch_shape) for name, site in sites.items()},
        nesting=plate_nesting(trace),
        rows=0 if plate is None else plate.rows,
        scaled=plate is not None and plate.size != plate.rows,
    )


def _trace(model: Program, batch: Batch) -> poutine.Trace:
    args, kwargs = arguments(model, batch)
    try:
        return poutine.trace(model).get_trace(*args, **kwargs)
    except NotImplementedError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the model cannot be drawn from ({reason}): give each latent a proper prior") from error


def _is_discrete(distribution: Any) -> bool:
    try:
        return bool(distribution.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def _dims(site: Mapping[str, Any]) -> tuple[str | None, ...]:
    rank, event_rank = len(site["value"].shape), len(site["fn"].event_shape)
    names: list[str | None] = [None] * rank
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and rank - event_rank + frame.dim >= 0:
            names[rank - event_rank + frame.dim] = frame.name
    return tuple(names)


class _Points(Messenger):
    """Sets sites to values, as draws from a point."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is not None and not msg["is_observed"]:
            msg["fn"] = Delta(value, event_dim=msg["fn"].event_dim)
            msg["value"] = value


def run_at(model: Program, batch: Batch, values: Mapping[str, Tensor], *, latents: Collection[str]) -> None:
    """Runs a model as a guide: some latents are points, the others are drawn from the model given them.

    Its weight in a bound is then ``p(data | latents)``: what is drawn from the model cancels.

    Args:
        model: the generative program.
        batch: what it is run on; data are not looked at.
        values: of latents, each broadcastable to its site.
        latents: the sites that such a guide has; others of the model stay out of sight.
    """
    subsample = poutine.util.site_is_subsample

    def hidden(site: Any) -> bool:
        return site["type"] == "sample" and not subsample(site) and (site["is_observed"] or site["name"] not in latents)

    with poutine.block(hide_fn=hidden), _Points(values):
        call(model, batch)


def joint_ratios(
    model: Program, guide: Program, batch: Batch, latents: Latents, *, particles: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws all latents at once from a guide, and returns them with their log importance ratios.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: all the data.
        latents: those of the model.
        particles: how many draws, vectorised.

    Returns:
        The continuous latents, ``(particles, ...)`` by site; and ``log p(data, latents) - log q(latents)`` in nats,
        ``(particles,)``. Discrete latents that the guide does not draw are summed out.

    Raises:
        ConfigError: if model and guide do not match.
    """
    summed = frozenset(latents.discrete).difference(posterior(guide, batch)) if latents.discrete else ()
    joint = run(model, guide, batch, particles=particles, enumerate_discrete=summed)
    weights = weights_of(joint)
    scale = weights.plate.scale if weights.plate else 1.0
    ratios = weights.global_.double() + scale * weights.local.double().sum(-1)
    if ratios.shape != (particles,):
        raise ConfigError(
            f"the model does not bear {particles} particles: it gives log weights of {tuple(ratios.shape)}"
        )
    return {name: _value(joint, name, particles, latents) for name in latents.continuous}, ratios


def _value(joint: Joint, name: str, particles: int, latents: Latents) -> Tensor:
    site = joint.guide.nodes[name]
    shape = torch.broadcast_shapes(site["fn"].batch_shape + site["fn"].event_shape, site["value"].shape)
    value: Tensor = site["value"].expand(shape).reshape(particles, *latents.shapes[name])
    return value
