"""What a critic is shown: draws of the same sites on the data's side and on the model's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.programs import Batch, Site, Sites
from ppgen.randomness import forked

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


def require_single_rows(critic: nn.Module, data: Inputs, model: Inputs, outputs: Callable[..., Tensor]) -> None:
    """Checks that what a critic says of a row does not depend on the rows beside it.

    Args:
        critic: for the message.
        data: rows of the data's side.
        model: rows of the model's side.
        outputs: from rows to ``(rows, 1)``.

    Raises:
        ConfigError: if it does.
    """
    rows = tuple(torch.cat([one, other]).detach().requires_grad_() for one, other in zip(data, model, strict=True))
    with forked():
        found = outputs(*rows)
    # of every other row by the rows between: behind a batch normalisation, the sum of all outputs is a constant
    gradients = torch.autograd.grad(found[::2].sum(), rows, allow_unused=True)
    if not any(gradient[1::2].any() for gradient in gradients if gradient is not None):
        return
    names = dict.fromkeys(type(layer).__name__.lstrip("_") for layer in critic.modules())
    layers = [name for name in names if "batch" in name.lower() and "Virtual" not in name]
    named = f" ({', '.join(layers)})" if layers else ""
    raise ConfigError(
        "expected a critic that judges every row by itself, whose gradient the penalty is on; got one whose output of a"
        f" row depends on other rows{named}: take layer normalisation (critic_normalization=layer) and no minibatch"
        " discrimination, or no penalty"
    )


def judged(critic: nn.Module, inputs: Inputs, outputs: int) -> Tensor:
    """Runs a critic for the first time.

    Raises:
        ConfigError: if it does not take the inputs, or does not give ``(rows, outputs)``.
    """
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
    try:
        found = critic(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if len(inputs[0]) == 1 and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in critic.modules()):
            raise ConfigError(
                "expected two rows or more for the critic's batch normalisation, whose statistics are those of a batch;"
                " got one: take larger batches (batch_size), or layer normalisation"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the critic does not take inputs of shape {shapes}: {reason}") from error
    expected = (len(inputs[0]), outputs)
    if not isinstance(found, Tensor) or found.shape != expected:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"expected a critic that gives {expected} for inputs of shape {shapes}; got {got}")
    return found
