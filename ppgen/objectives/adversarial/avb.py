"""Adversarial variational Bayes: a guide without a density, whose divergence from the prior a critic estimates."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.game import Game
from ppgen.objectives.adversarial.sides import Draws, column_of, judged
from ppgen.objectives.adversarial.values import Minimax, require_critic
from ppgen.objectives.base import Losses, Metrics, Phase
from ppgen.objectives.prior_matching import reconstruction
from ppgen.programs import Batch, Joint, Program, Sites
from ppgen.programs.priors import draw_prior

SMALLEST_SCALE = 1e-4


class AVB(Game):
    r"""Adversarial variational Bayes: the evidence lower bound of a guide of which only draws are known.

    The critic tells ``(x, z)`` with ``z`` from the guide from ``(x, z)`` with ``z`` from the prior. At its best
    ``T(x, z) = log q(z | x) - log p(z)``, so ``-E_q[T(x, z)] + E_q[log p(x | z)]`` is the bound. A guide may push noise
    through a network and end in a ``Delta``, its noise being an auxiliary site.

    With adaptive contrast the critic compares the guide's draws with those of a Gaussian of the same mean and variance,
    given ``x``, ``r(z | x)``, which lies closer than the prior: ``T = log q(z | x) - log r(z | x)``, and the bound is
    ``E_q[log p(x, z) - log r(z | x) - T(x, z)]``. Both games are played in the coordinates of ``r``, where its
    draws are standard normal. Mean and variance are those of ``contrast`` draws of the guide.

    Players are "critic" and "autoencoder". Metrics: "bound", the estimate of the evidence lower bound by the present
    critic (nats per datum; it errs where the critic does), "reconstruction", and those of `GAN`, where "real" is the
    guide's side.

    Args:
        critic: from ``x`` and the latents, in the order of the guide, ``(rows, *event)`` each, to ``(rows, 1)``.
        contrast: draws of the guide for adaptive contrast, at least 2; 0 for none.
        critic_steps: phases of the critic for one of model and guide.
        column: the data that the critic is shown.

    Raises:
        ConfigError: if an option is out of its range.

    References:
        Mescheder, Nowozin, Geiger, 2017, arXiv:1701.04722, algorithms 1 and 2.
    """

    def __init__(self, critic: nn.Module, *, contrast: int = 0, critic_steps: int = 1, column: str = "x") -> None:
        super().__init__()
        if critic_steps < 1 or contrast < 0 or contrast == 1:
            raise ConfigError(f"expected critic_steps >= 1, contrast 0 or >= 2; got {critic_steps}, {contrast}")
        self.critic: nn.Module = require_critic(critic)
        self.value = Minimax()
        self.contrast = contrast
        self.critic_steps = critic_steps
        self.column = column
        self._latents: tuple[str, ...] = ()

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if model, guide or critic do not suit the game.
        """
        programs.report_unused_columns(batch, model, guide)
        column_of(batch, self.column)
        with programs.strictly_checked():
            joint = self.joint(model, guide, batch)
            if not joint.observed:
                raise ConfigError("expected a site of the model that observes data, which AVB reconstructs; got none")
            self._latents = tuple(name for name in joint.latents if name in joint.model.nodes)
            if not self._latents:
                raise ConfigError("expected a latent site of the model that the guide draws; got none")
            for name in self._latents:
                if not programs.has_pathwise(joint.guide.nodes[name]):
                    raise ConfigError(
                        f"expected continuous latents of the guide for AVB; got site '{name}', whose draws have no"
                        " pathwise derivative"
                    )
            drawn = self._rows(joint.guide.nodes)
            prior = self._rows(draw_prior(model, batch, self._latents))
            for name in self._latents:
                if drawn[name].shape != prior[name].shape:
                    raise ConfigError(
                        f"expected draws of site '{name}' from the guide of the shape that the prior's have,"
                        f" {tuple(prior[name].shape)}; got {tuple(drawn[name].shape)}"
                    )
            judged(self.critic, (batch[self.column], *drawn.values()), 1)

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The critic's parameters, and those of model and guide."""
        return {"critic": self.own_parameters(), "autoencoder": programs.leaves(model, guide)}

    def phases(self) -> Sequence[Phase]:
        """The critic's phases, then the one of model and guide."""
        return (self._critic_phase,) * self.critic_steps + (self._autoencoder_phase,)

    def _critic_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        with torch.no_grad():
            drawn = self._rows(programs.infer(guide, batch))
            if self.contrast:
                drawn = _standardised(drawn, self._moments(guide, batch))
                other = {name: torch.randn_like(value) for name, value in drawn.items()}
            else:
                other = self._rows(draw_prior(model, batch, self._latents))
        x = batch[self.column]
        one, two = (self.critic(x, *side.values()) for side in (drawn, other))
        return {"critic": self.value.critic(one, two)}, self.value.metrics(one.detach(), two.detach())

    def _autoencoder_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        joint = self.joint(model, guide, batch)
        divergence, error = self._divergence(joint, guide, batch), reconstruction(joint)
        metrics = {"bound": -(error + divergence).detach(), "reconstruction": error.detach()}
        return {"autoencoder": error + divergence}, metrics

    def _divergence(self, joint: Joint, guide: Program, batch: Batch) -> Tensor:
        """Returns the estimate of ``KL(q(z | x) || p(z))``, in nats per datum."""
        drawn = self._rows(joint.guide.nodes)
        if not self.contrast:
            return self.critic(batch[self.column], *drawn.values()).mean()  # type: ignore[no-any-return]
        moments = self._moments(guide, batch)
        placed = _standardised(drawn, moments)
        ratio = self.critic(batch[self.column], *placed.values()).mean()
        contrast = torch.stack([_log_density(placed[n], moments[n][1]) for n in self._latents]).sum()
        prior = torch.stack([joint.reduced(n, joint.log_p(n)).mean() for n in self._latents]).sum()
        total: Tensor = torch.stack([ratio, contrast, -prior]).sum()
        return total

    def _rows(self, sites: Sites) -> Draws:
        return {name: programs.rows_of(sites[name]) for name in self._latents}

    @torch.no_grad()
    def _moments(self, guide: Program, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns mean and standard deviation of the guide's draws, row by row; no gradient passes."""
        draws = [self._rows(programs.infer(guide, batch)) for _ in range(self.contrast)]
        stacked = {name: torch.stack([one[name] for one in draws]) for name in self._latents}
        return {n: (v.mean(0), v.std(0).clamp(min=SMALLEST_SCALE)) for n, v in stacked.items()}


def _standardised(draws: Draws, moments: dict[str, tuple[Tensor, Tensor]]) -> Draws:
    return {name: (value - moments[name][0]) / moments[name][1] for name, value in draws.items()}


def _log_density(standardised: Tensor, scale: Tensor) -> Tensor:
    """Returns the mean over rows of the log density of the contrast."""
    terms = -0.5 * (standardised.square() + math.log(2 * math.pi)) - scale.log()
    return terms.flatten(1).sum(1).mean()
