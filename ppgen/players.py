"""Players: which tensors one loss trains, and how they move."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen import optimizers
from ppgen.errors import CheckpointError, ConfigError
from ppgen.state import plain, require, require_alike, require_start, require_tensors

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
ScheduleFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
Gradients = dict[str, list[Tensor | None]]
"""By player; None for a leaf that the player's loss does not depend on."""

logger = logging.getLogger("ppgen")


ADAM: OptimizerFactory = functools.partial(torch.optim.Adam, lr=1e-3)


@dataclass(frozen=True)
class Optimizer:
    """How the parameters of one player move.

    Args:
        factory: makes a torch optimizer of a list of tensors, e.g. ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        schedule: makes a torch learning-rate scheduler of that optimizer; it advances once a step.
        clip: largest norm of the player's gradient; None for no clipping.
    """

    factory: OptimizerFactory = ADAM
    schedule: ScheduleFactory | None = None
    clip: float | None = None


OptimizerLike = Optimizer | OptimizerFactory | Mapping[str, Optimizer | OptimizerFactory] | None


class Player:
    """The leaves of one player with their optimizer; losses of other players never move them."""

    def __init__(self, name: str, leaves: dict[str, Tensor], optimizer: Optimizer) -> None:
        if not leaves:
            raise ConfigError(f"player '{name}' has nothing to train: model, guide and objective have no parameters")
        require_start(leaves)
        self.leaves = leaves
        self.clip = optimizer.clip
        self.optimizer = optimizers.make_optimizer(optimizer.factory, list(leaves.values()), name)
        self.schedule = optimizers.make_schedule(optimizer.schedule, self.optimizer, name)

    def state(self) -> list[Tensor]:
        """Returns the tensors that an update changes."""
        moments = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        return [*self.leaves.values(), *moments]

    def norm(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Returns the Euclidean norm of all gradients."""
        norms = [torch.linalg.vector_norm(g.float()) for g in gradients if g is not None]
        if not norms:
            return next(iter(self.leaves.values())).new_zeros(())
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def update(self, gradients: Sequence[Tensor | None], norm: Tensor) -> None:
        """Takes one optimizer step with the (clipped) gradients."""
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0) if self.clip else None
        for leaf, gradient in zip(self.leaves.values(), gradients, strict=True):
            leaf.grad = gradient if gradient is None or scale is None else gradient * scale
        with self._plain() if torch.compiler.is_compiling() else contextlib.nullcontext():
            self.optimizer.step()
        for leaf in self.leaves.values():
            leaf.grad = None

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        # the optimizer's plain implementation, which the compiler fuses by itself, without a look at values
        groups = self.optimizer.param_groups
        # one that is not capturable (SGD), and RMSprop, take the learning rate as a tensor only in the one for lists
        lists = "capturable" not in groups[0] or isinstance(self.optimizer, torch.optim.RMSprop)
        plain = {"fused": False, "foreach": lists, "capturable": True}
        saved = [{key: group[key] for key in ("lr", *plain) if key in group} for group in groups]
        for group in groups:
            group.update({key: value for key, value in plain.items() if key in group})
            if "lr" in group:
                # Adam's plain implementation divides by its learning rate, which a schedule may bring to 0
                group["lr"] = group["lr"].clamp(min=1e-30)
        try:
            yield
        finally:
            for group, old in zip(groups, saved, strict=True):
                group.update(old)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiplies the learning rate, now and in what the schedule still brings."""
        for group in self.optimizer.param_groups:
            if "lr" in group:
                group["lr"].mul_(factor)
        if self.schedule:
            self.schedule.base_lrs = [rate * factor for rate in self.schedule.base_lrs]

    def advance(self) -> bool:
        """Advances the schedule by a step; returns whether it changed more than the learning rate."""
        if self.schedule is None:
            return False
        before = self._settings()
        self.schedule.step()
        return before != self._settings()

    def _settings(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}
            for group in self.optimizer.param_groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Returns the leaves, and what optimizer and scheduler keep."""
        return {"leaves": plain(self.leaves), **optimizers.saved(self.optimizer, self.schedule)}

    def require_own(self, state: Any) -> None:
        """Checks that a state is one of this player, and changes nothing.

        Raises:
            CheckpointError: if the names or shapes of the leaves, or the kind of optimizer, are not the same.
        """
        require(state, "the state of a player", leaves=Mapping)
        require_tensors(state["leaves"], "the leaves of a player")
        require_alike(self.leaves, state["leaves"])
        optimizers.require_own(state, self.optimizer, self.schedule)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`, in place.

        Raises:
            CheckpointError: see `require_own`; nothing has changed.
        """
        self.require_own(state)
        copy_into(self.leaves, state["leaves"])
        optimizers.load(state, self.optimizer, self.schedule)


def make_players(groups: Mapping[str, dict[str, Tensor]], optimizer: OptimizerLike) -> dict[str, Player]:
    """Returns the players of an objective.

    Args:
        groups: leaf tensors by name, by player.
        optimizer: one for all players, or a dict of them by player.

    Raises:
        ConfigError: if a tensor has two players, a player has no tensors, or there is no optimizer for it.
    """
    owners: dict[int, str] = {}
    for player, leaves in groups.items():
        for name, leaf in leaves.items():
            if id(leaf) in owners:
                raise ConfigError(f"'{name}' belongs to two players: {owners[id(leaf)]} and {player}")
            owners[id(leaf)] = player
    if isinstance(optimizer, Mapping) and (unknown := sorted(optimizer.keys() - groups.keys())):
        raise ConfigError(f"there is an optimizer for '{unknown[0]}'; players are {', '.join(groups)}")
    return {name: Player(name, leaves, _optimizer_of(name, optimizer)) for name, leaves in groups.items()}


def check_optimizers(optimizer: Any) -> None:
    """Refuses optimizers that cannot be used, as far as that shows before there are parameters.

    Raises:
        ConfigError: with the remedy.
    """
    for given in optimizer.values() if isinstance(optimizer, Mapping) else [optimizer]:
        found = given if isinstance(given, Optimizer) else Optimizer(ADAM if given is None else given)
        optimizers.check_optimizer(found.factory)
        optimizers.check_schedule(found.schedule)


def gradients_of(losses: Mapping[str, Tensor], players: Mapping[str, Player]) -> Gradients:
    """Differentiates the losses of one phase, each by the leaves of its player.

    Raises:
        ConfigError: if a loss is of no player, or depends on no parameter.
    """
    gradients: Gradients = {}
    for position, (player, loss) in enumerate(losses.items(), start=1):
        if player not in players:
            raise ConfigError(f"there is a loss for '{player}'; players are {', '.join(players)}")
        if not loss.requires_grad:
            raise ConfigError(f"the loss of player '{player}' depends on no parameter")
        leaves = list(players[player].leaves.values())
        keep = position < len(losses)
        found = torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=True)
        gradients[player] = [g.to_dense() if g is not None and g.is_sparse else g for g in found]
    return gradients


