"""One run of a sweep, trained in whatever process a backend gives it."""

import contextlib
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pydantic

from ppgen import display, failures
from ppgen.configuration import Config, differences, digest, from_toml, read_config
from ppgen.errors import CheckpointError, FolderInUseError, PpgenError
from ppgen.files import read_bytes
from ppgen.interruption import SIGNALS
from ppgen.runs import Record, Run
from ppgen.storage import LARGEST_TEXT, RunFolder

PATIENCE = 60.0
"""Seconds that a worker which lost its sweep is given to end its step and free its run folder."""
_BETWEEN_LOOKS = 0.2


class Leash:
    """What ties a worker to its sweep: a file that holds the sweep's token, and the process that started the worker.

    Both work wherever the run folders can be seen, so that no signal has to reach another machine.

    Args:
        file: where the sweep keeps its token.
        token: this sweep's.
        sweep: the process of the sweep, whose own parent may go: the shell of one that runs on by itself.
    """

    def __init__(self, file: Path, token: str, sweep: int) -> None:
        self._file, self._token = file, token
        self._parent = None if os.getpid() == sweep else os.getppid()
        self._next = 0.0
        self._cut = False

    def cut(self) -> bool:
        """Tells whether the sweep has been stopped, was started anew, or is gone; looks a few times a second."""
        now = time.monotonic()
        if not self._cut and now >= self._next:
            self._next = now + _BETWEEN_LOOKS
            self._cut = self.orphaned or not self._holds()
        return self._cut

    @property
    def orphaned(self) -> bool:
        """Whether the process that started this worker is gone."""
        return self._parent is not None and os.getppid() != self._parent

    def _holds(self) -> bool:
        try:
            return read_bytes(self._file) == self._token.encode()
        except FileNotFoundError:
            return False
        except OSError:  # a network file system that stumbles
            return True


def leave_signals_to_the_sweep() -> None:
    """Ignores Ctrl-C and SIGTERM in a worker, which the sweep itself tells when to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def work(*, config: str, folder: str, home: str, leash_file: str, token: str, sweep: int) -> Record:
    """Trains and judges one run, from its newest checkpoint where it has one. Takes and returns plain values only.

    Args:
        config: its configuration, as TOML.
        folder: its run folder.
        home: the folder that the user works in.
        leash_file: see `Leash`.
        token: likewise.
        sweep: likewise.

    Returns:
        "result", or "error" and "exit_code", or "stopped"; and "said", what would have gone to the terminal.
    """
    said = io.StringIO()
    leash = Leash(Path(leash_file), token, sweep)
    hushed = contextlib.redirect_stderr(said), contextlib.redirect_stdout(said)
    with contextlib.chdir(home), hushed[0], hushed[1], display.messages():
        try:
            found = _train(config, Path(folder), leash)
        except (Exception, SystemExit) as error:
            failures.show_traceback(error)
            code, line = failures.explain(error)
            found = {"error": line.removeprefix("Error: "), "exit_code": code}
    if leash.orphaned:  # nobody waits for an answer; an idle worker would stay for minutes
        os._exit(0)
    return {**found, "said": said.getvalue()}


class _Measured(pydantic.BaseModel):
    """A measure of a result."""

    value: float | None


class _Result(pydantic.BaseModel):
    """What a sweep reads of a ``result.json``."""

    recipe: str
    seed: int
    labels: int | None = None
    steps: int
    seconds: float
    configuration: str | None = None  # results of older releases have none
    test: dict[str, _Measured]
    baselines: dict[str, _Measured] = {}


def finished(folder: Path, config: Config) -> Record | None:
    """Returns the result of a run that is finished and judged, if its folder is that of a configuration."""
    try:
        kept = _kept(folder, config)
        found: Record = json.loads(read_bytes(folder / "result.json", most=LARGEST_TEXT))
        result = _Result(**found)
    except (PpgenError, OSError, ValueError, TypeError, RecursionError):
        return None
    length = kept.resolved.steps if kept.resolved else None
    ours = (kept.recipe, kept.seed, kept.data.labels, length)
    theirs = (result.recipe, result.seed, result.labels, result.steps)
    return found if ours == theirs and result.configuration in (None, digest(kept)) else None


def _kept(folder: Path, config: Config) -> Config:
    """Returns the configuration in a folder.

    Raises:
        CheckpointError: if it is that of another run than is asked for, or there is none.
        ConfigError: if it is not valid.
    """
    if folder.is_symlink():
        raise CheckpointError(f"expected a folder at {folder}; got a symbolic link, which is refused")
    source = str(folder / "config.toml")
    kept = read_config(from_toml(RunFolder(folder).read_text("config.toml"), source=source), source=source)
    if found := differences(config, kept):
        raise CheckpointError(
            f"{folder} holds another run: {'; '.join(found[:3])}: move it away, or choose another --out"
        )
    return kept


def _train(text: str, path: Path, leash: Leash) -> Record:
    if leash.cut():
        return {"stopped": True}
    _wait_until_free(path)
    config = read_config(from_toml(text, source="the sweep"), source="the sweep")
    own = config.recipe if ":" in config.recipe else None
    # one that was killed before it had a configuration is no run yet
    begun = os.path.lexists(path / "config.toml")
    if begun:
        _kept(path, config)
    run = Run.open(path, recipe=own, untrained=True) if begun else Run.create(config, path)
    with run.folder.lock(), failures.memory_of(run.config.options, prefix="--set "):
        for _ in run.train(leash.cut):
            pass
        return {"stopped": True} if run.trainer.steps < run.steps else {"result": _plain(run.judge())}


def _wait_until_free(path: Path) -> None:
    """Waits for a worker of a sweep that was killed; it ends its step and keeps a checkpoint."""
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        try:
            with RunFolder(path).lock():
                return
        except FolderInUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BETWEEN_LOOKS)


def _plain(result: Record) -> dict[str, Any]:
    """The result as ``result.json`` holds it, so that one just trained and one found are the same."""
    plain: dict[str, Any] = json.loads(json.dumps(result))
    return plain
