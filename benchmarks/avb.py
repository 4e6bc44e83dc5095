"""The toy of adversarial variational Bayes: four points, a code of two numbers, guides with and without a density."""

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch import Tensor

from ppgen import Trainer, data, programs
from ppgen.objectives import ELBO
from ppgen.recipes import Recipe, find

OPTIMUM = -math.log(4)
DRAWS = 250_000
BINS, REACH = 150, 5.0
GUIDES = ("implicit", "gaussian")


@dataclass(frozen=True)
class Outcome:
    """What one guide reached, in nats.

    Attributes:
        guide: "implicit" or "gaussian".
        seed: of the run.
        bound: evidence lower bound, its divergence by numerical integration.
        reconstruction: ``E_q log p(x | z)``, mean over the four points.
        divergence: ``KL(q(z | x) || p(z))``, mean over the four points.
        aggregate: ``KL(q(z) || p(z))`` of the aggregate posterior.
        told: the bound as the critic estimates it; None where there is none.
    """

    guide: str
    seed: int
    bound: float
    reconstruction: float
    divergence: float
    aggregate: float
    told: float | None


def recipe(guide: str, *, elbo: bool) -> Recipe:
    """Returns the recipe `avb` for the four points, with the same networks for either guide."""
    entry = find("avb")
    found = entry.build(data.load("four-points"), entry.resolve("four-points", {"guide": guide}))
    if not elbo:
        return found
    optimizer = found.optimizer
    made = lambda steps: optimizer(steps)["autoencoder"]  # type: ignore[index] # noqa: E731
    return Recipe(found.model, found.guide, ELBO(), data=found.data, optimizer=made, average=found.average)


def densities(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Returns histograms of the guide's draws for each of the four points, ``(4, bins, bins)``, and reconstructions."""
    histograms, found = [], []
    with trainer.evaluating():
        for point in torch.eye(4):
            batch = {"x": point.expand(DRAWS, 4)}
            z = programs.rows_of(programs.infer(trainer.guide, batch)["z"])
            model: Any = trainer.model
            found.append(model.likelihood(model.decoder(z)).log_prob(batch["x"]).mean())
            counts = torch.histogramdd(z, bins=[BINS, BINS], range=[-REACH, REACH, -REACH, REACH])[0]
            histograms.append(counts / len(z) / (2 * REACH / BINS) ** 2)
    return torch.stack(histograms), torch.stack(found)


def divergence(density: Tensor) -> float:
    """Returns ``KL(density || N(0, I))`` by summing over a grid of cells ``(bins, bins)``, in nats."""
    middles = torch.linspace(-REACH, REACH, 2 * BINS + 1)[1::2]
    prior = -(middles[:, None].square() + middles.square()) / 2 - math.log(2 * math.pi)
    inside = torch.where(density > 0, density * (density.clamp(min=1e-30).log() - prior), 0.0)
    return float(inside.sum() * (2 * REACH / BINS) ** 2)


def train(guide: str, seed: int, steps: int, say: Callable[[str], None]) -> tuple[Outcome, Tensor]:
    """Trains one guide, the Gaussian one by its exact bound, and integrates; returns the histograms too."""
    torch.manual_seed(seed)
    built = recipe(guide, elbo=guide == "gaussian")
    trainer = Trainer(
        built.model, built.guide, built.objective, built.optimizer(steps), total_steps=steps, average=built.average
    )
    for report in trainer.fit(_batches(256), steps=steps, every=max(1, steps // 20)):
        say(f"{guide}, seed {seed}, step {report['step']:,.0f}")
    histograms, found = densities(trainer)
    parts = statistics.mean(divergence(one) for one in histograms)
    bound = float(found.mean()) - parts
    aggregate = divergence(histograms.mean(0))
    return Outcome(guide, seed, bound, float(found.mean()), parts, aggregate, report.get("bound")), histograms


def _batches(rows: int) -> Iterator[dict[str, Tensor]]:
    while True:
        yield {"x": torch.eye(4).repeat(rows // 4, 1)}


def draw(pictures: dict[str, Tensor], path: Path) -> None:
    """Draws where the codes of each point lie, guide beside guide."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, (guide, histograms) in zip(axes, pictures.items(), strict=True):
        image = torch.ones(BINS, BINS, 3)
        for index, density in enumerate(histograms):
            shade = (density / histograms.amax()).sqrt().clamp(0, 1).unsqueeze(-1)
            image = image * (1 - shade) + shade * torch.tensor(to_rgb(f"C{index}"))
        axis.imshow(image.transpose(0, 1).numpy(), origin="lower", extent=(-REACH, REACH, -REACH, REACH))
        axis.set_title({"implicit": "AVB, implicit guide", "gaussian": "ELBO, Gaussian guide"}[guide])
        axis.set_xlim(-3.5, 3.5)
        axis.set_ylim(-3.5, 3.5)
    figure.suptitle("Codes of the four points (one colour each) under the guide", fontsize=11)
    figure.savefig(path, dpi=110)


@click.command("avb")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=20_000, show_default=True, type=click.IntRange(min=10))
@click.option("--write", "folder", default="docs", show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def command(threads: int, seeds: int, steps: int, folder: Path) -> None:
    """Train both guides on the four points; about five minutes a seed on one quiet core."""
    from benchmarks import report

    torch.set_num_threads(threads)
    outcomes: list[Outcome] = []
    pictures: dict[str, Tensor] = {}
    with Console(stderr=True).status("avb") as status:
        for guide in GUIDES:
            for seed in range(seeds):
                outcome, histograms = train(guide, seed, steps, status.update)
                outcomes.append(outcome)
                pictures.setdefault(guide, histograms)
                click.echo(json.dumps(asdict(outcome)))
    document = {"machine": report.machine(threads), "steps": steps, "optimum": OPTIMUM}
    runs = [asdict(outcome) for outcome in outcomes]
    (folder / "avb.json").write_text(json.dumps(document | {"runs": runs}, indent=1) + "\n")
    draw(pictures, folder / "avb.png")
