"""What a user gives as optimizer and schedule: made, or refused with the remedy."""

import functools
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError
from ppgen.state import plain, require

EXAMPLE = "functools.partial(torch.optim.Adam, lr=1e-3)"
IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Options by which the same step is computed in another way."""


def check_optimizer(factory: Any) -> None:
    """Refuses what is no factory of optimizers that the trainer can use, as far as that shows before there is one.

    Raises:
        ConfigError: with the remedy.
    """
    kind = _class_of(factory)
    if kind is None:
        name = type(factory).__name__
        if isinstance(factory, type) or not callable(factory) or _is_pyros(factory):
            got = factory.__name__ if isinstance(factory, type) else f"a {name}"
            raise ConfigError(f"expected a factory of torch optimizers, {EXAMPLE} say; got {got}")
        return
    if kind is torch.optim.SparseAdam:
        raise ConfigError("SparseAdam cannot be used, since gradients here are dense: use torch.optim.Adam")
    if _needs(kind.step):
        raise ConfigError(
            f"{kind.__name__} cannot be used, since its step needs a closure: use one whose step needs none,"
            f" {EXAMPLE} say"
        )


def check_schedule(schedule: Any) -> None:
    """Refuses what is no factory of schedules that the trainer can use, as far as that shows before there is one.

    Raises:
        ConfigError: with the remedy.
    """
    if schedule is None:
        return
    if not callable(schedule) or _is_pyros(schedule):
        raise ConfigError(
            "expected a factory of torch learning-rate schedulers,"
            f" functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100) say; got a {type(schedule).__name__}"
        )
    function = schedule.func if isinstance(schedule, functools.partial) else schedule
    if isinstance(function, type) and hasattr(function, "step"):
        _check_steps_alone(function)


def make_optimizer(factory: Any, leaves: Sequence[Tensor], player: str) -> torch.optim.Optimizer:
    """Returns the optimizer of a player, with its learning rate as a tensor.

    Raises:
        ConfigError: if there cannot be one, or it cannot be used.
    """
    check_optimizer(factory)
    try:
        made: Any = factory(list(leaves))
    except (TypeError, ValueError, AttributeError) as error:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves[:3])
        raise ConfigError(
            f"the optimizer of player '{player}' cannot be made of its {len(leaves)} parameters (of shapes {shapes}"
            f"{', ...' if len(leaves) > 3 else ''}): {error}; one that takes all of them is {EXAMPLE}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        got = type(made).__name__
        raise ConfigError(f"expected a factory of torch optimizers, {EXAMPLE} say; got one that returns a {got}")
    check_optimizer(functools.partial(type(made)))
    for options in (made.defaults, *made.param_groups):
        _prepare(options, leaves[0].device)
    return made


def _prepare(group: dict[str, Any], device: torch.device) -> None:
    # ways to compute a step that do not go with a learning rate in a tensor, or with this device
    if group.get("foreach"):
        group["foreach"] = None
    if group.get("differentiable"):
        group["differentiable"] = False
    if "capturable" in group:
        # on a GPU step counters lie there too, so that no step waits for them and a compiled one can be captured
        group["capturable"] = device.type == "cuda"
    if "lr" in group and "params" in group:
        # a tensor, so that a compiled step reads the learning rate instead of freezing it
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def make_schedule(schedule: Any, optimizer: torch.optim.Optimizer, player: str) -> Any:
    """Returns the schedule of a player; None without one.

    Raises:
        ConfigError: if there cannot be one, or it cannot be used.
    """
    if schedule is None:
        return None
    check_schedule(schedule)
    try:
        made = schedule(optimizer)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"the schedule of player '{player}' cannot be made: {error}") from error
    if not all(hasattr(made, name) for name in ("step", "state_dict", "load_state_dict", "optimizer")):
        raise ConfigError(
            "expected a factory of torch learning-rate schedulers,"
            " functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100) say;"
            f" got one that returns a {type(made).__name__}"
        )
    _check_steps_alone(type(made))
    if made.optimizer is not optimizer:
        raise ConfigError(
            f"the schedule of player '{player}' is that of another optimizer: give a function of an optimizer"
        )
    return made


def _check_steps_alone(kind: type) -> None:
    if _needs(kind.step):  # type: ignore[attr-defined]
        raise ConfigError(
            f"{kind.__name__} cannot be used, since its step needs a metric: use a schedule of the step alone,"
            " torch.optim.lr_scheduler.CosineAnnealingLR say"
        )


def saved(optimizer: torch.optim.Optimizer, schedule: Any) -> dict[str, Any]:
    """Returns what optimizer and schedule keep, and of what kind they are."""
    kinds = {"optimizer": type(optimizer).__name__, "schedule": type(schedule).__name__ if schedule else None}
    state = optimizer.state_dict()
    return {
        "optimizer": plain({key: state[key] for key in ("state", "param_groups")}, "the optimizer"),
        "schedule": plain(schedule.state_dict(), "the schedule") if schedule else None,
        "kinds": kinds,
    }


def require_own(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Checks that a state is that of this kind of optimizer and schedule, for these parameters.

    Raises:
        CheckpointError: if not.
    """
    require(state, "the state of a player", optimizer=Mapping, schedule=(Mapping, type(None)))
    require(state["optimizer"], "the state of the optimizer", state=Mapping, param_groups=(list, tuple))
    own = {"optimizer": type(optimizer).__name__, "schedule": type(schedule).__name__ if schedule else None}
    kinds = state.get("kinds", own)  # older states do not say
    require(kinds, "the kinds of a player", optimizer=str, schedule=(str, type(None)))
    if (schedule is None) != (state["schedule"] is None):
        raise _of_another("only one of the two has a schedule")
    for part, kind in own.items():
        if kinds[part] != kind:
            raise _of_another(f"its {part} is {kinds[part]}; expected {kind}")
    if schedule is not None:
        require(state["schedule"], "the state of the schedule", last_epoch=int)
        missing = schedule.state_dict().keys() - state["schedule"].keys()
        if missing:
            raise _of_another(f"its schedule has no '{min(missing)}'")
    _require_groups(state["optimizer"]["param_groups"], optimizer.param_groups)
    _require_moments(state["optimizer"]["state"], optimizer)


