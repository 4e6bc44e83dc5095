"""Penalties that keep a critic smooth."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.sides import Inputs


@dataclass(frozen=True)
class GradientPenalty:
    """``weight * E[(|grad critic| - 1)^2]`` at random points between rows of the data and rows of the model.

    The norm is over all inputs of the critic together.

    Attributes:
        weight: the paper's lambda.

    References:
        Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, 2017, arXiv:1704.00028.
    """

    weight: float = 10.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"expected a weight of the gradient penalty of at least 0; got {self.weight}")

    def of(self, critic: Callable[..., Tensor], data: Inputs, model: Inputs) -> Tensor:
        """Returns the penalty, a scalar."""
        share = torch.rand(len(data[0]), dtype=data[0].dtype, device=data[0].device)
        between = tuple(
            torch.lerp(fake.detach(), real.detach(), share.reshape(-1, *[1] * (real.dim() - 1))).requires_grad_()
            for real, fake in zip(data, model, strict=True)
        )
        gradients = torch.autograd.grad(critic(*between).sum(), between, create_graph=True)
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
        return self.weight * ((squares + 1e-12).sqrt() - 1).square().mean()
