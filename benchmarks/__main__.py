"""`python -m benchmarks`."""

import json
import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from benchmarks import avb, curves, estimators, modes, toy, view, wake_sleep
from benchmarks.works import WORKS
from ppgen.errors import ConfigError, PpgenError


def confine(threads: int) -> None:
    """Confines this process to a number of cores and torch to as many threads; before JAX is imported, which counts.

    Raises:
        ConfigError: if there are not as many cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 <= threads <= (len(cores) or threads):
        raise ConfigError(f"expected --threads from 1 to {len(cores)}, the cores this process may use; got {threads}")
    if cores:
        os.sched_setaffinity(0, idlest(cores)[:threads])
    import torch

    torch.set_num_threads(threads)


def idlest(cores: list[int], *, seconds: float = 0.5) -> list[int]:
    """Returns cores by how busy others keep them now, the least first."""

    def idle() -> dict[int, int]:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        return {int(name[3:]): int(counts[3]) for name, *counts in lines if name[:3] == "cpu" and name[3:].isdigit()}

    try:
        before = idle()
        time.sleep(seconds)
        after = idle()
    except OSError:
        return cores
    return sorted(cores, key=lambda core: before.get(core, 0) - after.get(core, 0))


def chosen(text: str, known: list[str], option: str) -> list[str]:
    """Returns the names in a comma-separated list; all of them where it is empty.

    Raises:
        ConfigError: if one is not known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(f"expected {option} of {', '.join(known)}; got '{name}'")
    return [name for name in known if name in names] if names else known


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; the tables go to stderr.")
@click.option("--only", default="", metavar="WORK,...", help=f"Some of {', '.join(WORKS)}.")
@click.option("--contenders", "names", default="", metavar="NAME,...", help="Some of the contenders; ppgen is one.")
@click.option("--threads", default=2, show_default=True, help="Cores and threads for every contender.")
@click.option("--rounds", default=40, show_default=True, help="Turns of every contender.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "processor"]),
    default="wall",
    show_default=True,
    help="Of steps; the processor's time, with one thread, where others compute too.",
)
@click.option("--write", "target", type=click.Path(path_type=Path), help="Put the tables between a document's markers.")
@click.pass_context
def main(
    context: click.Context,
    as_json: bool,
    only: str,
    names: str,
    threads: int,
    rounds: int,
    clock: str,
    target: Path | None,
) -> None:
    """Times ppgen and other ways to train the same models, step by step in turn."""
    if context.invoked_subcommand is not None:
        context.obj = threads
        return
    confine(threads)
    # only now, with torch's threads and JAX's cores settled
    from benchmarks import measuring, report
    from benchmarks.contenders import CONTENDERS

    if rounds < 1:
        raise ConfigError(f"expected --rounds of at least 1; got {rounds}")
    if clock == "processor" and threads > 1:
        # threads that wait for others spin, and their time would count
        raise ConfigError(f"expected --threads 1 with --clock processor; got {threads}")
    timer = time.process_time if clock == "processor" else time.perf_counter
    if target is not None:
        report.around(target)  # before ten minutes of measuring, not after
    works = chosen(only, list(WORKS), "--only")
    contenders = {name: CONTENDERS[name] for name in chosen(names, list(CONTENDERS), "--contenders")}
    about = report.machine(threads) | {"clock": clock}
    progress, output = Console(stderr=True), Console(stderr=as_json)
    output.width = max(output.width, 110)  # a file has no width of its own
    measuring.quieten()
    results = {}
    for work in works:
        with progress.status(work) as status:
            results[work] = measuring.measure(WORKS[work], contenders, rounds=rounds, say=status.update, clock=timer)
        output.print(report.table(work, results[work]))
    output.print(report.conditions(about), highlight=False)
    if target is not None:
        report.write(target, report.markdown(results, about))
    if as_json:
        click.echo(json.dumps(report.document(results, about), indent=2))


@main.command("growth")
@click.option("--write", "folder", default="docs/growth", show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def growth_command(threads: int, folder: Path) -> None:
    """Draws how time and memory of ppgen and Pyro grow with the sizes of the work; about seven minutes."""
    from benchmarks import growth, report

    about = report.machine(threads)
    with Console(stderr=True).status("growth") as status:
        found = growth.measure(threads, status.update)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps({"machine": about, "axes": found}, indent=1) + "\n")
    for path in growth.draw(found, folder, about):
        click.echo(str(path))


@main.command("overhead")
@click.pass_obj
def overhead_command(threads: int) -> None:
    """Compares an epoch of `ppgen train` with its bare steps: VAE 784-400-20 on MNIST; about a minute."""
    confine(threads)
    from benchmarks import overhead

    with Console(stderr=True).status("overhead") as status:
        click.echo(json.dumps(overhead.measure(threads, say=status.update)))


@main.command("conformance")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; the table goes to stderr.")
@click.option("--only", default="", metavar="TEXT,...", help="Programs whose names hold one of these.")
@click.option("--seeds", default=1, show_default=True, help="Runs of every program, from different starts.")
@click.option("--draws", default=1000, show_default=True, help="Of the loss, at the end of every run.")
@click.option("--compile", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
@click.pass_obj
def conformance_command(
    threads: int, as_json: bool, only: str, seeds: int, draws: int, compile: str, as_markdown: bool
) -> None:
    """Trains Pyro programs of every kind by ppgen and by stock SVI, past their plateau; about 15 minutes."""
    if seeds < 1 or draws < 2:
        raise ConfigError(f"expected --seeds of at least 1 and --draws of at least 2; got {seeds} and {draws}")
    import torch

    from benchmarks import conformance

    torch.set_num_threads(threads)
    known = list(conformance.zoo().CASES)
    texts = [text.strip().lower() for text in only.split(",") if text.strip()]
    names = [name for name in known if not texts or any(text in name.lower() for text in texts)]
    if not names:
        raise ConfigError(f"expected --only with a part of one of {', '.join(known)}; got '{only}'")
    options = {"seeds": range(seeds), "draws": draws, "compile": compile}
    output = Console(stderr=as_json)
    output.width = max(output.width, 150)
    rows, progress = [], Console(stderr=True)
    with progress.status("conformance") as status:
        for row in conformance.compare_all(names, status.update, **options):
            progress.print(f"{row.name}: z {row.z:+.2f}", highlight=False)
            rows.append(row)
    if as_markdown:
        click.echo(conformance.markdown(rows))
    else:
        output.print(conformance.table(rows))
    if as_json:
        click.echo(json.dumps({"seeds": seeds, "draws": draws, "programs": [row.document() for row in rows]}, indent=2))


@main.command("growth-point", hidden=True)
@click.argument("axis")
@click.argument("value", type=int)
@click.argument("contender")
@click.pass_obj
def growth_point(threads: int, axis: str, value: int, contender: str) -> None:
    """Measures one point; prints JSON."""
    import torch

    from benchmarks import growth

    # not confined to cores, which only JAX needs: on a busy machine the scheduler finds better ones
    torch.set_num_threads(threads)
    (chosen_axis,) = (known for known in growth.AXES if known.name == axis)
    click.echo(json.dumps(growth.measure_point(chosen_axis, value, contender)))


main.add_command(avb.command)
main.add_command(estimators.command)
main.add_command(curves.command)
main.add_command(modes.command)
main.add_command(toy.command)
main.add_command(view.command)
main.add_command(wake_sleep.command)


def run() -> None:
    """Runs the command; what the user can mend is one line and an exit code."""
    try:
        main()
    except PpgenError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
