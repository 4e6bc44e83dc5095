"""InfoGAN: a GAN whose latent codes can be read off the data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.gan import GAN
from ppgen.objectives.base import Metrics
from ppgen.programs import Batch, Program, Sites


class InfoGAN(GAN):
    r"""A GAN that also maximises a lower bound on the mutual information between some latents, the codes, and the data.

    The guide's sites are the codes: ``E[log q(code | x)]`` of draws of the model, plus the codes' entropy, is the
    bound. ``weight`` times its negative is added to the critic's loss and to the model's. The guide's parameters are
    the critic's, "critic", so it may share layers with it.

    Players are "critic" and "model"; the metric "information_loss" is ``-E[log q(code | x)]``, weighted.

    Args:
        critic: as `GAN` has it.
        weight: of the codes, or of each code by its site.
        options: further ones of `GAN`.

    References:
        Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel, 2016, arXiv:1606.03657.
    """

    def __init__(self, critic: nn.Module, *, weight: float | Mapping[str, float] = 1.0, **options: Any) -> None:
        super().__init__(critic, **options)
        self.weight = weight

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`."""
        super().setup(model, guide, batch)
        if self._inferred:
            raise ConfigError(f"expected sites that are columns of the data for InfoGAN; got '{self._inferred[0]}'")
        with programs.strictly_checked():
            found = programs.scores(guide, programs.simulate(model, batch, given=self.given), batch)
        if isinstance(self.weight, Mapping) and (unknown := sorted(self.weight.keys() - found.keys())):
            raise ConfigError(f"expected weights of sites of the guide ({', '.join(found)}); got '{unknown[0]}'")

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The critic's parameters with those of the guide, and the model's."""
        apart = programs.separate_leaves(model, guide, batch)
        own = self.own_parameters()
        shared = {id(parameter) for parameter in own.values()}
        theirs = {name: leaf for name, leaf in apart["guide"].items() if id(leaf) not in shared}
        return {"critic": own | theirs, "model": apart["model"]}

    def extra_loss(self, guide: Program, simulated: Sites, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `GAN.extra_loss`."""
        found = programs.scores(guide, simulated, batch)
        terms = [-self._weight_of(name) * log_q.mean() for name, log_q in found.items()]
        loss = torch.stack(terms).sum()
        return loss, {"information_loss": loss.detach()}

    def _weight_of(self, name: str) -> float:
        return self.weight.get(name, 1.0) if isinstance(self.weight, Mapping) else self.weight
