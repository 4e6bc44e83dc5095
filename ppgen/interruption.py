"""Ctrl-C and SIGTERM: a run stops after its step and keeps a checkpoint; what has nothing to lose stops at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ppgen.display import short
from ppgen.failures import Interrupted

if TYPE_CHECKING:
    from ppgen.runs import Record, Run

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STEPS_TO_SPARE = 2
"""The first steps of a process, in which it compiles, are not worth a wait; and what a signal did to the compiler
must not reach a checkpoint."""


class Interruption:
    """What signals have asked for.

    Attributes:
        number: the signal that came first; None while there was none.
        run: what can be resumed, as soon as it is known.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.run: Run | None = None
        self._patient = False

    def handle(self, number: int, frame: Any) -> None:
        """The handler of the signals: notes the first one while a step runs, ends the work otherwise."""
        again = self.number is not None
        self.number = number if self.number is None else self.number
        if again or not self._patient:
            raise Interrupted(number, self.message())

    def message(self) -> str:
        """Says what was interrupted and how to go on."""
        if self.run is None or not (self.run.folder.path / "config.toml").exists():
            return "Stopped; nothing was saved."
        where = f"step {self.run.trainer.steps:,} of {self.run.steps:,}"
        return f"Stopped at {where}. Go on with: ppgen resume {short(self.run.folder.path)}"

    def train(self, run: "Run") -> "Iterator[Record]":
        """Trains a run to its end, or until a signal comes.

        Raises:
            Interrupted: if one came, after the checkpoint.
        """
        self.run = run
        first = run.trainer.steps

        def until() -> bool:
            self._patient = run.trainer.steps > first + STEPS_TO_SPARE
            known = run.processes.signal(self.number)
            self.number = self.number if known is None else known
            return known is not None

        yield from run.train(until)
        self._patient = False
        if self.number is not None:
            raise Interrupted(self.number, self.message())


@contextlib.contextmanager
def heeded() -> Iterator[Interruption]:
    """Heeds SIGINT and SIGTERM within it; one that this process was told to ignore from outside stays ignored."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interruption.handle)
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
