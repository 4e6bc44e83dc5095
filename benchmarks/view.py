"""Writes the tables of all objectives, their players and divergences, into their page."""

from pathlib import Path

import click

from benchmarks import report
from ppgen.objectives.view import markdown


@click.command("view")
@click.option("--write", "path", default="docs/games.md", show_default=True, type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Write what each player of each objective minimises into a page with markers."""
    report.write(path, markdown().rstrip())
    click.echo(str(path))
