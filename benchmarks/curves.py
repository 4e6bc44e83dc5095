"""Draws how the bound of runs grew, beside what was published."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ppgen.errors import ConfigError


def curve(folder: Path, measure: str) -> tuple[list[float], list[float], list[float]]:
    """Returns epochs, minutes and a measure of the reports of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if measure in row]
    return [row["epoch"] for row in rows], [row["seconds"] / 60 for row in rows], [row[measure] for row in rows]


def draw(runs: Sequence[tuple[str, Path, float | None]], path: Path, *, title: str, measure: str) -> None:
    """Draws a measure of each run, a name, its folder and a published value at a time, against epochs and minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for index, (name, folder, published) in enumerate(runs):
        epochs, minutes, values = curve(folder, measure)
        start = len(values) // 50  # the first steps would fill the picture
        for axis, places in zip(axes, (epochs, minutes), strict=True):
            axis.plot(places[start:], values[start:], color=f"C{index}", label=name)
            if published is not None:
                axis.axhline(published, color=f"C{index}", linestyle=":", label=f"{name}, published")
    for axis, label in zip(axes, ("epochs", "minutes"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{measure.replace('_', ' ')}, nats")
    axes[1].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


@click.command("curves")
@click.argument("runs", nargs=-1, required=True, metavar="NAME=RUN[=PUBLISHED] ...")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .png.")
@click.option("--title", default="", help="Of the picture.")
@click.option("--measure", default="validation_bound", show_default=True, help="A column of metrics.jsonl.")
def command(runs: tuple[str, ...], out: Path, title: str, measure: str) -> None:
    """Draw the validation bound of run folders, in nats a datum (one draw), dotted: a published figure."""
    parts: list[Any] = [run.split("=") for run in runs]
    if wrong := [run for run, part in zip(runs, parts, strict=True) if len(part) not in (2, 3)]:
        raise ConfigError(f"expected NAME=RUN or NAME=RUN=PUBLISHED; got '{wrong[0]}'")
    chosen = [(part[0], Path(part[1]), float(part[2]) if len(part) == 3 else None) for part in parts]
    draw(chosen, out, title=title, measure=measure)
    click.echo(str(out))
