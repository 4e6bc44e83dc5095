"""Estimators that are compared: each an objective whose gradients can be drawn and timed."""

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppgen import programs
from ppgen.compilation import CompileError, Function, compile_function, preserved, restore
from ppgen.errors import ConfigError
from ppgen.estimators.rows import repeated
from ppgen.gradients import ESTIMATORS, VIMCO, Estimator, LeaveOneOut, estimator
from ppgen.objectives import ELBO, Objective
from ppgen.objectives.bounds import IWAE
from ppgen.programs import Batch, Program
from ppgen.stepping import Compile

Asked = str | Estimator | Objective
ROWS_AT_ONCE = 4096
FEWEST_GROUPS, MOST_GROUPS = 60, 200
MOST_NUMBERS = 60_000_000
"""Numbers that the draws of one estimator may take."""

logger = logging.getLogger("ppgen")


@dataclass(frozen=True)
class Pair:
    """A model and a guide, and the batch their gradients are of.

    Attributes:
        leaves: trainable tensors by name.
        sites: latents whose estimator is compared.
        rows: of the batch.
        repeatable: whether repeated rows are independent draws.
    """

    model: Program
    guide: Program
    batch: Batch
    leaves: Mapping[str, Tensor]
    sites: tuple[str, ...]
    rows: int
    repeatable: bool

    @property
    def size(self) -> int:
        """How many trainable numbers there are."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    def tensors(self) -> dict[str, slice]:
        """Returns where each leaf lies in a flat gradient."""
        found, start = {}, 0
        for name, leaf in self.leaves.items():
            found[name] = slice(start, start + leaf.numel())
            start += leaf.numel()
        return found


@dataclass
class Contender:
    """One estimator.

    Attributes:
        name: as the user typed it.
        objective: whose gradient is taken.
        pair: of what.
        estimators: the parameters that it trains along.
        buffers: what it keeps besides.
    """

    name: str
    objective: Objective
    pair: Pair
    estimators: dict[str, Tensor] = field(default_factory=dict)
    buffers: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Sets the objective up.

        Raises:
            ConfigError: if it cannot treat the pair; the message says why.
        """
        pair = self.pair
        self.objective.share_clock()
        self.objective.check(pair.model, pair.guide, pair.batch)
        if len(self.objective.phases()) != 1:
            raise ConfigError("expected an objective of one phase")
        players = self.objective.players(pair.model, pair.guide, pair.batch)
        self.estimators = players.get("estimator", {})
        self.buffers = [b for b in self.objective.buffers() if b is not self.objective.step]

    @property
    def unbiased(self) -> bool:
        """Whether it claims to be."""
        found = [module for module in self.objective.modules() if isinstance(module, Estimator)]
        return all(module.unbiased for module in found)

    @property
    def adapts(self) -> bool:
        """Whether it has a state that adapts in training."""
        return bool(self.estimators or self.buffers)

    @property
    def bound(self) -> tuple[str, int]:
        """What it is a gradient of: "ELBO" or "IWAE", and the particles of one bound.

        Raises:
            ConfigError: if it is of something else.
        """
        one = self.objective
        if isinstance(one, IWAE) and one.gradient != "doubly-reparameterized":
            return ("IWAE", one.particles) if one.particles > 1 else ("ELBO", 1)
        if isinstance(one, ELBO) and one.beta == 1 and not one.warmup and not one.free_bits:
            return "ELBO", 1
        raise ConfigError("expected an ELBO (with beta=1 and nothing free) or an IWAE")

    @property
    def particles(self) -> int:
        """How many draws of a row one gradient takes."""
        return int(getattr(self.objective, "particles", 1))

    def gradients(self, batch: Batch) -> tuple[Tensor, ...]:
        """Returns one estimate for each leaf of the pair, then those of what the estimator trains."""
        losses, _ = self.objective.phases()[0](self.pair.model, self.pair.guide, batch)
        leaves = list(self.pair.leaves.values())
        found = [torch.zeros_like(leaf) for leaf in leaves]
        for name, loss in losses.items():
            if name != "estimator":
                parts = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
                found = [old if new is None else old + new for old, new in zip(found, parts, strict=True)]
        trained = list(self.estimators.values())
        if trained:
            parts = torch.autograd.grad(losses["estimator"], trained, allow_unused=True)
            found += [torch.zeros_like(p) if new is None else new for p, new in zip(trained, parts, strict=True)]
        return tuple(found)

    def burn_in(self, steps: int, batches: Iterator[Batch], *, learning_rate: float = 0.01) -> None:
        """Trains what the estimator trains, and nothing else, by Adam with a learning rate that falls to 0."""
        if not self.adapts:
            return
        trained = list(self.estimators.values())
        adam = torch.optim.Adam(trained, lr=learning_rate) if trained else None
        for step in range(steps):
            found = self.gradients(next(batches))[len(self.pair.leaves) :]
            if adam is None:
                continue
            adam.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            for parameter, gradient in zip(trained, found, strict=True):
                parameter.grad = gradient.detach()
            adam.step()
            for parameter in trained:
                parameter.grad = None

    def draw(self, draws: int) -> tuple[Tensor, int]:
        """Draws gradients with the estimator's state as it is.

        Returns:
            Means of groups of draws, ``(groups, parameters)``, and how many draws a group has.
        """
        pair = self.pair
        groups = max(FEWEST_GROUPS, min(MOST_GROUPS, MOST_NUMBERS // max(1, pair.size)))
        most = max(1, ROWS_AT_ONCE // (pair.rows * self.particles)) if pair.repeatable else 1
        times = max(1, min(most, draws // groups))
        calls = max(1, math.ceil(draws / (groups * times)))
        batch = repeated(pair.batch, times, rows=pair.rows) if times > 1 else pair.batch
        found = torch.empty(groups, pair.size)
        count = len(pair.leaves)
        for group in found:
            total = torch.zeros(pair.size)
            for _ in range(calls):
                with _kept(self.buffers):
                    parts = self.gradients(batch)[:count]
                total += torch.cat([part.detach().flatten().float().cpu() for part in parts])
            group.copy_(total / calls)
        return found, times * calls

    def function(self, mode: Compile) -> tuple[Function, bool]:
        """Returns what takes one gradient of the batch as training does, and whether it is compiled.

        Raises:
            ConfigError: if it is to be compiled and cannot be.
        """
        columns, structure = pytree.tree_flatten(self.pair.batch)
        places = [place for place, column in enumerate(columns) if isinstance(column, Tensor)]

        def eager(*tensors: Tensor) -> Sequence[Tensor]:
            given = list(columns)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            return self.gradients(pytree.tree_unflatten(given, structure))

        if mode == "off":
            return eager, False
        try:
            return compile_function(eager, [columns[place] for place in places], self.buffers), True
        except CompileError as error:
            if mode == "on":
                raise ConfigError(f"'{self.name}' cannot be compiled: {error}") from error
            logger.info("%s is timed uncompiled: %s", self.name, error)
            return eager, False


@contextlib.contextmanager
def _kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Puts tensors back at the end; unlike `preserved` it lets random streams run on."""
    saved = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        restore(tensors, saved)


def objective_of(asked: Asked, sites: Sequence[str], *, particles: int) -> Objective:
    """Returns the objective that an estimator is tried with.

    That is the ELBO of one particle, or of two where particles are compared, and for VIMCO the bound of ``particles``.

    Raises:
        ConfigError: if there is no such estimator.
    """
    if isinstance(asked, Objective):
        return asked
    one = estimator(asked) if isinstance(asked, str) else asked
    spec = dict.fromkeys(sites, one)
    if isinstance(one, VIMCO):
        return IWAE(particles=particles, estimator=spec)
    return ELBO(particles=2 if isinstance(one, LeaveOneOut) else 1, estimator=spec)


def reference_objective(bound: tuple[str, int], sites: Sequence[str], *, pathwise: bool) -> Objective:
    """Returns an objective with an unbiased gradient of the same bound."""
    kind, particles = bound
    spec = None if pathwise else dict.fromkeys(sites, "leave-one-out")
    if kind == "IWAE":
        return IWAE(particles=particles, estimator=spec)
    return ELBO(particles=1 if pathwise else 4, estimator=spec)


def known() -> list[str]:
    """Returns the names of all estimators."""
    return list(ESTIMATORS)


def seconds_of(contenders: Sequence[Contender], *, mode: Compile, rounds: int) -> dict[str, tuple[list[float], bool]]:
    """Times one gradient of each, in turns, so that a busy machine slows all alike.

    Returns:
        By name: seconds of every round, and whether it was compiled.
    """
    if mode != "off":
        logger.info("compiling %d gradients to time them, some seconds each (off: compile=off)", len(contenders))
    made = {one.name: one.function(mode) for one in contenders}
    inputs = [leaf for leaf in pytree.tree_leaves(contenders[0].pair.batch) if isinstance(leaf, Tensor)]
    found: dict[str, list[float]] = {name: [] for name in made}
    # of one thread, the processor's own time, which others that keep it busy hardly change
    alone = torch.get_num_threads() == 1 and not any(x.is_cuda for x in inputs)
    clock = time.process_time if alone else _synchronized_clock
    everything = [tensor for one in contenders for tensor in one.buffers]
    with preserved(everything):
        for function, _ in made.values():
            function(*inputs)
        shuffled = random.Random(0)  # who follows whom changes what lies in the processor's memory
        for _ in range(rounds):
            for name in shuffled.sample(list(made), len(made)):
                start = clock()
                made[name][0](*inputs)
                found[name].append(clock() - start)
    return {name: (found[name], compiled) for name, (_, compiled) in made.items()}


def _synchronized_clock() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def sites_of(model: Program, guide: Program, batch: Batch) -> tuple[tuple[str, ...], bool]:
    """Returns the latents that need an estimator, or all latents if none does, and whether all have derivatives."""
    with torch.no_grad():
        joint = programs.run(model, guide, batch, check=False)
    fns: dict[str, Any] = {name: joint.guide.nodes[name]["fn"] for name in joint.latents}
    needing = tuple(name for name, fn in fns.items() if not getattr(fn, "has_rsample", False))
    if not fns:
        raise ConfigError("the guide draws no latents: there is no gradient to estimate")
    return needing or tuple(fns), not needing
