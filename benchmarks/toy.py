"""The toy problem of gradient estimators: which of them gets to its minimum, over many independent seeds.

``python -m benchmarks toy`` trains the program of the recipe ``toy`` with one coin a run, so that no two seeds share
a control variate.
"""

import functools
import json
import statistics
from pathlib import Path
from typing import Any

import click
import torch

from ppgen import ELBO, Trainer, gradients, guides, models

ESTIMATORS = ("relax", "rebar", "rebar, not trained", "score")
TARGET = 0.499


class Coin:
    """One coin that is trained anew for every seed, by one compiled step."""

    def __init__(self, estimator: str, steps: int) -> None:
        self.model = models.Coins(1)
        self.steps = steps
        name, _, untrained = estimator.partition(",")
        self.fresh = functools.partial(gradients.estimator, name)
        objective = ELBO(estimator=name)
        adam: Any = functools.partial(torch.optim.Adam, lr=0.01)
        still = functools.partial(torch.optim.SGD, lr=0.0)
        if untrained:
            adam = {"all": adam, "estimator": still}
        self.trainer = Trainer(
            self.model, guides.SameCoins(self.model), objective, adam, compile="on", total_steps=steps, device="cpu"
        )
        self.batch = {"x": torch.full((1, 1), TARGET), "replica": torch.zeros(1, dtype=torch.int64)}
        self.trainer.setup(self.batch)
        self.estimator = objective.plan.estimators()["b"]

    @torch.no_grad()
    def restart(self, seed: int) -> None:
        """Starts from the beginning, with another seed."""
        torch.manual_seed(seed)
        fresh = self.fresh()
        fresh.prepare(event=1, inputs=1)
        for own, other in zip(self.estimator.parameters(), fresh.parameters(), strict=True):
            own.copy_(other)
        self.model.logits.zero_()
        for player in self.trainer._players.values():
            for state in player.optimizer.state.values():
                for moment in state.values():
                    moment.zero_()

    def probability(self, seed: int) -> float:
        """Returns the coin's probability after all steps."""
        self.restart(seed)
        for _ in self.trainer.fit(self.batch, steps=self.steps, every=self.steps):
            pass
        return float(self.model.logits.detach().sigmoid())


def measure(seeds: int = 200, steps: int = 10_000) -> dict[str, Any]:
    """Returns, for each estimator, the mean probability over the seeds and its standard error."""
    found = {}
    for estimator in ESTIMATORS:
        coin = Coin(estimator, steps)
        probabilities = [coin.probability(seed) for seed in range(seeds)]
        error = statistics.stdev(probabilities) / len(probabilities) ** 0.5
        rounded = [round(value, 4) for value in probabilities]
        found[estimator] = {"mean": statistics.mean(probabilities), "stderr": error, "values": rounded}
    return found


@click.command("toy")
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(min=2))
@click.option("--steps", default=10_000, show_default=True, type=click.IntRange(min=10))
@click.option("--write", type=click.Path(file_okay=False, path_type=Path), help="Folder for toy.json.")
def command(seeds: int, steps: int, write: Path | None) -> None:
    """Train one coin a seed to minimise E[(b - 0.499)^2], by several estimators."""
    torch.set_num_threads(1)
    found = measure(seeds, steps)
    for estimator, result in found.items():
        click.echo(f"{estimator:20} {result['mean']:.3f} +- {1.96 * result['stderr']:.3f}")
    if write:
        document = {"seeds": seeds, "steps": steps, "target": TARGET, "estimators": found}
        (write / "toy.json").write_text(json.dumps(document, indent=1) + "\n")
