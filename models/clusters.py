"""Clusters and styles: M2 where no label is known."""

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppgen.models.m2 import M2
from ppgen.nn import one_hot


class Clusters(M2):
    """``cluster ~ Categorical(1/K)``, ``z ~ N(0, I)``, ``x ~ likelihood(decoder(z, cluster))``.

    Args:
        decoder: from ``(..., z_dim)`` and one-hot ``(..., clusters)`` to ``(..., likelihood.features)``.
        likelihood: of ``x`` given the decoder's features.
        z_dim: size of the style vector.
        classes: number of clusters.

    Shapes:
        ``x``: ``(batch, *likelihood.shape)``.

    References:
        Makhzani et al., 2015, arXiv:1511.05644, section 6.
    """

    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        """The program: sites ``cluster``, ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))
            features = self.decoder(z, one_hot(cluster, self.classes).to(z.dtype))
            pyro.sample("x", self.likelihood(features), obs=self.likelihood.prepare(x))
