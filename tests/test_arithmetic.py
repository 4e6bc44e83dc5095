"""Arithmetic that is not done: matrix products are counted, and copies of images for every label looked for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppgen import compilation, guides, models
from ppgen import nn as networks
from ppgen.objectives import ELBO, EnumeratedELBO, Objective, SemiSupervised
from ppgen.training import Trainer

ROWS, LABELLED, SIDE, HIDDEN, Z, CLASSES = 12, 5, 6, 20, 3, 4
IMAGE = SIDE * SIDE


class Concatenated(nn.Module):
    """The network that ours is not: its inputs are expanded against each other and concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        parts = [x.flatten(-3) if x.shape[-3:] == (1, SIDE, SIDE) else x, *others]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return self.layers(torch.cat([part.expand(*shape, -1) for part in parts], -1))  # type: ignore[no-any-return]


def m2(*, factored: bool = True) -> tuple[nn.Module, nn.Module]:
    shape = (1, SIDE, SIDE)
    decoder: nn.Module = networks.decoder([Z, CLASSES], shape, hidden=(HIDDEN,))
    encoder = networks.encoder(shape, 2 * Z, hidden=(HIDDEN,), others=[CLASSES])
    classifier = networks.encoder(shape, CLASSES, hidden=(HIDDEN,))
    if not factored:
        decoder, encoder = Concatenated(Z + CLASSES, IMAGE), Concatenated(IMAGE + CLASSES, 2 * Z)
    likelihood = networks.likelihood("bernoulli", shape)
    return models.M2(decoder, likelihood, Z, CLASSES), guides.Label(classifier, encoder, CLASSES)


def batch(rows: int) -> dict[str, Tensor]:
    return {"x": torch.rand(rows, 1, SIDE, SIDE).round()}


def trainer(objective: Objective, programs: tuple[nn.Module, nn.Module]) -> Trainer:
    return Trainer(*programs, objective, device="cpu", compile="off")


def flops(trained: Trainer, given: dict[str, Any]) -> int:
    """Operations of the matrix products of one step."""
    trained.step(iter([given]))
    with FlopCounterMode(display=False) as counter:
        trained.step(iter([given]))
    return int(counter.get_total_flops())


def product(*sizes: int) -> int:
    """Operations of ``(m, k) @ (k, n)``."""
    return 2 * sizes[0] * sizes[1] * sizes[2]


def expected(rows: int, *, copies: int) -> int:
    """Of M2: each layer forward, and backward for its weights and (but for data and labels) its inputs."""
    many = rows * copies
    classifier = 2 * product(rows, IMAGE, HIDDEN) + 3 * product(rows, HIDDEN, CLASSES)
    of_labels = product(many, CLASSES, HIDDEN)
    encoder = 2 * product(rows, IMAGE, HIDDEN) + 3 * product(many, HIDDEN, 2 * Z)
    decoder = 3 * product(many, Z, HIDDEN) + 3 * product(many, HIDDEN, IMAGE)
    # labels in one-hot form: (classes, 1, classes) where they are enumerated, in encoder and decoder
    labels = 4 * (of_labels if copies == 1 else product(CLASSES, CLASSES, HIDDEN))
    return classifier + encoder + decoder + labels


def test_images_go_through_their_layers_once_for_all_labels() -> None:
    torch.manual_seed(0)
    assert flops(trainer(EnumeratedELBO(), m2()), batch(ROWS)) == expected(ROWS, copies=CLASSES)
    # the control: the same bound with inputs expanded and concatenated
    concatenated = flops(trainer(EnumeratedELBO(), m2(factored=False)), batch(ROWS))
    assert concatenated > expected(ROWS, copies=CLASSES) + 2 * (CLASSES - 1) * product(ROWS, IMAGE, HIDDEN)


def test_labelled_and_unlabelled_rows_cost_what_each_costs() -> None:
    given = {
        "labelled": batch(LABELLED) | {"y": torch.randint(CLASSES, (LABELLED,))},
        "unlabelled": batch(ROWS),
    }
    total = expected(ROWS, copies=CLASSES) + expected(LABELLED, copies=1)
    assert flops(trainer(SemiSupervised(), m2()), given) == total


def test_particles_share_the_encoder() -> None:
    shape, particles = (1, SIDE, SIDE), 7
    decoder = networks.decoder([Z], shape, hidden=(HIDDEN,))
    model = models.VAE(decoder, networks.likelihood("bernoulli", shape), Z)
    guide = guides.DiagonalGaussian(networks.encoder(shape, 2 * Z, hidden=(HIDDEN,)), Z)
    many = particles * ROWS
    encoder = 2 * product(ROWS, IMAGE, HIDDEN) + 3 * product(ROWS, HIDDEN, 2 * Z)
    total = encoder + 3 * product(many, Z, HIDDEN) + 3 * product(many, HIDDEN, IMAGE)
    assert flops(trainer(ELBO(particles=particles), (model, guide)), batch(ROWS)) == total


COPIES = ("clone", "cat", "repeat", "index_select", "gather", "_to_copy", "copy_")


@pytest.mark.parametrize("factored", [True, False])
def test_no_image_is_copied_for_every_label(*, factored: bool) -> None:
    trained = trainer(EnumeratedELBO(), m2(factored=factored))
    trained.step(iter([batch(ROWS)]))

    def phase(x: Tensor) -> list[Tensor]:
        return list(trained._advance(0, {"x": x}).values())

    with compilation.preserved(trained._state()):
        graph = compilation.record(phase, [batch(ROWS)["x"]])
    large = [
        str(node.target)
        for node in graph.module.graph.nodes
        if any(f"aten.{name}." in str(node.target) for name in COPIES)
        and isinstance(value := node.meta.get("val"), Tensor)
        and value.numel() >= CLASSES * ROWS * IMAGE
    ]
    # the control: concatenated inputs are such copies
    assert bool(large) is not factored
