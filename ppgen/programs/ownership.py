"""Whose parameters are whose, for objectives that train model and guide by losses of their own."""

import pyro
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.parameters import leaves, module_of
from ppgen.programs.tracing import aside, traced


def separate_leaves(model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Returns the trainable tensors of the model, "model", and of the guide, "guide", by name.

    The pair has run in the active store, so that all of them exist.

    Raises:
        ConfigError: if model and guide share one.
    """
    named = leaves(model, guide)
    used = {"model": _used(model, batch), "guide": _used(guide, batch)}
    if shared := [name for name, leaf in named.items() if all(id(leaf) in ids for ids in used.values())]:
        raise ConfigError(
            f"parameter '{shared[0]}' is used by the model and by the guide, which are trained by different losses:"
            " give each a parameter of its own"
        )
    return {role: {name: leaf for name, leaf in named.items() if id(leaf) in ids} for role, ids in used.items()}


def trained_leaves(model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Returns `separate_leaves` without the one of the two that has none.

    Raises:
        ConfigError: if neither has one, or both have the same.
    """
    found = {role: named for role, named in separate_leaves(model, guide, batch).items() if named}
    if not found:
        raise ConfigError("expected parameters to train; got a model and a guide without any")
    return found


def _used(program: Program, batch: Batch) -> set[int]:
    """Returns the identities of the tensors of a program's module, and of those it asks the active store for."""
    module = module_of(program)
    found = {id(parameter) for parameter in module.parameters()} if module is not None else set()
    args, kwargs = arguments(program, batch)
    with aside():
        trace = traced(program, args, kwargs, param_only=True)
    asked = {name for name, site in trace.nodes.items() if site["type"] == "param"}
    return found | {id(leaf) for name, leaf in pyro.get_param_store().named_parameters() if name in asked}
