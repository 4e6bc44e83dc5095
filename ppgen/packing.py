"""Nested training state as flat tensors and JSON values, and back: what a checkpoint can hold without pickle."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError
from ppgen.files import reason

_MAX_DEPTH = 100


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Splits nested training state into tensors by name and JSON values; `unpack` is the inverse.

    Holds mappings (which come back as dicts) with text or integer keys, lists, tuples, tensors, NumPy arrays and
    scalars, None, bool, int, float (infinities and NaN too) and str. Tensors are shared, not copied.

    Raises:
        ConfigError: anything else, named by its place.

    >>> tensors, rest = pack({"state": {0: {"exp_avg": torch.zeros(2)}}, "lr": float("inf")})
    >>> tensors
    {'state/0/exp_avg': tensor([0., 0.])}
    >>> unpack(tensors, rest)
    {'state': {0: {'exp_avg': tensor([0., 0.])}}, 'lr': inf}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, (), tensors)


def unpack(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Rebuilds what `pack` split.

    Raises:
        CheckpointError: the two do not belong together, or `pack` did not make them.
    """
    try:
        return _unpack(rest, tensors, 0)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"expected state written by pack; got a damaged one: {reason(error)}") from error


def _pack(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if len(path) >= _MAX_DEPTH:
        raise ConfigError(f"expected state at most {_MAX_DEPTH} levels deep; got more at {'/'.join(path[:8])}/...")
    if isinstance(value, Tensor | np.generic) or kind is np.ndarray:
        return _pack_tensor(value, path, tensors)
    if isinstance(value, Mapping):
        return {"dict": [[_key(key, path), _pack(item, (*path, str(key)), tensors)] for key, item in value.items()]}
    if kind in (list, tuple):
        items = [_pack(item, (*path, str(index)), tensors) for index, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    return _refuse_value(path, kind.__qualname__)


def _pack_tensor(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, str]:
    if isinstance(value, Tensor):
        kind, tensor = "tensor", value.detach()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            _refuse_value(path, f"a tensor that is sparse, quantized or without values ({tensor.layout})")
    else:
        kind = "scalar" if isinstance(value, np.generic) else "array"
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))
        except (TypeError, ValueError):
            _refuse_value(path, f"a NumPy {kind} of {value.dtype}")
    name = "/".join(path)
    while name in tensors or name == "__metadata__":  # {"a/b": x, "a": {"b": y}}; safetensors reserves the other
        name += "'"
    tensors[name] = tensor
    return {kind: name}


def _key(key: Any, path: tuple[str, ...]) -> str | int:
    if type(key) is str or type(key) is int:
        return key
    return _refuse_value(path, f"the key {key!r}", "keys that are text or integers")


def _refuse_value(
    path: tuple[str, ...], got: str, expected: str = "tensors, numbers, text, lists or dicts"
) -> NoReturn:
    raise ConfigError(f"expected {expected} in the state at {'/'.join(path) or 'its root'}; got {got}")


def _unpack(node: Any, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if not isinstance(node, list | dict):
        return node
    if depth >= _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels deep")
    if isinstance(node, list):
        return [_unpack(item, tensors, depth + 1) for item in node]
    ((kind, content),) = node.items()
    match kind:
        case "dict":
            return {key: _unpack(item, tensors, depth + 1) for key, item in content}
        case "tuple":
            return tuple(_unpack(item, tensors, depth + 1) for item in content)
        case "float":
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
        case "tensor":
            return tensors[content]
        case "array":
            return tensors[content].numpy()
        case "scalar":
            return tensors[content].numpy()[()]
    raise ValueError(f"unknown kind {kind!r}")
