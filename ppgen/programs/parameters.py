"""What a pair of programs trains and keeps: a private parameter store, leaves and buffers."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.programs.calling import Program


def modules_of(program: Any) -> list[nn.Module]:
    """Returns the modules that ``program`` is, wraps or closes over, outermost first."""
    if isinstance(program, nn.Module):
        return [program]
    if isinstance(program, functools.partial):
        reached: Iterable[Any] = (program.func, *program.args, *program.keywords.values())
    elif inspect.ismethod(program):
        reached = (program.__self__, *vars(program.__self__).values())
    elif inspect.isfunction(program):
        closure = inspect.getclosurevars(program)
        reached = (*closure.nonlocals.values(), *closure.globals.values())
        reached = [value for value in reached if isinstance(value, nn.Module)]
    else:
        return []
    return [module for value in reached if value is not program for module in modules_of(value)]


class Store:
    """A private Pyro parameter store for one (model, guide) pair.

    Names that model and guide share stay shared; two pairs share nothing; the global store is left as it was.
    """

    def __init__(self) -> None:
        self._state: dict[str, dict[str, Any]] = {"params": {}, "constraints": {}}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes this the store that ``pyro.param`` reads and writes."""
        with pyro.get_param_store().scope(self._state):
            yield

    def unconstrained(self) -> dict[str, Tensor]:
        """Returns the tensors that are optimised, by name."""
        return dict(self._state["params"])

    def add(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Adds or replaces unconstrained tensors by name."""
        for name, tensor in tensors.items():
            self._state["params"][name] = tensor.to(device).requires_grad_()
            self._state["constraints"].setdefault(name, constraints.real)

    def read(self) -> ParamStoreDict:
        """Returns the store as Pyro shows it: constrained values by name."""
        store = ParamStoreDict()
        store.set_state(self._state)
        return store


def leaves(model: Program, guide: Program) -> dict[str, Tensor]:
    """Returns every trainable tensor of a pair that has run in the active store, by a stable name.

    Constrained parameters appear as the unconstrained tensors that are optimised.
    """
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    candidates = [
        (f"{role}.{name}", tensor)
        for role, program in (("model", model), ("guide", guide))
        if isinstance(program, nn.Module)
        for name, tensor in program.named_parameters()
    ] + [(f"store.{name}", tensor) for name, tensor in pyro.get_param_store().named_parameters()]
    for name, tensor in candidates:
        if tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def buffers(programs: Mapping[str, Program]) -> dict[str, Tensor]:
    """Returns what programs keep besides trainable leaves: buffers and frozen parameters, by a stable name."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for role, program in programs.items():
        for index, module in enumerate(modules_of(program)):
            prefix = role if module is program else f"{role}.{index}"
            frozen = ((name, tensor) for name, tensor in module.named_parameters() if not tensor.requires_grad)
            for name, tensor in (*module.named_buffers(), *frozen):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[f"{prefix}.{name}"] = tensor
    return named


def set_training(programs: Iterable[Program], *, training: bool) -> None:
    """Switches every module of the programs to training or evaluation mode."""
    for program in programs:
        for module in modules_of(program):
            module.train(training)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switches off Pyro's run-time checks, which read values back to the host."""
    with pyro.validation_enabled(False):
        yield


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Switches on Pyro's run-time checks, without recording gradients."""
    with pyro.validation_enabled(True), torch.no_grad():
        yield


@contextlib.contextmanager
def without_nan_warnings(elbo: Any) -> Iterator[None]:
    """Stops one of Pyro's ELBOs from reading its loss back to the host to warn if it is nan; the trainer looks."""
    with contextlib.ExitStack() as stack:
        for kind in type(elbo).__mro__:
            module = sys.modules[kind.__module__]
            if hasattr(module, "warn_if_nan"):
                stack.enter_context(mock.patch.object(module, "warn_if_nan"))
        yield
