"""A Bayesian neural network: every weight of a classifier is a latent variable.

ppgen train examples/bayesian_network.py:recipe    the labels of digits
"""

from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal, init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam


class Classifier(PyroModule):
    """A perceptron with one hidden layer whose weights have normal priors."""

    def __init__(self, rows: int, size: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.rows = rows
        self.first = bayesian(size, hidden)
        self.second = bayesian(hidden, classes)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Observes the labels ``y`` of ``x``; returns the classes' logits."""
        logits: Tensor = self.second(torch.tanh(self.first(x.flatten(1))))
        with pyro.plate("data", self.rows, subsample_size=len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)
        return logits


def bayesian(inputs: int, outputs: int) -> PyroModule:
    """A linear layer whose weights and offsets are sample sites."""
    layer: PyroModule = PyroModule[nn.Linear](inputs, outputs)
    layer.weight = PyroSample(dist.Normal(0.0, inputs**-0.5).expand([outputs, inputs]).to_event(2))
    layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))
    return layer


def recipe(
    data: Dataset,
    *,
    hidden: int = 32,
    guide: Literal["normal", "low-rank"] = "normal",
    rank: int = 5,
    learning_rate: float = 0.01,
) -> Recipe:
    """Bayesian neural network with an automatic guide: independent normals, or normals of low rank."""
    data.require_labels()
    x = data.train["x"].flatten(1)
    rows, size = x.shape
    model = Classifier(rows, size, hidden, len(data.classes or ()))
    # weights that start at random, not all at 0, where hidden units are alike
    first = {
        f"{name}.weight": layer.weight.detach().clone()
        for name, layer in (("first", nn.Linear(size, hidden)), ("second", nn.Linear(hidden, len(data.classes or ()))))
    }
    start = init_to_value(values=first)
    automatic = (
        AutoNormal(model, init_loc_fn=start, init_scale=0.02)
        if guide == "normal"
        else AutoLowRankMultivariateNormal(model, init_loc_fn=start, init_scale=0.02, rank=rank)
    )
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(model, automatic, ELBO(), data=data, optimizer=optimizer, epochs=100, particles=20)
