"""Eight schools: the effect of coaching, estimated together (Rubin 1981); the model brings its own data.

ppgen train examples/eight_schools.py:recipe
"""

import dataclasses
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
# which row is which school has to be a column of its own
SCHOOLS = {"x": EFFECTS, "error": ERRORS, "school": torch.arange(8)}


def model(x: Tensor, error: Tensor, school: Tensor) -> None:
    """Non-centred: ``theta = mu + tau * eta``, and ``x`` is the effect that was measured."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with schools(x, error, school):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("x", dist.Normal(theta, error), obs=x)


def schools(x: Tensor, error: Tensor, school: Tensor) -> Any:
    """The plate: eight schools, of which a batch holds those numbered ``school``."""
    return pyro.plate("schools", 8, subsample=school)


def guide(x: Tensor, error: Tensor, school: Tensor) -> None:
    """Normal and log-normal factors, one of each school, with constrained parameters."""
    loc = pyro.param("mu_loc", torch.tensor(0.0))
    scale = pyro.param("mu_scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))
    loc = pyro.param("tau_loc", torch.tensor(0.0))
    scale = pyro.param("tau_scale", torch.tensor(0.5), constraint=constraints.interval(0.01, 5.0))
    pyro.sample("tau", dist.LogNormal(loc, scale))
    locs = pyro.param("eta_locs", torch.zeros(8))
    scales = pyro.param("eta_scales", torch.ones(8), constraint=constraints.positive)
    with schools(x, error, school):
        pyro.sample("eta", dist.Normal(locs[school], scales[school]))


def own(data: Dataset) -> Dataset:
    """The eight schools in the place of the data set that the command line loaded; all rows in every split."""
    return dataclasses.replace(
        data, name="eight schools", train=SCHOOLS, validation=SCHOOLS, test=SCHOOLS, classes=None, notes=(), rows={}
    )


def recipe(data: Dataset, *, learning_rate: float = 0.02) -> Recipe:
    """Eight schools, non-centred, with an automatic guide that knows the plate.

    All schools come in one order in every step: a plate that is given all of its numbers takes parameters by position.
    """
    automatic = AutoNormal(model, create_plates=schools)
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(
        model, automatic, ELBO(), data=own(data), optimizer=optimizer, epochs=3000, particles=1000, whole=True
    )


def by_hand(data: Dataset, *, learning_rate: float = 0.02) -> Recipe:
    """Eight schools, non-centred, with a guide written by hand."""
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(model, guide, ELBO(), data=own(data), optimizer=optimizer, epochs=3000, particles=1000)
