"""Structured output prediction: the lower half of an image given the upper one."""

import math
from typing import Any, Literal

import torch

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.gradients import GumbelSoftmax
from ppgen.objectives import ELBO
from ppgen.recipes.base import Count, Entry, Positive, Recipe, Share, adam
from ppgen.recipes.layers import UnitKind, start_at, training_mean, units_of
from ppgen.recipes.vae import Binarization, observed_as_bits

IMAGES = {"layers": (200, 200), "epochs": 50, "anneal": 20_000, "evaluation_particles": 1000}


def structured(
    data: Dataset,
    *,
    units: UnitKind = "bernoulli",
    layers: tuple[Count, ...] = (200, 200),
    classes: Count = 10,
    binarization: Binarization = "dynamic",
    estimator: str = "gumbel-softmax",
    temperature: Positive = 1.0,
    final_temperature: Positive = 0.5,
    anneal: int = 2_000,
    particles: Count = 1,
    learning_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine"] = "constant",
    clip: Positive | None = None,
    average: Share | None = 0.999,
    batch_size: Count = 100,
    epochs: Count = 100,
    evaluation_particles: Count = 1000,
) -> Recipe:
    """Structured output prediction: the lower half of an image from the upper one, through discrete layers.

    Layers hold as many Bernoulli units as ``layers`` says, or as many values of one-hot vectors of ``classes`` each,
    counted from the upper half on. The latents are drawn from the model given the upper half, while training and for
    the test NLL, which is that of the lower half. Adam takes the place of the papers' gradient descent.
    """
    data = observed_as_bits(data, binarization=binarization)
    upper = models.UpperHalf(data.shape)
    chosen = [units_of(units, size, classes) for size in layers]
    sizes = [upper.size, *(layer.size for layer in chosen)]
    targets = [*(layer.features for layer in chosen), math.prod(upper.lower_shape)]
    networks: list[torch.nn.Module] = [nn.MLP(size, [], target) for size, target in zip(sizes, targets, strict=True)]
    networks[0] = torch.nn.Sequential(upper, networks[0])
    start_at(networks[-1], training_mean(data)[upper.lower])
    estimated: Any = estimator
    if estimator == "gumbel-softmax":
        estimated = GumbelSoftmax(temperature=temperature, final=final_temperature, anneal=anneal)
    return Recipe(
        model=models.StructuredPrediction(chosen, networks, upper),
        guide=guides.BottomUp(chosen, networks[:-1]),
        objective=ELBO(particles=particles, estimator=estimated),
        data=data,
        optimizer=adam(learning_rate, schedule=schedule, clip=clip),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
    )


STRUCTURED = Entry(
    "structured",
    structured,
    reference="Raiko et al. 2014, arXiv:1406.2989; Jang, Gu, Poole 2016, arXiv:1611.01144",
    presets={
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "binarized-mnist": IMAGES | {"binarization": "none"},
        "usps": IMAGES,
    },
)
