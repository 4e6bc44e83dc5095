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
from torch.utils import _pytree as pytree

from ppgen import compilation, devices, programs
from ppgen.errors import CheckpointError, ConfigError, DivergedError
from ppgen.objectives import Objective, as_objective
from ppgen.players import Average, OptimizerLike, Player, copy_into, make_players
from ppgen.programs import Batch, Program
from ppgen.stepping import Compile, Stepper
from ppgen.streams import stream

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
        precision: "bf16" runs matrix products in bfloat16; parameters and optimizer stay float32.
        compile: "auto" compiles the step where it can be and pays; "on" makes it an error where it cannot be.
        nonfinite: what a loss or gradient that is not finite does: "raise" stops with the state before that step,
            "skip" leaves that step out.

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
    ) -> None:
        self.device = devices.choose_device(device)
        self.precision = devices.choose_precision(precision)
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
        self._store = programs.Store()
        self._players: dict[str, Player] = {}
        self._average = Average(average)
        self._buffers: dict[str, Tensor] = {}
        self._stepper = Stepper(compile, tolerance=5e-2 if self.precision == "bf16" else 1e-3)
        self._pending: dict[str, Any] | None = None
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
        self._average.start(self.leaves)
        if self._pending is not None:
            self.load_state_dict(self._pending)
            self._pending = None

    def plan(self, batch: Batch) -> None:
        """Decides `compiled` before the first step, from the cost of eager steps and ``total_steps``.

        Parameters and random streams stay as they were. Without it, the decision falls at the second step.
        """
        self.setup(batch)
        random_states = devices.all_random_states()
        phases = [functools.partial(self._advance, index) for index in range(len(self._phases))]
        remaining = None if self._horizon is None else self._horizon - self.steps
        with self._ready():
            self._stepper.plan(phases, self._placed(batch), [*self._state(), self.objective.step], remaining)
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
        players = [tensor for player in self._players.values() for tensor in player.state()]
        return [*players, *self._average.tensors.values(), *self._buffers.values()]

    def _placed(self, batch: Batch) -> Batch:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), batch)

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
        means = {name: torch.stack([r[name] for r in recent if name in r]).mean() for name in recent[-1]}
        return {"step": self.steps, **{name: float(mean) for name, mean in means.items()}}

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
        if self.compiled is None and self.steps > 0:
            self.plan(drawn[0])
        for index, batch in enumerate(drawn):
            results |= self._run(index, batch)
        self.steps += 1
        self.objective.step.add_(1)
        changed = [player.advance() for player in self._players.values()]
        if any(changed) and self.compiled:
            self._stepper.stay_eager("the schedule changes more of the optimizer than its learning rate")
        return results

    def _run(self, index: int, batch: Batch) -> dict[str, Tensor]:
        before = devices.random_state(self.device)
        with self._ready():
            advance = functools.partial(self._advance, index)
            results = self._stepper.run(index, advance, batch, self._state(), step=self.steps + 1)
        self._unchecked.append((self.steps + 1, index, batch, before, results.pop("finite")))
        # on a CPU looking costs nothing; a GPU is not made to wait
        if self.device.type == "cpu" or len(self._unchecked) >= 50:
            self.check_finite()
        return results

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._store.active())
            stack.enter_context(programs.quiet())
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            yield

    def _losses(
        self, index: int, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor | None]], dict[str, Tensor]]:
        metrics: Scalars
        losses, metrics = self._phases[index](self.model, self.guide, batch)
        gradients: dict[str, list[Tensor | None]] = {}
        for position, (player, loss) in enumerate(losses.items(), start=1):
            if player not in self._players:
                raise ConfigError(f"there is a loss for '{player}'; players are {', '.join(self._players)}")
            if not loss.requires_grad:
                raise ConfigError(f"the loss of player '{player}' depends on no parameter")
            leaves = list(self._players[player].leaves.values())
            keep = position < len(losses)
            gradients[player] = list(torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=True))
        return losses, gradients, metrics

    def _advance(self, index: int, batch: Batch) -> dict[str, Tensor]:
        """Runs one phase: losses, gradients, updates. A step that is not finite changes nothing."""
        # on a CPU a look is free, unless the step is being recorded; at first there are no moments yet to be kept
        masked = torch.compiler.is_compiling() or (self.device.type != "cpu" and self.steps > 0)
        buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}
        losses, gradients, metrics = self._losses(index, batch)
        with torch.no_grad():
            norms = {player: self._players[player].norm(g) for player, g in gradients.items()}
            finite = torch.stack([*losses.values(), *norms.values()]).isfinite().all()
            if masked or finite:
                moved = [t for player in losses for t in self._players[player].state()] if masked else []
                saved = [tensor.clone() for tensor in moved]
                for player, g in gradients.items():
                    self._players[player].update(g, norms[player])
                for tensor, old in zip(moved, saved, strict=True):
                    tensor.copy_(torch.where(finite, tensor, old))
                self._average.follow([self._players[player] for player in losses], self.objective.step, finite)
            for name, tensor in self._buffers.items():
                tensor.copy_(torch.where(finite, tensor, buffers[name]))
        results = {_label("loss", player): loss.detach() for player, loss in losses.items()}
        results |= {_label("gradient_norm", player): norm for player, norm in norms.items()}
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
            for player, found in gradients.items():
                for name, gradient in zip(self._players[player].leaves, found, strict=True):
                    if gradient is not None and not gradient.isfinite().all():
                        return f"the gradient of '{name}'"
                if not self._players[player].norm(found).isfinite():
                    return "the norm of the gradient, which overflows"
            bad = [player for player, loss in losses.items() if not loss.isfinite()]
            return f"the loss of player '{bad[0]}'" if bad else "an overflow that did not recur"
        finally:
            devices.set_random_state(self.device, now)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, the pair runs as evaluation wants it: averaged weights, evaluation mode, its own store."""
        with (
            programs.evaluation_mode(self.model, self.guide),
            self._average.replacing(self.leaves),
            self._store.active(),
            programs.quiet(),
            torch.no_grad(),
        ):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next step depends on, random streams included: nested dicts of tensors and numbers."""
        if self._pending is not None:
            return self._pending
        own = {id(leaf) for leaf in self.leaves.values()}
        extra = {k: v for k, v in self._store.unconstrained().items() if id(v) not in own}
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "stepper": self._stepper.state_dict(),
            "players": {name: player.state_dict() for name, player in self._players.items()},
            "average": {name: tensor.clone() for name, tensor in self._average.tensors.items()},
            "buffers": {name: tensor.detach().clone() for name, tensor in self._buffers.items()},
            # what Pyro's own ELBOs keep there, such as running baselines
            "store": {name: tensor.detach().clone() for name, tensor in extra.items()},
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
        copy_into(self._average.tensors, state["average"])
        copy_into(self._buffers, state["buffers"])
        self._store.add(state["store"], self.device)
        self.objective.step.fill_(self.steps)
        self._stepper.load_state_dict(state["stepper"])
        devices.set_all_random_states(state["random"])


def _label(name: str, player: str) -> str:
    return name if player == "all" else f"{name}/{player}"
