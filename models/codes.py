"""A generator whose latents are noise and codes that a data set's factors are to be found in: InfoGAN's."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.models.generator import Generator, Noise
from ppgen.nn import one_hot


class CodedGenerator(Generator):
    """``code ~ Categorical(1/K)``, ``style ~ U(-1, 1)``, ``z ~ N(0, I)`` or ``U(-1, 1)``, ``x = G(z, code, style)``.

    Args:
        network: G, from ``(rows, z_dim)``, one-hot ``(rows, categories)`` and, if there are any, ``(rows, styles)`` to
            ``(rows, *shape)``.
        shape: of one datum.
        z_dim: size of the noise vector.
        categories: states of the discrete code.
        styles: number of continuous codes.
        noise: distribution of the noise vector.

    Shapes:
        ``x``: ``(rows, *shape)``.

    References:
        Chen et al., 2016, arXiv:1606.03657.
    """

    logits: Tensor
    bound: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        z_dim: int,
        *,
        categories: int,
        styles: int = 0,
        noise: Noise = "normal",
    ) -> None:
        super().__init__(network, shape, z_dim, noise=noise)
        self.categories = categories
        self.styles = styles
        self.register_buffer("logits", torch.zeros(categories), persistent=False)
        self.register_buffer("bound", torch.ones(styles), persistent=False)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``code``, ``style`` (if there are any), ``z`` and ``x`` in the plate ``data``."""
        with pyro.plate("data", len(x)):
            codes = [one_hot(pyro.sample("code", dist.Categorical(logits=self.logits)), self.categories)]
            if self.styles:
                uniform = dist.Uniform(-self.bound, self.bound, validate_args=False)
                codes.append(pyro.sample("style", uniform.to_event(1)))
            z = pyro.sample("z", self.latent())
            pyro.sample("x", dist.Delta(self.network(z, *codes), event_dim=len(self.shape)), obs=x)
