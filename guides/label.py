"""The guide of models with a class label: q(y | x) and q(z | x, y)."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppgen.guides.gaussian import diagonal
from ppgen.nn import one_hot


class Label(nn.Module):
    """``y ~ Categorical(classifier(x))``, ``z ~ N(mean(x, y), diag(scale(x, y))^2)``.

    Args:
        classifier: from ``x`` to logits ``(..., classes)``.
        encoder: from ``x`` and one-hot ``y`` to ``(..., 2 * z_dim)``.
        classes: number of labels.
        site: name of the label's site.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298.
    """

    def __init__(self, classifier: nn.Module, encoder: nn.Module, classes: int, *, site: str = "y") -> None:
        super().__init__()
        self.classifier = classifier
        self.encoder = encoder
        self.classes = classes
        self.site = site

    def forward(self, x: Tensor) -> None:
        """The program: the label's site and ``z`` in the plate ``data``; an objective conditions known labels."""
        with pyro.plate("data", len(x)):
            y = pyro.sample(self.site, dist.Categorical(logits=self.classifier(x)))
            pyro.sample("z", diagonal(self.encoder(x, one_hot(y, self.classes).to(x.dtype))))
