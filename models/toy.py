"""The toy problem of gradient estimators: the expected square of a coin's distance from a target."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Coins(nn.Module):
    """Independent coins, one row of data each: ``b_r ~ Bernoulli(sigmoid(theta_r))``, ``x_r ~ N(b_r, 1/2)``.

    Beside the guide ``guides.SameCoins(model)`` the evidence lower bound of rows ``x = t`` is the toy problem itself:
    ``-log N(t; b, 1/2) = (b - t)^2 + log(pi) / 2``, and model and guide draw ``b`` from one distribution, so that no
    divergence enters. For ``t < 1/2`` the minimum lies at ``b = 0``.

    Args:
        replicas: how many coins; each sees its own draws only, so that so many runs train at once.

    Shapes:
        ``x``: ``(rows, 1)``, the target; ``replica``: integers ``(rows,)``, the coin of each row; all in order unless
        told. Site ``b``: ``(rows,)``.

    References:
        Tucker et al., 2017, arXiv:1703.07370 (t = 0.45). Grathwohl et al., 2018, arXiv:1711.00123 (t = 0.499).
    """

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(replicas))

    def of(self, replica: Tensor | None, rows: int) -> dist.TorchDistribution:
        """Returns the coins' distribution, one for each row."""
        if replica is None:
            replica = torch.arange(rows, device=self.logits.device) % len(self.logits)
        return dist.Bernoulli(logits=self.logits[replica])

    def forward(self, x: Tensor, replica: Tensor | None = None) -> None:
        """The program: sites ``b`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", self.of(replica, len(x)))
            pyro.sample("x", dist.Normal(b.unsqueeze(-1), math.sqrt(0.5)).to_event(1), obs=x)
