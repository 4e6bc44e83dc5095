"""Guides made of points: one for every latent (MAP), or a choice among draws of the posterior (MCMC)."""

import functools
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.programs import Program, call
from ppgen.programs.matching import CHOICE
from ppgen.programs.points import Latents, run_at


class PointEstimate(nn.Module):
    """One point for every continuous latent, in its constrained space: trained by an ELBO, the mode of the posterior.

    While it trains, a local latent has a point for every row; rows that it has not seen have none, so that in
    evaluation mode local latents are drawn from the model given the global ones. Discrete latents have no point: they
    are summed out by the objective.

    Args:
        model: the generative program.
        latents: its latent sites.
    """

    def __init__(self, model: Program, latents: Latents) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: its parameters are not the guide's
        self.latents = latents
        self.points = AutoDelta(poutine.block(model, hide=list(latents.discrete)))

    def forward(self, *args: Any, **columns: Any) -> None:
        """Sets the latents; takes what the model takes."""
        batch = columns or args
        if self.training:
            call(self.points, batch)
        else:
            values = {name: self.value(name).detach() for name in self.latents.global_}
            run_at(self._model[0], batch, values, latents=self.latents.dims)

    def value(self, name: str) -> Tensor:
        """Returns the point of a latent, within the store of the pair."""
        found: Tensor = functools.reduce(getattr, name.split("."), self.points)
        return found


class PosteriorDraws(nn.Module):
    """Draws of global latents from a posterior, each as likely as the others.

    Local latents are drawn from the model given the global ones: those of rows not seen are known no better.

    Args:
        model: the generative program.

    Attributes:
        draws: ``(draws, ...)`` by site; None before a sampler has begun, when the prior takes their place.
        latents: the model's latent sites; None before they are known.
    """

    def __init__(self, model: Program) -> None:
        super().__init__()
        self._model = (model,)
        self.draws: Mapping[str, Tensor] | None = None
        self.latents: Latents | None = None

    def forward(self, *args: Any, **columns: Any) -> None:
        """Chooses a draw, one for each particle; takes what the model takes."""
        batch = columns or args
        if self.latents is None:
            raise ConfigError("expected a sampler that has been set up; got one that has not run")
        if self.draws is not None and any(name not in self.draws for name in self.latents.global_):
            raise ConfigError(
                "expected draws of the posterior; got none, since no chain is finished: `ppgen resume` it"
            )
        chosen = {} if self.draws is None else self._chosen(self.draws, self.latents)
        run_at(self._model[0], batch, chosen, latents=self.latents.dims)

    def _chosen(self, draws: Mapping[str, Tensor], latents: Latents) -> dict[str, Tensor]:
        # no discrete site: it would be enumerated
        place = pyro.sample("ppgen_draw", dist.Uniform(0.0, 1.0), infer={"is_auxiliary": True, CHOICE: True})
        return {name: _at(draws[name], place, latents.ranks[name]) for name in latents.global_}


def _at(draws: Tensor, place: Tensor, rank: int) -> Tensor:
    """Returns the draws at a place from 0 to 1, a number or ``(particles, 1, ...)`` left of all plates."""
    index = (place * len(draws)).long().clamp(max=len(draws) - 1).to(draws.device)
    value = draws[index.flatten()] if index.dim() else draws[index]
    ones = (1,) * (index.dim() - 1 - rank)
    return value.reshape(len(value), *ones, *value.shape[1:]) if index.dim() else value
