"""M2: a class label and a style vector generate the data."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.nn import one_hot
from ppgen.nn.likelihoods import Likelihood


class M2(nn.Module):
    """``y ~ Categorical(1/K)``, ``z ~ N(0, I)``, ``x ~ likelihood(decoder(z, y))``.

    Args:
        decoder: from ``(..., z_dim)`` and one-hot ``(..., classes)`` to ``(..., likelihood.features)``.
        likelihood: of ``x`` given the decoder's features.
        z_dim: size of the style vector.
        classes: number of labels.

    Shapes:
        ``x``: ``(batch, *likelihood.shape)``; ``y``: integers ``(batch,)``, or None where it is latent.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298.
    """

    def __init__(self, decoder: nn.Module, likelihood: Likelihood, z_dim: int, classes: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood
        self.classes = classes
        self.register_buffer("loc", torch.zeros(z_dim), persistent=False)
        self.register_buffer("scale", torch.ones(z_dim), persistent=False)
        self.register_buffer("logits", torch.zeros(classes), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """The program: sites ``y``, ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), obs=y)
            z = pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))
            features = self.decoder(z, one_hot(y, self.classes).to(z.dtype))
            pyro.sample("x", self.likelihood(features), obs=self.likelihood.prepare(x))
