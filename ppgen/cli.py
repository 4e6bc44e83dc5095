"""The command line: parses, calls, prints.

Slow modules are imported within the commands, so that ``ppgen --help`` answers at once.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

import ppgen
from ppgen import cli_estimators, cli_outcomes, display, failures, launching
from ppgen.cli_outcomes import open_run
from ppgen.interruption import heeded
from ppgen.options import AT_LEAST_1, SEED, as_json, data_root, own_recipe, training_options

if TYPE_CHECKING:
    from ppgen.interruption import Interruption
    from ppgen.processes import Processes
    from ppgen.recipes import Entry
    from ppgen.runs import Run

_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every failure is one line on standard error."""
    failures.open_closed_outputs()
    try:
        with display.messages():
            code = commands.main(arguments, prog_name="ppgen", standalone_mode=False)
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if isinstance(error, SystemExit) and not failures.place_in_users_code(error):
            # 2: help, where no command was given; 1: what rich makes of a reader that left early
            failures.close_broken_output(error)
            return failures.BROKEN_PIPE if error.code == 1 else int(error.code or 0)
        failures.show_traceback(error)
        code, line = failures.explain(error)
        failures.close_broken_output(error)
        # a wrong command is the same in all processes; of other failures, only the first one has a line
        if isinstance(error, click.ClickException):
            launching.leave_to_leader()
        if line:
            display.warn(line, style="bold red" if line.startswith("Error") else "")
        return code


