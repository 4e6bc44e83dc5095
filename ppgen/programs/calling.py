"""Calling a program: a batch's columns become the arguments that its signature names."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import _bound_partial
from torch import nn

Program = Callable[..., Any]
Batch = Any
"""A dict of columns (tensors or None), a dict of such dicts, or a tuple of positional arguments."""

logger = logging.getLogger("ppgen")


def unwrapped(program: Program) -> Program:
    """Returns what Pyro's handlers (``poutine.scale(model, 0.5)``, say) are wrapped around."""
    while isinstance(program, _bound_partial):
        inner: Any = program.func
        program = inner.args[1] if isinstance(inner, functools.partial) and len(inner.args) > 1 else inner
    return program


def _signature(program: Program) -> inspect.Signature:
    program = unwrapped(program)
    if isinstance(program, AutoGuide):
        return _signature(program.model)
    return inspect.signature(program.forward if isinstance(program, nn.Module) else program)


def arguments(program: Program, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments that ``program`` takes from ``batch``.

    Columns are matched to parameters by name; a parameter without a column and without a default is given None, so
    that the site it names is latent. A tuple (or list) is passed by position.
    """
    if not isinstance(batch, Mapping):
        return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}
    parameters = _signature(program).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return (), dict(batch)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = {p.name: None for p in named if p.default is p.empty}
    return (), missing | {p.name: batch[p.name] for p in named if p.name in batch}


def call(program: Program, batch: Batch) -> Any:
    """Runs ``program`` on the columns of ``batch`` that it asks for."""
    args, kwargs = arguments(program, batch)
    return program(*args, **kwargs)


def report_unused_columns(batch: Batch, *programs: Program) -> None:
    """Logs the columns of ``batch`` that none of ``programs`` asks for."""
    if isinstance(batch, Mapping):
        used = {name for program in programs for name in arguments(program, batch)[1]}
        if unused := sorted(set(batch) - used):
            wanted = ", ".join(sorted(used))
            logger.info("columns %s are used by no program (programs ask for %s)", ", ".join(unused), wanted)
