"""The guide of the toy problem."""

from typing import Protocol

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class Coins(Protocol):
    """A model with the distribution of its coins."""

    def of(self, replica: Tensor | None, rows: int) -> dist.TorchDistribution:
        """Returns the coins' distribution, one for each row."""


class SameCoins(nn.Module):
    """``b`` from the very distribution that the model draws it from, parameters included.

    Args:
        coins: the model, a `models.Coins`: its ``of(replica, rows)`` is that distribution.

    References:
        Tucker et al., 2017, arXiv:1703.07370.
    """

    def __init__(self, coins: Coins) -> None:
        super().__init__()
        self.coins = coins

    def forward(self, x: Tensor, replica: Tensor | None = None) -> None:
        """The program: site ``b`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            pyro.sample("b", self.coins.of(replica, len(x)))
