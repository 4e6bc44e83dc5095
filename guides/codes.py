"""The guide of InfoGAN: which codes a row was made of, told by a head on the critic's features."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.nn import MLP, Critic

SMALLEST_SPREAD = 0.1
"""Of a continuous code in (-1, 1): a guide that is surer could outbid any other code in the bound."""


class Codes(nn.Module):
    """``code ~ Categorical(softmax h(x))``, ``style ~ N(mean(x), scale(x)^2)``, both of the critic's features.

    Args:
        critic: whose last hidden layer the head is put on; its parameters stay the critic's.
        categories: states of the discrete code.
        styles: number of continuous codes.
        hidden: size of the head's hidden layer.
        activation: of the head.
        batch_norm: normalise the head's hidden layer.

    Shapes:
        ``x``: ``(rows, *shape)``.

    References:
        Chen et al., 2016, arXiv:1606.03657, section 6 and appendix C.
    """

    def __init__(
        self,
        critic: Critic,
        *,
        categories: int,
        styles: int = 0,
        hidden: int = 128,
        activation: str = "leaky-relu",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.critic = critic
        self.categories = categories
        self.styles = styles
        outputs = categories + 2 * styles
        self.head = MLP(critic.width, [hidden], outputs, activation=activation, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``code`` and ``style`` (if there are any) in the plate ``data``."""
        found = self.head(self.critic.features(x))
        logits, mean, rest = torch.split(found, [self.categories, self.styles, self.styles], dim=-1)
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Categorical(logits=logits))
            if self.styles:
                pyro.sample("style", dist.Normal(mean, softplus(rest) + SMALLEST_SPREAD).to_event(1))
