"""Measures works: builds every contender, checks that it computes the same loss, and times it among the others."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro

from benchmarks.checking import check, losses
from benchmarks.contenders import OURS, REFERENCE, Contender
from benchmarks.timing import Timing, interleave
from benchmarks.works import Work

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """What was found for one contender.

    Attributes:
        contender: its name.
        label: what the table says.
        timing: None if it was not measured.
        ratio: its minimum over ppgen's; None without ppgen.
        startup: seconds until its first steps were done, compilation included.
        reason: why it was not measured.
    """

    contender: str
    label: str
    timing: Timing | None = None
    ratio: float | None = None
    startup: float | None = None
    reason: str = ""


def references(contender: Contender, work: Work) -> list[list[float]]:
    """Returns the losses of several runs of the reference, each with noise of its own."""
    return [losses(contender.build(work), work, seed=seed) for seed in range(1, work.references + 1)]


def started(contender: Contender, work: Work, expected: Sequence[Sequence[float]]) -> tuple[Callable[[], Any], float]:
    """Builds a contender and takes its first steps; returns its step and how long all that took.

    Raises:
        DifferentLossError: if its losses are not those of the reference.
    """
    start = time.perf_counter()
    step = contender.build(work)
    if contender.trains:
        found = losses(step, work)
        tolerance = work.tolerance + contender.rounding
        check(contender.name, found, expected, tolerance=tolerance, drift=contender.drift)
    else:
        step()
    return step, time.perf_counter() - start


def measure(
    work: Work,
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    say: Say,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Measures the contenders that can do a work.

    Args:
        work: what to train.
        contenders: all that were asked for, by name.
        rounds: turns of each, unless the work has its own number.
        say: told what is being done.
        clock: seconds, by which steps are timed.

    Raises:
        DifferentLossError: if a contender's losses are not those of the reference.
    """
    able = {name: contender for name, contender in contenders.items() if work.kind in contender.by_kind}
    missing = {name: contender.missing() for name, contender in able.items()}
    pyro.clear_param_store()  # of earlier works: Pyro would serve the contender their tensors
    say(f"{work.name}: reference")
    expected = references(_reference(), work)
    steps, startup = {}, {}
    for name, contender in able.items():
        if not missing[name]:
            say(f"{work.name}: {contender.label}")
            steps[name], startup[name] = started(contender, work, expected)
    turns = rounds if work.rounds is None else min(rounds, work.rounds)

    def tell(number: int) -> None:
        say(f"{work.name}: round {number} of {turns}")

    chunks = {name: able[name].chunk for name in steps}
    timings = interleave(steps, rounds=turns, chunks=chunks, turn=work.turn, skip=work.skip, clock=clock, tell=tell)
    ours = timings[OURS].minimum if OURS in timings else None
    return [
        Row(name, contender.label, reason=f"not installed: {', '.join(missing[name])}")
        if missing[name]
        else Row(name, contender.label, timings[name], ours and timings[name].minimum / ours, startup[name])
        for name, contender in able.items()
    ]


def _reference() -> Contender:
    from benchmarks.contenders import CONTENDERS

    return CONTENDERS[REFERENCE]


def quieten() -> None:
    """Leaves out what libraries say while they start, such as torch of the tracing that Pyro's `Jit` ELBOs use."""
    warnings.simplefilter("ignore")
    for name in ("jax", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