@torch.no_grad()
def update(
    players: Mapping[str, Player], gradients: Gradients, norms: Mapping[str, Tensor], finite: Tensor | None
) -> None:
    """Moves players by their gradients.

    Args:
        players: those that move.
        gradients: of each.
        norms: of the gradients of each.
        finite: nobody moves where it is false, without a look at it; None if it is known to be true.
    """
    moved = [] if finite is None else [tensor for player in players.values() for tensor in player.state()]
    saved = [tensor.clone() for tensor in moved]
    for name, found in gradients.items():
        players[name].update(found, norms[name])
    for tensor, old in zip(moved, saved, strict=True):
        tensor.copy_(torch.where(finite, without_denormals(tensor), old))  # type: ignore[arg-type]


def kept_besides(players: Mapping[str, Player], kept: Mapping[str, Tensor], clock: Tensor) -> dict[str, Tensor]:
    """Returns what programs keep besides the leaves of players and the number of steps."""
    own = {id(leaf) for player in players.values() for leaf in player.leaves.values()} | {id(clock)}
    return {name: tensor for name, tensor in kept.items() if id(tensor) not in own}


def require_own(
    state: Mapping[str, Any], players: Mapping[str, Player], kept: Mapping[str, Tensor], *, averaged: bool
) -> None:
    """Checks that the state of a trainer is that of these players, and of one with an average or without.

    Raises:
        CheckpointError: if not.
    """
    saved = state["players"]
    if saved.keys() != players.keys():
        raise CheckpointError(
            f"the checkpoint is of another objective: it has players {', '.join(map(str, saved))};"
            f" expected {', '.join(players)}"
        )
    for name, player in players.items():
        player.require_own(saved[name])
    leaves = {name: leaf for player in players.values() for name, leaf in player.leaves.items()}
    if averaged != bool(state["average"]):
        raise CheckpointError("the checkpoint is of another trainer: only one of the two keeps an average of weights")
    require_alike(kept, state["buffers"])
    statistics = {name: buffer for name, buffer in kept.items() if averaged and _is_statistic(name, buffer)}
    # older states have no averages of statistics: they begin at their last values
    older = {name: state["buffers"][name] for name in statistics.keys() - state["average"].keys()}
    require_alike({**leaves, **statistics} if averaged else {}, {**state["average"], **older})


def named_gradients(players: Mapping[str, Player], gradients: Gradients) -> dict[str, Tensor]:
    """Returns the gradients that there are, by the name of their leaf."""
    return {
        name: gradient
        for player, found in gradients.items()
        for name, gradient in zip(players[player].leaves, found, strict=True)
        if gradient is not None
    }


