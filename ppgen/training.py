"""The one training loop."""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from ppgen import compilation, devices, players, programs
from ppgen.distribution import DataParallel, Outcome
from ppgen.errors import CheckpointError, DivergedError
from ppgen.objectives import Objective, as_objective
from ppgen.players import Average, Gradients, OptimizerLike, Player, copy_into, make_players, without_denormals
from ppgen.precision import TOLERANCES, arithmetic, backend, choose_precision
from ppgen.processes import Processes
from ppgen.programs import Batch, Program
from ppgen.stepping import Compile, Phase, Stepper
from ppgen.streams import map_tensors, stream

Metrics = dict[str, float]
Scalars = dict[str, Tensor]

logger = logging.getLogger("ppgen")


class Trainer:
    """Trains any pair of programs with any objective.

    Args:
        model: the generative program.
        guide: the inference program.
        objective: an `Objective`, or one of Pyro's own ELBOs.
        optimizer: one for all players, or a dict of them by player; a bare torch factory will do.
        total_steps: the length of the run, by which "auto" decides whether compiling pays.
        average: decay of an exponential average of the weights, which evaluation then uses; None for none.
        device: "auto" takes a GPU where there is one.
        precision: of matrix products, "fp32", "tf32" (GPU) or "bf16"; all else, densities and optimizer included, is
            float32. "auto" is "bf16" where the device is fast at it.
        compile: "auto" compiles the step where it can be and pays; "on" makes it an error where it cannot be.
        nonfinite: what a loss or gradient that is not finite does: "raise" stops with the state before that step,
            "skip" leaves that step out.
        processes: those that train together, each on its rows of the batches, which are the same in all of them.

    Attributes:
        steps: how many steps were taken.
        skipped: how many of them were left out because they were not finite.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.distributions import constraints
        >>> from ppgen import ELBO, Trainer
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        ...     pyro.sample("mean", dist.Normal(loc, scale))
        >>> trainer = Trainer(model, guide, ELBO(), functools.partial(torch.optim.Adam, lr=0.05))
        >>> history = list(trainer.fit({"x": torch.tensor([2.0, 3.0, 4.0])}, steps=500))
        >>> abs(trainer.param_store["loc"].item() - 3.0) < 0.3
        True
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        objective: Any,
        optimizer: OptimizerLike = None,
        *,
        total_steps: int | None = None,
        average: float | None = None,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        compile: Compile = "auto",
        nonfinite: Literal["raise", "skip"] = "raise",
        processes: Processes | None = None,
    ) -> None:
        self.device = devices.choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model, self.guide = model, guide
        self.objective: Objective = as_objective(objective).to(self.device)
        self.objective.share_clock()
        self.objective.step.zero_()
        for module in (*programs.modules_of(model), *programs.modules_of(guide)):
            module.to(self.device)
        self.total_steps = total_steps
        self._horizon = total_steps
        self.nonfinite = nonfinite
        self.steps = 0
        self.skipped = 0
        self._optimizer = optimizer
        self._phases = tuple(self.objective.phases())
        # by its first place: a phase that comes several times in a step is compiled once
        self._order = [self._phases.index(phase) for phase in self._phases]
        self._store = programs.Store()
        self._players: dict[str, Player] = {}
        self._average = Average(average)
        self._buffers: dict[str, Tensor] = {}
        self._stepper = Stepper(compile, tolerance=TOLERANCES[self.precision], processes=processes)
        self._parallel = DataParallel(processes, self._outcome, tolerance=TOLERANCES[self.precision])
        self._pending: dict[str, Any] | None = None
        self._rules = programs.BatchRules(model, guide)
        self._unchecked: list[tuple[int, int, Batch, Tensor, Tensor]] = []

    @property
    def param_store(self) -> ParamStoreDict:
        """The pair's own parameter store: ``trainer.param_store["scale"]`` reads a constrained value."""
        return self._store.read()

    @property
    def compiled(self) -> bool | None:
        """Whether steps are compiled; None while undecided."""
        return self._stepper.compiled

    @property
    def compiling_seconds(self) -> float:
        """How long compiling has taken."""
        return self._stepper.compiling_seconds

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Every trainable tensor by name."""
        return {name: leaf for player in self._players.values() for name, leaf in player.leaves.items()}

    def setup(self, batch: Batch) -> None:
        """Runs the pair once, so that all parameters exist; the first step does it by itself.

        Raises:
            ConfigError: if model, guide and objective do not fit, or a tensor has two players.
        """
        if self._players:
            return
        batch = self._placed(batch)
        parts: dict[str, Program] = {"model": self.model, "guide": self.guide, "objective": self.objective}
        kept = list(programs.buffers(parts).values())
        saved = [tensor.clone() for tensor in kept]
        with self._store.active():
            self.objective.setup(self.model, self.guide, batch)
            groups = self.objective.players(self.model, self.guide, batch)
        # the statistics of a batch normalisation, say, do not count this run
        compilation.restore(kept, saved)
        self._players = make_players(groups, self._optimizer)
        programs.report_untrained_modules(self.leaves.values(), self.model, self.guide)
        own = {id(tensor) for tensor in (*self.leaves.values(), self.objective.step)}
        self._buffers = {name: tensor for name, tensor in programs.buffers(parts).items() if id(tensor) not in own}
        self._average.start(self.leaves, self._buffers)
        if self._pending is not None:
            self.load_state_dict(self._pending)
            self._pending = None

    def plan(self, batch: Batch) -> None:
        """Decides `compiled` before the first step, from the cost of eager steps and ``total_steps``.

        Parameters and random streams stay as they were. Without it, the decision falls at the second step.
        """
        self.setup(batch)
        random_states = devices.all_random_states()
        phases: dict[Phase, int] = {functools.partial(self._advance, i): self._order.count(i) for i in {*self._order}}
        remaining = None if self._horizon is None else self._horizon - self.steps
        part, *_ = [self._parallel.part(i, self._placed(batch), step=self.steps + 1) for i in {*self._order}]
        self._stepper.plan(phases, part, [*self._state(), self.objective.step], remaining)
        devices.set_all_random_states(random_states)
        if self.steps == 0:
            for player in self._players.values():
                player.optimizer.state.clear()

    def decide(self, compiled: bool | None) -> None:
        """Takes over the decision of an earlier run, where this one has none of its own."""
        self._stepper.resume(compiled)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiplies every learning rate, now and in what its schedule still brings."""
        for player in self._players.values():
            player.scale_learning_rate(factor)

    def _state(self) -> list[Tensor]:
        moved = [tensor for player in self._players.values() for tensor in player.state()]
        return [*moved, *self._average.tensors.values(), *self._buffers.values()]

    def _extra(self) -> dict[str, Tensor]:
        """What Pyro's own ELBOs keep in the store, such as running baselines."""
        own = {id(leaf) for leaf in self.leaves.values()}
        return {name: tensor for name, tensor in self._store.unconstrained().items() if id(tensor) not in own}

    def _placed(self, batch: Batch) -> Batch:
        return map_tensors(lambda tensor: tensor.to(self.device), batch)

    def fit(
        self,
        batches: Iterable[Batch] | Batch,
        *,
        steps: int | None = None,
        every: int = 100,
        until: Callable[[], bool] = lambda: False,
    ) -> Iterator[Metrics]:
        """Trains, and yields the mean of each metric every ``every`` steps and at the end.

        Args:
            batches: an iterator, drawn from until it ends; an iterable (a list, a DataLoader), gone through again and
                again, once if no number of steps is known; or one batch as a dict of columns, used in every step.
            steps: how many to take; up to ``total_steps`` unless told.
            every: how many steps a report stands for.
            until: asked before every step whether to stop.

        Raises:
            DivergedError: see `step`.
        """
        if steps is None and self.total_steps is not None:
            steps = self.total_steps - self.steps
        if self.total_steps is None and steps is not None:
            self._horizon = self.steps + steps
        drawn = stream(batches, endless=steps is not None)
        recent: list[dict[str, Tensor]] = []
        for count in itertools.count(1) if steps is None else range(1, steps + 1):
            if until():
                break
            try:
                recent.append(self.step(drawn))
            except StopIteration:
                break
            if len(recent) == every or count == steps:
                yield self._report(recent)
                recent = []
        if recent:
            yield self._report(recent)

    def _report(self, recent: list[dict[str, Tensor]]) -> Metrics:
        self.check_finite()
        means = {name: float(torch.stack([r[name] for r in recent if name in r]).mean()) for name in recent[-1]}
        return {"step": self.steps, **means}

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Takes one step: every phase once, each on a batch of its own.

        Returns:
            "loss" (or "loss/PLAYER" of several players), "gradient_norm" likewise, and the objective's metrics: scalar
            tensors on the device.

        Raises:
            DivergedError: if a loss or gradient is not finite; the state is that before the phase it belongs to.
            StopIteration: if there are not enough batches left; nothing has changed.
        """
        results: dict[str, Tensor] = {}
        drawn = [self._placed(next(batches)) for _ in self._phases]
        self.setup(drawn[0])
        self._rules.keep(drawn, getattr(batches, "rows", None), self._store, self.objective)
        if self.compiled is None and self.steps > 0:
            self.plan(drawn[0])
        for index, batch in zip(self._order, drawn, strict=True):
            results |= self._run(index, batch)
        self.steps += 1
        self.objective.step.add_(1)
        changed = [player.advance() for player in self._players.values()]
        if any(changed) and self.compiled:
            self._stepper.stay_eager("the schedule changes more of the optimizer than its learning rate")
        return results

    def _run(self, index: int, batch: Batch) -> dict[str, Tensor]:
        before, advance = devices.random_state(self.device), functools.partial(self._advance, index)
        with backend(self.precision, self.device):
            part = self._parallel.part(index, batch, step=self.steps + 1)
            results = self._stepper.run(index, advance, part, self._state, step=self.steps + 1)
        self._unchecked.append((self.steps + 1, index, batch, before, results.pop("finite")))
        # on a CPU looking costs nothing; a GPU is not made to wait
        if self.device.type == "cpu" or len(self._unchecked) >= 50:
            self.check_finite()
        return results

    def _outcome(self, index: int, batch: Batch) -> Outcome:
        """Runs one phase without a step; nothing changes."""
        with devices.same_random_states(), compilation.preserved(self._state()), self._store.unchanged():
            with self._ready():
                losses, gradients, _ = self._losses(index, batch)
            named, kept = players.named_gradients(self._players, gradients), self._buffers | self._extra()
            return Outcome.of(losses, named, kept, (torch.get_rng_state(), devices.random_state(self.device)))

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        with self._rules.counting, self._store.active(), programs.quiet(), arithmetic(self.precision, self.device):
            yield

    def _losses(self, index: int, batch: Batch) -> tuple[Scalars, Gradients, Scalars]:
        losses, metrics = self._phases[index](self.model, self.guide, batch)
        return losses, players.gradients_of(losses, self._players), metrics

    def _advance(self, index: int, batch: Batch) -> dict[str, Tensor]:
        """Runs one phase: losses, gradients, updates. A step that is not finite changes nothing."""
        with self._ready():
            return self._advanced(index, batch)

    def _advanced(self, index: int, batch: Batch) -> dict[str, Tensor]:
        # on a CPU a look is free, unless the step is being recorded; at first there are no moments yet to be kept
        masked = torch.compiler.is_compiling() or (self.device.type != "cpu" and self.steps > 0)
        buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}
        with self._parallel.shared(index, batch):
            losses, gradients, metrics = self._losses(index, batch)
        losses, gradients, metrics = self._parallel.mean(losses, gradients, metrics)
        with torch.no_grad():
            norms = {player: self._players[player].norm(g) for player, g in gradients.items()}
            finite = torch.stack([*losses.values(), *norms.values()]).isfinite().all()
            if masked or finite:
                moved = [t for player in losses for t in self._players[player].state()] if masked else []
                saved = [tensor.clone() for tensor in moved]
                for player, g in gradients.items():
                    self._players[player].update(g, norms[player])
                for tensor, old in zip(moved, saved, strict=True):
                    tensor.copy_(torch.where(finite, without_denormals(tensor), old))
                self._average.follow([self._players[player] for player in losses], self.objective.step, finite)
            players.undo_unless(finite, self._buffers, buffers)
            self._average.follow_buffers(self._buffers if index == self._order[-1] else {}, self.objective.step, finite)
        results = {players.label("loss", player): loss.detach() for player, loss in losses.items()}
        results |= {players.label("gradient_norm", player): norm for player, norm in norms.items()}
        return results | metrics | {"finite": finite}

    def check_finite(self) -> None:
        """Looks whether the steps since the last look were finite.

        Raises:
            DivergedError: if one was not, naming step, site and rows (under "skip" it is only counted).
        """
        unchecked, self._unchecked = self._unchecked, []
        for step, index, batch, random_state, finite in unchecked:
            if finite:
                continue
            where = self._explain(index, batch, random_state)
            if self.nonfinite == "raise":
                raise DivergedError(f"the loss is not finite at step {step}: {where}")
            self.skipped += 1
            logger.warning("step %d was skipped, its loss is not finite: %s", step, where)

    def _explain(self, index: int, batch: Batch, random_state: Tensor) -> str:
        now = devices.random_state(self.device)
        devices.set_random_state(self.device, random_state)
        try:
            with self._ready(), compilation.preserved(self._state()):
                if place := self.objective.explain(self.model, self.guide, batch):
                    return place
                losses, gradients, _ = self._losses(index, batch)
            return players.first_nonfinite(self._players, losses, gradients)
        finally:
            devices.set_random_state(self.device, now)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, the pair runs as evaluation wants it: averaged weights, evaluation mode, its own store."""
        with (
            programs.evaluation_mode(self.model, self.guide),
            self._average.replacing(self.leaves | self._buffers),
            self._store.active(),
            programs.quiet(),
            torch.no_grad(),
        ):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next step depends on, random streams included: nested dicts of tensors and numbers."""
        if self._pending is not None:
            return self._pending
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "stepper": self._stepper.state_dict(),
            "players": {name: player.state_dict() for name, player in self._players.items()},
            "average": {name: tensor.clone() for name, tensor in self._average.tensors.items()},
            "buffers": {name: tensor.detach().clone() for name, tensor in self._buffers.items()},
            "store": {name: tensor.detach().clone() for name, tensor in self._extra().items()},
            "random": devices.all_random_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; before `setup` it takes effect at its end.

        Raises:
            CheckpointError: if the state is of another program.
        """
        self.steps, self.skipped = state["steps"], state["skipped"]
        if not self._players:
            self._pending = state
            return
        if state["players"].keys() != self._players.keys():
            raise CheckpointError(
                f"the checkpoint is of another objective: it has players {', '.join(state['players'])};"
                f" expected {', '.join(self._players)}"
            )
        for name, player in self._players.items():
            player.load_state_dict(state["players"][name])
        self._average.load(state["average"], state["buffers"])
        copy_into(self._buffers, state["buffers"])
        self._store.add(state["store"], self.device)
        self.objective.step.fill_(self.steps)
        self._stepper.load_state_dict(state["stepper"])
        devices.set_all_random_states(state["random"])
