"""Autoencoders whose latents follow any prior that can be drawn from, with labels that choose a part of it or not."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.nn.likelihoods import Likelihood

Prior = Callable[[Tensor], dist.TorchDistribution]
"""From labels ``(rows,)``, -1 for a missing one, to a distribution of batch shape ``(rows,)`` or ``()``."""


class PriorVAE(nn.Module):
    """``z ~ prior``, ``x ~ likelihood(decoder(z))``.

    Args:
        decoder: from ``(..., z_dim)`` to ``(..., likelihood.features)``.
        likelihood: of ``x`` given the decoder's features.
        prior: from labels, none of them known here, to the distribution of ``z``; it need not have a density where the
            objective asks for none.

    Shapes:
        ``x``: ``(batch, *likelihood.shape)``.

    References:
        Makhzani et al., 2015, arXiv:1511.05644, figure 2.

    Example:
        >>> from ppgen import nn, programs
        >>> from ppgen.models import SwissRoll
        >>> model = PriorVAE(nn.MLP(2, [8], 4), nn.Bernoulli((4,)), SwissRoll)
        >>> programs.generate(model, {"x": torch.zeros(5, 4)})["z"].shape
        torch.Size([5, 2])
    """

    def __init__(self, decoder: nn.Module, likelihood: Likelihood, prior: Prior) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior

    def forward(self, x: Tensor) -> None:
        """The program: sites ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            self._data(x, torch.full((len(x),), -1, device=x.device))

    def _data(self, x: Tensor, labels: Tensor) -> None:
        z = pyro.sample("z", self.prior(labels))
        pyro.sample("x", self.likelihood(self.decoder(z)), obs=self.likelihood.prepare(x))


class LabelledPriorVAE(PriorVAE):
    """``y ~ Categorical(1/K)``, ``z ~ prior(y)``, ``x ~ likelihood(decoder(z))``: labels choose a part of the prior.

    A row with label -1 has its latents from the whole prior.

    Args:
        decoder: from ``(..., z_dim)`` to ``(..., likelihood.features)``.
        likelihood: of ``x`` given the decoder's features.
        prior: from labels to the distribution of ``z``.
        classes: number of labels.

    Shapes:
        ``x``: ``(batch, *likelihood.shape)``; ``y``: integers ``(batch,)``, or None where it is latent.

    References:
        Makhzani et al., 2015, arXiv:1511.05644, section 2.3.
    """

    def __init__(self, decoder: nn.Module, likelihood: Likelihood, prior: Prior, classes: int) -> None:
        super().__init__(decoder, likelihood, prior)
        self.register_buffer("logits", torch.zeros(classes), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """The program: sites ``y``, ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", _SomeUnknown(logits=self.logits), obs=y)
            self._data(x, y)


class _SomeUnknown(dist.Categorical):
    """A category of which -1 says that it is not known, which says nothing about the data."""

    @property
    def support(self) -> torch.distributions.constraints.Constraint:
        return torch.distributions.constraints.integer_interval(-1, self._num_events - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        found = super().log_prob(value.clamp(min=0))
        return torch.where(value < 0, torch.zeros_like(found), found)
