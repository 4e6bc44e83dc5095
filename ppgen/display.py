"""What the command line shows: tables, progress, results, warnings; plain lines off a terminal."""

import contextlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ppgen import launching, measured

if TYPE_CHECKING:
    from ppgen.runs import Record, Run

WIDTH = 120
"""Columns of a table off a terminal."""
LARGEST_R_HAT = 1.01
"""Above it, chains have not yet found the same distribution."""
LINES = 12
"""How many plain lines tell of a training."""
# control characters but tab and line feed, marks that turn the direction of writing, halves of characters
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LIBRARIES = r"(torch|torchvision|pyro|arviz|sklearn|matplotlib|numpy|scipy|pandas|xarray)(\.|$)"
_NOISY = ("torch.utils.cpp_extension", "torch._inductor", "torch._dynamo", "torch._functorch")


def console(*, error: bool = False) -> Console:
    """Returns the console of standard output, or of standard error."""
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(stderr=error, width=width, highlight=False)


def say(message: str, *, style: str = "") -> None:
    """Prints a message to standard error; of processes that train together, only one does."""
    if launching.leads():
        warn(message, style=style)


def warn(message: str, *, style: str = "") -> None:
    """Prints a message to standard error, in any process."""
    console(error=True).print(Text(plain(message), style=style), soft_wrap=True)


def write(message: str) -> None:
    """Prints text to standard output, as it is but for what would steer a terminal."""
    message = plain(message)
    sys.stdout.write(message if message.endswith("\n") else message + "\n")


def plain(text: str) -> str:
    r"""Returns text without what steers a terminal: names in files of others may hold anything.

    >>> plain("a\x1b[31mb\u202e")
    'a[31mb'
    """
    return _STEERING.sub("", text)


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    right: Sequence[int] = (),
) -> None:
    """Prints a table to standard output; columns numbered in ``right`` are flush right."""
    table = Table(title=escape(plain(title)), box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(escape(plain(name)), justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(str(cell))) for cell in row))
    console().print(table)
    if caption:
        write(f"{caption}\n\n")


# -------------------------------------------------------------------------------------------------- messages


class _Messages(logging.Handler):
    """Prints what ppgen logs, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
        say(" ".join(f"{prefix}{record.getMessage()}".split()), style="yellow" if prefix else "")


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Within it, ppgen's log and the user's warnings go to standard error, and libraries keep quiet."""
    logger = logging.getLogger("ppgen")
    before, propagate = logger.level, logger.propagate
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    handler = _Messages()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", module=_LIBRARIES)
            warnings.showwarning = lambda message, *_: logger.warning("%s", message)
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


# -------------------------------------------------------------------------------------------------- training


def show_start(run: "Run") -> None:
    """Says what will be trained, how, and where."""
    say(run.data.card())
    if sampling := run.recipe.sampling:
        chains = f"{sampling.chains} chain{'s' if sampling.chains > 1 else ''}"
        lengths = f"{sampling.warmup:,} draws to warm up and {sampling.draws:,} to keep"
        say(f"\n{run.config.recipe}: NUTS, {chains} of {lengths}")
    else:
        _say_training(run)
    say(f"Run folder: {short(run.folder.path)}\n")
    if run.trainer.steps >= run.steps:
        say(f"{'Sampling' if sampling else 'Training'} is finished; judging it again.")
    elif run.trainer.steps:
        say(f"Going on at step {run.trainer.steps:,}.")


def _say_training(run: "Run") -> None:
    parameters = sum(leaf.numel() for leaf in run.trainer.leaves.values())
    per_epoch = run.batches.steps_per_epoch
    compiled = {True: "compiled", False: "not compiled", None: "maybe compiled later"}[run.trainer.compiled]
    threads = f"{run.threads} thread{'s' if run.threads > 1 else ''}"
    threads = f"{run.processes.size} processes of {threads}" if run.processes.size > 1 else threads
    say(
        f"\n{run.config.recipe}: {parameters:,} parameters; {run.steps:,} steps, {per_epoch:,} an epoch;"
        f" steps are {compiled}; {run.trainer.device}, {threads}, {run.trainer.precision}"
    )


def short(path: str | Path) -> str:
    """Returns a path as the user would type it."""
    path = Path(path)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


@contextlib.contextmanager
def progress(run: "Run") -> Iterator[Callable[["Record"], None]]:
    """Shows the records of a training: a bar on a terminal, a dozen lines elsewhere."""
    target = console(error=True)
    clock = _Clock(run.steps)
    if not target.is_terminal:
        yield _plain(run, clock)
        return
    columns = (BarColumn(bar_width=None), TextColumn("{task.description}"))
    with Progress(*columns, console=target, expand=True, refresh_per_second=4) as bar:
        task = bar.add_task(
            "compiling ..." if run.trainer.compiled else "starting ...", total=run.steps, completed=run.trainer.steps
        )

        def show(record: "Record") -> None:
            bar.update(task, completed=record["step"], description=escape(plain(_line(record, run, clock))))

        yield show


