"""The importance-weighted autoencoder."""

import functools
import itertools
from collections.abc import Callable
from typing import Literal

import torch

from ppgen.data import Dataset
from ppgen.errors import ConfigError
from ppgen.nn.units import GaussianUnits
from ppgen.objectives import IWAE
from ppgen.players import Optimizer
from ppgen.recipes.base import Count, Entry, OptimizerOfSteps, Positive, Recipe, Share
from ppgen.recipes.layers import belief_net
from ppgen.recipes.vae import Binarization, observed_as_bits

STAGES = 8
IMAGES = {"batch_size": 100, "learning_rate": 2e-3, "epochs": 200}


def factor_of(step: int, steps: int) -> float:
    """Returns what the paper's schedule multiplies the learning rate by: ``10 ** (-i / 7)`` in its stage ``i``.

    Stage ``i`` of 0 to 7 takes a share of the run in proportion to ``3 ** i``, the paper's number of epochs.

    >>> [round(factor_of(step, 3280), 3) for step in (0, 1, 3, 4, 3279)]
    [1.0, 0.72, 0.72, 0.518, 0.1]
    """
    ends = itertools.accumulate(3**stage for stage in range(STAGES))
    done = step / max(steps, 1) * (3**STAGES - 1) / 2
    passed = sum(done >= end for end in ends)
    return float(10 ** (-min(passed, STAGES - 1) / (STAGES - 1)))


def paper_adam(learning_rate: float, *, schedule: str, epsilon: float, clip: float | None) -> OptimizerOfSteps:
    """Returns Adam with the paper's schedule, or one that is constant or a cosine, for a run of any number of steps."""

    def of_steps(steps: int) -> Optimizer:
        stages = functools.partial(_Stages, steps=steps)
        cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max(steps, 1))
        schedules: dict[str, Callable[..., torch.optim.lr_scheduler.LRScheduler] | None] = {
            "stages": stages,
            "cosine": cosine,
            "constant": None,
        }
        factory = functools.partial(torch.optim.Adam, lr=learning_rate, eps=epsilon)
        return Optimizer(factory, schedule=schedules[schedule], clip=clip)

    return of_steps


def _Stages(optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LambdaLR:  # noqa: N802
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor_of(step, steps))


def iwae(
    data: Dataset,
    *,
    layers: tuple[Count, ...] = (50,),
    widths: tuple[Count, ...] = (200, 100),
    depth: Count = 2,
    activation: str = "tanh",
    binarization: Binarization = "dynamic",
    particles: Count = 5,
    gradient: Literal["total", "sticking-the-landing", "doubly-reparameterized"] = "total",
    learning_rate: Positive = 1e-3,
    schedule: Literal["stages", "constant", "cosine"] = "cosine",
    epsilon: Positive = 1e-4,
    clip: Positive | None = None,
    average: Share | None = None,
    batch_size: Count = 20,
    epochs: Count = 100,
    evaluation_particles: Count = 1000,
) -> Recipe:
    """Importance-weighted autoencoder: a VAE of one or more Gaussian layers, trained by the K-sample bound.

    Layers are counted from the data up; below layer l lie ``depth`` deterministic layers of ``widths[l]`` units each,
    in both directions. The paper's two nets are ``layers=50`` and ``layers=100,50``, with ``particles`` of 1, 5 and 50.
    It took 3,280 epochs in batches of 20, at a rate from 1e-3 that falls in eight stages, which ``schedule=stages``
    scales to the length of the run: two thirds of it at a tenth of the first rate. In shorter runs a cosine from a
    higher rate does better. As in the paper's program, outputs start at the mean of the training data.
    """
    data = observed_as_bits(data, binarization=binarization)
    if len(widths) < len(layers):
        raise ConfigError(
            f"expected widths of the deterministic layers below each of {len(layers)} layers; got {len(widths)}"
        )
    hidden = [(width,) * depth for width in widths[: len(layers)]]
    units = [GaussianUnits(size) for size in layers]
    model, guide = belief_net(data, units, hidden, activation=activation, learn_prior=False)
    for layer in (*model.modules(), *guide.modules()):
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
    return Recipe(
        model=model,
        guide=guide,
        objective=IWAE(particles=particles, gradient=gradient),
        data=data,
        optimizer=paper_adam(learning_rate, schedule=schedule, epsilon=epsilon, clip=clip),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


IWAE_ENTRY = Entry(
    "iwae",
    iwae,
    reference="Burda, Grosse, Salakhutdinov 2015, arXiv:1509.00519",
    presets={
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "binarized-mnist": IMAGES | {"binarization": "none"},
        "usps": IMAGES,
    },
)
