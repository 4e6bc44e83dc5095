"""Steps of several contenders in turn, so that whatever else the machine does falls on all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Step = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """How long one contender took.

    Attributes:
        minimum: seconds of the fastest step.
        median: seconds of the median step.
        count: how many steps were counted.
    """

    minimum: float
    median: float
    count: int


def summary(seconds: Sequence[float]) -> Timing:
    """Returns minimum and median.

    >>> summary([3.0, 1.0, 2.0])
    Timing(minimum=1.0, median=2.0, count=3)
    """
    return Timing(min(seconds), statistics.median(seconds), len(seconds))


def interleave(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    chunks: Mapping[str, int] | None = None,
    turn: int = 6,
    skip: int = 2,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[int], None] = lambda _: None,
) -> dict[str, Timing]:
    """Times steps by turns, each round in a new random order.

    Args:
        steps: what takes a step, by contender.
        rounds: turns of each contender.
        chunks: how many steps a contender takes at a call, where it is more than one.
        turn: consecutive calls of a turn.
        skip: calls at the start of a turn that are not counted: threads of the contender before it may still spin, and
            caches are full of its data.
        seed: of the order.
        clock: seconds.
        tell: called with the number of each round.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, rounds + 1):
        tell(number)
        for name in order.sample(sorted(steps), len(steps)):
            for index in range(turn):
                start = clock()
                steps[name]()
                elapsed = clock() - start
                if index >= skip:
                    seconds[name].append(elapsed / (chunks or {}).get(name, 1))
    return {name: summary(found) for name, found in seconds.items()}
