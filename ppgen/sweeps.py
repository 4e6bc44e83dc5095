"""Sweeps: many runs of one recipe in one folder, several at a time, that go on where a killed sweep stopped."""

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppgen import backends, display, launching
from ppgen.devices import choose_device, free_cores, threads_for_judging
from ppgen.errors import ConfigError
from ppgen.failures import Interrupted
from ppgen.files import TEMPORARY, storage_errors
from ppgen.grids import Grid, Point, new_folder
from ppgen.interruption import SIGNALS
from ppgen.jobs import finished
from ppgen.places import load_data
from ppgen.recipes import Entry
from ppgen.runs import Record
from ppgen.storage import RunFolder
from ppgen.tables import summary

_REQUEST, _LEASH = "sweep.toml", "running"


def sweep(
    grid: Grid,
    entry: Entry,
    *,
    out: str | Path | None = None,
    jobs: int | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
) -> Record:
    """Trains every run of a grid that is not finished yet.

    Args:
        grid: what to train.
        entry: its recipe.
        out: folder of the sweep; one that is there goes on.
        jobs: how many at a time; as many as there are free cores unless told, on a GPU one.
        backend: "loky" for worker processes on this machine, "dask", or "ray".
        scheduler: address of a Dask or Ray cluster.

    Returns:
        The document that ``--json`` prints: "settings", a row each, and "runs". A run that failed has "error" and
        "exit_code" instead of "result".

    Raises:
        ConfigError: if the folder holds another sweep, or the backend cannot be used.
        DataError: if the data cannot be used.
        FolderInUseError: if another process holds the folder.
        Interrupted: after Ctrl-C or SIGTERM, when every run has kept a checkpoint.
    """
    if launching.world_size() > 1:
        raise ConfigError(f"expected one process; torchrun started {launching.world_size()}: use --jobs instead")
    scheduler = backends.scheduler_of(backend, scheduler)
    path = Path(os.path.realpath(new_folder(grid.base) if out is None else out))
    if not (path / _REQUEST).exists():
        _refuse_content(path)
        # before there is a folder, and before many workers would download the same files at once
        load_data(grid.base.model_copy(update={"data": grid.base.data.model_copy(update={"labels": None})}))
    with storage_errors(path, "choose another --out"):
        path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    with folder.lock():
        grid, jobs = _settled(folder, grid, jobs=jobs, local=scheduler is None)
        points = grid.points(entry)
        outcomes = _found(folder.path, points)
        _announce(folder.path, points, outcomes)
        todo = [point for point in points if point.folder not in outcomes]
        if todo:
            count = jobs and min(jobs, len(todo))
            with backends.started(backend, jobs=count, threads=grid.base.threads or 1, scheduler=scheduler) as workers:
                _train(folder, todo, workers, outcomes, total=len(points))
    return _document(folder.path, grid, points, outcomes)


def _refuse_content(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"expected a folder for the sweep; got the file {path}: choose another --out")
    names = os.listdir(path) if path.exists() else []
    # a sweep that was killed before its request was written leaves only these
    if any(name != ".lock" and not name.startswith(TEMPORARY) for name in names):
        raise ConfigError(f"{path} holds something else than a sweep: choose another --out")


