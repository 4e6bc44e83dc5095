"""What a critic is shown: draws of the same sites on the data's side and on the model's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.programs import Batch, Site, Sites

Draws = dict[str, Tensor]
"""By site, ``(rows, *event)``."""
Inputs = tuple[Tensor, ...]


def values_of(sites: Sites, names: Sequence[str]) -> Draws:
    """Returns the rows of the sites of these names as they were drawn."""
    return {name: programs.rows_of(sites[name]) for name in names}


def shown(value: Tensor, site: Site) -> Tensor:
    """Returns values as a critic takes them: integers of a discrete site as ``(rows, states)`` of 0 and 1."""
    if value.is_floating_point():
        return value
    states = torch.arange(programs.number_of_states(site), device=value.device)
    return (value.unsqueeze(-1) == states).to(torch.get_default_dtype())


def column_of(batch: Batch, name: str) -> Tensor:
    """Returns a column of a batch.

    Raises:
        ConfigError: if there is none.
    """
    column = batch.get(name) if isinstance(batch, dict) else None
    if not isinstance(column, Tensor):
        raise ConfigError(f"expected batches as dicts with a column '{name}', which the critic compares; got none")
    return column


def packed(inputs: Inputs, size: int) -> Inputs:
    """Puts ``size`` rows into one, side by side along their first dimension; rows that fill no pack are left out.

    >>> packed((torch.arange(6.0).reshape(3, 2),), 2)[0].tolist()
    [[0.0, 1.0, 2.0, 3.0]]
    """
    if size == 1:
        return inputs
    return tuple(_packed(value, size) for value in inputs)


def _packed(value: Tensor, size: int) -> Tensor:
    rows = len(value) // size
    value = value[: rows * size]
    first, *rest = value.shape[1:] or (1,)
    return value.reshape(rows, size * first, *rest)


def judged(critic: nn.Module, inputs: Inputs, outputs: int) -> Tensor:
    """Runs a critic for the first time.

    Raises:
        ConfigError: if it does not take the inputs, or does not give ``(rows, outputs)``.
    """
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
    try:
        found = critic(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the critic does not take inputs of shape {shapes}: {reason}") from error
    expected = (len(inputs[0]), outputs)
    if not isinstance(found, Tensor) or found.shape != expected:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"expected a critic that gives {expected} for inputs of shape {shapes}; got {got}")
    return found