def _plain(run: "Run", clock: "_Clock") -> Callable[["Record"], None]:
    shown = -1

    def show(record: "Record") -> None:
        nonlocal shown
        line = _line(record, run, clock)
        part = record["step"] * LINES // run.steps
        if part > shown:
            shown = part
            say(f"step {record['step']:,}  {line}")

    return show


class _Clock:
    """Tells the time left from the pace of the latest tenth of the steps, compiling left out."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._seen: list[tuple[int, float]] = []
        self._compiling = 0.0

    def left(self, step: int, compiling: float = 0.0) -> str:
        """Returns the time left after ``step``, before which ``compiling`` seconds passed; empty at the first call."""
        self._compiling += compiling
        now = time.monotonic() - self._compiling
        self._seen = [*(seen for seen in self._seen if seen[0] >= step - self.steps // 10), (step, now)]
        first, start = self._seen[0]
        if step == first:
            return ""
        seconds = round((self.steps - step) * (now - start) / (step - first))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def _line(record: "Record", run: "Run", clock: _Clock) -> str:
    if sampling := run.recipe.sampling:
        drawn = f"draw {record['draw']:,}/{sampling.draws:,}" if record["draw"] else "warming up"
        parts = [f"chain {record['chain']}/{sampling.chains}", drawn, f"acceptance {record['acceptance']:.2f}"]
        parts += [f"step size {record['step_size']:.2g}"]
        parts += [f"{record['divergences']} diverged"] if record.get("divergences") else []
        return "  ".join([*parts, clock.left(record["step"])]).rstrip()
    epochs = run.steps / run.batches.steps_per_epoch
    digits = 1 if epochs >= 10 else 2
    length = f"{epochs:,.{digits}f}".removesuffix(f".{'0' * digits}")
    parts = [f"epoch {record['epoch']:,.{digits}f}/{length}"]
    parts += [f"{name} {value:.2f}" for name, value in record.items() if name.startswith("loss/")]
    bound = record.get("validation_bound", record.get("loss"))
    parts += [f"bound {bound:.2f} nats"] if bound is not None else []
    if "validation_accuracy" in record:
        parts.append(f"accuracy {100 * record['validation_accuracy']:.1f} %")
    compiling = record.get("compile_seconds", 0.0)
    parts += [f"compiled in {compiling:.0f} s"] if compiling else []
    left = clock.left(record["step"], compiling)
    return "  ".join([*parts, f"{record['images_per_second']:,.0f} images/s", left]).rstrip()


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """Shows that something is going on, on a terminal."""
    target = console(error=True)
    if not target.is_terminal:
        yield
        return
    with target.status(message):
        yield


# -------------------------------------------------------------------------------------------------- results


def show_result(document: Mapping[str, Any], *, rows: int) -> None:
    """Prints a judged result as a table to standard output."""
    table = measured.lines(document["test"], document.get("baselines", {}))
    title = f"{document['recipe']} on {rows:,} test rows of {document['data']}, after {document['steps']:,} steps"
    if table:
        show_table(title, ("measure", "value"), table, caption=measured.notes(document))
    if "sampling" in document:
        show_posterior(document["sampling"])


def show_posterior(found: Mapping[str, Any], *, most: int = 40) -> None:
    """Prints the summary of a sampled posterior, its first lines if there are many."""
    columns = {"mean": 3, "sd": 3, "hdi_low": 3, "hdi_high": 3, "ess_bulk": 0, "ess_tail": 0, "r_hat": 3}
    lines = found["posterior"]
    rows = [(name, *_numbers(line, columns)) for name, line in list(lines.items())[:most]]
    caption = f"hdi: 94 %. {found['chains']} chains of {found['draws']:,} draws, {found['divergences']:,} diverged."
    caption += f" {len(lines) - most:,} more numbers are in result.json." if len(lines) > most else ""
    if worst := [name for name, line in lines.items() if (line["r_hat"] or 1.0) > LARGEST_R_HAT]:
        caption += f" r_hat of {worst[0]} is above {LARGEST_R_HAT}: warm up and draw longer, or reparametrise."
    if found["divergences"]:
        caption += " Diverged draws miss a part of the posterior: --set target_acceptance=0.95, or reparametrise."
    show_table("Posterior", ("latent", *columns), rows, caption=caption, right=range(1, len(columns) + 1))


def _numbers(line: Mapping[str, float | None], columns: Mapping[str, int]) -> list[str]:
    return ["-" if line.get(n) is None else f"{line[n]:,.{digits}f}" for n, digits in columns.items()]


def show_ways_on(document: Mapping[str, Any]) -> None:
    """Says where the pictures are, and what can be done with a run."""
    folder = Path(document["run"])
    pictures = [name for name in ("samples.png", "reconstructions.png", "training.png") if (folder / name).exists()]
    run = short(folder)
    if pictures:
        write(f"Pictures: {', '.join(str(Path(run, name)) for name in pictures)}")
    # a run folder runs no code by itself: your own recipe is named again
    own = f" --recipe {document['recipe']}" if ":" in document["recipe"] else ""
    write("Go on with: " + ", ".join(f"ppgen {command} {run}{own}" for command in ("evaluate", "sample", "resume")))