def _require_groups(saved_groups: Sequence[Any], groups: Sequence[dict[str, Any]]) -> None:
    if len(saved_groups) != len(groups):
        raise _of_another(f"it has {len(saved_groups)} groups of parameters; expected {len(groups)}")
    for found, own in zip(saved_groups, groups, strict=True):
        require(found, "a group of parameters", params=(list, tuple))
        if len(found["params"]) != len(own["params"]):
            raise _of_another(f"a group has {len(found['params'])} parameters; expected {len(own['params'])}")
        for name in own.keys() - IMPLEMENTATION - {"params"}:
            if name not in found:
                raise _of_another(f"it has no option '{name}'")
            if not _alike(name, own[name], found[name]):
                raise _of_another(f"its option {name} is {found[name]}; expected {own[name]}")


def _alike(name: str, own: Any, found: Any) -> bool:
    """Whether an option may go on with a saved value: numbers differ, what is switched on or off may not."""
    if isinstance(own, bool) or isinstance(found, bool) or own is None or found is None:
        return own is found
    if name == "momentum":
        return isinstance(found, (int, float, Tensor)) and (float(own) == 0) == (float(found) == 0)
    if isinstance(own, (int, float, Tensor)):
        return isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1)
    if isinstance(own, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(own)
    return isinstance(found, type(own))


def _require_moments(moments: Mapping[Any, Any], optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moment in moments.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters):
            raise _of_another(f"it has moments of parameter {index!r}, of {len(parameters)}")
        require(moment, f"the moments of parameter {index}")
        own = {name: _shape(value) for name, value in _moments_of(optimizer, parameters[index]).items()}
        if missing := own.keys() - moment.keys():
            raise _of_another(f"it has no '{min(missing)}' of parameter {index}")
        for name, shape in own.items():
            if _shape(moment[name]) != shape:
                raise _of_another(f"'{name}' of parameter {index} has shape {_shape(moment[name])}; expected {shape}")


def _moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """Returns what an optimizer keeps of a parameter, or would after a step; nothing if it is not known."""
    kind: Any = type(optimizer)
    if parameter in optimizer.state or not kind.__module__.startswith("torch.optim"):
        return dict(optimizer.state.get(parameter, {}))
    taken = inspect.signature(kind).parameters.keys() - IMPLEMENTATION - {"params", "lr"}
    group = next(g for g in optimizer.param_groups if any(own is parameter for own in g["params"]))
    twin = torch.zeros_like(parameter, requires_grad=True)
    twin.grad = torch.zeros_like(parameter)
    tried = kind([twin], lr=float(group["lr"]), **{name: group[name] for name in taken & group.keys()})
    with torch.no_grad():
        tried.step()
    return dict(tried.state[twin])


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else () if isinstance(value, (int, float)) else None


def load(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Restores `saved`, in place; ways to compute a step, which are those of this machine, stay."""
    own = [{name: group[name] for name in ("lr", *IMPLEMENTATION) if name in group} for group in optimizer.param_groups]
    # a copy: the optimizer would go on with the very tensors it is given
    copied = plain(state["optimizer"])
    for group, kept in zip(copied["param_groups"], own, strict=True):
        # by which torch decides where step counters lie
        group.update({name: kept[name] for name in IMPLEMENTATION & kept.keys()})
    optimizer.load_state_dict(copied)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        if "lr" in kept:
            # the tensor that a compiled step and the scheduler hold
            kept["lr"].fill_(float(group["lr"]))
        group.update(kept)
    if schedule:
        milestones = [(part, part.milestones) for part in _parts(schedule) if hasattr(part, "milestones")]
        schedule.load_state_dict(plain(state["schedule"]))
        for part, before in milestones:
            # a plain state knows no Counter
            part.milestones = Counter(part.milestones) if isinstance(before, Counter) else part.milestones


def _parts(schedule: Any) -> list[Any]:
    return [schedule, *(inner for part in getattr(schedule, "_schedulers", ()) for inner in _parts(part))]


def _of_another(reason: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint is of another optimizer: {reason}")


def _class_of(factory: Any) -> Any:
    function = factory.func if isinstance(factory, functools.partial) else factory
    return function if isinstance(function, type) and issubclass(function, torch.optim.Optimizer) else None


def _needs(function: Any) -> bool:
    """Whether a method must be given an argument."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is inspect.Parameter.empty and p.kind not in kinds for p in parameters)


def _is_pyros(given: Any) -> bool:
    """Whether it is one of Pyro's own optimizers or schedulers, which are callable but make nothing."""
    return hasattr(given, "pt_optim_constructor") or hasattr(given, "get_param")
