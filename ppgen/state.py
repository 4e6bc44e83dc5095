"""Training state: plain values, which torch loads without unpickling, and whether some value can be one."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError

_PLAIN = (bool, int, float, str)


def plain(value: Any, place: str = "state") -> Any:
    """Returns a copy that holds tensors, numbers, strings, dicts, lists and tuples only.

    Raises:
        ConfigError: if something else is in it, named by its place.

    >>> plain({"betas": (np.float64(0.5), 1), "exp_avg": torch.zeros(1, requires_grad=True)})
    {'betas': (0.5, 1), 'exp_avg': tensor([0.])}
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain(key, place): plain(part, f"{place}.{key}") for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [plain(part, f"{place}.{index}") for index, part in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    for kind in _PLAIN[1:]:
        if isinstance(value, kind):
            return kind(value)
    got = type(value).__name__
    raise ConfigError(f"expected tensors, numbers, text, lists or dicts in {place}, which is saved; got a {got}")


def require_start(leaves: Mapping[str, Tensor]) -> None:
    """Checks that parameters start at numbers; minus infinity, a logit that forbids a category, may be meant.

    Raises:
        ConfigError: if one does not, named.
    """
    for name, leaf in leaves.items():
        if bool((leaf.isnan() | (leaf == torch.inf)).any()):
            start = "NaN" if bool(leaf.isnan().any()) else "infinity"
            raise ConfigError(
                f"the parameter '{name}' starts at {start}: give it a finite start; an autoguide has init_loc_fn for"
                " that (a prior's mean may be infinite: take init_to_median)"
            )


def require(state: Any, place: str = "the state", /, **kinds: Any) -> None:
    """Checks that a state is a mapping with these entries, each of the kind given.

    Raises:
        CheckpointError: if not.

    >>> require({"steps": 3}, steps=int)
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"expected {place} to be a dict as state_dict returns it; got {_shown(state)}")
    for name, kind in kinds.items():
        if name not in state:
            raise CheckpointError(f"expected '{name}' in {place}, as state_dict returns it; got {_shown(state)}")
        wrong = not isinstance(state[name], kind) or (isinstance(state[name], bool) and kind is int)
        if wrong or (kind is int and state[name] < 0):
            raise CheckpointError(f"expected '{name}' of {place} as state_dict returns it; got {_shown(state[name])}")


def require_tensors(state: Any, place: str) -> None:
    """Checks that a state is a mapping of names to tensors.

    Raises:
        CheckpointError: if not.
    """
    require(state, place)
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"expected tensors by name in {place}; got {_shown(tensor)} at {name!r}")


def require_alike(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Checks that saved tensors have the names and shapes of one's own.

    Raises:
        CheckpointError: if not.
    """
    if own.keys() != saved.keys():
        names = ", ".join(sorted(own.keys() ^ saved.keys())[:3])
        raise CheckpointError(f"the checkpoint is of another program: parameters differ ({names})")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise CheckpointError(
                f"the checkpoint is of another program: '{name}' has shape {tuple(saved[name].shape)} there,"
                f" {tuple(tensor.shape)} here"
            )


def require_streams(state: Any) -> None:
    """Checks that a state is one of all random streams, by trying it on streams that nobody uses.

    Raises:
        CheckpointError: if not.
    """
    require(state, "the random streams", torch=Tensor, cuda=(list, tuple), numpy=(list, tuple), python=(list, tuple))
    try:
        torch.Generator().set_state(state["torch"].cpu())
        for stream in state["cuda"] if torch.cuda.is_available() else ():
            torch.Generator("cuda").set_state(stream.cpu())
        np.random.RandomState().set_state(numpy_stream(state["numpy"]))
        random.Random().setstate(python_stream(state["python"]))
    except Exception as error:
        raise CheckpointError(f"expected random streams as state_dict returns them; got others ({error})") from error


def require_decision(state: Any) -> None:
    """Checks that a state is that of a `Stepper`: what was decided, and how often shapes of batches were seen.

    Raises:
        CheckpointError: if not.
    """
    require(state, "the state of compiling", compiled=(bool, type(None)), seen=Mapping)
    for seen in state["seen"].values():
        require(seen, "the shapes of batches")
        require(seen, "the shapes of batches", **dict.fromkeys(seen, int))


def require_chain(state: Any) -> int:
    """Checks that a state is that of a chain of draws, and returns how many there are.

    Raises:
        CheckpointError: if not.
    """
    kinds = {"draws": Mapping, "diverging": Tensor, "acceptance": float, "step_size": float}
    require(state, "a chain", **kinds)
    require_tensors(state["draws"], "the draws of a chain")
    lengths = {len(found) if found.dim() else 0 for found in (*state["draws"].values(), state["diverging"])}
    if len(lengths) > 1 or state.keys() != kinds.keys():
        raise CheckpointError(f"expected a chain as state_dict returns it; got {_shown(state)} of lengths {lengths}")
    return lengths.pop()


def require_whole(state: Any) -> None:
    """Checks that a state has all that a trainer's state has, of any program.

    Raises:
        CheckpointError: if not.
    """
    kinds = {"steps": int, "skipped": int, "stepper": Mapping, "players": Mapping, "random": Mapping}
    require(state, **kinds, average=Mapping, buffers=Mapping, store=Mapping)
    for part in ("average", "buffers", "store"):
        require_tensors(state[part], f"'{part}' of the state")
    require_decision(state["stepper"])
    require_streams(state["random"])


def numpy_stream(state: Any) -> tuple[Any, ...]:
    """Returns the state of NumPy's stream as NumPy takes it, from one with a tensor in the place of the array."""
    name, key, *rest = state
    array = key.cpu().numpy() if isinstance(key, Tensor) else np.asarray(key)
    return (name, array.astype(np.uint32), *rest)


def python_stream(state: Any) -> tuple[Any, ...]:
    """Returns the state of Python's stream as Python takes it: tuples, where a format knew only lists."""
    version, internal, gauss = state
    return version, tuple(internal), gauss


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, list(value)[:8])) or 'nothing'}"
    return "None" if value is None else f"{value!r}"[:40] if type(value) in _PLAIN else f"a {type(value).__name__}"
