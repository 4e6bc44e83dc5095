"""VAE-GAN: an autoencoder whose reconstructions are compared in the feature space of a critic."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.game import Game
from ppgen.objectives.adversarial.sides import column_of, judged
from ppgen.objectives.adversarial.values import ValueName, require_critic, value_of
from ppgen.objectives.base import Losses, Metrics, Phase
from ppgen.objectives.prior_matching import divergence
from ppgen.programs import Batch, Program
from ppgen.programs.latents import require_densities


class VAEGAN(Game):
    r"""The variational autoencoder beyond pixels: similarity is learned by the critic of a GAN.

    Three players on one graph, each with a loss of its own, per datum: "guide", ``KL(q(z | x) || p(z)) + S``; "model",
    ``similarity * S`` and its part in the game; and "critic". ``S = |f(x) - f(x~)|^2 / 2`` is the distance of data and
    their reconstructions ``x~`` in the critic's last hidden layer ``f``, the negative log likelihood of a Gaussian
    there up to a constant (nats). In the game data stand against reconstructions and draws of the model, half of
    either.

    Metrics: "divergence" and "similarity" (nats per datum), and those of `GAN`.

    Args:
        critic: a `ppgen.nn.Critic`, or any module with ``features(x) -> (rows, width)``, and ``head`` from these to
            ``(rows, 1)``.
        loss: of the game; see `GAN`.
        similarity: weight of the similarity in the model's loss, the paper's gamma; its release took 1e-6 times sums
            over features.
        column: the data.

    Raises:
        ConfigError: if the critic has no features, or the weight is negative.

    References:
        Larsen, Soenderby, Larochelle, Winther, 2016, arXiv:1512.09300, algorithm 1.
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        loss: ValueName = "non-saturating",
        similarity: float = 1.0,
        column: str = "x",
    ) -> None:
        super().__init__()
        self.critic: Any = require_critic(critic)
        if not callable(getattr(critic, "features", None)) or not callable(getattr(critic, "head", None)):
            raise ConfigError(
                "expected a critic with features(x) and head(features), as ppgen.nn.critic returns; got"
                f" {type(critic).__name__}"
            )
        if similarity < 0:
            raise ConfigError(f"expected similarity >= 0; got {similarity}")
        self.value = value_of(loss)
        self.similarity = similarity
        self.column = column

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if model, guide or critic do not suit the game.
        """
        programs.report_unused_columns(batch, model, guide)
        data = column_of(batch, self.column)
        with programs.strictly_checked():
            joint = self.joint(model, guide, batch)
            if self.column not in joint.observed:
                raise ConfigError(f"the model has no site '{self.column}' that observes the column of that name")
            for name in joint.latents:
                if not programs.has_pathwise(joint.guide.nodes[name]):
                    raise ConfigError(
                        f"expected continuous latents of the guide for VAEGAN; got site '{name}', whose draws have no"
                        " pathwise derivative"
                    )
            require_densities(joint)
            simulated = programs.simulate(model, batch)
            programs.require_pathwise(simulated, program="model")
            if not programs.has_pathwise(joint.model.nodes[self.column]):
                raise ConfigError(
                    f"expected data of the model with a pathwise derivative; got its site '{self.column}', which has"
                    " none: use a Delta at the mean"
                )
            drawn = programs.rows_of(simulated[self.column])
            if drawn.shape != data.shape:
                raise ConfigError(
                    f"expected draws of '{self.column}' of the shape that the data have, {tuple(data.shape)}; got"
                    f" {tuple(drawn.shape)}"
                )
            judged(self.critic, (data,), 1)

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The critic's parameters, the model's and the guide's."""
        return {"critic": self.own_parameters()} | programs.separate_leaves(model, guide, batch)

    def phases(self) -> Sequence[Phase]:
        """One phase: all three losses at the same parameters."""
        return (self._phase,)

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        joint = self.joint(model, guide, batch)
        site = joint.model.nodes[self.column]
        rebuilt = site["fn"].rsample()
        drawn = programs.rows_of(programs.simulate(model, batch)[self.column])
        features = [self.critic.features(value) for value in (batch[self.column], rebuilt, drawn)]
        outputs = [self.critic.head(value) for value in features]
        apart = divergence(joint)
        similarity = 0.5 * (features[0] - features[1]).square().sum(-1).mean()
        fake = torch.cat(outputs[1:])
        losses = {
            "critic": self.value.critic(outputs[0], fake),
            "model": self.similarity * similarity + self.value.model(fake),
            "guide": apart + similarity,
        }
        metrics = {"divergence": apart.detach(), "similarity": similarity.detach()}
        return losses, metrics | self.value.metrics(outputs[0].detach(), fake.detach())
