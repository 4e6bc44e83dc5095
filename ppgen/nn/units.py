"""Units: how the features of a network become one stochastic layer, and its draw the input of the next network."""

import math

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.errors import ConfigError
from ppgen.nn.likelihoods import SMALLEST_SCALE

_SHIFT = math.log(math.expm1(1 - SMALLEST_SCALE))  # features of 0 then mean a standard deviation of 1


class Units(nn.Module):
    """The units of one stochastic layer.

    A draw is used as numbers, never as an index, so that a relaxed one may take its place.

    Attributes:
        features: how many outputs of a network the distribution takes; all 0, it is the one that says least.
        size: how many inputs a draw gives to the next network.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.features = features
        self.size = size

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the distribution given features ``(..., features)``: batch shape ``(...)``."""
        raise TypeError("units define forward")

    def inputs(self, draw: Tensor) -> Tensor:
        """Turns a draw into inputs ``(..., size)`` of the next network."""
        return draw


class BernoulliUnits(Units):
    """``size`` units that are 0 or 1 and are shown to the next network as -1 or 1.

    >>> import torch
    >>> units = BernoulliUnits(2)
    >>> units.inputs(torch.tensor([0.0, 1.0])).tolist()
    [-1.0, 1.0]
    >>> units(torch.zeros(5, 2)).event_shape
    torch.Size([2])
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """See `Units.forward`; event shape ``(size,)``."""
        return dist.Bernoulli(logits=features).to_event(1)

    def inputs(self, draw: Tensor) -> Tensor:
        """See `Units.inputs`."""
        return 2 * draw - 1


class CategoricalUnits(Units):
    """``groups`` one-hot vectors of ``classes`` each.

    Raises:
        ConfigError: if there are fewer than two classes.

    >>> import torch
    >>> CategoricalUnits(20, 10)(torch.zeros(5, 200)).event_shape
    torch.Size([20, 10])
    """

    def __init__(self, groups: int, classes: int) -> None:
        if classes < 2:
            raise ConfigError(f"expected at least 2 classes; got {classes}")
        super().__init__(groups * classes, groups * classes)
        self.groups = groups
        self.classes = classes

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """See `Units.forward`; event shape ``(groups, classes)``."""
        return dist.OneHotCategorical(logits=features.unflatten(-1, (self.groups, self.classes))).to_event(1)

    def inputs(self, draw: Tensor) -> Tensor:
        """See `Units.inputs`."""
        return draw.flatten(-2)


class GaussianUnits(Units):
    """``size`` Gaussian units: features are means, then standard deviations before a softplus (1 where they are 0)."""

    def __init__(self, size: int) -> None:
        super().__init__(2 * size, size)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """See `Units.forward`; event shape ``(size,)``."""
        mean, rest = features.chunk(2, dim=-1)
        return dist.Normal(mean, softplus(rest + _SHIFT) + SMALLEST_SCALE).to_event(1)


class Shift(nn.Module):
    """Adds a constant: less its mean, a network's input is centred.

    >>> import torch
    >>> Shift(torch.tensor([-1.0]))(torch.tensor([[3.0]])).tolist()
    [[2.0]]
    """

    constant: Tensor

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", constant.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the same shape."""
        return x + self.constant
