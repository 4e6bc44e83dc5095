"""The picture of a comparison of gradient estimators."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppgen.estimators.results import ALL, Comparison, Row, State
from ppgen.estimators.statistics import FLAGGED
from ppgen.files import replace_file

BIASED, UNBIASED = "tab:red", "tab:blue"


def draw(found: Comparison, path: Path, *, title: str = "", group: str = ALL) -> None:
    """Draws variance, and variance times cost, of every estimator in every state, to a file.

    Args:
        found: the comparison.
        path: of the picture.
        title: what stands above it.
        group: of parameters: "all", "model" or "guide".
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.name for state in found.states for row in state.rows))
    timed = any(row.cost is not None for state in found.states for row in state.rows)
    height = 1.6 + 0.33 * len(names)
    figure = Figure(figsize=(4.2 * len(found.states) + 2, height * (2 if timed else 1)), layout="constrained")
    plots = figure.subplots(2 if timed else 1, len(found.states), squeeze=False, sharey=True, sharex="row")
    whose = "" if group == ALL else f" by the {group}'s parameters"
    for column, state in enumerate(found.states):
        _bars(plots[0][column], state, names, group, work=False)
        plots[0][column].set(title=_title(state), xlabel=f"variance of one gradient{whose}")
        if timed:
            _bars(plots[1][column], state, names, group, work=True)
            plots[1][column].set(xlabel="variance times cost (cost 1: the score function)")
    text = f"red: biased (|z| > {FLAGGED}); blue: no bias found in as many draws. Bars: 95 % intervals."
    figure.suptitle(f"{title}\n{text}" if title else text, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=110)
    replace_file(path, file.getvalue())


def _title(state: State) -> str:
    return "at initialisation" if state.steps == 0 else f"after {state.steps:,} steps"


def _bars(plot: Any, state: State, names: Sequence[str], group: str, *, work: bool) -> None:
    for row in state.rows:
        found = (row.work if work else row.variance).get(group)
        if found is None or found.value <= 0:
            continue
        place = len(names) - 1 - names.index(row.name)
        colour = BIASED if row.bias.flagged else UNBIASED
        error = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
        plot.errorbar([found.value], [place], xerr=error, fmt="o", markersize=4, capsize=3, color=colour)
    plot.set_yticks(range(len(names)), [_name(state, name) for name in reversed(names)])
    plot.set_ylim(-0.6, len(names) - 0.4)
    plot.set_xscale("log")
    plot.grid(alpha=0.3)


def _name(state: State, name: str) -> str:
    row: Row | None = next((row for row in state.rows if row.name == name), None)
    return name if row is None or row.bound == "ELBO" else f"{name}, {row.bound}"
