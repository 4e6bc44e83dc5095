"""A sparse gamma deep exponential family: layers of sparse gamma variables, Poisson counts (Ranganath et al. 2015).

ppgen train examples/sparse_gamma.py:recipe    the intensities of digits as counts from 0 to 16
"""

import dataclasses

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam

SHAPE = 0.3
"""Shape of the gamma variables: below 1 they are sparse."""


def counted(data: Dataset) -> Dataset:
    """Intensities from 0 to 1 become counts from 0 to 16."""
    factor = 16.0 if data.train["x"].max() <= 1 else 1.0

    def count(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": (factor * columns["x"].flatten(1)).round()}

    return dataclasses.replace(
        data, train=count(data.train), validation=count(data.validation), test=count(data.test), classes=None
    )


class SparseGamma:
    """Two layers: ``x ~ Poisson(z1 W1)``, ``z1 ~ Gamma(a, a / (z2 W2))``, ``z2 ~ Gamma(a, b)``.

    Args:
        rows: train rows.
        widths: variables of the layers ``z2``, ``z1`` and ``x``.
    """

    def __init__(self, rows: int, widths: tuple[int, int, int]) -> None:
        self.rows, self.widths = rows, widths

    def model(self, x: Tensor) -> None:
        """Draws the weights, then the layers of each row from the top."""
        top, middle, bottom = self.widths
        rate = torch.tensor(0.3)
        upper = pyro.sample("upper", dist.Gamma(0.3 * torch.ones(top, middle), rate).to_event(2))
        lower = pyro.sample("lower", dist.Gamma(0.3 * torch.ones(middle, bottom), rate).to_event(2))
        with pyro.plate("data", self.rows, subsample_size=len(x)):
            z2 = pyro.sample("z2", dist.Gamma(SHAPE * torch.ones(top), 0.3).to_event(1))
            mean = mixed(z2, upper)
            z1 = pyro.sample("z1", dist.Gamma(SHAPE * torch.ones(middle), SHAPE / (mean + 1e-3)).to_event(1))
            pyro.sample("x", dist.Poisson(mixed(z1, lower) + 1e-3).to_event(1), obs=x)


def mixed(z: Tensor, weights: Tensor) -> Tensor:
    """``z W`` for each row; with particles, the weights are ``(particles, 1, above, below)``."""
    product: Tensor = (z.unsqueeze(-2) @ weights).squeeze(-2)
    return product


class Factors(nn.Module):
    """Gamma factors, by shape and mean; those of the layers are read off a row by a network."""

    def __init__(self, family: SparseGamma, hidden: int) -> None:
        super().__init__()
        self.rows = family.rows
        self.top, self.middle, bottom = family.widths
        self.shapes = {"upper": (self.top, self.middle), "lower": (self.middle, bottom)}
        self.first = {name: 0.5 + torch.rand(shape) for name, shape in self.shapes.items()}
        features = 2 * (self.top + self.middle)
        self.network = nn.Sequential(nn.Linear(bottom, hidden), nn.Softplus(), nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> None:
        """Draws weights and layers."""
        for name, first in self.first.items():
            shape = pyro.param(f"{name}_shape", torch.full_like(first, 2.0), constraint=constraints.positive)
            mean = pyro.param(f"{name}_mean", first.clone(), constraint=constraints.positive)
            pyro.sample(name, gamma(shape, mean).to_event(2))
        sizes = [self.top, self.top, self.middle, self.middle]
        shape2, mean2, shape1, mean1 = softplus(self.network((1 + x).log())).split(sizes, -1)
        with pyro.plate("data", self.rows, subsample_size=len(x)):
            pyro.sample("z2", gamma(shape2, mean2).to_event(1))
            pyro.sample("z1", gamma(shape1, mean1).to_event(1))


def gamma(shape: Tensor, mean: Tensor) -> dist.Gamma:
    """A gamma distribution, kept away from 0, where its density has no bound."""
    shape = shape + 0.1
    return dist.Gamma(shape, shape / (mean + 1e-3))


def recipe(data: Dataset, *, top: int = 5, middle: int = 20, hidden: int = 64, learning_rate: float = 0.01) -> Recipe:
    """Sparse gamma deep exponential family of two layers."""
    data = counted(data)
    rows, bottom = data.train["x"].shape
    family = SparseGamma(rows, (top, middle, bottom))
    optimizer = adam(learning_rate, schedule="cosine", clip=1e3)
    return Recipe(family.model, Factors(family, hidden), ELBO(), data=data, optimizer=optimizer, epochs=200)
