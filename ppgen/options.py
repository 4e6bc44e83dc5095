"""Options that several commands of the command line share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

FILE = click.Path(dir_okay=False, path_type=Path)
AT_LEAST_1 = click.IntRange(min=1)
SEED = click.IntRange(min=0, max=2**63 - 1)
"""`ppgen.configuration.LARGEST_SEED`, which would be slow to import."""

data_root = click.option("--data-root", metavar="DIR", help="Where data sets lie (or PPGEN_DATA).")
own_recipe = click.option("--recipe", metavar="FILE.py:NAME", help="The run's recipe, where it is your own code.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")

_TRAINING = [
    click.option(
        "--data", metavar="NAME|PATH", help="Data set by name, or your own file or folder.  [default: digits]"
    ),
    data_root,
    click.option("--label-column", metavar="NAME", help="Column of labels of a .csv file."),
    click.option(
        "--stream/--in-memory",
        default=None,
        help="Read a .npy from disk while training.  [default: if too large]",
    ),
    click.option("--epochs", metavar="N", type=AT_LEAST_1, help="Passes through the train rows."),
    click.option("--steps", metavar="N", type=AT_LEAST_1, help="Steps, instead of epochs."),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.  [default: auto]"),
    click.option(
        "--precision", type=click.Choice(["auto", "fp32", "tf32", "bf16"]), help="Of matrix products.  [default: auto]"
    ),
    click.option("--compile", type=click.Choice(["auto", "on", "off"]), help="Compile the steps.  [default: auto]"),
    click.option(
        "--on-nan",
        type=click.Choice(["stop", "skip", "rollback"]),
        help="What a loss not finite does.  [default: stop]",
    ),
    click.option("--config", type=click.Path(exists=True, **{"dir_okay": False, "path_type": Path}), help="TOML file."),
]


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `train` and `sweep` have in common."""
    for option in reversed(_TRAINING):
        command = option(command)
    return command
