"""Generators: latents become data without noise, so the data site is a ``Delta`` and has no density."""

from collections.abc import Iterable, Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.nn import one_hot

Noise = Literal["normal", "uniform"]


class Generator(nn.Module):
    """``z ~ N(0, I)`` or ``U(-1, 1)``, and ``x = network(z)``.

    Args:
        network: from ``(rows, z_dim)`` to ``(rows, *shape)``.
        shape: of one datum.
        z_dim: size of the latent vector.
        noise: its distribution, "normal" or "uniform".

    Shapes:
        ``x``: ``(rows, *shape)``.

    References:
        Goodfellow et al., 2014, arXiv:1406.2661.
    """

    zeros: Tensor
    ones: Tensor

    def __init__(self, network: nn.Module, shape: Sequence[int], z_dim: int, *, noise: Noise = "normal") -> None:
        super().__init__()
        self.network = network
        self.shape = tuple(shape)
        self.noise = noise
        self.register_buffer("zeros", torch.zeros(z_dim), persistent=False)
        self.register_buffer("ones", torch.ones(z_dim), persistent=False)

    def latent(self) -> dist.TorchDistribution:
        """Returns the distribution of the latent vector."""
        if self.noise == "uniform":
            return dist.Uniform(-self.ones, self.ones, validate_args=False).to_event(1)
        return dist.Normal(self.zeros, self.ones).to_event(1)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.latent())
            pyro.sample("x", dist.Delta(self.network(z), event_dim=len(self.shape)), obs=x)


class ConditionalGenerator(Generator):
    """``y ~ Categorical(1/K)``, ``z ~ N(0, I)`` or ``U(-1, 1)``, and ``x = network(z, y)``.

    Args:
        network: from ``(rows, z_dim)`` and one-hot ``(rows, classes)`` to ``(rows, *shape)``.
        shape: of one datum.
        z_dim: size of the latent vector.
        classes: number of labels.
        noise: the latent vector's distribution.

    References:
        Mirza, Osindero, 2014, arXiv:1411.1784.
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], z_dim: int, classes: int, *, noise: Noise = "normal"
    ) -> None:
        super().__init__(network, shape, z_dim, noise=noise)
        self.classes = classes
        self.register_buffer("logits", torch.zeros(classes), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """The program: sites ``y``, ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), obs=y)
            z = pyro.sample("z", self.latent())
            found = self.network(z, one_hot(y, self.classes).to(z.dtype))
            pyro.sample("x", dist.Delta(found, event_dim=len(self.shape)), obs=x)


class GeneratorMixture(Generator):
    """``component ~ Categorical(1/K)``, ``z ~ N(0, I)`` or ``U(-1, 1)``, and ``x = heads[component](shared(z))``.

    Args:
        shared: the layers that all generators share, from ``(rows, z_dim)`` to ``(rows, features)``.
        heads: the other layers of each generator, from ``(rows, features)`` to ``(rows, *shape)``.
        shape: of one datum.
        z_dim: size of the latent vector.
        noise: its distribution.

    References:
        Ghosh, Kulharia, Namboodiri, Torr, Dokania, 2018, arXiv:1704.02906.
    """

    def __init__(
        self,
        shared: nn.Module,
        heads: Iterable[nn.Module],
        shape: Sequence[int],
        z_dim: int,
        *,
        noise: Noise = "normal",
    ) -> None:
        super().__init__(shared, shape, z_dim, noise=noise)
        self.heads = nn.ModuleList(heads)
        self.register_buffer("logits", torch.zeros(len(self.heads)), persistent=False)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``component``, ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            component = pyro.sample("component", dist.Categorical(logits=self.logits))
            features = self.network(pyro.sample("z", self.latent()))
            # all generators for every row: which of them counts is random, and a compiled step has fixed shapes
            found = torch.stack([head(features) for head in self.heads], 1)
            chosen = one_hot(component, len(self.heads)).to(found.dtype)
            mixed = torch.einsum("rk,rk...->r...", chosen, found)
            pyro.sample("x", dist.Delta(mixed, event_dim=len(self.shape)), obs=x)
