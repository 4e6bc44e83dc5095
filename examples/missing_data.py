"""Probabilistic PCA of rows with missing values: what is unknown is masked out of the likelihood.

ppgen train examples/missing_data.py:recipe --data table.npz    x, and known: 1 where a value is known, 0 elsewhere
ppgen train examples/missing_data.py:recipe --set hidden=0.3    digits of which 30 % of the pixels are hidden
"""

import dataclasses

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam


def with_known(data: Dataset, hidden: float) -> Dataset:
    """Rows as vectors, 0 where unknown, with a column ``known``; of a data set without one, values are hidden."""
    generator = torch.Generator().manual_seed(0)

    def known(columns: dict[str, Tensor]) -> Tensor:
        if "known" in columns:
            return columns["known"].flatten(1).bool()
        return torch.rand(columns["x"].flatten(1).shape, generator=generator) >= hidden

    def split(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = known(columns)
        return {"x": columns["x"].flatten(1).where(mask, torch.tensor(0.0)), "known": mask}

    return dataclasses.replace(
        data, train=split(data.train), validation=split(data.validation), test=split(data.test), classes=None
    )


class Factors(nn.Module):
    """``z ~ N(0, I)``, ``x ~ N(z W + b, s^2 I)`` where known."""

    def __init__(self, size: int, factors: int) -> None:
        super().__init__()
        self.factors = factors
        self.mean = nn.Linear(factors, size)
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, known: Tensor) -> None:
        """Observes the known values of ``x``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.factors), 1.0).to_event(1))
            values = dist.Normal(self.mean(z), self.log_scale.exp())
            pyro.sample("x", values.mask(known).to_event(1), obs=x)


class Encoder(nn.Module):
    """A normal factor for ``z`` from the known values and which they are."""

    def __init__(self, size: int, factors: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2 * size, 64), nn.ReLU(), nn.Linear(64, 2 * factors))

    def forward(self, x: Tensor, known: Tensor) -> None:
        """Draws ``z``."""
        loc, scale = self.network(torch.cat([x, known.to(x.dtype)], -1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def recipe(data: Dataset, *, factors: int = 5, hidden: float = 0.3, learning_rate: float = 3e-3) -> Recipe:
    """Probabilistic PCA that leaves missing values out."""
    data = with_known(data, hidden)
    size = data.shape[0]
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(Factors(size, factors), Encoder(size, factors), ELBO(), data=data, optimizer=optimizer, epochs=200)
