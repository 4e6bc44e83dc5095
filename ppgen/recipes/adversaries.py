"""What the recipes of adversarial games share."""

import dataclasses
import functools
from typing import Literal

import torch

from ppgen.data import Dataset
from ppgen.nn.generators import Output
from ppgen.recipes.base import OptimizerOfSteps, adam

OutputOrAuto = Literal["auto", "sigmoid", "identity"]


def players(
    critic: OptimizerOfSteps, other: OptimizerOfSteps, *, name: Literal["model", "autoencoder"] = "model"
) -> OptimizerOfSteps:
    """Returns an optimizer for the critic and one for its opponent.

    Args:
        critic: the critic's.
        other: that of the opponent.
        name: the opponent: "model", or "autoencoder" where model and guide are one player.
    """
    return lambda steps: {"critic": critic(steps), name: other(steps)}  # type: ignore[dict-item]


def players_adam(
    learning_rate: float = 2e-4,
    critic_rate: float | None = None,
    *,
    betas: tuple[float, float] = (0.5, 0.999),
    schedule: str = "constant",
    name: Literal["model", "autoencoder"] = "model",
) -> OptimizerOfSteps:
    """Returns Adam for the critic and for its opponent.

    Args:
        learning_rate: of the opponent.
        critic_rate: of the critic; the same unless told.
        betas: decay of the moments, of both.
        schedule: "constant", or "cosine" down to 0 at the end of the run, of both.
        name: the opponent: "model", or "autoencoder" where model and guide are one player.

    Raises:
        ConfigError: if there is no such schedule.
    """
    rate = learning_rate if critic_rate is None else critic_rate
    return players(
        adam(rate, betas=betas, schedule=schedule), adam(learning_rate, betas=betas, schedule=schedule), name=name
    )


def players_rmsprop(
    learning_rate: float = 5e-5,
    critic_rate: float | None = None,
    *,
    schedule: str = "constant",
    name: Literal["model", "autoencoder"] = "model",
) -> OptimizerOfSteps:
    """Returns RMSProp for the critic and for its opponent: as `players_adam`, without momentum.

    Raises:
        ConfigError: if there is no such schedule.
    """
    scheduled = adam(learning_rate, schedule=schedule)

    def rmsprop(rate: float) -> OptimizerOfSteps:
        factory = functools.partial(torch.optim.RMSprop, lr=rate)
        return lambda steps: dataclasses.replace(scheduled(steps), factory=factory)  # type: ignore[type-var]

    return players(rmsprop(learning_rate if critic_rate is None else critic_rate), rmsprop(learning_rate), name=name)


def is_image(data: Dataset) -> bool:
    """Says whether a row is an image, ``(channels, height, width)``."""
    return len(data.shape) == 3


def output_for(data: Dataset, output: OutputOrAuto) -> Output:
    """Returns what a generator's network ends in; by itself "sigmoid" for images, "identity" for what is none.

    Raises:
        DataError: if it is "sigmoid" and a value of the data does not lie in [0, 1].
    """
    chosen: Output = output if output != "auto" else "sigmoid" if is_image(data) else "identity"
    if chosen == "sigmoid":
        data.require_unit_interval(what="a generator that ends in a sigmoid", remedy="take output=identity")
    return chosen
