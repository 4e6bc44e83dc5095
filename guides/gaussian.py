"""Amortised Gaussian guides: q(z | x) with a diagonal or a full covariance."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.nn.likelihoods import SMALLEST_SCALE, scale_tril


class DiagonalGaussian(nn.Module):
    """``z ~ N(mean(x), diag(scale(x))^2)``.

    Args:
        encoder: from ``x`` to ``(..., 2 * z_dim)``.
        z_dim: size of the latent vector.

    References:
        Kingma, Welling, 2013, arXiv:1312.6114.
    """

    def __init__(self, encoder: nn.Module, z_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.z_dim = z_dim

    def forward(self, x: Tensor) -> None:
        """The program: site ``z`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", diagonal(self.encoder(x)))


class FullGaussian(nn.Module):
    """``z ~ N(mean(x), L(x) L(x)^T)`` with a lower-triangular ``L``.

    Args:
        encoder: from ``x`` to ``(..., z_dim * (z_dim + 3) / 2)``.
        z_dim: size of the latent vector.

    References:
        Kingma, Welling, 2019, arXiv:1906.02691, section 2.5.
    """

    def __init__(self, encoder: nn.Module, z_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.z_dim = z_dim

    @staticmethod
    def features(z_dim: int) -> int:
        """Returns how many features the encoder has to give."""
        return z_dim * (z_dim + 3) // 2

    def forward(self, x: Tensor) -> None:
        """The program: site ``z`` in the plate ``data``."""
        features = self.encoder(x)
        mean, rest = features[..., : self.z_dim], features[..., self.z_dim :]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=scale_tril(rest, self.z_dim)))


def diagonal(features: Tensor) -> dist.TorchDistribution:
    """Turns ``(..., 2 * z_dim)`` features into a diagonal Gaussian over ``z_dim`` values."""
    mean, rest = features.chunk(2, dim=-1)
    return dist.Normal(mean, softplus(rest) + SMALLEST_SCALE).to_event(1)
