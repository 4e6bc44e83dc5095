"""Whether and how the phases of a step run compiled."""

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.compilation import (
    CompileError,
    Function,
    compile_function,
    estimated_seconds,
    preserved,
    record,
    restore,
)
from ppgen.errors import ConfigError
from ppgen.processes import Processes
from ppgen.state import require_decision
from ppgen.streams import map_tensors, tensors_of

Compile = Literal["auto", "on", "off"]
Kind = tuple[int, Hashable]
Phase = Callable[[Any], dict[str, Tensor]]
"""A function of a batch that changes tensors in place and returns named scalars."""

CHECKED_STEPS = frozenset({2, 3, 10, 100, 1_000, 10_000, 100_000})
"""Steps at which a compiled step is compared with an eager one from the same state."""
LONGEST_COMPILATION = 120.0
"""Seconds that "auto" lets a compilation take at most."""
SAVED_PER_OPERATION = 4e-6
"""Seconds that compiling saves a step for each of its operations: Python, Pyro and the call into a kernel."""
SAVED_SHARE = 0.1
"""What it saves besides, by taking fewer passes through memory."""
MOST_SAVED = 0.8
"""The largest share of an eager step's time that it can save."""
REPEATED = 100
"""How often batches of a further shape (the last of an epoch, say) are seen before they are worth a compilation."""
MOST_KINDS = 100
"""Of how many kinds of batches it is counted how often they come; a column of numbers may make every one its own."""
SIZE_TOLERANCE = 0.05
"""Largest relative difference between the sizes of their moves."""
MOVE_TOLERANCE = 0.5
"""Largest relative difference between their moves: Adam turns a gradient near 0 into a step of either sign."""

ROUNDING = 2.0**-23
"""Moves of this share of the tensors' own size are what float32 rounds away."""
SMALLEST_MOVE = 1e-20
"""Moves that are nothing even from 0."""

logger = logging.getLogger("ppgen")


