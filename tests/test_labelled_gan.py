"""GANs that draw by label: the conditional GAN and ACGAN against formulas and a mixture whose classes are known."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ppgen import Trainer, guides, models, programs
from ppgen import nn as networks
from ppgen.data import load
from ppgen.errors import DataError
from ppgen.objectives import ACGAN, GAN
from ppgen.players import Optimizer
from ppgen.recipes.labelled_gan import ACGAN_ENTRY, CGAN

CENTRES = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
SPREAD = 0.5


class Table(nn.Module):
    """A critic that answers from a table, whatever it is asked: outputs of the data's rows, then of the model's."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = answers
        self.asked = 0
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.answers[(self.asked - 1) % len(self.answers)] + 0 * self.unused + 0 * x.sum()


def rows(count: int) -> dict[str, Tensor]:
    y = torch.arange(count) % len(CENTRES)
    return {"x": CENTRES[y] + SPREAD * torch.randn(count, 2), "y": y}


def generator() -> models.ConditionalGenerator:
    network = networks.generator([2, len(CENTRES)], (2,), hidden=(32, 32))
    return models.ConditionalGenerator(network, (2,), 2, len(CENTRES))


def trained(objective: GAN, *, steps: int = 400) -> models.ConditionalGenerator:
    model = generator()
    adam = functools.partial(torch.optim.Adam, lr=3e-3, betas=(0.5, 0.99))
    trainer = Trainer(model, guides.Nothing(), objective, Optimizer(adam), device="cpu", compile="off")
    for _ in trainer.fit((rows(120) for _ in iter(int, 1)), steps=steps):
        pass
    return model


def distance_to_class_means(model: nn.Module) -> float:
    """How far, on average, draws given a class have their mean from the mean of the class."""
    batch = rows(900)
    with torch.no_grad():
        drawn = programs.rows_of(programs.simulate(model, batch, given=["y"])["x"])
    means = torch.stack([drawn[batch["y"] == k].mean(0) for k in range(len(CENTRES))])
    return float((means - CENTRES).norm(dim=1).mean())


def by_label(critic: nn.Module) -> GAN:
    return GAN(critic, sites=("x", "y"), given=("y",))


# Draws given a label


def test_draws_given_a_label_are_of_that_class() -> None:
    model = trained(by_label(networks.critic((2,), others=[len(CENTRES)], hidden=(32, 32))))
    assert distance_to_class_means(model) < 0.6


def test_acgan_draws_given_a_label_are_of_that_class() -> None:
    model = trained(ACGAN(networks.critic((2,), outputs=1 + len(CENTRES), hidden=(32, 32))))
    assert distance_to_class_means(model) < 0.6


def test_without_the_label_in_the_game_draws_are_of_no_class_in_particular() -> None:
    model = trained(GAN(networks.critic((2,), hidden=(32, 32))))
    assert distance_to_class_means(model) > 1.2


# The losses of ACGAN


def losses(batch: dict[str, Tensor], data: Tensor, model: Tensor, *, weight: float) -> tuple[Any, Tensor]:
    """Returns the losses of both phases of ACGAN, and the labels that its model drew in the first."""
    program, critic = generator(), Table(data, model)
    objective = ACGAN(critic, weight=weight)
    objective.require_sites(programs.simulate(program, batch), {})
    critic_phase, model_phase = objective.phases()
    torch.manual_seed(1)
    drawn = programs.rows_of(programs.simulate(program, batch)["y"])
    torch.manual_seed(1)
    first, _ = critic_phase(program, guides.Nothing(), batch)
    critic.answers = (model,)
    torch.manual_seed(1)
    second, _ = model_phase(program, guides.Nothing(), batch)
    return (first["critic"], second["model"]), drawn


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_losses_of_acgan_are_those_of_the_paper(weight: float) -> None:
    batch, data, model = rows(6), torch.randn(6, 4), torch.randn(6, 4)
    (critic, own), drawn = losses(batch, data, model, weight=weight)
    source = softplus(-data[:, 0]).mean() + softplus(model[:, 0]).mean()
    classes = cross_entropy(data[:, 1:], batch["y"]) + cross_entropy(model[:, 1:], drawn)
    assert torch.allclose(critic, source + weight * classes)
    assert torch.allclose(own, softplus(-model[:, 0]).mean() + weight * cross_entropy(model[:, 1:], drawn))


def test_rows_without_a_label_count_as_data_alone() -> None:
    batch, data, model = rows(6), torch.randn(6, 4), torch.randn(6, 4)
    batch["y"][:4] = -1
    (critic, _), drawn = losses(batch, data, model, weight=1.0)
    source = softplus(-data[:, 0]).mean() + softplus(model[:, 0]).mean()
    known = cross_entropy(data[4:, 1:], batch["y"][4:])
    assert torch.allclose(critic, source + known + cross_entropy(model[:, 1:], drawn))
    # what it would be if missing labels were left in as if they were some class
    wrong = cross_entropy(data[:, 1:], batch["y"].clamp(min=0))
    assert not torch.allclose(critic, source + wrong + cross_entropy(model[:, 1:], drawn))


# The recipes


def test_cgan_asks_for_every_label_and_acgan_does_not() -> None:
    some = load("digits", labels=50)
    with pytest.raises(DataError, match=r"expected a label of every train row.*1147 of 1197 are missing"):
        CGAN.build(some, CGAN.resolve("digits"))
    assert isinstance(ACGAN_ENTRY.build(some, ACGAN_ENTRY.resolve("digits")).objective, ACGAN)
