"""Bayesian linear regression on a table: the last column from the others.

ppgen train examples/linear_regression.py:recipe --data table.csv
"""

import dataclasses

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam


def standardised(data: Dataset) -> Dataset:
    """Splits the table into features ``x`` and ``target``, in units of the train rows' standard deviations."""
    train = data.train["x"].flatten(1)
    centre, width = train.mean(0), train.std(0).clamp(min=1e-6)

    def split(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        table = (columns["x"].flatten(1) - centre) / width
        return {"x": table[:, :-1], "target": table[:, -1]}

    return dataclasses.replace(
        data, train=split(data.train), validation=split(data.validation), test=split(data.test), classes=None
    )


def recipe(data: Dataset, *, spread: float = 1.0, learning_rate: float = 0.02) -> Recipe:
    """Linear regression: plain functions, coefficients with a full covariance, the noise a parameter."""
    data = standardised(data)
    rows, features = data.train["x"].shape

    def model(x: Tensor, target: Tensor | None = None) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(features), spread).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, spread))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        # a batch stands for all rows, so that the prior counts once and not once a batch
        with pyro.plate("data", rows, subsample_size=len(x)):
            pyro.sample("target", dist.Normal((x * weights).sum(-1) + bias, noise), obs=target)

    def guide(x: Tensor, target: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.zeros(features))
        factor = pyro.param("factor", 0.1 * torch.eye(features), constraint=constraints.lower_cholesky)
        pyro.sample("weights", dist.MultivariateNormal(loc, scale_tril=factor))
        bias_loc = pyro.param("bias_loc", torch.tensor(0.0))
        bias_scale = pyro.param("bias_scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("bias", dist.Normal(bias_loc, bias_scale))

    return Recipe(model, guide, ELBO(), data=data, optimizer=adam(learning_rate, schedule="cosine"), epochs=300)


class Regression(PyroModule):
    """The same model as a module whose weights are sample sites."""

    def __init__(self, features: int, rows: int, spread: float) -> None:
        super().__init__()
        self.rows = rows
        self.linear = PyroModule[nn.Linear](features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, spread).expand([1, features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, spread).expand([1]).to_event(1))

    def forward(self, x: Tensor, target: Tensor | None = None) -> None:
        """Observes ``target`` given ``x``."""
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", self.rows, subsample_size=len(x)):
            pyro.sample("target", dist.Normal(mean, noise), obs=target)


def module(data: Dataset, *, spread: float = 1.0, learning_rate: float = 0.02) -> Recipe:
    """Linear regression: a PyroModule with PyroSample weights, AutoNormal as its guide."""
    data = standardised(data)
    rows, features = data.train["x"].shape
    model = Regression(features, rows, spread)
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(model, AutoNormal(model), ELBO(), data=data, optimizer=optimizer, epochs=300)