class Stepper:
    """Runs phases eagerly or compiled, one compiled function for every phase and shape of batches.

    Args:
        mode: "auto" compiles where it can be and pays; "on" makes it an error where it cannot be; "off" never does.
        tolerance: largest relative difference between the results of a compiled and an eager step; reordered sums
            differ by about 1e-4 in float32, and by about 1e-2 where matrix products are bfloat16.
        processes: those that train together, and so decide together.

    Attributes:
        compiled: whether phases run compiled; None while undecided.
        compiling_seconds: how long compiling has taken.

    Raises:
        ConfigError: if there is no such mode.
    """

    def __init__(self, mode: Compile, *, tolerance: float = 1e-3, processes: Processes | None = None) -> None:
        if mode not in ("auto", "on", "off"):
            raise ConfigError(f"expected compile auto, on or off; got '{mode}'")
        self.mode = mode
        self.tolerance = tolerance
        self.processes = processes or Processes()
        self.compiled: bool | None = {"auto": None, "on": True, "off": False}[mode]
        self.compiling_seconds = 0.0
        self._functions: dict[Kind, _CompiledPhase] = {}
        self._seen: dict[int, dict[str, int]] = {}
        self._last: tuple[int, dict[str, int]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the decision, and of what shapes the batches of each phase have been."""
        return {"compiled": self.compiled, "seen": {index: dict(seen) for index, seen in self._seen.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the decision of an earlier part of the run, and forgets functions of other tensors.

        Raises:
            CheckpointError: if it is no such state; nothing has changed.
        """
        require_decision(state)
        self.resume(state["compiled"])
        self._seen = {index: dict(seen) for index, seen in state["seen"].items()}
        self._functions.clear()

    def resume(self, compiled: bool | None) -> None:
        """Takes over the decision of an earlier part of the run."""
        if self.mode == "auto":
            self.compiled = compiled

    def plan(self, phases: Mapping[Phase, int], batch: Any, state: Sequence[Tensor], steps: int | None) -> None:
        """Decides "auto" for a run of ``steps`` steps, from the time of eager steps and the size of the graphs.

        Args:
            phases: how often each phase comes in a step.
            batch: what a phase is run on.
            state: the tensors that phases change; they stay as they were.
            steps: how many there are to be; None if nobody knows.
        """
        if self.compiled is not None:
            return
        if steps is None:
            self.compiled = False
            return
        with preserved(state):
            seconds = sum(times * _seconds(phase, batch) for phase, times in phases.items())
            eager = self.processes.leading(seconds)
            if steps * MOST_SAVED * eager < estimated_seconds(0):
                self.compiled = False
                return
            try:
                sizes = {phase: len(record(*_flat(phase, batch)[:2])) for phase in phases}
            except CompileError as error:
                self.stay_eager(str(error))
                return
        operations = sum(times * sizes[phase] for phase, times in phases.items())
        saved = min(MOST_SAVED * eager, SAVED_SHARE * eager + SAVED_PER_OPERATION * operations)
        self.compiled = estimated_seconds(sum(sizes.values())) < min(LONGEST_COMPILATION, steps * saved)

    def run(
        self, index: int, phase: Phase, batch: Any, state: Callable[[], Sequence[Tensor]], *, step: int
    ) -> dict[str, Tensor]:
        """Runs one phase on one batch, the ``step``-th time.

        The first step is always eager: in it optimizers make their state.

        Args:
            index: which phase it is.
            phase: what is run; it changes only tensors of the state.
            batch: what it is run on.
            state: returns the tensors that it changes.
            step: counted from 1.

        Raises:
            ConfigError: if the phase cannot be compiled and the mode is "on".
        """
        kind = (index, _kind(batch))
        self._last = None
        function = self._functions.get(kind)
        if function is not None and step not in CHECKED_STEPS:
            return function(batch)
        if function is None:
            repeated = self._is_repeated(kind)
            if not (self.compiled and repeated and step > 1):
                return phase(batch)
            reason: str | None = None
            try:
                function = self._functions[kind] = self._compile(phase, batch, state())
            except CompileError as error:
                reason = str(error)
            if (reason := self.processes.first(reason)) is not None or function is None:
                self.stay_eager(str(reason))
                return phase(batch)
        return self._checked(function, phase, batch, state(), step)

    def forget_last(self) -> None:
        """Forgets that the last batch was seen: its step is not to have been."""
        if self._last is not None:
            index, seen = self._last
            self._seen[index] = seen
            if not seen:
                del self._seen[index]
            self._last = None

    def _is_repeated(self, kind: "Kind") -> bool:
        """Whether batches of this kind are worth a compilation: the first of a phase, others once they keep coming."""
        seen = self._seen.setdefault(kind[0], {})
        self._last = kind[0], dict(seen)
        name = str(kind[1])
        if name not in seen and len(seen) == MOST_KINDS:
            return False
        seen[name] = min(seen.get(name, 0) + 1, REPEATED)
        return name == next(iter(seen)) or seen[name] == REPEATED

    def _compile(self, phase: Phase, batch: Any, state: Sequence[Tensor]) -> "_CompiledPhase":
        start = time.perf_counter()
        try:
            return _CompiledPhase(phase, batch, state)
        finally:
            self.compiling_seconds += time.perf_counter() - start

    def _checked(
        self, function: "_CompiledPhase", phase: Phase, batch: Any, state: Sequence[Tensor], step: int
    ) -> dict[str, Tensor]:
        before = [tensor.detach().clone() for tensor in state]
        with preserved(state):
            eager = phase(batch)
            expected = [tensor.detach().clone() for tensor in state]
        results = function(batch)
        difference = _difference(results, eager, before, state, expected, tolerance=self.tolerance)
        if difference := self.processes.first(difference):
            restore(state, expected)
            self.stay_eager(f"{difference} at step {step}")
            return eager
        return results

    def stay_eager(self, reason: str) -> None:
        """Decides against compiling, and says why.

        Raises:
            ConfigError: if the mode is "on".
        """
        if self.mode == "on":
            raise ConfigError(f"the step cannot be compiled: {reason}")
        logger.warning("training eagerly, the step cannot be compiled: %s", reason)
        self.compiled = False
        self._functions.clear()


class _CompiledPhase:
    """A compiled phase for batches of one kind."""

    def __init__(self, phase: Phase, batch: Any, state: Sequence[Tensor]) -> None:
        function, tensors, self.names = _flat(phase, batch)
        self.function = compile_function(function, tensors, state)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        return dict(zip(self.names, self.function(*tensors_of(batch)), strict=True))


def _flat(phase: Phase, batch: Any) -> tuple[Function, list[Tensor], list[str]]:
    """Returns the phase as a function of the batch's tensors, those tensors, and (once it ran) its results' names."""
    names: list[str] = []

    def function(*inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        results = phase(map_tensors(lambda _: next(given), batch))
        names[:] = results
        return list(results.values())

    return function, tensors_of(batch), names


def _kind(part: Any) -> Hashable:
    """Returns what two batches have in common that one compiled function serves."""
    if isinstance(part, Tensor):
        return tuple(part.shape), str(part.dtype)
    if isinstance(part, Mapping):
        return tuple((name, _kind(value)) for name, value in part.items())
    if isinstance(part, (tuple, list)):
        return tuple(_kind(value) for value in part)
    return repr(part)


def _seconds(phase: Phase, batch: Any) -> float:
    phase(batch)
    start = _now()
    for _ in range(3):
        phase(batch)
    return (_now() - start) / 3


def _now() -> float:
    """The time when all that was begun is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _difference(
    results: dict[str, Tensor],
    eager: dict[str, Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    expected: Sequence[Tensor],
    *,
    tolerance: float,
) -> str | None:
    """Says where a compiled step departs from an eager one; None if it does not."""
    for name, value in eager.items():
        one, two = results[name].double(), value.double()
        if not torch.allclose(one, two, rtol=tolerance, atol=tolerance, equal_nan=True):
            return f"compiled and eager disagree in '{name}' ({one.item():.6g} against {two.item():.6g})"
    # leaves apart from moments and counters, beside which their moves may be small
    for leaves in (True, False):
        chosen = [i for i, tensor in enumerate(after) if tensor.requires_grad == leaves]
        old, new, right = ([tensors[i] for i in chosen] for tensors in (before, after, expected))
        size, own, apart = _distance(right, old), _distance(new, old), _distance(new, right)
        # where nothing moves, by a learning rate of 0 say, what is left is rounding
        floor = ROUNDING * _norm(old) + SMALLEST_MOVE
        if apart > MOVE_TOLERANCE * size + floor or abs(own - size) > SIZE_TOLERANCE * size + floor:
            return f"compiled and eager move the parameters differently (by {own:.3g} and {size:.3g})"
    return None


@torch.no_grad()
def _distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ones, others, strict=True)))


@torch.no_grad()
def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