class _InOrder(click.RichGroup):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns their names."""
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=_SETTINGS)
@click.version_option(ppgen.__version__, message="ppgen %(version)s")
def commands() -> None:
    """Train any Pyro model, with any guide, by any objective; judge it, and go on from there.

    Start with: ppgen train m2
    """


@commands.command("list")
@data_root
def list_(data_root: str | None) -> None:
    """List recipes, data sets and objectives."""
    from ppgen.catalogue import show_list

    show_list(data_root)


@commands.command()
@click.argument("recipe")
@click.option("--data", metavar="NAME|PATH", default="digits", help="Data set that it is built for.")
@data_root
@click.option("--label-column", metavar="NAME", help="Column of labels of a .csv file.")
@click.option("--set", "options", metavar="KEY=VALUE", multiple=True, help="Option of the recipe; may be repeated.")
def show(recipe: str, options: tuple[str, ...], **data: Any) -> None:
    """Show what RECIPE consists of: sites, plates, parameters, options."""
    from ppgen.catalogue import show_recipe
    from ppgen.configuration import read_request

    request = read_request(None, {"recipe": recipe, **_nested(data)}, options)
    show_recipe(_find(recipe), request)


@commands.command()
@click.argument("recipe", required=False, metavar="RECIPE")
@training_options
@click.option(
    "--labels", metavar="N", type=click.IntRange(min=0), help="Keep so many train labels, balanced over the classes."
)
@click.option("--seed", metavar="N", type=SEED, help="Seed of everything.  [default: 0]")
@click.option("--threads", metavar="N", type=AT_LEAST_1, help="Threads.  [default: what suits work and free cores]")
@click.option("--set", "options", metavar="KEY=VALUE", multiple=True, help="Option of the recipe; may be repeated.")
@click.option("--print-config", is_flag=True, help="Print the configuration as TOML, for --config, and stop.")
@click.option("--out", metavar="DIR", help="New run folder.  [default: runs/RECIPE-DATA-SEED]")
@as_json
def train(
    recipe: str | None,
    options: tuple[str, ...],
    config: Path | None,
    print_config: bool,
    out: str | None,
    as_json: bool,
    **typed: Any,
) -> None:
    """Train RECIPE and judge it on test rows.

    RECIPE is a name from `ppgen list`, or your own: my_model.py:recipe
    """
    with heeded() as interruption, _together() as processes:
        from ppgen.configuration import read_request
        from ppgen.places import begun_folder
        from ppgen.runs import Run, resolve

        request = read_request(config, {"recipe": recipe, **_nested(typed)}, options)
        resolved = resolve(request, _find(request.recipe))
        if print_config:
            display.write(resolved.to_toml())
            return
        with failures.memory_of(resolved.options, prefix="--set "):
            if begun := begun_folder(processes):  # by processes of which one was killed
                made = open_run(
                    begun,
                    request.recipe if ":" in request.recipe else None,
                    None,
                    processes=processes,
                    untrained=True,
                )
            else:
                made = Run.create(request, out, processes=processes)
            _train_and_judge(made, interruption, as_json=as_json)


@commands.command()
@click.argument("recipe", required=False, metavar="RECIPE")
@click.option("--seeds", metavar="N-M,...", default="0-9", help="Such as 0-9 or 0,3,5-7.")
@click.option(
    "--set",
    "options",
    metavar="KEY=V1,V2",
    multiple=True,
    help="Option of the recipe and its values. An option that is itself a list, such as hidden=400,200, has one value"
    " each time: repeat --set for more.",
)
@click.option("--labels", metavar="N1,N2", help="Keep so many train labels, balanced over the classes.")
@click.option("--jobs", metavar="N", type=AT_LEAST_1, help="Runs at a time.  [default: free cores; on a GPU 1]")
@click.option("--threads", metavar="N", type=AT_LEAST_1, help="Threads of each run.  [default: free cores / jobs]")
@click.option("--backend", metavar="NAME", default="loky", help="loky: processes on this machine; dask or ray.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask or Ray cluster that sees the same files (or DASK_SCHEDULER_ADDRESS, RAY_ADDRESS).",
)
@training_options
@click.option(
    "--out", metavar="DIR", help="Sweep folder; one that is there goes on.  [default: runs/sweep-RECIPE-DATA]"
)
@as_json
def sweep(
    recipe: str | None,
    seeds: str,
    options: tuple[str, ...],
    labels: str | None,
    jobs: int | None,
    backend: str,
    scheduler: str | None,
    config: Path | None,
    out: str | None,
    as_json: bool,
    **typed: Any,
) -> int:
    """Train RECIPE once for every combination of values and seeds.

    A sweep that was stopped or killed goes on where it was: repeat the command with --out. More seeds or values may be
    added so. Every run is a folder for `ppgen evaluate`, `ppgen sample` and `ppgen resume`.
    """
    with heeded():
        from ppgen import sweeps, tables
        from ppgen.configuration import read_request
        from ppgen.grids import Grid

        request = read_request(config, {"recipe": recipe, **_nested(typed)}, options)
        entry = _find(request.recipe)
        grid = Grid.of(request, entry, options, seeds=seeds, labels=labels)
        document = sweeps.sweep(grid, entry, out=out, jobs=jobs, backend=backend, scheduler=scheduler)
    if as_json:
        display.write(json.dumps(document, indent=2, allow_nan=False))
    else:
        tables.show_sweep(document)
    return next((found["exit_code"] for found in document["runs"] if "error" in found), 0)


@commands.command()
@click.argument("run")
@own_recipe
@data_root
@click.option(
    "--change-processes",
    is_flag=True,
    help="Go on with more or fewer processes than before: results differ by rounding.",
)
@as_json
@click.option("--epochs", metavar="N", type=AT_LEAST_1, help="Make the run so many passes long.")
@click.option("--steps", metavar="N", type=AT_LEAST_1, help="Make the run so many steps long, those taken included.")
def resume(
    run: str,
    recipe: str | None,
    data_root: str | None,
    change_processes: bool,
    as_json: bool,
    epochs: int | None,
    steps: int | None,
) -> None:
    """Go on with RUN, a run folder, exactly where it stopped; judge a finished one again, or make it longer.

    With --epochs or --steps it ends as if it had been so long from the start, unless its learning rate depends on that.
    """
    with heeded() as interruption, _together() as processes:
        opened = open_run(run, recipe, data_root, processes=processes, untrained=True, epochs=epochs, steps=steps)
        if not change_processes:
            opened.require_processes()
        with failures.memory_of(opened.config.options, prefix="--set "):
            _train_and_judge(opened, interruption, as_json=as_json)


commands.add_command(cli_outcomes.evaluate)
commands.add_command(cli_outcomes.sample)
commands.add_command(cli_outcomes.embed)


@commands.command()
@click.argument("recipe")
@click.option("--data", metavar="NAME|PATH", help="Data set by name, or your own file or folder.  [default: digits]")
@data_root
@click.option("--label-column", metavar="NAME", help="Column of labels of a .csv file.")
@click.option("--objectives", metavar="A,B", default="svi,map,nuts", help="Some of svi, map, nuts.")
@click.option("--guides", metavar="A,B", default="own", help="For svi: some of own, normal, multivariate-normal.")
@click.option("--steps", metavar="N", type=AT_LEAST_1, help="Steps of each guide and point.  [default: the recipe's]")
@click.option("-n", "--number", metavar="N", type=click.IntRange(min=1000), default=2000, help="Draws from each guide.")
@click.option("--seed", metavar="N", type=SEED, help="Seed of everything.  [default: 0]")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--set", "options", metavar="KEY=VALUE", multiple=True, help="Option of recipe or method; repeatable.")
@click.option("--out", metavar="DIR", help="New folder.  [default: runs/compare-RECIPE-DATA]")
@as_json
def compare(
    recipe: str,
    objectives: str,
    guides: str,
    number: int,
    options: tuple[str, ...],
    out: str | None,
    as_json: bool,
    **typed: Any,
) -> None:
    """Fit RECIPE in several ways, all train rows in every step, and set what they found side by side.

    Posterior summaries, time, and the PSIS k of each guide: whether it is near enough to the posterior.
    """
    with heeded():
        from ppgen import comparing
        from ppgen.configuration import read_request

        request = read_request(None, {"recipe": recipe, **_nested(typed)}, options)
        ways = {"objectives": objectives.split(","), "guides": guides.split(",")}
        document = comparing.compare_recipe(request, _find(recipe), **ways, draws=number, out=out)
    if as_json:
        display.write(json.dumps(document, indent=2, allow_nan=False))
    else:
        comparing.show_comparison(document)


commands.add_command(cli_estimators.estimators)


@contextlib.contextmanager
def _together() -> Iterator["Processes"]:
    from ppgen.processes import joined

    with joined(failures.exit_code) as processes:
        yield processes


def _nested(typed: dict[str, Any]) -> dict[str, Any]:
    """Brings options to the shape of a configuration; those not given are left out."""
    given = {key: value for key, value in typed.items() if value is not None}
    names = {"data": "name", "data_root": "root", **{name: name for name in ("labels", "label_column", "stream")}}
    data = {inner: given.pop(outer) for outer, inner in names.items() if outer in given}
    return {**given, "data": data}


def _find(recipe: str) -> "Entry":
    from ppgen.recipes import find

    if ":" in recipe:
        display.say(f"Running the code of {recipe.rpartition(':')[0]}.")
    return find(recipe)


def _train_and_judge(run: "Run", interruption: "Interruption", *, as_json: bool) -> None:
    with run.folder.lock():
        if not run.processes.leads:
            for _ in interruption.train(run):
                pass
            return
        display.show_start(run)
        with display.progress(run) as show_record:
            for record in interruption.train(run):
                show_record(record)
        with display.waiting("Judging on test rows ..."):
            document = run.judge()
    cli_outcomes.show(document, run, as_json=as_json)
    if not as_json:
        display.show_ways_on(document)
