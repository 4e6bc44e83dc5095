"""Which modes of the ring and the grid generators keep: games of every kind, on the same networks and seeds.

``python -m benchmarks modes`` trains every recipe as ``ppgen train RECIPE --data DATA`` does, over several seeds. A
recipe is compiled once for all its seeds.
"""

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

PLAIN = {"loss": "minimax", "schedule": "constant", "average": None}
"""What the first paper had: no non-saturating loss, no falling rates, no average of the weights."""
GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain-gan": ("gan", PLAIN),
    **{name: (name, {}) for name in ("gan", "unrolled-gan", "pacgan", "mad-gan", "wgan", "wgan-gp", "sn-gan")},
}
"""Recipes with options, by the name in the table."""
DATA = ("ring", "grid")
SAMPLES = 2_500
SHOWN = 1_000
BAR = 0.9
"""The share of seeds in which all modes are to be found by a recipe that is recommended."""

Seed = dict[str, Any]


class Game:
    """One recipe on one data set, trained anew for every seed by one compiled step.

    Args:
        recipe: by name.
        data: the data set by name.
        steps: how many to take; as many as the recipe's epochs hold unless told.
        compile: as `ppgen.Trainer` has it.
        options: of the recipe, over its defaults.
    """

    def __init__(
        self, recipe: str, data: str, *, steps: int | None = None, compile: Any = "on", **options: Any
    ) -> None:
        from ppgen import data as datasets
        from ppgen.recipes import find

        self.entry = find(recipe)
        self.data = datasets.load(data)
        self.options = self.entry.resolve(data, options)
        self.steps = steps or 0
        self.compile = compile
        self.trainer: Any = None

    def started(self, seed: int, compile: Any) -> tuple[Any, Any]:
        """Returns a trainer after its first step, which makes the optimizers' state, and the batches to go on with."""
        import torch

        from ppgen import Trainer
        from ppgen.randomness import seed_all

        seed_all(seed)
        built = self.entry.build(self.data, self.options)
        batches = built.batches(seed, torch.device("cpu"))
        self.steps = self.steps or built.epochs * batches.steps_per_epoch
        trainer = Trainer(
            built.model,
            built.guide,
            built.objective,
            built.optimizer(self.steps),
            total_steps=self.steps,
            average=built.average,
            device="cpu",
            compile=compile,
        )
        list(trainer.fit(batches, steps=1))
        return trainer, batches

    def train(self, seed: int) -> tuple[Seed, Any]:
        """Returns what a seed led to, and samples ``(rows, 2)``."""
        from ppgen.evaluation.modes import mode_coverage
        from ppgen.evaluation.simulated import samples_of

        start = time.perf_counter()
        fresh, batches = self.started(seed, "off" if self.trainer else self.compile)
        if self.trainer is None:
            self.trainer = fresh
        else:
            take_over(self.trainer, fresh)
        list(self.trainer.fit(batches, steps=self.steps - 1, every=self.steps))
        samples = samples_of(self.trainer, self.data, SAMPLES, seed=seed)
        found = mode_coverage(samples, self.data)
        quality = found.high_quality.value if found.high_quality else None
        outcome = {
            "seed": seed,
            "covered": found.covered,
            "total": found.total,
            "high_quality": quality,
            "divergence": round(found.divergence, 5),
            "seconds": round(time.perf_counter() - start, 1),
        }
        return outcome, samples


def take_over(trainer: Any, fresh: Any) -> None:
    """Gives a trainer, whose step is compiled, the whole state of another one of the same programs."""
    import torch

    with torch.no_grad():
        for own, other in zip(trainer._state(), fresh._state(), strict=True):
            own.copy_(other)
        trainer.objective.step.copy_(fresh.objective.step)
    trainer.steps = fresh.steps
    for name, player in trainer._players.items():
        other = fresh._players[name]
        for group, new in zip(player.optimizer.param_groups, other.optimizer.param_groups, strict=True):
            group["lr"].copy_(new["lr"])
        if player.schedule is not None:
            player.schedule.load_state_dict(other.schedule.state_dict())


def measure(name: str, data: str, seeds: Iterable[int], *, steps: int | None = None) -> Iterator[dict[str, Any]]:
    """Trains one of `GAMES` on a data set from every seed; yields what was found so far after each."""
    recipe, options = GAMES[name]
    game = Game(recipe, data, steps=steps, **options)
    outcomes = []
    shown: list[Any] = []
    for seed in seeds:
        outcome, samples = game.train(seed)
        outcomes.append(outcome)
        shown = shown or samples[:SHOWN].double().mul(1000).round().div(1000).tolist()
        yield {"steps": game.steps, "compiled": bool(game.trainer.compiled), "seeds": outcomes, "samples": shown}


