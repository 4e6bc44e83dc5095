"""Sigmoid belief nets."""

from typing import Literal

from ppgen.data import Dataset
from ppgen.nn.units import BernoulliUnits
from ppgen.recipes.base import Count, Entry, Positive, Recipe, Share, adam
from ppgen.recipes.layers import Bound, belief_net, bound
from ppgen.recipes.vae import Binarization, observed_as_bits

IMAGES = {"layers": (200, 200, 200), "epochs": 50}


def sbn(
    data: Dataset,
    *,
    layers: tuple[Count, ...] = (200,),
    network: Literal["linear", "nonlinear"] = "linear",
    hidden: tuple[Count, ...] = (200, 200),
    activation: str = "tanh",
    binarization: Binarization = "dynamic",
    objective: Bound | None = None,
    estimator: str = "vimco",
    particles: Count | None = None,
    learning_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine"] = "constant",
    clip: Positive | None = None,
    average: Share | None = 0.999,
    batch_size: Count = 24,
    epochs: Count = 100,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Sigmoid belief net: layers of units that are 0 or 1, with a learned prior and a guide from the data up.

    Layers are counted from the data up. Linear layers are connected directly, nonlinear ones through the deterministic
    layers ``hidden`` in both directions. Unless told, the objective is the K-sample bound (iwae) where the estimator is
    vimco, with 5 particles, and the evidence lower bound (elbo) otherwise, with 1 particle (2 for leave-one-out).
    ``objective`` may also be wake-sleep or reweighted-wake-sleep, which need no estimator.

    The papers' settings, all with batches of 24: NVIL ``estimator=nvil``; VIMCO ``layers=200,200,200``; RELAX
    ``estimator=relax learning_rate=1e-4`` with ``layers=200``, ``layers=200,200`` or ``network=nonlinear``.
    """
    data = observed_as_bits(data, binarization=binarization)
    between = hidden if network == "nonlinear" else ()
    model, guide = belief_net(
        data, [BernoulliUnits(size) for size in layers], [between] * len(layers), activation=activation
    )
    return Recipe(
        model=model,
        guide=guide,
        objective=bound(objective, estimator, particles),
        data=data,
        optimizer=adam(learning_rate, schedule=schedule, clip=clip),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
    )


SBN = Entry(
    "sbn",
    sbn,
    reference="Mnih, Gregor 2014, arXiv:1402.0030; Mnih, Rezende 2016, arXiv:1602.06725",
    presets={
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "binarized-mnist": IMAGES | {"binarization": "none"},
        "usps": IMAGES,
    },
)
