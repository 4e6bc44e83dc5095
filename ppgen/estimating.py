"""What `ppgen estimators` does: builds a recipe, compares gradient estimators on it, shows and keeps what was found."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen import display, estimators
from ppgen.configuration import Config
from ppgen.devices import choose_device
from ppgen.errors import ConfigError
from ppgen.estimators import ALL, FLAGGED, Comparison, Interval, Row, State
from ppgen.files import replace_file, storage_errors
from ppgen.places import load_data, results_folder
from ppgen.randomness import seed_all
from ppgen.recipes import Entry
from ppgen.recipes.base import Recipe


def compare_recipe(
    config: Config,
    entry: Entry,
    *,
    names: Sequence[str],
    draws: int,
    rows: int | None,
    particles: int,
    burn_in: int,
    train_with: str | None,
    at: Sequence[float] = (0.0, 0.1, 1.0),
    out: str | None = None,
) -> tuple[Comparison, dict[str, Any]]:
    """Compares gradient estimators on a recipe's pair and writes ``estimators.json`` and ``estimators.png``.

    Args:
        config: recipe, data, seed, steps and options.
        entry: the recipe; its objective and estimator are left aside.
        names: of estimators; empty for all.
        draws: gradients of each.
        rows: of the batch; the recipe's unless told.
        particles: samples of VIMCO's bound.
        burn_in: steps of what estimators train along.
        train_with: the estimator to train with.
        at: when they are compared, as shares of the steps.
        out: the folder; a new one below ``runs`` unless told.

    Returns:
        What was found, and what ``--json`` prints.

    Raises:
        ConfigError: if an option is unknown, or no estimator suits the recipe.
        StorageError: if the folder cannot be written.
    """
    if unknown := [name for name in names if name not in estimators.known()]:
        raise ConfigError(f"there is no estimator '{unknown[0]}'; there are {', '.join(estimators.known())}")
    folder = results_folder("estimators", config, out)
    device = choose_device(config.device)
    data = load_data(config)
    seed_all(config.seed)
    recipe = entry.build(data, entry.resolve(config.data.name, config.options))
    steps = config.steps or 0
    batches = _batches(recipe, config.seed, device)
    found = estimators.compare(
        recipe.model,
        recipe.guide,
        _first(next(batches), rows),
        estimators=names or None,
        draws=draws,
        particles=particles,
        steps=steps,
        at=at,
        train_with=train_with,
        optimizer=recipe.optimizer(max(1, steps)),
        batches=batches,
        burn_in=burn_in,
        seed=config.seed,
        compile=config.compile,
    )
    document = {
        "recipe": config.recipe,
        "data": config.data.name,
        "options": {name: str(value) for name, value in config.options.items()},
        "seed": config.seed,
        "threads": torch.get_num_threads(),
        "out": str(folder),
        **found.as_dict(),
    }
    with storage_errors(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        estimators.draw(found, folder / "estimators.png", title=_title(document))
        replace_file(folder / "estimators.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return found, document


def _batches(recipe: Recipe, seed: int, device: torch.device) -> Iterator[Any]:
    batches: Iterator[Any] = iter(recipe.batches(seed, device))
    return batches


def _first(batch: Any, rows: int | None) -> Any:
    if "labelled" in batch and isinstance(batch["labelled"], Mapping):
        raise ConfigError("expected a recipe of one table of rows; this one takes labelled and unlabelled rows apart")
    if rows is None:
        return batch
    return {
        name: column[:rows] if isinstance(column, Tensor) and column.dim() else column for name, column in batch.items()
    }


def _title(document: Mapping[str, Any]) -> str:
    options = " ".join(f"{name}={value}" for name, value in document["options"].items())
    return " ".join(
        [
            f"{document['recipe']} on {document['data']},",
            *([options + ","] if options else []),
            f"a batch of {document['rows']}",
        ]
    )


# ------------------------------------------------------------------------------------------------------- showing


def show_estimators(found: Comparison, document: Mapping[str, Any]) -> None:
    """Prints a comparison: a table for each state, what was refused, and where the files are."""
    for state in found.states:
        _show_state(state, found, document)
    if found.refused:
        display.show_table("Refused", ("estimator", "reason"), found.refused.items())
    place = display.short(document["out"])
    display.write(f"In {place}: estimators.png, estimators.json")


def _show_state(state: State, found: Comparison, document: Mapping[str, Any]) -> None:
    groups = [name for name in state.rows[0].variance if name != ALL] or [ALL]
    whose = [f"{group} var." if group != ALL else "variance" for group in groups]
    columns = ["estimator", "bias, %", "|z|", *whose, "ms", "cost", "var. x cost", "SNR"]
    table = [_cells(row, groups) for row in state.rows]
    when = "at initialisation" if not state.steps else f"after {state.steps:,} steps with {found.trained_with}"
    display.show_table(
        f"{_title(document)}, {when}", columns, table, caption=_caption(state), right=range(1, len(columns))
    )


def _caption(state: State) -> str:
    references = ", ".join(
        f"{bound} {'exact' if by == 'exact' else f'by {by}, itself known to {100 * error:.1f} %'}"
        for bound, (by, error) in state.references.items()
    )
    most = max(row.draws for row in state.rows)
    lines = [
        f"{most:,} draws each; ± half a 95 % interval. Reference: {references}.",
        f"Bias: in % of the gradient, along the direction it shows; BIASED: |z| > {FLAGGED} for one of the tensors.",
        "Variance: of one gradient of the batch over draws of the latents, summed over parameters.",
        "SNR: norm of the gradient over the root of its variance.",
    ]
    if any(row.seconds is not None for row in state.rows):
        star = " * not compiled." if any(not row.compiled for row in state.rows) else ""
        lines.append(f"Cost: time, that of the score function being 1; var. x cost: of all parameters.{star}")
    return "\n".join(lines)


def _cells(row: Row, groups: Sequence[str]) -> list[str]:
    bias = row.bias.relative
    flag = "" if not row.bias.flagged else "BIASED " if not row.claims else "BIASED? "
    name = row.name if row.bound == "ELBO" else f"{row.name}, {row.bound}"
    cells = [name, f"{100 * bias.value:.1f} ± {100 * (bias.high - bias.value):.1f}", f"{flag}{row.bias.z:.1f}"]
    cells += [_with_interval(row.variance[group]) for group in groups]
    if row.seconds is None:
        return [*cells, "-", "-", "-", _short(row.signal[ALL])]
    work = _short(row.work[ALL].value) if row.work else "-"
    cost = "-" if row.cost is None else f"{row.cost:.2f}"
    return [*cells, f"{1e3 * row.seconds:.2f}{'' if row.compiled else '*'}", cost, work, _short(row.signal[ALL])]


def _with_interval(found: Interval) -> str:
    half = found.high - found.value
    return f"{_short(found.value)} ±{100 * half / found.value:.1f}%" if found.value > 0 else "0"


def _short(value: float) -> str:
    """Three digits, in as few letters as will do."""
    return f"{value:,.0f}" if 1_000 <= abs(value) < 1e6 else f"{value:.3g}"
