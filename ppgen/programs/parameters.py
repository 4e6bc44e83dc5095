"""What a pair of programs trains and keeps: a private parameter store, leaves and buffers."""

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.errors import ConfigError
from ppgen.programs.calling import Program, unwrapped

logger = logging.getLogger("ppgen")


def modules_of(program: Any) -> list[nn.Module]:
    """Returns the modules that ``program`` is, wraps or closes over, outermost first, each once."""
    found: list[nn.Module] = []
    waiting, seen = [program], {id(program)}
    while waiting:
        part = unwrapped(waiting.pop(0))
        if isinstance(part, nn.Module):
            found.append(part)
            continue
        for value in _reached(part):
            if id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
    return list(dict.fromkeys(found))


def _reached(part: Any) -> Iterable[Any]:
    if isinstance(part, functools.partial):
        return (part.func, *part.args, *part.keywords.values())
    if inspect.ismethod(part):
        return (part.__self__, *vars(part.__self__).values())
    if inspect.isfunction(part):
        # of what a function reaches by name, helpers beside it count too, but not the libraries that it calls
        closure = inspect.getclosurevars(part)
        helpers = [v for v in closure.globals.values() if getattr(v, "__module__", None) == part.__module__]
        modules = [v for v in closure.globals.values() if isinstance(v, nn.Module)]
        return (*closure.nonlocals.values(), *modules, *(v for v in helpers if inspect.isfunction(v)))
    return ()


def module_of(program: Any) -> nn.Module | None:
    """Returns the module that ``program`` is, or that a handler, a partial call or a bound method wraps."""
    program = unwrapped(program)
    while isinstance(program, functools.partial) or inspect.ismethod(program):
        inner: Any = program.__self__ if inspect.ismethod(program) else program.func
        program = unwrapped(inner)
    return program if isinstance(program, nn.Module) else None


class Store:
    """A private Pyro parameter store for one (model, guide) pair.

    Names that model and guide share stay shared; two pairs share nothing; the global store is left as it was.
    """

    def __init__(self) -> None:
        self._state: dict[str, dict[str, Any]] = {"params": {}, "constraints": {}}
        self._settled: set[str] | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes this the store that ``pyro.param`` reads and writes."""
        with pyro.get_param_store().scope(self._state):
            yield

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Forgets at its end what was put into this store within it."""
        before = self.content()
        try:
            yield
        finally:
            self.put_back(before)

    def content(self) -> dict[str, dict[str, Any]]:
        """Returns which tensors are in it now."""
        return {kind: dict(named) for kind, named in self._state.items()}

    def put_back(self, content: Mapping[str, dict[str, Any]]) -> None:
        """Restores `content`."""
        self._state.update({kind: dict(named) for kind, named in content.items()})

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """`active`, at whose end all parameters exist, so that what optimises them can be made."""
        with self.active():
            yield
        self._settled = set(self._state["params"])

    def require_settled(self) -> None:
        """Checks, within `active`, that no parameter was made since: nothing would train it.

        Raises:
            ConfigError: if one was.
        """
        names = pyro.get_param_store().keys()
        if self._settled is None or len(names) == len(self._settled):
            return
        # those of a module are its own, whenever it is registered, and Pyro's ELBOs keep running averages here
        self._settled |= {name for name in names if "$$$" in name or name.startswith("__")}
        if late := min(names - self._settled, default=None):
            raise ConfigError(
                f"parameter '{late}' is made in some runs only, when the optimizer has been made: nothing would train"
                " it. Call pyro.param for it in every run, before the branch that needs it"
            )

    def unconstrained(self) -> dict[str, Tensor]:
        """Returns the tensors that are optimised, by name."""
        return dict(self._state["params"])

    def add(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Adds or replaces unconstrained tensors by name."""
        for name, tensor in tensors.items():
            self._state["params"][name] = tensor.to(device).requires_grad_()
            if self._settled is not None:
                self._settled.add(name)
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
        if (module := module_of(program)) is not None
        for name, tensor in module.named_parameters()
    ] + [(f"store.{name}", tensor) for name, tensor in pyro.get_param_store().named_parameters()]
    for name, tensor in candidates:
        if tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def registered(program: Program, role: str) -> Program:
    """Returns the program with the parameters of the module that it is as Pyro's parameter sites.

    Pyro's estimators take no gradients of a program without such sites.
    """
    module = module_of(program)
    if module is None or isinstance(module, PyroModule):
        return program

    def run(*args: Any, **kwargs: Any) -> Any:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                pyro.param(f"{role}$$${name}", parameter)
        return program(*args, **kwargs)

    return run


def report_untrained_modules(trained: Iterable[Tensor], *programs: Program) -> None:
    """Warns of modules that a program reaches but whose parameters are not among those that are trained."""
    known = {id(tensor) for tensor in trained}
    for module in dict.fromkeys(module for program in programs for module in modules_of(program)):
        if any(parameter.requires_grad and id(parameter) not in known for parameter in module.parameters()):
            kind = type(module).__name__
            logger.warning("a %s that a program uses is not trained: register it there with pyro.module", kind)


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


@contextlib.contextmanager
def evaluation_mode(*programs: Program) -> Iterator[None]:
    """Switches every module of the programs to evaluation mode, and each back to its own mode at the end."""
    modules = [part for program in programs for module in modules_of(program) for part in module.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switches off Pyro's run-time checks, which read values back to the host.

    Those of distributions that were made before, such as the priors of a ``PyroModule``, are switched off with them.
    """
    unchecked = mock.patch.object(torch.distributions.Distribution, "_validate_sample", _accept)
    with pyro.validation_enabled(False), unchecked:
        yield


def _accept(distribution: Any, value: Any) -> None:
    """Stands for a check of a value, and does nothing."""


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Switches on Pyro's run-time checks, without recording gradients."""
    with pyro.validation_enabled(True), torch.no_grad():
        yield


@contextlib.contextmanager
def without_host_reads(elbo: Any) -> Iterator[None]:
    """Stops one of Pyro's ELBOs from reading its loss back to the host, as it does to warn if it is nan."""
    with contextlib.ExitStack() as stack:
        for kind in type(elbo).__mro__:
            module = sys.modules[kind.__module__]
            if hasattr(module, "warn_if_nan"):
                stack.enter_context(mock.patch.object(module, "warn_if_nan"))
            if hasattr(module, "torch_item"):
                stack.enter_context(mock.patch.object(module, "torch_item", _detached))
        yield


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
