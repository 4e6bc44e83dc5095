"""Whether and how the phases of a step run compiled."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

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

Compile = Literal["auto", "on", "off"]
Phase = Callable[[Any], dict[str, Tensor]]
"""A function of a batch that changes tensors in place and returns named scalars."""

CHECKED_STEPS = frozenset({2, 3, 10, 100, 1_000, 10_000, 100_000})
"""Steps at which a compiled step is compared with an eager one from the same state."""
LONGEST_COMPILATION = 120.0
"""Seconds that "auto" lets a compilation take at most."""
SAVED_SHARE = 0.4
"""The share of an eager step's time that compiling it saves, a cautious guess."""
SIZE_TOLERANCE = 0.05
"""Largest relative difference between the sizes of their moves."""
MOVE_TOLERANCE = 0.5
"""Largest relative difference between their moves: Adam turns a gradient near 0 into a step of either sign."""

logger = logging.getLogger("ppgen")


class Stepper:
    """Runs phases eagerly or compiled.

    Args:
        mode: "auto" compiles where it can be and pays; "on" makes it an error where it cannot be; "off" never does.
        tolerance: largest relative difference between the results of a compiled and an eager step; reordered sums
            differ by about 1e-4 in float32, and by about 1e-2 where matrix products are bfloat16.

    Attributes:
        compiled: whether phases run compiled; None while undecided.

    Raises:
        ConfigError: if there is no such mode.
    """

    def __init__(self, mode: Compile, *, tolerance: float = 1e-3) -> None:
        if mode not in ("auto", "on", "off"):
            raise ConfigError(f"expected compile auto, on or off; got '{mode}'")
        self.mode = mode
        self.tolerance = tolerance
        self.compiled: bool | None = {"auto": None, "on": True, "off": False}[mode]
        self._functions: dict[int, _CompiledPhase] = {}
        self._usual: dict[int, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the decision, and of what shape the batches are that run compiled."""
        return {"compiled": self.compiled, "usual": dict(self._usual)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the decision of an earlier part of the run, and forgets functions of other tensors."""
        self.resume(state["compiled"])
        self._usual = dict(state["usual"])
        self._functions.clear()

    def resume(self, compiled: bool | None) -> None:
        """Takes over the decision of an earlier part of the run."""
        if self.mode == "auto":
            self.compiled = compiled

    def plan(self, phases: Sequence[Phase], batch: Any, state: Sequence[Tensor], steps: int | None) -> None:
        """Decides "auto" for a run of ``steps`` steps, from the time of eager steps and the size of the graphs."""
        if self.compiled is not None:
            return
        if steps is None:
            self.compiled = False
            return
        with preserved(state):
            saved = SAVED_SHARE * steps * sum(_seconds(phase, batch) for phase in phases)
            if saved < estimated_seconds(0):
                self.compiled = False
                return
            try:
                operations = sum(len(record(*_flat(phase, batch)[:2])) for phase in phases)
            except CompileError as error:
                self.stay_eager(str(error))
                return
        self.compiled = estimated_seconds(operations) < min(LONGEST_COMPILATION, saved)

    def run(self, index: int, phase: Phase, batch: Any, state: Sequence[Tensor], *, step: int) -> dict[str, Tensor]:
        """Runs one phase on one batch, the ``step``-th time.

        The first step is always eager: in it optimizers make their state.

        Raises:
            ConfigError: if the phase cannot be compiled and the mode is "on".
        """
        signature = _signature(batch)
        # a batch of another shape (the last of an epoch, say) is not worth a compilation of its own
        usual = signature == self._usual.setdefault(index, signature)
        if self.compiled and usual and step > 1 and index not in self._functions:
            try:
                self._functions[index] = _CompiledPhase(phase, batch, state)
            except CompileError as error:
                self.stay_eager(str(error))
        function = self._functions.get(index)
        if function is None or step == 1 or not usual:
            return phase(batch)
        if step not in CHECKED_STEPS:
            return function(batch)
        return self._checked(function, phase, batch, state, step)

    def _checked(
        self, function: "_CompiledPhase", phase: Phase, batch: Any, state: Sequence[Tensor], step: int
    ) -> dict[str, Tensor]:
        before = [tensor.detach().clone() for tensor in state]
        with preserved(state):
            eager = phase(batch)
            expected = [tensor.detach().clone() for tensor in state]
        results = function(batch)
        if difference := _difference(results, eager, before, state, expected, tolerance=self.tolerance):
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
    """A compiled phase for batches of one signature."""

    def __init__(self, phase: Phase, batch: Any, state: Sequence[Tensor]) -> None:
        function, tensors, self.names = _flat(phase, batch)
        self.function = compile_function(function, tensors, state)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        tensors = [x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor)]
        return dict(zip(self.names, self.function(*tensors), strict=True))


def _flat(phase: Phase, batch: Any) -> tuple[Function, list[Tensor], list[str]]:
    """Returns the phase as a function of the batch's tensors, those tensors, and (once it ran) its results' names."""
    flat, spec = pytree.tree_flatten(batch)
    names: list[str] = []

    def function(*inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        rebuilt = pytree.tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in flat], spec)
        results = phase(rebuilt)
        names[:] = results
        return list(results.values())

    return function, [x for x in flat if isinstance(x, Tensor)], names


def _signature(batch: Any) -> str:
    paths, _ = pytree.tree_flatten_with_path(batch)
    kinds = [(path, f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else repr(x)) for path, x in paths]
    return ", ".join(f"{pytree.keystr(path)} {kind}" for path, kind in kinds)


def _seconds(phase: Phase, batch: Any) -> float:
    phase(batch)
    start = time.perf_counter()
    for _ in range(3):
        phase(batch)
    return float(time.perf_counter() - start) / 3


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
        if apart > MOVE_TOLERANCE * size or abs(own - size) > SIZE_TOLERANCE * size:
            return f"compiled and eager move the parameters differently (by {own:.3g} and {size:.3g})"
    return None


@torch.no_grad()
def _distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ones, others, strict=True)))