def _settled(folder: RunFolder, grid: Grid, *, jobs: int | None, local: bool) -> tuple[Grid, int | None]:
    """Joins the request with the one that the folder holds, chooses the numbers of jobs and threads, and keeps it."""
    known = (folder.path / _REQUEST).exists()
    if known:
        source = str(folder.path / _REQUEST)
        grid = Grid.from_toml(folder.read_text(_REQUEST), source=source).joined(grid, place=str(folder.path))
    if jobs is None and local:
        jobs = 1 if choose_device(grid.base.device).type == "cuda" else free_cores()
    if grid.base.threads is None:
        # once for all its runs, since it changes bits
        count = len(list(grid.settings())) * len(grid.seeds)
        threads = max(1, threads_for_judging() // min(jobs, count)) if local and jobs else 1
        grid = replace(grid, base=grid.base.model_copy(update={"threads": threads}))
    folder.write_text(_REQUEST, grid.to_toml())
    return grid, jobs


def _found(path: Path, points: Sequence[Point]) -> dict[str, Record]:
    results = {point.folder: finished(path / point.folder, point.config) for point in points}
    return {name: {"result": result} for name, result in results.items() if result is not None}


def _announce(path: Path, points: Sequence[Point], outcomes: Mapping[str, Record]) -> None:
    display.say(f"Sweep folder: {display.short(path)}")
    done = f"; {len(outcomes):,} of them are finished already" if outcomes else ""
    display.say(f"{len(points):,} run{'s' if len(points) > 1 else ''}{done}\n")


def _train(
    folder: RunFolder, todo: Sequence[Point], workers: backends.Workers, outcomes: dict[str, Record], *, total: int
) -> None:
    token = secrets.token_hex(8)
    folder.write_text(_LEASH, token)
    leash = folder.path / _LEASH
    places = {str(folder.path / point.folder): point for point in todo}
    tasks = [
        {"config": point.config.to_toml(), "folder": place, "home": os.getcwd(), "leash_file": str(leash)}
        | {"token": token, "sweep": os.getpid()}
        for place, point in places.items()
    ]
    heard: set[str] = set()
    with _stopping(leash, folder.path) as stop:
        for outcome in workers.run(tasks):
            point = places[outcome.pop("folder")]
            _pass_on(outcome.pop("said"), point, heard)
            if "stopped" not in outcome:
                outcomes[point.folder] = outcome
                display.say(f"{len(outcomes)}/{total}  {point.title}: {_line(outcome)}")
    if len(outcomes) < total:
        finished = sum("result" in outcome for outcome in outcomes.values())
        raise Interrupted(
            stop.number or signal.SIGTERM, _way_on(folder.path, f"{finished} of {total} runs are finished")
        )


class _Stop:
    """The handler of signals: the first one frees the workers, which keep checkpoints; a second one ends everything."""

    def __init__(self, leash: Path, path: Path) -> None:
        self.number: int | None = None
        self._leash, self._path = leash, path

    def handle(self, number: int, frame: Any) -> None:
        if self.number is not None:
            raise Interrupted(number, _way_on(self._path, "the runs fall back to their latest checkpoints"))
        self.number = number
        self._leash.unlink(missing_ok=True)


def _way_on(path: Path, state: str) -> str:
    return f"Stopped; {state}. Go on with the same command and --out {display.short(path)}"


@contextlib.contextmanager
def _stopping(leash: Path, path: Path) -> Iterator[_Stop]:
    stop = _Stop(leash, path)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop.handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        leash.unlink(missing_ok=True)


def _pass_on(said: str, point: Point, heard: set[str]) -> None:
    """Shows what a run warned of, each sentence once a sweep; everything if PPGEN_DEBUG is set."""
    debug = os.environ.get("PPGEN_DEBUG", "") not in ("", "0")
    for line in said.splitlines():
        if debug or (line.startswith("Warning: ") and line not in heard):
            heard.add(line)
            display.say(f"{point.title}: {line}", style="yellow")


def _line(outcome: Record) -> str:
    if "error" in outcome:
        return f"failed: {outcome['error']}"
    result = outcome["result"]
    test = {name: found["value"] for name, found in result["test"].items()}
    parts = [f"accuracy {100 * test['accuracy']:.1f} %"] if "accuracy" in test else []
    parts += [f"NLL {test['nll']:.2f} nats"] if test.get("nll") is not None else []
    return ", ".join([*parts, f"{result['seconds']:.1f} s"])


def _document(path: Path, grid: Grid, points: Sequence[Point], outcomes: Mapping[str, Record]) -> Record:
    runs = [
        {"run": str(path / point.folder), "setting": dict(point.setting), "seed": point.seed, **outcomes[point.folder]}
        for point in points
    ]
    return {
        "sweep": str(path),
        "recipe": grid.base.recipe,
        "data": grid.base.data.name,
        "seeds": list(grid.seeds),
        "threads": grid.base.threads,
        "settings": summary(points, outcomes),
        "runs": runs,
    }
