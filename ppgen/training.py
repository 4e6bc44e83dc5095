"""The one training loop."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from ppgen import compilation, devices, players, programs, randomness
from ppgen.cautions import Cautions
from ppgen.distribution import DataParallel, Outcome
from ppgen.divergence import restored_on_failure, tried
from ppgen.objectives import Objective, as_objective
from ppgen.players import Average, Gradients, OptimizerLike, Player, copy_into, make_players
from ppgen.precision import TOLERANCES, arithmetic, backend, choose_precision
from ppgen.processes import Processes
from ppgen.programs import Batch, Program
from ppgen.state import plain, require_whole
from ppgen.stepping import Compile, Phase, Stepper
from ppgen.streams import place, rows_in, stream
from ppgen.watching import Subject, Watch

Metrics = dict[str, float]
Scalars = dict[str, Tensor]


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
        nonfinite: what a loss or gradient that is not finite does, or one that cannot be computed: "raise" stops with
            the state before that step, "skip" leaves that step out.
        processes: those that train together, each on its rows of the batches, which are the same in all of them.

    Attributes:
        steps: how many steps were taken.

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
        players.check_optimizers(optimizer)
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
        self._optimizer = optimizer
        self._phases = tuple(self.objective.phases())
        # by its first place: a phase that comes several times in a step is compiled once
        self._order = [self._phases.index(phase) for phase in self._phases]
        self._store = programs.Store()
        self._players: dict[str, Player] = {}
        self._average = Average(average)
        self._buffers: dict[str, Tensor] = {}
        self._latest: Batch = None
        self._stepper = Stepper(compile, tolerance=TOLERANCES[self.precision], processes=processes)
        self._parallel = DataParallel(processes, self._outcome, tolerance=TOLERANCES[self.precision])
        self._pending: dict[str, Any] | None = None
        self._rules = programs.BatchRules(model, guide)
        self._cautions = Cautions(model, guide, self.objective)
        self._watch = Watch(self._subject(), raising=nonfinite == "raise")

    def _subject(self) -> Subject:
        return Subject(
            self.device,
            self._store,
            lambda: self._players,
            self._state,
            self._ready,
            lambda index, batch: self._losses(index, batch)[:2],
            self._stepper.forget_last,
            self._parts,
            alone=self._parallel.processes.size == 1,
        )

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
    def skipped(self) -> int:
        """How many steps were left out because they were not finite."""
        return self._watch.skipped

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
        batch = place(batch, self.device)
        with tried(self._parts), self._store.settling():
            self.objective.setup(self.model, self.guide, batch)
            groups = self.objective.players(self.model, self.guide, batch)
        made = make_players(groups, self._optimizer)
        kept = players.kept_besides(made, programs.buffers(self._parts), self.objective.step)
        if self._pending is not None:
            players.require_own(self._pending, made, kept, averaged=self._average.decay is not None)
        self._players, self._buffers = made, kept
        programs.report_untrained_modules(self.leaves.values(), self.model, self.guide)
        self._average.start(self.leaves, self._buffers)
        self._cautions.look(batch, self._store, self._buffers)
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._restore(state)

    @property
    def _parts(self) -> dict[str, Program]:
        return {"model": self.model, "guide": self.guide, "objective": self.objective}

    def plan(self, batch: Batch) -> None:
        """Decides `compiled` before the first step, from the cost of eager steps and ``total_steps``.

        Parameters and random streams stay as they were. Without it, the decision falls at the second step.
        """
        self.setup(batch)
        phases: dict[Phase, int] = {functools.partial(self._advance, i): self._order.count(i) for i in {*self._order}}
        remaining = None if self._horizon is None else self._horizon - self.steps
        part, *_ = [self._parallel.part(i, place(batch, self.device), step=self.steps + 1) for i in {*self._order}]
        with randomness.forked(), self._store.unchanged():
            self._stepper.plan(phases, part, [*self._state(), self.objective.step], remaining)
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
        self._cautions.look(self._latest, self._store, self._buffers)
        means = {name: float(torch.stack([r[name] for r in recent if name in r]).mean()) for name in recent[-1]}
        return {"step": self.steps, **means}

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Takes one step: every phase once, each on a batch of its own.

        Returns:
            "loss" (or "loss/PLAYER" of several players), "gradient_norm" likewise, and the objective's metrics: scalar
            tensors on the device.

        Raises:
            DivergedError: if a loss or gradient is not finite, or fails to be computed. The state, random streams
                included, is that before the step; in a game, before the phase that failed, earlier ones have moved
                their players. A GPU is looked at every 50 steps: later ones have then been taken without that one.
            ConfigError: if batch normalisation is given one row.
            StopIteration: if there are not enough batches left; nothing has changed.
        """
        results: dict[str, Tensor] = {}
        drawn = [place(next(batches), self.device) for _ in self._phases]
        self.setup(drawn[0])
        self.objective.step.fill_(self.steps)  # another trainer may have moved it
        self._latest = drawn[0]
        self._rules.keep(drawn, getattr(batches, "rows", None), self._store, self.objective)
        if self.compiled is None and self.steps > 0:
            # a step that fails does so below, too
            with contextlib.suppress(ArithmeticError, RuntimeError, ValueError):
                self.plan(drawn[0])
        for index, batch in zip(self._order, drawn, strict=True):
            attempt = functools.partial(self._attempt, index, batch)
            results |= self._watch.run(attempt, index, batch, step=self.steps + 1)
        self.steps += 1
        self.objective.step.add_(1)
        changed = [player.advance() for player in self._players.values()]
        if any(changed) and self.compiled:
            self._stepper.stay_eager("the schedule changes more of the optimizer than its learning rate")
        return results

    def _attempt(self, index: int, batch: Batch) -> dict[str, Tensor]:
        advance = functools.partial(self._advance, index)
        watched = self._cautions.watching(rows_in(batch)) if self.steps == 0 else contextlib.nullcontext()
        with backend(self.precision, self.device), watched:
            part = self._parallel.part(index, batch, step=self.steps + 1)
            return self._stepper.run(index, advance, part, self._state, step=self.steps + 1)

    def _outcome(self, index: int, batch: Batch) -> Outcome:
        """Runs one phase without a step; nothing changes."""
        with randomness.forked(), compilation.preserved(self._state()), self._store.unchanged():
            with self._ready():
                losses, gradients, _ = self._losses(index, batch)
            named, kept = players.named_gradients(self._players, gradients), self._buffers | self._extra()
            return Outcome.of(losses, named, kept, (torch.get_rng_state(), randomness.random_state(self.device)))

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        with self._rules.counting, self._store.active(), programs.quiet(), arithmetic(self.precision, self.device):
            yield

    def _losses(self, index: int, batch: Batch) -> tuple[Scalars, Gradients, Scalars]:
        losses, metrics = self._phases[index](self.model, self.guide, batch)
        self._store.require_settled()
        return losses, players.gradients_of(losses, self._players), metrics

    def _advance(self, index: int, batch: Batch) -> dict[str, Tensor]:
        """Runs one phase: losses, gradients, updates. A step that is not finite changes nothing."""
        with self._ready():
            # on a CPU a look is free, unless the step is being recorded; at first no moments are there to be kept
            masked = torch.compiler.is_compiling() or (self.device.type != "cpu" and self.steps > 0)
            buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}
            with restored_on_failure(self._buffers, buffers), self._parallel.shared(index, batch):
                losses, gradients, metrics = self._losses(index, batch)
            losses, gradients, metrics = self._parallel.mean(losses, gradients, metrics)
            with torch.no_grad():
                norms = {player: self._players[player].norm(g) for player, g in gradients.items()}
                finite = torch.stack([*losses.values(), *norms.values()]).isfinite().all()
                if masked or finite:
                    moving = {player: self._players[player] for player in losses}
                    players.update(moving, gradients, norms, finite if masked else None)
                    self._average.follow(moving.values(), self.objective.step, finite)
                players.undo_unless(finite, self._buffers, buffers)
                shown = self._buffers if index == self._order[-1] else {}
                self._average.follow_buffers(shown, self.objective.step, finite)
            results = {players.label("loss", player): loss.detach() for player, loss in losses.items()}
            results |= {players.label("gradient_norm", player): norm for player, norm in norms.items()}
            return results | metrics | {"finite": finite}

    def check_finite(self) -> None:
        """Looks whether the steps since the last look were finite.

        Raises:
            DivergedError: if one was not, naming step, site and rows (under "skip" it is only counted).
        """
        self._watch.check()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, the pair runs as evaluation wants it: averaged weights, its own store, whole float32 products."""
        with (
            programs.evaluation_mode(self.model, self.guide),
            self._average.replacing(self.leaves | self._buffers),
            self._store.active(),
            programs.quiet(),
            torch.no_grad(),
            backend("fp32", self.device),
            self._watch.judging(self._latest),
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
            "average": plain(self._average.tensors),
            "buffers": plain(self._buffers),
            "store": plain(self._extra()),
            "random": randomness.all_random_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; before `setup` it takes effect at its end.

        Raises:
            CheckpointError: if it is no such state, or that of another program; nothing has changed.
        """
        require_whole(state)
        if self._players:
            players.require_own(state, self._players, self._buffers, averaged=self._average.decay is not None)
            self._restore(state)
        else:
            self._pending = state
        self.steps = state["steps"]
        self._watch.restart(state["skipped"])

    def _restore(self, state: dict[str, Any]) -> None:
        for name, player in self._players.items():
            player.load_state_dict(state["players"][name])
        self._average.load(state["average"], state["buffers"])
        copy_into(self._buffers, state["buffers"])
        self._store.add(state["store"], self.device)
        self.objective.step.fill_(state["steps"])
        self._stepper.load_state_dict(state["stepper"])
        randomness.set_all_random_states(state["random"])
