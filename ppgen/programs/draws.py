"""Repeated joint draws: latents from the guide, data redrawn from the model, the log weight of each draw."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Independent, MaskedDistribution
from pyro.infer import config_enumerate, infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.generation import generate
from ppgen.programs.rows import Structure
from ppgen.programs.running import left_to_the_model, structure_of
from ppgen.programs.sites import plated_value
from ppgen.programs.tracing import traced
from ppgen.programs.weights import LogWeights, log_weights

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Draws:
    """Draws of a pair for one batch; tensors have a first dimension of draws, except those of ``observed``.

    Attributes:
        dims: for each site and each dimension of its value, the name of the plate; None where it is no plate's.
        posterior: the model's latent sites, drawn from the guide, and what the model computes from them.
        predictive: the observed sites, drawn from the model given the latents.
        prior: the sites of ``posterior``, drawn from the model alone; empty if they cannot be.
        prior_predictive: the observed sites, drawn from the model alone; empty if they cannot be.
        observed: the observed sites, as the model observes them.
        weights: the log weights of the draws of ``posterior``: ``(draws, batch)`` and ``(draws,)``.
    """

    dims: dict[str, tuple[str | None, ...]]
    posterior: Values
    predictive: Values
    prior: Values
    prior_predictive: Values
    observed: Values
    weights: LogWeights


class _Recorder(Messenger):
    """Notes what a guide, and then a model, do at each of their sample sites."""

    def __init__(self) -> None:
        super().__init__()
        self.latent: dict[str, Any] = {}
        self.observed: dict[str, Any] = {}

    def _pyro_post_sample(self, site: Any) -> None:
        # the value of a factor has no elements
        if poutine.util.site_is_subsample(site) or site["value"].numel() == 0:
            return
        latent = not site["is_observed"] or _is_computed(site)
        (self.latent if latent else self.observed)[site["name"]] = site.copy()

    def finish(self) -> None:
        """Drops what is the guide's alone, and checks that no site is both observed and drawn."""
        self.latent = {k: v for k, v in self.latent.items() if not v["infer"].get("is_auxiliary")}
        if both := sorted(self.latent.keys() & self.observed.keys()):
            raise ConfigError(
                f"site '{both[0]}' is observed by the model and drawn by the guide: leave the column '{both[0]}' out"
            )


def _is_computed(site: Mapping[str, Any]) -> bool:
    """Whether an observed site is the model's own result: deterministic, or a reparametrised latent."""
    distribution = site["fn"]
    while isinstance(distribution, (Independent, MaskedDistribution)):
        distribution = distribution.base_dist
    if not isinstance(distribution, Delta):
        return False
    return torch.equal(*torch.broadcast_tensors(site["value"], distribution.v))


def joint_draws(model: Program, guide: Program, batch: Batch, draws: int) -> Draws:
    """Draws from guide and model, one run at a time, so that every program will do.

    Raises:
        ConfigError: if model and guide do not match, a site is both observed and drawn, or a shape changes.
    """
    posterior, predictive, weights = [], [], []
    structure = structure_of(model, guide, batch)
    left = left_to_the_model(model, guide, batch)
    for _ in range(draws):
        recorder = _Recorder()
        with torch.no_grad():
            weights.append(_weights(model, guide, batch, structure, recorder, left))
        recorder.finish()
        given = {name: site["value"] for name, site in recorder.latent.items() if not site["is_observed"]}
        predictive.append(generate(model, batch, given=given))
        # what the guide alone computes is nothing of the model's
        recorder.latent = {name: site for name, site in recorder.latent.items() if name in predictive[-1]}
        posterior.append({name: _value(site) for name, site in recorder.latent.items()})
    sites = recorder.latent | recorder.observed
    prior: list[Values] = []
    with contextlib.suppress(NotImplementedError):  # improper priors
        prior = [generate(model, batch) for _ in range(draws)]
    latent = {name: _shape(site) for name, site in recorder.latent.items()}
    observed = {name: _shape(site) for name, site in recorder.observed.items()}
    return Draws(
        dims={name: _dims(site) for name, site in sites.items()},
        posterior=_stacked(posterior, latent),
        predictive=_stacked(predictive, observed),
        prior=_stacked(prior, latent),
        prior_predictive=_stacked(prior, observed),
        observed={name: _value(site) for name, site in recorder.observed.items()},
        weights=LogWeights(
            local=torch.cat([weight.local for weight in weights]),
            global_=torch.cat([weight.global_ for weight in weights]),
            plate=weights[-1].plate,
        ),
    )


def _weights(
    model: Program, guide: Program, batch: Batch, structure: Structure, recorder: _Recorder, left: frozenset[str]
) -> LogWeights:
    """Draws once, and returns the log weight of the draw.

    Discrete sites that only the model has (``left``) are summed out of it, and drawn given all else.
    """
    if not left:
        with recorder:
            return log_weights(model, guide, batch, structure=structure)
    with recorder:
        drawn = traced(guide, *arguments(guide, batch))
    given = poutine.replay(config_enumerate(model), trace=drawn)
    whole = infer_discrete(given, first_available_dim=-1 - structure.nesting)
    with recorder:
        traced(whole, *arguments(model, batch))
    again = poutine.replay(guide, trace=drawn)
    return log_weights(model, again, batch, enumerate_discrete=left, structure=structure)


def _shape(site: Mapping[str, Any]) -> torch.Size:
    return plated_value(site)[0].shape


def _value(site: Mapping[str, Any]) -> Tensor:
    return plated_value(site)[0]


def _dims(site: Mapping[str, Any]) -> tuple[str | None, ...]:
    value, plates = plated_value(site)
    names: list[str | None] = [None] * value.dim()
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            names[plates + frame.dim] = frame.name
    return tuple(names)


def _stacked(draws: list[Values], shapes: Mapping[str, torch.Size]) -> Values:
    for name, shape in shapes.items() if draws else ():
        if any(name not in draw or draw[name].numel() != shape.numel() for draw in draws):
            raise ConfigError(f"site '{name}' does not have one shape in all draws: they cannot be put into one table")
    return {name: torch.stack([draw[name].reshape(shape) for draw in draws]) for name, shape in shapes.items() if draws}
