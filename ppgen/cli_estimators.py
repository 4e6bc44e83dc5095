"""The command `ppgen estimators`."""

import json
from collections.abc import Callable
from typing import Any

import rich_click as click

from ppgen import display
from ppgen.interruption import heeded
from ppgen.options import AT_LEAST_1, SEED, as_json, data_root

Find = Callable[[str], Any]
_DRAWS, _BURN_IN, _PARTICLES = 20_000, 500, 5


@click.command()
@click.argument("recipe")
@click.option("--data", metavar="NAME|PATH", help="Data set by name, or your own file or folder.  [default: digits]")
@data_root
@click.option("--label-column", metavar="NAME", help="Column of labels of a .csv file.")
@click.option("--estimators", "names", metavar="A,B", help="Which.  [default: all that fit]")
@click.option("--draws", metavar="N", type=click.IntRange(min=1000), default=_DRAWS, help="Gradients of each.")
@click.option("--rows", metavar="N", type=AT_LEAST_1, help="Rows of the batch.  [default: the recipe's]")
@click.option("--particles", metavar="N", type=click.IntRange(min=2), default=_PARTICLES, help="Of VIMCO's bound.")
@click.option("--steps", metavar="N", type=AT_LEAST_1, help="Train so long, and compare at 0, 10 and 100 % of it.")
@click.option("--train-with", metavar="NAME", help="Estimator to train with.  [default: rebar, where it fits]")
@click.option("--burn-in", metavar="N", type=click.IntRange(min=0), default=_BURN_IN, help="Steps of baselines alone.")
@click.option("--seed", metavar="N", type=SEED, help="Seed of everything.  [default: 0]")
@click.option("--threads", metavar="N", type=AT_LEAST_1, default=1, help="Threads.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--compile", type=click.Choice(["auto", "on", "off"]), help="Compile what is timed.  [default: auto]")
@click.option("--set", "options", metavar="KEY=VALUE", multiple=True, help="Option of the recipe; may be repeated.")
@click.option("--out", metavar="DIR", help="New folder.  [default: runs/estimators-RECIPE-DATA]")
@as_json
def estimators(
    recipe: str,
    names: str | None,
    draws: int,
    rows: int | None,
    particles: int,
    train_with: str | None,
    burn_in: int,
    threads: int,
    options: tuple[str, ...],
    out: str | None,
    as_json: bool,
    **typed: Any,
) -> None:
    """Compare gradient estimators on RECIPE: bias, variance, cost.

    Every estimator that fits is set against the exact gradient of the evidence lower bound of one batch, or a long run.
    """
    with heeded():
        import torch

        from ppgen import estimating
        from ppgen.configuration import read_request
        from ppgen.recipes import find

        torch.set_num_threads(threads)
        if ":" in recipe:
            display.say(f"Running the code of {recipe.rpartition(':')[0]}.")
        given = {key: value for key, value in typed.items() if value is not None}
        places = {"data": "name", "data_root": "root", "label_column": "label_column"}
        data = {inner: given.pop(outer) for outer, inner in places.items() if outer in given}
        request = read_request(None, {"recipe": recipe, **given, "data": data}, options)
        found, document = estimating.compare_recipe(
            request,
            find(recipe),
            names=[name.strip() for name in (names or "").split(",") if name.strip()],
            draws=draws,
            rows=rows,
            particles=particles,
            burn_in=burn_in,
            train_with=train_with,
            out=out,
        )
    if as_json:
        display.write(json.dumps(document, indent=2, allow_nan=False))
    else:
        estimating.show_estimators(found, document)
