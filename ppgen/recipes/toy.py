"""The toy problem of gradient estimators."""

import dataclasses
from typing import Literal

import torch

from ppgen import guides, models
from ppgen.data import Dataset
from ppgen.objectives import ELBO
from ppgen.recipes.base import Count, Entry, Positive, Recipe, Share, adam


def toy(
    data: Dataset,
    *,
    target: Share = 0.499,
    replicas: Count = 200,
    estimator: str = "relax",
    particles: Count = 1,
    learning_rate: Positive = 0.01,
    schedule: Literal["constant", "cosine"] = "constant",
    average: Share | None = None,
    epochs: Count = 10_000,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Toy problem: probabilities of coins that minimise E[(b - target)^2], many runs at once; any data set is ignored.

    A step sees all ``replicas`` once, so that an epoch is a step. Below a target of 1/2 the best probability is 0.
    """
    columns = {"x": torch.full((replicas, 1), target), "replica": torch.arange(replicas)}
    own = dataclasses.replace(
        data, name="toy", train=columns, validation=columns, test=columns, classes=None, binarization="none", rows={}
    )
    model = models.Coins(replicas)
    return Recipe(
        model=model,
        guide=guides.SameCoins(model),
        objective=ELBO(particles=particles, estimator=estimator),
        data=own,
        optimizer=adam(learning_rate, schedule=schedule),
        epochs=epochs,
        batch_size=replicas,
        whole=True,
        average=average,
        particles=evaluation_particles,
    )


TOY = Entry("toy", toy, reference="Tucker et al. 2017, arXiv:1703.07370; Grathwohl et al. 2018, arXiv:1711.00123")
