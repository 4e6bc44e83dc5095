"""Calling a program: a batch's columns become the arguments that its signature names."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import _bound_partial
from torch import nn

from ppgen.errors import ConfigError

Program = Callable[..., Any]
Batch = Any
"""A dict of columns, a dict of such dicts, a tuple of positional arguments, or a `Call`.

A column is a tensor with rows along its first dimension, or one value for all rows: a number, a scalar tensor, None.
"""

_MADE_OF_A_MODEL = (AutoGuide, GuideMessenger, EasyGuide)

logger = logging.getLogger("ppgen")


class Call(NamedTuple):
    """A batch that every program is given as it is, by position and by name: ``program(*args, **kwargs)``."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def unwrapped(program: Program) -> Program:
    """Returns what Pyro's handlers (``poutine.scale(model, 0.5)``, say) are wrapped around."""
    while isinstance(program, _bound_partial):
        inner: Any = program.func
        program = inner.args[1] if isinstance(inner, functools.partial) and len(inner.args) > 1 else inner
    return program


def _parameters(program: Program) -> list[inspect.Parameter]:
    """Returns the parameters of a program; those of the model, of a guide that runs its model."""
    program = unwrapped(program)
    if isinstance(program, _MADE_OF_A_MODEL):
        return _parameters(program.model)
    if isinstance(program, nn.Module) and type(program).forward is not nn.Module.forward:
        program = program.forward
    return list(inspect.signature(program).parameters.values())


def arguments(program: Program, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments that ``program`` takes from ``batch``.

    Columns are matched to parameters by name; a parameter without a column and without a default is given None, so
    that the site it names is latent. A tuple (or list) is passed by position, a `Call` as it is.

    Raises:
        ConfigError: if columns cannot be given to it by name.
    """
    if isinstance(batch, Call):
        return tuple(batch.args), dict(batch.kwargs)
    if not isinstance(batch, Mapping):
        return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}
    parameters = _parameters(program)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    _require_names(parameters)
    given = {p.name: None for p in named if p.default is p.empty}
    taken = batch if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in named}
    return (), given | {name: column for name, column in batch.items() if name in taken}


def _require_names(parameters: list[inspect.Parameter]) -> None:
    kinds = {p.kind for p in parameters}
    nameless = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if kinds == {inspect.Parameter.VAR_POSITIONAL}:
        nameless = [f"*{p.name}" for p in parameters]
    if nameless:
        raise ConfigError(
            f"expected a program that takes columns by name; got one that takes '{nameless[0]}' by position only: name"
            " the columns in its signature, or give batches as tuples"
        )


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
