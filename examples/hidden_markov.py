"""A hidden Markov model of binary sequences, its states summed exactly (pyro.markov).

ppgen train examples/hidden_markov.py:recipe    the rows of a digit, from top to bottom, are its sequence
"""

import dataclasses

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor

from ppgen import EnumeratedELBO
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


def recipe(data: Dataset, *, states: int = 6, learning_rate: float = 0.03) -> Recipe:
    """Hidden Markov model: global probabilities with priors, one chain of states a row."""
    data = sequences(data)
    rows, steps, size = data.train["x"].shape

    def model(x: Tensor) -> None:
        initial = pyro.sample("initial", dist.Dirichlet(torch.ones(states)))
        moves = 0.5 + 2 * torch.eye(states)
        transition = pyro.sample("transition", dist.Dirichlet(moves).to_event(1))
        emission = pyro.sample("emission", dist.Beta(torch.ones(states, size), 1.0).to_event(2))
        with pyro.plate("data", rows, subsample_size=len(x)):
            chances = initial
            for step in pyro.markov(range(steps)):
                state = pyro.sample(f"state_{step}", dist.Categorical(chances))
                chances = Vindex(transition)[..., state, :]
                seen = dist.Bernoulli(Vindex(emission)[..., state, :]).to_event(1)
                pyro.sample(f"x_{step}", seen, obs=None if x is None else x[:, step])

    guide = AutoNormal(poutine.block(model, expose=["initial", "transition", "emission"]), init_scale=0.1)
    optimizer = adam(learning_rate, schedule="cosine")
    return Recipe(model, guide, EnumeratedELBO(), data=data, optimizer=optimizer, epochs=100)
