"""Recipes whose covariance stops being one at some step."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam


def _made(data: Dataset, *, validated: bool | None, gentle: bool) -> Recipe:
    rows = len(data.train["x"])

    def covariant(x: Tensor) -> None:
        pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + 1e-3 * torch.eye(3)))
        with pyro.plate("data", rows, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.flatten(1).mean(1))

    def factorized(x: Tensor) -> None:
        correlation = pyro.param("correlation", torch.tensor(0.8))
        covariance = torch.eye(3) * (1 - correlation) + correlation
        with pyro.plate("data", rows, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x.flatten(1).mean(1), 1.0))
        pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), covariance, validate_args=validated))

    rate = 0.0055 if gentle else 10.0
    return Recipe(covariant, factorized, ELBO(), data=data.binarized("static"), optimizer=adam(rate))


def cholesky(data: Dataset, *, gentle: bool = False) -> Recipe:
    """Its factorization fails after a large step."""
    return _made(data, validated=None, gentle=gentle)


def checked(data: Dataset, *, gentle: bool = False) -> Recipe:
    """A check of the distribution sees it first."""
    return _made(data, validated=True, gentle=gentle)
