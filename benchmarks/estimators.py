"""The variance of gradient estimators on the nonlinear sigmoid belief net of the papers, on MNIST."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

NAMES = (
    "score",
    "moving-average",
    "nvil",
    "leave-one-out",
    "vimco",
    "muprop",
    "rebar",
    "relax",
    "gumbel-softmax",
    "straight-through",
)
OPTIONS = {"network": "nonlinear", "layers": "200", "binarization": "none"}
GROUP = "guide"
LEARNING_RATE = 1e-3
BELOW = (("rebar", "nvil"), ("relax", "nvil"), ("nvil", "score"))
"""The bar: the interval of the first lies below that of the second."""


def measure(data: str, *, draws: int, steps: int, burn_in: int, seed: int, rounds: int, compile: Any) -> Any:
    """Compares the estimators at initialisation and along training."""
    import torch

    from ppgen import data as datasets
    from ppgen import estimators
    from ppgen.randomness import seed_all
    from ppgen.recipes import find

    seed_all(seed)
    entry = find("sbn")
    recipe = entry.build(datasets.load(data, seed=seed), entry.resolve(data, OPTIONS))
    batches = recipe.batches(seed, torch.device("cpu"))
    return estimators.compare(
        recipe.model,
        recipe.guide,
        next(batches),
        estimators=NAMES,
        draws=draws,
        steps=steps,
        at=(0.0, 1.0),
        train_with="rebar",
        optimizer=functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
        batches=batches,
        burn_in=burn_in,
        seed=seed,
        rounds=rounds,
        compile=compile,
    )


def ordered(found: Any) -> dict[str, dict[str, bool]]:
    """Returns, by steps of training, whether the intervals lie in the order of the bar."""
    states = {}
    for state in found.states:
        spread = {row.name: row.variance[GROUP] for row in state.rows}
        states[str(state.steps)] = {
            f"{one} below {other}": bool(spread[one].high < spread[other].low) for one, other in BELOW
        }
    return states


def markdown(document: Mapping[str, Any]) -> str:
    """Returns a table for each state."""
    rows, parts = document["rows"], []
    for state in document["states"]:
        lines = [
            f"After {state['steps']:,} steps" if state["steps"] else "At initialisation",
            "",
            "| estimator | of | variance of the guide's gradient, one datum | over the score function's | cost |"
            " variance x cost, relative | bias, % | \\|z\\| | SNR |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        base = next(row for row in state["estimators"] if row["estimator"] == "score")["variance"][GROUP]["value"]
        for row in state["estimators"]:
            spread, bias = row["variance"][GROUP], row["bias"]
            flag = " biased" if row["flagged"] else ""
            cells = [
                row["estimator"],
                row["bound"],
                f"{rows * spread['value']:.3g} ± {100 * (spread['high'] / spread['value'] - 1):.1f} %",
                f"{spread['value'] / base:.2g}",
                f"{row['cost']:.2f}",
                f"{row['variance_times_cost'][GROUP]['value'] / base:.2g}",
                f"{100 * bias['value']:.1f} ± {100 * (bias['high'] - bias['value']):.1f}",
                f"{row['z']:.1f}{flag}",
                f"{row['signal_to_noise'][GROUP]:.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


@click.command("estimators")
@click.option("--data", default="binarized-mnist", show_default=True, help="binarized-mnist, or another of 28 x 28.")
@click.option("--draws", default=2_000, show_default=True, help="Gradients of each estimator.")
@click.option("--steps", default=3_000, show_default=True, help="Of training with REBAR; compared before and after.")
@click.option("--burn-in", default=500, show_default=True, help="Steps of baselines and control variates alone.")
@click.option("--rounds", default=15, show_default=True, help="How often a gradient is timed.")
@click.option("--compile", default="auto", show_default=True, type=click.Choice(["auto", "on", "off"]))
@click.option("--seed", default=0, show_default=True)
@click.option("--write", "folder", default="docs", show_default=True, type=click.Path(path_type=Path))
def command(folder: Path, **asked: Any) -> None:
    """Measures the variance of gradient estimators on the nonlinear belief net on MNIST; on one thread."""
    import logging

    import torch

    from benchmarks import report
    from ppgen import estimators

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    about = report.machine(1)
    found = measure(**asked)
    settings = {**asked, **OPTIONS, "train_with": f"REBAR, Adam {LEARNING_RATE}"}
    document = {"machine": about, "settings": settings, "order": ordered(found), **found.as_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Nonlinear sigmoid belief net (200 units) on MNIST, a batch of {found.rows}"
    estimators.draw(found, folder / "estimators.png", title=title, group=GROUP)
    (folder / "estimators.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    click.echo(markdown(document))
