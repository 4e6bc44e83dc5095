"""A deep Markov model: a nonlinear state space, inferred by a recurrent network (Krishnan, Shalit, Sontag 2017).

ppgen train examples/deep_markov.py:recipe    the rows of a digit, from top to bottom, are its sequence
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


def sequences(data: Dataset) -> Dataset:
    """Images as ``(steps, values)``, binarised."""
    data = data.binarized("static")

    def split(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": columns["x"].flatten(1, -2)}

    return dataclasses.replace(
        data, train=split(data.train), validation=split(data.validation), test=split(data.test), classes=None
    )


class DeepMarkov(nn.Module):
    """``z_t ~ N(f(z_{t-1}))``, Bernoulli emissions."""

    def __init__(self, size: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.transition = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent))
        self.emission = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> None:
        """Draws states and emissions, step by step."""
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), self.latent)
            for step in pyro.markov(range(x.shape[1])):
                loc, scale = self.transition(z).chunk(2, -1)
                z = pyro.sample(f"z_{step}", dist.Normal(loc, 0.1 + softplus(scale)).to_event(1))
                seen = dist.Bernoulli(logits=self.emission(z)).to_event(1)
                pyro.sample(f"x_{step}", seen, obs=x[:, step])


class Backwards(nn.Module):
    """``q(z_t | z_{t-1}, x_t, ..., x_T)``, the future summarised by a GRU that runs backwards."""

    def __init__(self, size: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.gru = nn.GRU(size, hidden, batch_first=True)
        self.combine = nn.Linear(latent, hidden)
        self.state = nn.Linear(hidden, 2 * latent)

    def forward(self, x: Tensor) -> None:
        """Draws the states given the whole sequence."""
        future, _ = self.gru(x.flip(1))
        future = future.flip(1)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), self.latent)
            for step in pyro.markov(range(x.shape[1])):
                mixed = 0.5 * (torch.tanh(self.combine(z)) + future[:, step])
                loc, scale = self.state(mixed).chunk(2, -1)
                z = pyro.sample(f"z_{step}", dist.Normal(loc, 0.1 + softplus(scale)).to_event(1))


def recipe(
    data: Dataset, *, latent: int = 8, hidden: int = 64, warmup: int = 500, learning_rate: float = 5e-3
) -> Recipe:
    """Deep Markov model of sequences, with a recurrent guide."""
    data = sequences(data)
    size = data.train["x"].shape[-1]
    return Recipe(
        DeepMarkov(size, latent, hidden),
        Backwards(size, latent, hidden),
        ELBO(warmup=warmup),
        data=data,
        optimizer=adam(learning_rate, schedule="cosine", clip=10.0),
        epochs=100,
    )