def summary(outcomes: Sequence[Seed]) -> dict[str, Any]:
    """Returns in how many seeds all modes were found, and means over the seeds with their standard deviation."""
    total = outcomes[0]["total"]
    columns = {
        key: [outcome[key] for outcome in outcomes] for key in ("covered", "high_quality", "divergence", "seconds")
    }
    return {
        "complete": sum(covered == total for covered in columns["covered"]),
        "seeds": len(outcomes),
        "total": total,
        "fewest": min(columns["covered"]),
        **{key: statistics.mean(values) for key, values in columns.items()},
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Returns a table for each data set."""
    parts = []
    for data, recipes in found.items():
        total = next(iter(recipes.values()))["seeds"][0]["total"]
        titles = [data, f"all {total} modes in", "modes, mean (fewest)", "high-quality samples", "KL, nats", "steps"]
        lines = [f"| {' | '.join(titles)} | seconds |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
        for recipe, result in recipes.items():
            row = summary(result["seeds"])
            complete = f"{row['complete']} of {row['seeds']} seeds"
            name = f"**`{recipe}`**" if row["complete"] >= BAR * row["seeds"] else f"`{recipe}`"
            lines.append(
                f"| {name} | {complete} | {row['covered']:.1f} ({row['fewest']}) | {row['high_quality']:.1%} |"
                f" {row['divergence']:.3f} | {result['steps']:,} | {row['seconds']:.0f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws samples of the first seed of every recipe over the data."""
    from matplotlib.figure import Figure

    from ppgen import data as datasets

    columns = max(len(recipes) for recipes in found.values())
    figure = Figure(figsize=(2.6 * columns, 2.9 * len(found)), layout="constrained")
    plots = figure.subplots(len(found), columns, squeeze=False)
    for row, (data, recipes) in zip(plots, found.items(), strict=True):
        rows = datasets.load(data).test["x"][:SHOWN]
        limit = 1.25 * float(rows.abs().max())
        for plot in row:
            plot.set_axis_off()
        for plot, (recipe, result) in zip(row, recipes.items(), strict=False):
            first = result["seeds"][0]
            plot.scatter(rows[:, 0], rows[:, 1], s=4, color="0.8", linewidths=0)
            plot.scatter(*zip(*result["samples"], strict=True), s=4, color="tab:blue", alpha=0.5, linewidths=0)
            plot.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            plot.set_title(f"{recipe}: {first['covered']} of {first['total']}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _earlier(path: Path) -> dict[str, Any]:
    """Returns what earlier runs found, so that recipes can be measured one after the other."""
    found = json.loads(path.read_text())["found"] if path.exists() else {}
    return {data: dict(found.get(data, {})) for data in DATA}


@click.command("modes")
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--only", default="", metavar="GAME,...", help=f"Some of {', '.join(GAMES)}.")
@click.option("--data", "sets", default="", metavar="DATA,...", help=f"Some of {', '.join(DATA)}.")
@click.option("--steps", type=click.IntRange(min=2), help="Of every run, instead of the recipe's epochs.")
@click.option("--write", "folder", default="docs", show_default=True, type=click.Path(path_type=Path))
def command(seeds: int, only: str, sets: str, steps: int | None, folder: Path) -> None:
    """Trains GANs on the ring and the grid from several seeds, and counts modes; on one thread, about two hours.

    What is measured replaces the same recipes in modes.json; the others stay.
    """
    import torch
    from rich.console import Console

    from benchmarks import report
    from benchmarks.__main__ import chosen

    recipes, data = chosen(only, list(GAMES), "--only"), chosen(sets, list(DATA), "--data")
    torch.set_num_threads(1)
    about = report.machine(1)
    path = folder / "modes.json"
    folder.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("modes") as status:
        for name in data:
            for recipe in recipes:
                for result in measure(recipe, name, range(seeds), steps=steps):
                    status.update(f"{name}: {recipe}, {len(result['seeds'])} of {seeds} seeds")
                    found = _earlier(path)
                    found[name][recipe] = result
                    found = {key: {r: part[r] for r in GAMES if r in part} for key, part in found.items() if part}
                    path.write_text(json.dumps({"machine": about, "samples": SAMPLES, "found": found}) + "\n")
    draw(found, folder / "modes.png")
    click.echo(markdown(found))
