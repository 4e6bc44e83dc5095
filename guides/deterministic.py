"""The guide of a deterministic encoder: one latent vector for each row, without noise."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppgen.nn import Critic


class Deterministic(nn.Module):
    """``z = encoder(x)``, or ``tanh(encoder(x))`` where the prior is on (-1, 1): the encoder of a BiGAN.

    The encoder's last hidden layer is the site ``features``, which is no latent: `ppgen.evaluation.embed` gives it, and
    it is what the paper's nearest neighbours are found by.

    Args:
        encoder: from ``x`` to ``(rows, z_dim)``, of `ppgen.nn.critic` say, for its `features`.
        bounded: whether ``z`` lies in (-1, 1).

    Shapes:
        ``x``: ``(rows, *shape)``.

    References:
        Donahue, Kraehenbuehl, Darrell, 2017, arXiv:1605.09782.
    """

    def __init__(self, encoder: Critic, *, bounded: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.bounded = bounded

    def forward(self, x: Tensor) -> None:
        """The program: site ``z`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            hidden = pyro.deterministic("features", self.encoder.features(x), event_dim=1)
            z = self.encoder.head(hidden)
            pyro.sample("z", dist.Delta(z.tanh() if self.bounded else z, event_dim=1))
