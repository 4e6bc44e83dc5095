"""ppgen itself, through its public trainer, with the programs that its recipes build."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

import ppgen
from benchmarks.contenders.handwritten import Step, tensors
from benchmarks.works import ALPHA, LABELLED_SHARE, LEARNING_RATE, Array, Work
from ppgen import guides, models, nn, objectives


def trainer(work: Work, *, precision: str = "fp32", compile: Literal["on", "off"] = "on") -> ppgen.Trainer:
    """Returns a trainer at the initial weights of a work."""
    likelihood = nn.likelihood("bernoulli", (work.x,))
    label = [work.classes] if work.classes else []
    networks = {
        "encoder": nn.encoder((work.x,), 2 * work.z, hidden=work.hidden, others=label),
        "decoder": nn.decoder([work.z, *label], (work.x,), hidden=work.hidden),
    }
    guide: torch.nn.Module
    if work.classes:
        networks["classifier"] = nn.encoder((work.x,), work.classes, hidden=work.hidden)
        program: torch.nn.Module = models.M2(networks["decoder"], likelihood, work.z, work.classes)
        guide = guides.Label(networks["classifier"], networks["encoder"], work.classes)
        objective: Any = objectives.SemiSupervised(alpha=ALPHA, labelled_share=LABELLED_SHARE)
    else:
        program = models.VAE(networks["decoder"], likelihood, work.z)
        guide = guides.DiagonalGaussian(networks["encoder"], work.z)
        kind = objectives.IWAE if work.kind == "iwae" else objectives.ELBO
        objective = kind(particles=work.particles)
    for name, network in networks.items():
        fill(network, work, name)
    adam = functools.partial(torch.optim.Adam, lr=LEARNING_RATE)
    return ppgen.Trainer(program, guide, objective, adam, device="cpu", precision=precision, compile=compile)


@torch.no_grad()
def fill(network: torch.nn.Module, work: Work, name: str) -> None:
    """Gives a perceptron the initial weights."""
    (weight, bias), *rest = work.weights()[name]
    first = list(torch.from_numpy(weight).split(work.networks()[name][0], dim=1))
    # parameters come in the order: first input's weights and bias, further inputs' weights, the other layers
    values = [first[0], torch.from_numpy(bias), *first[1:], *(torch.from_numpy(a) for layer in rest for a in layer)]
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.copy_(value)


def batch_of(batch: Mapping[str, Array]) -> dict[str, Any]:
    """Turns a batch of a work into one of ppgen's."""
    columns: dict[str, Tensor] = tensors(batch)
    if "y" not in columns:
        return columns
    labelled = {"x": columns["labelled"], "y": columns["y"].argmax(-1)}
    return {"labelled": labelled, "unlabelled": {"x": columns["x"]}}


def build(work: Work, batches: Iterator[Any] | None = None, **options: Any) -> Step:
    """Returns one step of the trainer, on batches held in memory unless others are given."""
    made = trainer(work, **options)
    drawn = itertools.cycle([batch_of(batch) for batch in work.batches()]) if batches is None else batches
    return lambda: made.step(drawn)["loss"].item()


def full(work: Work) -> Step:
    """Compiled, float32."""
    return build(work)


def half(work: Work) -> Step:
    """Compiled, matrix products in bfloat16."""
    return build(work, precision="bf16")


def eager(work: Work) -> Step:
    """Not compiled."""
    return build(work, compile="off")
