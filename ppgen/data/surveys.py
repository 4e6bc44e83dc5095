"""What a file too large for memory holds: read through once, remembered for as long as the file stays as it is."""

import dataclasses
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.checking import Array, blocks, check_finite, extent, fits_float32, reading
from ppgen.files import replace_file

LARGE = 2**30
"""From how many bytes on it is said that a file is being read."""
_RACE = 2.0  # seconds in which a file may change twice without another time of change

logger = logging.getLogger("ppgen")


@dataclasses.dataclass(frozen=True)
class Survey:
    """What reading a whole array has shown.

    Attributes:
        low: The lowest value.
        high: The highest value.
        digest: SHA-256, in hex, over dtype, shape and bytes.
        stamp: The file's size, times of change and number on its disk when it was read.
    """

    low: float
    high: float
    digest: str
    stamp: tuple[int, ...]


def stamp(path: Path) -> tuple[int, ...]:
    """Returns what changes whenever a file's content does, without reading it."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def survey(path: Path, array: Array) -> Survey:
    """Read an array through, 64 MB at a time, unless the file is as it was when that was last done.

    Args:
        path: The file, for messages and for remembering.
        array: Its rows (n, ...), memory-mapped.

    Raises:
        DataError: naming row and position of the first number that does not fit float32.
    """
    with reading(path):
        before = stamp(path)
        kind = f"{array.dtype.str} {array.shape}"
        known = _remembered(path, before, kind)
        if known is not None:
            return known
        found = _read(path, array, before, kind)
        if array.dtype.kind == "f" and not fits_float32(found.low, found.high):
            check_finite(array, "x", str(path))  # the place of a fault is looked for only where there is one
        _remember(path, found, kind)
    return found


def _read(path: Path, array: Array, before: tuple[int, ...], kind: str) -> Survey:
    digest = hashlib.sha256(f"{kind}\n".encode())
    extents = []
    report = _Progress(path, array.nbytes)
    for _, block in blocks(array):
        digest.update(np.ascontiguousarray(block).data)
        extents.append(extent(block))
        report(block.nbytes)
    low, high = np.min([low for low, _ in extents]), np.max([high for _, high in extents])
    return Survey(float(low), float(high), digest.hexdigest(), before)


class _Progress:
    """Says how much of a large file has been read, every ten seconds."""

    def __init__(self, path: Path, total: int) -> None:
        self._path, self._total, self._done, self._last = path, total, 0, time.monotonic()
        if total >= LARGE:
            logger.info("%s: reading %.1f GB once, to check and to know it again", path, total / 1e9)

    def __call__(self, count: int) -> None:
        self._done += count
        if self._total >= LARGE and time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            logger.info("%s: %d %% read", self._path, 100 * self._done // self._total)


def _memory_of(path: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return folder / "ppgen" / "surveys" / f"{name}.json"


def _remembered(path: Path, now: tuple[int, ...], kind: str) -> Survey | None:
    try:
        noted: dict[str, Any] = json.loads(_memory_of(path).read_text())
        if noted["stamp"] != list(now) or noted["kind"] != kind:
            return None
        return Survey(float(noted["low"]), float(noted["high"]), str(noted["digest"]), now)
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not one of ours: read the file again
        return None


def _remember(path: Path, found: Survey, kind: str) -> None:
    if time.time() - max(found.stamp[1], found.stamp[2]) / 1e9 < _RACE or stamp(path) != found.stamp:
        return
    memory = _memory_of(path)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_file(memory, json.dumps(dataclasses.asdict(found) | {"kind": kind}).encode())
    except OSError as error:  # a home that is read-only or full only costs time
        logger.debug("%s: what was found is not remembered (%s)", path, error)
