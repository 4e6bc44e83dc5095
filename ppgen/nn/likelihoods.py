"""Likelihoods: how a decoder's features become the distribution of a data site."""

import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.errors import ConfigError
from ppgen.nn.layers import size_of

SMALLEST_SCALE = 1e-3


class Likelihood(nn.Module):
    """A distribution over arrays of one shape, given ``features`` decoder outputs.

    Attributes:
        shape: of one datum.
        features: how many outputs of the decoder it takes.
        unit_interval: whether data must lie in [0, 1].
    """

    unit_interval = False

    def __init__(self, shape: Sequence[int], features: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.features = features

    def prepare(self, x: Tensor) -> Tensor:
        """Returns the data as the distribution observes it."""
        return x

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the distribution given features ``(..., features)``: batch shape ``(...)``, event shape ``shape``."""
        raise TypeError("a likelihood defines forward")

    def _shaped(self, features: Tensor) -> Tensor:
        return features.reshape(*features.shape[:-1], *self.shape)


class Bernoulli(Likelihood):
    """Independent Bernoulli values; data in [0, 1]."""

    unit_interval = True

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, size_of(shape))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """See `Likelihood.forward`."""
        return _RelaxedObservation(logits=self._shaped(features)).to_event(len(self.shape))


class _RelaxedObservation(dist.Bernoulli):
    """A Bernoulli that also scores grey values, by the cross-entropy that VAE papers use for MNIST in [0, 1]."""

    support = torch.distributions.constraints.unit_interval


class Gaussian(Likelihood):
    """Gaussian values.

    Args:
        shape: of one datum.
        covariance: "fixed" (standard deviation ``scale``), "learned" (one per value, from the decoder), or "full" (a
            Cholesky factor from the decoder: ``d (d + 3) / 2`` features for ``d`` values, at most 512).
        scale: the fixed standard deviation.
    """

    def __init__(
        self, shape: Sequence[int], *, covariance: Literal["fixed", "learned", "full"] = "learned", scale: float = 1.0
    ) -> None:
        size = size_of(shape)
        if covariance == "full" and size > 512:
            raise ConfigError(f"expected at most 512 values for a full covariance; got {size}")
        super().__init__(shape, {"fixed": size, "learned": 2 * size, "full": size * (size + 3) // 2}[covariance])
        self.covariance = covariance
        self.scale = scale
        self.size = size

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """See `Likelihood.forward`."""
        event_dims = len(self.shape)
        if self.covariance == "fixed":
            return dist.Normal(self._shaped(features), self.scale).to_event(event_dims)
        mean, rest = features[..., : self.size], features[..., self.size :]
        if self.covariance == "learned":
            scale = softplus(rest) + SMALLEST_SCALE
            return dist.Normal(self._shaped(mean), self._shaped(scale)).to_event(event_dims)
        normal = dist.MultivariateNormal(mean, scale_tril=scale_tril(rest, self.size))
        transform = torch.distributions.transforms.ReshapeTransform(torch.Size((self.size,)), torch.Size(self.shape))
        return normal if event_dims == 1 else dist.TransformedDistribution(normal, [transform])


class Categorical(Likelihood):
    """Independent categorical values: data in [0, 1] on ``levels`` equidistant levels (256 for 8-bit images)."""

    unit_interval = True

    def __init__(self, shape: Sequence[int], *, levels: int = 256) -> None:
        super().__init__(shape, size_of(shape) * levels)
        self.levels = levels

    def prepare(self, x: Tensor) -> Tensor:
        """Returns the index of the level nearest to each value."""
        return (x * (self.levels - 1)).round().long()

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """See `Likelihood.forward`."""
        # levels first, as the channels of a convolutional decoder have them
        logits = features.reshape(*features.shape[:-1], self.levels, *self.shape).movedim(-1 - len(self.shape), -1)
        return dist.Categorical(logits=logits).to_event(len(self.shape))


def scale_tril(features: Tensor, size: int) -> Tensor:
    """Turns ``(..., size (size + 1) / 2)`` features into lower-triangular factors with a positive diagonal."""
    rows, columns = torch.tril_indices(size, size, device=features.device)
    places = (rows * size + columns).expand(features.shape)
    flat = features.new_zeros(*features.shape[:-1], size * size).scatter(-1, places, features)
    matrix = flat.unflatten(-1, (size, size))
    diagonal = softplus(matrix.diagonal(dim1=-2, dim2=-1)) + SMALLEST_SCALE
    # smaller the more there are of them, or the inverse of a large factor grows beyond all bounds
    tril: Tensor = matrix.tril(-1) / math.sqrt(size) + torch.diag_embed(diagonal)
    return tril


def likelihood(name: str, shape: Sequence[int], *, scale: float = 1.0, levels: int = 256) -> Likelihood:
    """Returns a likelihood by name: bernoulli, gaussian, gaussian-fixed, gaussian-full, categorical.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name == "bernoulli":
        return Bernoulli(shape)
    if name == "categorical":
        return Categorical(shape, levels=levels)
    kinds: dict[str, Literal["fixed", "learned", "full"]] = {
        "gaussian": "learned",
        "gaussian-fixed": "fixed",
        "gaussian-full": "full",
    }
    if name not in kinds:
        raise ConfigError(f"expected likelihood bernoulli, categorical, {', '.join(kinds)}; got '{name}'")
    return Gaussian(shape, covariance=kinds[name], scale=scale)