def first_nonfinite(players: Mapping[str, Player], losses: Mapping[str, Tensor], gradients: Gradients) -> str:
    """Says which gradient or loss is not finite."""
    for name, gradient in named_gradients(players, gradients).items():
        if not gradient.isfinite().all():
            return f"the gradient of '{name}'"
    if any(not players[player].norm(found).isfinite() for player, found in gradients.items()):
        return "the norm of the gradient, which overflows"
    bad = [player for player, loss in losses.items() if not loss.isfinite()]
    return f"the loss of player '{bad[0]}'" if bad else "an overflow that did not recur"


def label(name: str, player: str) -> str:
    """Returns what a quantity of a player is called in reports.

    >>> label("loss", "critic"), label("loss", "all")
    ('loss/critic', 'loss')
    """
    return name if player == "all" else f"{name}/{player}"


def _optimizer_of(player: str, optimizer: OptimizerLike) -> Optimizer:
    if isinstance(optimizer, Mapping):
        if player not in optimizer:
            raise ConfigError(f"no optimizer for player '{player}'; there are {', '.join(optimizer)}")
        optimizer = optimizer[player]
    if optimizer is None:
        return Optimizer()
    return optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer)


STATISTIC = "running_"
"""How the names of buffers begin that hold statistics of activations: a batch normalisation's ``running_mean``."""


class Average:
    """An exponential average of leaves, and of the running statistics that belong to them.

    Statistics are buffers of numbers whose own name begins with ``running_``, as in torch's normalisations: those of
    the leaves' own activations would not do for averaged leaves.

    Args:
        decay: share of the old average that a step keeps, once the average is no longer young; None for no average.

    Attributes:
        tensors: the average by name; empty without one.
    """

    def __init__(self, decay: float | None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ConfigError(f"expected 0 <= average < 1; got {decay}")
        self.decay = decay
        self.tensors: dict[str, Tensor] = {}
        self._statistics: list[str] = []

    def start(self, leaves: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Begins at the leaves, and at the statistics among the buffers."""
        if self.decay is not None:
            self._statistics = [name for name, buffer in buffers.items() if _is_statistic(name, buffer)]
            kept = {**leaves, **{name: buffers[name] for name in self._statistics}}
            self.tensors = {name: tensor.detach().clone() for name, tensor in kept.items()}

    def follow(self, players: Iterable[Player], step: Tensor, finite: Tensor) -> None:
        """Moves towards the leaves of ``players``, unless ``finite`` is false."""
        for player in players:
            self._follow(player.leaves, step, finite)

    def follow_buffers(self, buffers: Mapping[str, Tensor], step: Tensor, finite: Tensor) -> None:
        """Moves towards the statistics among the buffers, unless ``finite`` is false: once a step, as leaves do."""
        self._follow({name: buffers[name] for name in self._statistics if name in buffers}, step, finite)

    def _follow(self, tensors: Mapping[str, Tensor], step: Tensor, finite: Tensor) -> None:
        if self.decay is None:
            return
        # a young average follows quickly, or it would remember the initial weights
        weight = torch.clamp(9.0 / (10.0 + step), min=1 - self.decay) * finite
        for name, tensor in tensors.items():
            self.tensors[name].lerp_(tensor.detach(), weight.to(tensor.dtype))

    def load(self, average: dict[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Restores a saved average; without statistics, as older versions wrote them, these begin at saved buffers.

        Raises:
            CheckpointError: if names or shapes are not the same.
        """
        older = {name: buffers[name] for name in self._statistics if name in buffers and name not in average}
        if average and older:
            logger.warning(
                "the state is of an older version, without averages of running statistics (%s): they begin at their"
                " last values",
                next(iter(older)),
            )
            average = average | older
        copy_into(self.tensors, average)

    @contextlib.contextmanager
    def replacing(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, the leaves and statistics among the tensors have the values of the average."""
        saved = {name: tensors[name].detach().clone() for name in self.tensors}
        try:
            copy_into({name: tensors[name] for name in saved}, self.tensors)
            yield
        finally:
            copy_into({name: tensors[name] for name in saved}, saved)


def _is_statistic(name: str, buffer: Tensor) -> bool:
    return name.rpartition(".")[2].startswith(STATISTIC) and buffer.is_floating_point()


def undo_unless(finite: Tensor, tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Brings tensors back to what they were before, unless ``finite`` is true."""
    for name, tensor in tensors.items():
        tensor.copy_(torch.where(finite, tensor, before[name]))


def without_denormals(tensor: Tensor) -> Tensor:
    """Returns the tensor with 0 for numbers too small for a normal float.

    The moments of a unit that no gradient reaches any more decay to such numbers and stay there; arithmetic on them is
    so slow that a few hundred doubled the time of a small step.
    """
    if not tensor.is_floating_point() or tensor.dim() == 0:
        return tensor
    return torch.where(tensor.abs() < torch.finfo(tensor.dtype).tiny, 0.0, tensor)


def copy_into(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Copies saved tensors over own ones of the same names.

    Raises:
        CheckpointError: if the names or shapes are not the same.
    """
    require_alike(own, saved)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
