"""The variational autoencoder with discrete latents."""

from typing import Any, Literal

from ppgen.data import Dataset
from ppgen.gradients import GumbelSoftmax
from ppgen.objectives import ELBO
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share, adam
from ppgen.recipes.layers import UnitKind, belief_net, units_of
from ppgen.recipes.vae import Binarization, observed_as_bits

IMAGES = {"latents": 20, "classes": 10, "epochs": 50, "anneal": 20_000}


def categorical_vae(
    data: Dataset,
    *,
    units: UnitKind = "categorical",
    latents: Count = 20,
    classes: Count = 10,
    encoder_hidden: tuple[Count, ...] = (),
    decoder_hidden: tuple[Count, ...] = (200,),
    activation: str = "tanh",
    prior: Literal["learned", "uniform"] = "learned",
    binarization: Binarization = "dynamic",
    estimator: str = "gumbel-softmax",
    temperature: Positive = 1.0,
    final_temperature: Positive = 0.5,
    anneal: int = 2_000,
    beta: NotNegative = 1.0,
    warmup: int = 0,
    particles: Count = 1,
    learning_rate: Positive = 2e-3,
    schedule: Literal["constant", "cosine"] = "constant",
    clip: Positive | None = None,
    average: Share | None = 0.999,
    batch_size: Count = 100,
    epochs: Count = 200,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Categorical variational autoencoder: one-hot latents, relaxed while training by the Gumbel-softmax.

    The latents are ``latents`` one-hot vectors of ``classes`` each, or as many Bernoulli units as these have values.
    The temperature goes from ``temperature`` to ``final_temperature`` within ``anneal`` steps; the other estimators
    have their own defaults. Sizes of ``decoder_hidden`` are given from the data up. Adam takes the place of the paper's
    gradient descent with momentum.
    """
    data = observed_as_bits(data, binarization=binarization)
    model, guide = belief_net(
        data,
        [units_of(units, latents * classes, classes)],
        [encoder_hidden],
        downward=[decoder_hidden],
        activation=activation,
        learn_prior=prior == "learned",
    )
    chosen: Any = estimator
    if estimator == "gumbel-softmax":
        chosen = GumbelSoftmax(temperature=temperature, final=final_temperature, anneal=anneal)
    return Recipe(
        model=model,
        guide=guide,
        objective=ELBO(beta=beta, warmup=warmup, particles=particles, estimator=chosen),
        data=data,
        optimizer=adam(learning_rate, schedule=schedule, clip=clip),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
    )


CATEGORICAL_VAE = Entry(
    "categorical-vae",
    categorical_vae,
    reference="Jang, Gu, Poole 2016, arXiv:1611.01144",
    presets={
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "binarized-mnist": IMAGES | {"binarization": "none"},
        "usps": IMAGES,
    },
)
