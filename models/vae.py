"""The variational autoencoder's generative model: a Gaussian latent vector and a decoder."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.nn.likelihoods import Likelihood


class VAE(nn.Module):
    """``z ~ N(0, I)``, ``x ~ likelihood(decoder(z))``.

    Args:
        decoder: from ``(..., z_dim)`` to ``(..., likelihood.features)``.
        likelihood: of ``x`` given the decoder's features.
        z_dim: size of the latent vector.

    Shapes:
        ``x``: ``(batch, *likelihood.shape)``.

    References:
        Kingma, Welling, 2013, arXiv:1312.6114.
    """

    def __init__(self, decoder: nn.Module, likelihood: Likelihood, z_dim: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood
        self.register_buffer("loc", torch.zeros(z_dim), persistent=False)
        self.register_buffer("scale", torch.ones(z_dim), persistent=False)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=self.likelihood.prepare(x))
