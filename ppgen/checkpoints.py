"""The files of one checkpoint: `state.safetensors` (tensors) and `state.json` (values, checksums, format version)."""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pydantic
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError
from ppgen.files import TEMPORARY, discard, read_bytes, read_start, reason, sync_folder, write_new

FORMAT = 1
"""Version of the checkpoint layout that this release writes; newer ones are refused."""

STEP_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
"""What the folder of a checkpoint is called."""

REPLACED = f"{TEMPORARY}replaced-"
"""Begins the name of a checkpoint moved aside while its successor takes its name."""

_TENSORS, _STATE = "state.safetensors", "state.json"
LARGEST_STATE = 64 * 2**20
"""Bytes of a state.json; those of the largest recipes have some 100,000."""
LARGEST_HEADER = 16 * 2**20
"""Bytes of what the file of tensors says of them: names and places."""


class _Body(pydantic.BaseModel):
    """What state.json holds besides its digest."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    format: int
    step: int = pydantic.Field(ge=0)
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    meta: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read back: CPU tensors, JSON values, and a sentence on each newer checkpoint passed over."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    skipped: tuple[str, ...] = ()


def step_name(step: int) -> str:
    """Name of the folder of checkpoint `step`.

    >>> step_name(100)
    'step-00000100'
    """
    return f"step-{step:08d}"


def encode_checkpoint(step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint by name.

    Raises:
        ConfigError: a value that the files cannot hold.
    """
    blob = _serialize(tensors)
    body = {"format": FORMAT, "step": step, "sha256": _sha256(blob), "meta": dict(meta)}
    if json.loads(to_json(body)) != body:
        raise ConfigError("expected meta of plain JSON values; got tuples or keys that are not text: use pack")
    return {_TENSORS: blob, _STATE: _with_digest(body)}


def write_checkpoint(target: Path, files: Mapping[str, bytes]) -> None:
    """Makes the folder `target`, whole or not at all; one of that name is replaced.

    Raises:
        OSError: the disk refuses; what was there before still is.
    """
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        os.mkdir(temporary)
        for name, content in files.items():
            write_new(temporary / name, content)
        sync_folder(temporary)
        _publish(temporary, target)
    except BaseException:
        discard(temporary)
        raise


def holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether the folder has exactly these contents."""
    try:
        return not folder.is_symlink() and all(read_bytes(folder / name) == data for name, data in files.items())
    except OSError:
        return False


def read_checkpoint(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of the checkpoint in `folder`.

    Raises:
        OSError, ValueError: it is missing, damaged or malformed.
        CheckpointError: it was written by a newer release.
    """
    if folder.is_symlink():
        raise ValueError("it is a symbolic link")
    body = _read_state(folder / _STATE)
    if body.step != step:
        raise ValueError(f"{_STATE} is of step {body.step}")
    _check_header(folder / _TENSORS)
    blob = read_bytes(folder / _TENSORS)
    if not _same(_sha256(blob), body.sha256):
        raise ValueError(f"{_TENSORS} does not match its checksum")
    try:
        return safetensors.torch.load(blob), body.meta
    except Exception as error:  # a crafted header raises KeyError, TypeError, RuntimeError and more
        raise ValueError(f"{_TENSORS} is malformed: {reason(error)}") from error


def to_json(value: Any) -> str:
    """One line of strict JSON.

    Raises:
        ConfigError: a value that is no JSON, or a number that is not finite.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"expected plain JSON values with finite numbers; got {reason(error)}") from error


def parse_object(raw: bytes) -> dict[str, Any]:
    """Reads what `to_json` wrote of a mapping.

    Raises:
        ValueError, RecursionError: it is no strict JSON, or no object.
    """
    value = json.loads(raw.decode("ascii"), parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _publish(temporary: Path, target: Path) -> None:
    aside = target.with_name(REPLACED + target.name)
    replaces = os.path.lexists(target)
    if replaces:
        discard(aside)
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if replaces:
            with contextlib.suppress(OSError):
                os.rename(aside, target)
        raise
    sync_folder(target.parent)
    if replaces:
        discard(aside)


def _serialize(tensors: Mapping[str, Tensor]) -> bytes:
    if "__metadata__" in tensors:
        raise ConfigError("expected a tensor name other than '__metadata__', which safetensors reserves")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ConfigError(f"expected dense tensors; got {tensor.layout} on {tensor.device} for {name!r}")
    try:
        # Copies, since safetensors refuses shared storage and strides.
        copies = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        return safetensors.torch.save(copies)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"expected names and dtypes that safetensors can hold; got {reason(error)}") from error


def _with_digest(body: dict[str, Any]) -> bytes:
    """The one spelling of state.json, in every format: the body, then a digest of the body."""
    return to_json({**body, "digest": _sha256(to_json(body).encode())}).encode()


def _check_header(path: Path) -> None:
    """Refuses a header of a size that no checkpoint has before anything of it is read."""
    size = int.from_bytes(read_start(path, 8), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"{_TENSORS} has a header of {size:,} bytes; at most {LARGEST_HEADER:,} are expected")


def _read_state(path: Path) -> _Body:
    raw = read_bytes(path, most=LARGEST_STATE)
    body = parse_object(raw)
    body.pop("digest", None)
    if not _same(raw, _with_digest(body)):
        raise ValueError(f"{_STATE} does not match its checksum")
    version = body.get("format")
    if type(version) is not int or version < 1:
        raise ValueError(f"{_STATE} has no format version")
    if version > FORMAT:
        message = f"expected a checkpoint of format {FORMAT} or older; got format {version} in {path.parent}"
        raise CheckpointError(f"{message}: install a newer ppgen")
    try:
        return _Body(**body)
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"]))[:100]
        raise ValueError(f"{_STATE}: '{place}': {found['msg'].lower()}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _same(actual: object, recorded: object) -> bool:
    return actual == recorded


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
