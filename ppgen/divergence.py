"""A step that raised or whose loss is not finite: whether it is a divergence, and where it began."""

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen import compilation, players
from ppgen.errors import ConfigError, PpgenError
from ppgen.players import Gradients, Player
from ppgen.programs import Program, buffers, modules_of

Losses = Callable[[], tuple[Mapping[str, Tensor], Gradients]]

LINEAR_ALGEBRA: type[Exception] = getattr(torch.linalg, "LinAlgError")  # noqa: B009


class _Lenient(TorchDispatchMode):
    """Within it, a factorization that fails gives NaN instead of an error.

    Attributes:
        made_nan: whether an operation made NaN of numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made_nan = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._linalg_check_errors.default:
            return None
        found = func(*args, **(kwargs or {}))
        outputs = [part for part in (found if isinstance(found, (tuple, list)) else [found]) if _is_float(part)]
        if func._schema.name.endswith("_ex") and bool((found[-1] != 0).any()):
            for part in outputs:
                part.fill_(torch.nan)
        if not self.made_nan and "empty" not in func._schema.name and _has_nan(outputs):
            given = [part for part in pytree.tree_leaves((args, kwargs)) if _is_float(part)]
            # one that is written over may hold it only now
            own = {id(part) for part in outputs}
            self.made_nan = bool(given) and not _has_nan([part for part in given if id(part) not in own])
        return found


def _is_float(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def _has_nan(tensors: list[Tensor]) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in tensors)


@contextlib.contextmanager
def lenient() -> Iterator[_Lenient]:
    """Within it, neither a distribution nor a factorization raises for a value that is not what it should be.

    What would have raised becomes NaN, as it is where nothing is checked, so that a look finds its site.
    """
    original = Distribution.__init__

    @functools.wraps(original)
    def unchecked(self: Any, batch_shape: Any = (), event_shape: Any = (), validate_args: Any = None) -> None:
        original(self, torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    with mock.patch.object(Distribution, "__init__", unchecked), _Lenient() as mode:
        yield mode


def is_divergence(error: Exception, losses: Losses, own: Mapping[str, Player]) -> bool:
    """Whether what a step raised comes of numbers that grew too large, and not of a mistake in a program.

    It does if linear algebra raised it, if a parameter is not finite, or if the same step run without checks ends in a
    loss or gradient that is not finite.

    Args:
        error: what was raised.
        losses: runs the step once more from where it began, without moving anything.
        own: the players.
    """
    if isinstance(error, (PpgenError, torch.OutOfMemoryError)):
        return False
    if isinstance(error, LINEAR_ALGEBRA) or nonfinite_leaf(own) is not None:
        return True
    with lenient() as mode:
        try:
            found, gradients = losses()
        except Exception:
            return mode.made_nan
        norms = [own[player].norm(part) for player, part in gradients.items()]
        return not all(bool(tensor.isfinite().all()) for tensor in (*found.values(), *norms))


def place_of(
    error: Exception | None,
    losses: Losses,
    explain: Callable[[], str | None],
    own: Mapping[str, Player],
    *,
    rewind: Callable[[], None],
) -> str:
    """Says where a step that is not finite stopped being so, in one line.

    Args:
        error: what it raised, if it did.
        losses: runs the step once more from where it began, without moving anything.
        explain: names the site, as `Objective.explain` does.
        own: the players.
        rewind: restores the random streams to where the step began.
    """
    place = _place(losses, explain, own, rewind)
    if error is None:
        return place
    return f"{place} ({said(error)})"


def said(error: Exception) -> str:
    """Returns what an exception says, in one line."""
    first = (str(error).strip() or "no message").splitlines()[0].rstrip(".:")
    return f"{type(error).__name__.lstrip('_')}: {first}"


def _place(
    losses: Losses, explain: Callable[[], str | None], own: Mapping[str, Player], rewind: Callable[[], None]
) -> str:
    with lenient():
        try:
            if place := explain():
                return place
            rewind()
            return players.first_nonfinite(own, *losses())
        except Exception:
            leaf = nonfinite_leaf(own)
            return f"the parameter '{leaf}' is not finite" if leaf else "a value that is not finite"


def nonfinite_leaf(own: Mapping[str, Player]) -> str | None:
    """Returns the name of a parameter that is not finite; None if all are."""
    leaves = ((name, leaf) for player in own.values() for name, leaf in player.leaves.items())
    return next((name for name, leaf in leaves if not leaf.isfinite().all()), None)


def refuse_one_row(error: Exception, parts: Mapping[str, Program]) -> None:
    """Says so if what was raised is batch normalisation that was given one row.

    Raises:
        ConfigError: if it is.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, given = frame.f_locals.get("self"), frame.f_locals.get("input")
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not isinstance(given, Tensor):
            continue
        if module.training and given.dim() > 1 and given.numel() == given.shape[1]:
            raise ConfigError(
                f"batch normalisation ('{name_of(module, parts)}') needs two rows or more to take statistics of;"
                " got 1: leave a last batch of one row out (drop_last=True), take larger batches, or use layer"
                " normalisation (nn.LayerNorm)"
            ) from error


@contextlib.contextmanager
def tried(parts: Mapping[str, Program]) -> Iterator[None]:
    """Within it, a pair is run for once: statistics of its batches do not count.

    Raises:
        ConfigError: if batch normalisation is given one row.
    """
    kept = list(buffers(parts).values())
    saved = [tensor.clone() for tensor in kept]
    try:
        yield
    except ValueError as error:
        refuse_one_row(error, parts)
        raise
    finally:
        compilation.restore(kept, saved)


@contextlib.contextmanager
def restored_on_failure(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> Iterator[None]:
    """If what is within it raises, ``tensors`` get the values of ``saved``."""
    try:
        yield
    except Exception:
        compilation.restore([*tensors.values()], [*saved.values()])
        raise


def name_of(module: nn.Module, parts: Mapping[str, Program]) -> str:
    """Returns what a module is called within a pair and its objective."""
    for role, program in parts.items():
        for outer in modules_of(program):
            for name, inner in outer.named_modules():
                if inner is module:
                    return f"{role}.{name}" if name else role
    return type(module).__name__
