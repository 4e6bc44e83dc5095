"""Structured output prediction: one half of an image given the other, through stochastic layers."""

from collections.abc import Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn.likelihoods import Bernoulli
from ppgen.nn.units import Units

CERTAIN = 100.0
"""A logit so large that its probability is exactly 0 or 1 in float32."""


class UpperHalf(nn.Module):
    """The upper half of an image ``(..., height, width)``, or the first half of a vector: flattened, shown as -1 to 1.

    Args:
        shape: of one datum; of an odd number of rows the lower half has one more.

    Raises:
        ConfigError: if there is nothing to halve.

    >>> half = UpperHalf((1, 5, 3))
    >>> half.size, half.lower_shape
    (6, (1, 3, 3))
    """

    lower: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.dim = -min(len(shape), 2)
        if not shape or shape[self.dim] < 2:
            raise ConfigError(f"expected data with two rows or values to halve at least; got {tuple(shape)}")
        self.shape = tuple(shape)
        self.rows = shape[self.dim] // 2
        lower = torch.ones(*shape, dtype=torch.bool)
        lower.narrow(self.dim, 0, self.rows).fill_(False)
        self.register_buffer("lower", lower, persistent=False)
        self.size = int((~lower).sum())
        self.lower_shape = tuple(lower.narrow(self.dim, self.rows, shape[self.dim] - self.rows).shape)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(..., size)``."""
        return 2 * x.narrow(self.dim, 0, self.rows).flatten(-len(self.shape)) - 1


class StructuredPrediction(nn.Module):
    """``z_1 ~ units_1(network_1(upper))``, ``z_l ~ units_l(network_l(z_{l-1}))``, ``lower ~ Bernoulli(network(z_L))``.

    The site ``x`` is the whole image: its upper half has the column's values for its means and adds nothing to the
    density, so that all bounds and likelihoods are those of the lower half given the upper one. With the guide
    ``guides.BottomUp(units, networks[:-1])``, of the same modules, a bound is the paper's objective
    ``-log 1/K sum_k p(lower | z_k)`` with draws from ``p(z | upper)``.

    Args:
        units: of the layers ``z1 ... zL``, from the upper half on.
        networks: from ``x`` (by `UpperHalf` first) to the features of ``z1``, from the inputs of ``z1`` to the features
            of ``z2``, ..., and from those of ``zL`` to ``(..., values of the lower half)``.
        upper: says where the halves are.

    Shapes:
        ``x``: ``(batch, *shape)``, in [0, 1].

    Raises:
        ConfigError: if there are no layers, or not one network more.

    References:
        Raiko, Berglund, Alain, Dinh, 2014, arXiv:1406.2989. Jang, Gu, Poole, 2016, arXiv:1611.01144.
    """

    def __init__(self, units: Sequence[Units], networks: Sequence[nn.Module], upper: UpperHalf) -> None:
        super().__init__()
        if not units or len(units) + 1 != len(networks):
            raise ConfigError(f"expected one network more than layers; got {len(networks)} and {len(units)}")
        self.units = nn.ModuleList(units)
        self.networks = nn.ModuleList(networks)
        self.upper = upper
        self.likelihood = Bernoulli(upper.shape)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``z1`` ... ``zL`` and ``x`` in the plate ``data``."""
        inputs = x
        with pyro.plate("data", len(x)):
            for number, (layer, network) in enumerate(zip(self.units, self.networks[:-1], strict=True), start=1):
                units = cast(Units, layer)
                inputs = units.inputs(pyro.sample(f"z{number}", units(network(inputs))))
            pyro.sample("x", self._whole(x, self.networks[-1](inputs)), obs=x)

    def _whole(self, x: Tensor, lower: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of the whole image, of which only the lower half counts."""
        dim, dims = self.upper.dim, len(self.upper.shape)
        certain = x.narrow(dim, 0, self.upper.rows).logit().clamp(-CERTAIN, CERTAIN)
        lower = lower.unflatten(-1, self.upper.lower_shape)
        logits = torch.cat([certain.expand(*lower.shape[:-dims], *certain.shape[-dims:]), lower], dim)
        return self.likelihood(logits.flatten(-dims)).base_dist.mask(self.upper.lower).to_event(dims)
