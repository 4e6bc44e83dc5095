"""Recipes as a user would write them in a file of his own; some of them go wrong."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.players import Optimizer
from ppgen.recipes import Recipe, adam


class Decoder(nn.Module):
    """``z ~ N(0, I)``, Bernoulli pixels."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, pixels))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))


class NoisyGuide(nn.Module):
    """A guide with batch normalisation and dropout that draws from NumPy and from Python in every run."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        layers = [nn.Linear(pixels, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)]
        self.encoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> None:
        shift = 0.1 * np.random.normal() + 0.1 * random.random()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)) + shift, 0.5).to_event(1))


def noisy(data: Dataset, *, warmup: int = 20, binarization: str = "dynamic") -> Recipe:
    """Every kind of state that a run can have at once."""
    pixels = data.train["x"][0].numel()
    return Recipe(
        Decoder(pixels),
        NoisyGuide(pixels),
        ELBO(warmup=warmup),
        data=data.binarized(binarization),
        optimizer=adam(1e-2, schedule="cosine", clip=5.0),
        average=0.9,
    )


def baseline(data: Dataset) -> Recipe:
    """One of Pyro's own ELBOs, whose running baseline is kept in the parameter store."""

    def model(x: Tensor) -> None:
        prior = pyro.param("prior", torch.tensor(0.0))
        weights = pyro.param("weights", lambda: 0.1 * torch.randn(2, 64))
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Bernoulli(logits=prior))
            pyro.sample("x", dist.Bernoulli(logits=weights[h.long()]).to_event(1), obs=x.flatten(1))

    def guide(x: Tensor) -> None:
        direction = pyro.param("direction", lambda: 0.1 * torch.randn(64))
        options = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}}
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Bernoulli(logits=x.flatten(1) @ direction), infer=options)

    return Recipe(model, guide, TraceGraph_ELBO(), data=data.binarized("static"))


class Fragile(Decoder):
    """Its log density is NaN at one step."""

    def __init__(self, pixels: int, objective: ELBO, bad_step: int) -> None:
        super().__init__(pixels)
        self.objective, self.bad_step = [objective], bad_step  # a list, so that it is no part of this module

    def forward(self, x: Tensor) -> None:
        now = self.objective[0].step == self.bad_step - 1
        pyro.factor("fragile", torch.where(now, torch.nan, 0.0))
        super().forward(x)


class PlainGuide(nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(pixels, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.5).to_event(1))


def fragile(data: Dataset, *, bad_step: int = 23, learning_rate: float = 1e-3) -> Recipe:
    """Its loss is NaN at step ``bad_step``, whatever the parameters are."""
    pixels = data.train["x"][0].numel()
    objective = ELBO()
    return Recipe(
        Fragile(pixels, objective, bad_step),
        PlainGuide(pixels),
        objective,
        data=data.binarized("static"),
        optimizer=adam(learning_rate),
        average=0.9,
    )


class Cliff(Decoder):
    """A parameter climbs by the learning rate in every step; beyond ``limit`` its log density is NaN."""

    def __init__(self, pixels: int, limit: float) -> None:
        super().__init__(pixels)
        self.height = nn.Parameter(torch.zeros(()))
        self.limit = limit

    def forward(self, x: Tensor) -> None:
        pyro.factor("cliff", torch.where(self.height > self.limit, torch.nan, 1e4 * self.height))
        super().forward(x)


def cliff(data: Dataset, *, limit: float = 2.7, learning_rate: float = 0.1) -> Recipe:
    """Diverges unless its learning rate is lowered in time."""
    pixels = data.train["x"][0].numel()
    return Recipe(
        Cliff(pixels, limit),
        PlainGuide(pixels),
        ELBO(),
        data=data.binarized("static"),
        optimizer=adam(learning_rate),
    )


def leap(data: Dataset) -> Recipe:
    """Its first step takes a parameter to infinity, though loss and gradient are finite."""
    pixels = data.train["x"][0].numel()
    sgd = Optimizer(functools.partial(torch.optim.SGD, lr=1e38))
    return Recipe(
        Cliff(pixels, 1.0), PlainGuide(pixels), ELBO(), data=data.binarized("static"), optimizer=lambda steps: sgd
    )


def nonsense(data: Dataset) -> str:
    """No recipe at all."""
    return "a model"


NO_FUNCTION = 3
