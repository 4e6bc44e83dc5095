"""A Gaussian mixture: which cluster a row belongs to is a discrete latent, summed exactly.

ppgen train examples/gaussian_mixture.py:recipe --data points.csv
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen import EnumeratedELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam


class Mixture:
    """Weights, centres and widths with priors; one cluster a row.

    Args:
        data: points; ``x`` of any shape counts as a vector.
        clusters: how many.
    """

    def __init__(self, data: Dataset, clusters: int) -> None:
        points = data.train["x"].flatten(1)
        self.rows, self.size = points.shape
        self.clusters = clusters
        self.centre, self.width = points.mean(0), points.std(0).clamp(min=0.1)
        self.first = points[torch.linspace(0, self.rows - 1, clusters).long()]

    def model(self, x: Tensor) -> None:
        """Draws the clusters, then for each row its cluster and its place."""
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((self.clusters,), 2.0)))
        with pyro.plate("clusters", self.clusters):
            centres = pyro.sample("centres", dist.Normal(self.centre, 2 * self.width).to_event(1))
            widths = pyro.sample("widths", dist.LogNormal(self.width.log(), 1.0).to_event(1))
        with pyro.plate("data", self.rows, subsample_size=len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(weights))
            # clusters and rows are different plates, though both lie at dim -1
            centre, width = (Vindex(each.unsqueeze(-3))[..., cluster, :] for each in (centres, widths))
            pyro.sample("x", dist.Normal(centre, width).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        """Factors for the clusters; the model's own sum takes care of each row."""
        concentration = pyro.param("concentration", torch.full((self.clusters,), 5.0), constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(concentration))
        places = pyro.param("places", self.first.clone())
        spreads = pyro.param("spreads", 0.2 * self.width.expand_as(places), constraint=constraints.positive)
        log_widths = pyro.param("log_widths", self.width.log().expand_as(places) - 0.7)
        accuracies = pyro.param("accuracies", torch.full_like(places, 0.2), constraint=constraints.positive)
        with pyro.plate("clusters", self.clusters):
            pyro.sample("centres", dist.Normal(places, spreads).to_event(1))
            pyro.sample("widths", dist.LogNormal(log_widths, accuracies).to_event(1))


class Assigning(nn.Module):
    """A guide that guesses the cluster of each row by a network, besides the factors for the clusters."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = [mixture]  # no part of this module
        layers = [nn.Linear(mixture.size, 32), nn.Tanh(), nn.Linear(32, mixture.clusters)]
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> None:
        """Draws the clusters and each row's cluster."""
        (mixture,) = self.mixture
        mixture.guide(x)
        standard = (x.flatten(1) - mixture.centre) / mixture.width
        with pyro.plate("data", mixture.rows, subsample_size=len(x)):
            pyro.sample("cluster", dist.Categorical(logits=self.network(standard)))


def recipe(data: Dataset, *, clusters: int = 3, learning_rate: float = 0.02) -> Recipe:
    """Gaussian mixture; a network guesses each row's cluster, and the bound sums over all of them."""
    mixture = Mixture(data, clusters)
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(mixture.model, Assigning(mixture), EnumeratedELBO(), optimizer=optimizer, epochs=300)


def marginal(data: Dataset, *, clusters: int = 3, learning_rate: float = 0.02) -> Recipe:
    """Gaussian mixture; the guide leaves the clusters of the rows to the model, which is summed over them."""
    mixture = Mixture(data, clusters)
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(mixture.model, mixture.guide, EnumeratedELBO(), optimizer=optimizer, epochs=300)
