"""Guides without a density: noise is pushed through a network."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Implicit(nn.Module):
    """``noise ~ N(0, I)`` and ``z = network(x, noise)``: any distribution, of which only draws are known.

    Args:
        network: from ``x`` and ``(..., noise_dim)`` to ``(..., z_dim)``.
        noise_dim: size of the noise.

    References:
        Mescheder, Nowozin, Geiger, 2017, arXiv:1701.04722.
    """

    zeros: Tensor
    ones: Tensor

    def __init__(self, network: nn.Module, noise_dim: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("zeros", torch.zeros(noise_dim), persistent=False)
        self.register_buffer("ones", torch.ones(noise_dim), persistent=False)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``noise``, which the model does not have, and ``z``, in the plate ``data``."""
        with pyro.plate("data", len(x)):
            normal = dist.Normal(self.zeros, self.ones).to_event(1)
            noise = pyro.sample("noise", normal, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(self.network(x, noise), event_dim=1))
