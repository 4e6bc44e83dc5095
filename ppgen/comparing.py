"""What `ppgen compare` does: builds a recipe once for each way to fit it, and shows and keeps what they found."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppgen import display
from ppgen.comparison import Comparison, Ways
from ppgen.configuration import Config
from ppgen.display import show_table
from ppgen.errors import ConfigError
from ppgen.files import replace_file, storage_errors
from ppgen.places import load_data, results_folder
from ppgen.randomness import seed_all
from ppgen.recipes import Entry, Recipe
from ppgen.recipes.methods import METHODS
from ppgen.runs import resolve

MOST_LATENTS = 12
"""Numbers of a posterior that the table has lines for."""
COLUMNS = {"mean": 3, "sd": 3, "hdi_low": 3, "hdi_high": 3, "ess_bulk": 0, "r_hat": 3}


def compare_recipe(
    config: Config,
    entry: Entry,
    *,
    objectives: Sequence[str],
    guides: Sequence[str],
    draws: int,
    out: str | None,
) -> dict[str, Any]:
    """Fits a recipe in every way asked for and writes the draws, a picture and ``comparison.json``.

    Args:
        config: recipe, data, seed, steps and options; those of any method may be among them.
        entry: the recipe.
        objectives: some of "svi", "map", "nuts".
        guides: some of "own", "normal", "multivariate-normal".
        draws: from each guide.
        out: the folder; a new one below ``runs`` unless told.

    Returns:
        What ``--json`` prints.

    Raises:
        ConfigError: if an option is unknown, or a way does not suit the recipe.
        StorageError: if the folder cannot be written.
    """
    if "objective" in config.options:
        raise ConfigError("expected --objectives svi,map,nuts in the place of --set objective=...")
    asked = {name: _options(config, entry, name) for name in objectives}
    _refuse_unknown(config, entry, asked)
    resolved = resolve(config.model_copy(update={"options": _options(config, entry, "svi")}), entry)
    folder = results_folder("compare", resolved, out)
    data = load_data(resolved)

    def build(method: str | None) -> Recipe:
        seed_all(config.seed)
        return entry.build(data, entry.resolve(resolved.data.name, asked[method or "svi"]))

    ways = Ways(
        build,
        steps=config.steps,
        draws=draws,
        seed=config.seed,
        device=config.device,
        compile=config.compile,
        say=display.say,
    )
    found = Comparison(tuple(ways.fits(objectives, guides)))
    document = {
        "recipe": config.recipe,
        "data": resolved.data.name,
        "seed": config.seed,
        "rows": len(next(iter(data.train.values()))),
        "out": str(folder),
        **found.as_dict(),
    }
    with storage_errors(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        found.write(folder)
        replace_file(folder / "comparison.json", (json.dumps(document, indent=2) + "\n").encode())
    return document


def _options(config: Config, entry: Entry, name: str) -> dict[str, Any]:
    """Returns those of the options that the recipe has under an objective, with its name."""
    if name not in METHODS:
        return {key: value for key, value in config.options.items() if key in entry.defaults()}
    known = {*entry.defaults(), *METHODS[name].options}
    return {"objective": name} | {key: value for key, value in config.options.items() if key in known}


def _refuse_unknown(config: Config, entry: Entry, asked: Mapping[str, Mapping[str, Any]]) -> None:
    used = {key for options in asked.values() for key in options}
    known = sorted({*entry.defaults(), *(key for name in asked if name in METHODS for key in METHODS[name].options)})
    for name in config.options:
        if name not in used:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known) or 'none'}"
            raise ConfigError(f"recipe '{entry.name}' has no option '{name}' under {', '.join(asked)}: {hint}")


def show_comparison(document: Mapping[str, Any]) -> None:
    """Prints a comparison as two tables: the ways, and what they found of each number of the latents."""
    fits = document["fits"]
    ways = [
        (
            fit["name"],
            f"{fit['seconds']:,.1f} s",
            _number(fit["elbo"], 1),
            "-"
            if fit["verdict"] is None
            else _number(fit["pareto_k"], 2)
            if fit["pareto_k"] is not None
            else "infinite",
            fit["verdict"] or "-",
            "-" if fit["divergences"] is None else f"{fit['divergences']:,}",
        )
        for fit in fits
    ]
    title = f"{document['recipe']} on {document['rows']:,} train rows of {document['data']}"
    caption = "k: of the tail of importance ratios, below 0.5 good, below 0.7 usable. ELBO: nats, all rows."
    show_table(title, ("fit", "time", "ELBO", "PSIS k", "guide", "diverged"), ways, caption=caption, right=(1, 2, 3, 5))
    names = list(dict.fromkeys(name for fit in fits for name in fit["posterior"]))
    rows = [
        (name, fit["name"], *(_number(fit["posterior"][name].get(key), digits) for key, digits in COLUMNS.items()))
        for name in names[:MOST_LATENTS]
        for fit in fits
        if name in fit["posterior"]
    ]
    more = f" {len(names) - MOST_LATENTS:,} more numbers are in comparison.json." if len(names) > MOST_LATENTS else ""
    right = range(2, 2 + len(COLUMNS))
    show_table("Posterior", ("latent", "fit", *COLUMNS), rows, caption=f"hdi: 94 %.{more}", right=right)
    place = display.short(document["out"])
    display.write(f"In {place}: comparison.png, comparison.json, and the draws of each fit for ArviZ (.nc)")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
