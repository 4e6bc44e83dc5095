"""Checks of raw arrays, independent of Pyro's validation and of `python -O`."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppgen.errors import DataError, PpgenError

Array = NDArray[Any]
_LARGEST = np.finfo(np.float32).max
_BLOCK = 2**26  # bytes
_LARGEST_INTEGER = 2**53
_CHANNELS = (1, 3, 4)
"""Of grey images, colours, and colours with transparency."""


@dataclasses.dataclass(frozen=True)
class Raw:
    """What a reader hands over.

    Attributes:
        where: The file or data set, for messages.
        splits: Arrays (n, ...) by split and column; "train" always, others where the source has its own.
        classes: Names of the classes if the reader knows them.
        notes: What the reader did, in words.
        holdouts: Rows to take from train, by split, stratified; used by data sets with a known protocol.
        mapped: The memory-mapped file that `x` of train lies in; its numbers are checked later, as it is first read.
        most: The most rows that are split off for validation and for test; None: any number.
        no_labels: Why `y`, though it is there, holds no labels.
        channels_first: Whether images are known to be (n, channels, height, width); else their shape has to tell.
    """

    where: str
    splits: Mapping[str, Mapping[str, Array]]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    holdouts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    mapped: Path | None = None
    most: int | None = None
    no_labels: str = ""
    channels_first: bool = False


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one line that names the file.

    Raises:
        DataError: instead of any error that is not ppgen's own.
    """
    try:
        yield
    except PpgenError:
        raise
    except Exception as error:  # decoders of foreign formats raise anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{where}: could not be read ({reason}): truncated, damaged or of another kind?") from error


def require_memory(needed: int, max_bytes: int | None, where: str | Path) -> None:
    """Refuse what does not fit before it is read.

    Args:
        needed: Bytes that the arrays take once read.
        max_bytes: The most that is accepted; None: half the available memory.
        where: The file, for the message.

    Raises:
        DataError: if `needed` is more.
    """
    if needed > memory_limit(max_bytes):
        limit = memory_limit(max_bytes)
        raise DataError(f"{where}: expected at most {limit:,} bytes once unpacked; got {needed:,}: use a smaller file")


def memory_limit(max_bytes: int | None = None) -> int:
    """How many bytes data may take: `max_bytes`, or half of what is available now."""
    return _available_memory() // 2 if max_bytes is None else max_bytes


def _available_memory() -> int:
    amounts = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo, control_group = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        amounts += [int(fields[key].split()[0]) * 1024 for key in ("MemAvailable",) if key in fields]
    if control_group.is_file():
        amounts += [int(text) for text in [control_group.read_text().strip()] if text.isdigit()]
    return min(amounts)


def checked(raw: Raw) -> Raw:
    """Check all arrays, bring labels to int64 and images to (n, channels, height, width).

    A `y` that holds no labels is a column like others.

    Raises:
        DataError: naming column, row and position of the first fault.
    """
    for split, columns in raw.splits.items():
        for name, array in columns.items():
            _check_array(array, name, _key(name, split), raw.where)
            if array.dtype.kind == "f" and name != "y" and raw.mapped is None:
                check_finite(array, _key(name, split), raw.where)
        _check_lengths(columns, split, raw.where)
    _check_alike(raw)
    return _with_layout(_with_labels(raw))


def _key(name: str, split: str) -> str:
    return name if split == "train" else f"{name}_{split}"


def _check_array(array: Array, name: str, key: str, where: str) -> None:
    image = name == "x"
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: expected numbers in {key}; got dtype {array.dtype}")
    if array.ndim == 0 or (image and not 2 <= array.ndim <= 4):
        wanted = "shape (n, d), (n, h, w) or (n, c, h, w)" if image else "one entry for each row"
        raise DataError(f"{where}: expected {key} of {wanted}; got shape {array.shape}")
    if array.size == 0:
        raise DataError(f"{where}: expected rows in {key}; got an empty array of shape {array.shape}")


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Yields consecutive rows, 64 MB of them at a time, with the number of the first: what is mapped stays on disk."""
    rows = max(1, _BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def extent(array: Array) -> tuple[Any, Any]:
    """Returns the lowest and the highest value, nan if there is one."""
    with np.errstate(invalid="ignore"):
        return array.min(), array.max()


def fits_float32(low: Any, high: Any) -> bool:
    """Whether numbers from `low` to `high` are finite as float32; false for nan."""
    return float(low) >= -float(_LARGEST) and float(high) <= float(_LARGEST)


def check_finite(array: Array, key: str, where: str) -> None:
    """Check that all numbers fit float32.

    Raises:
        DataError: naming the first that does not, and how many there are.
    """
    first, count = None, 0
    for start, block in blocks(array):
        if fits_float32(*extent(block)):
            continue
        bad = ~(np.abs(block) <= _LARGEST)
        count += int(bad.sum())
        if first is None:
            row, *position = (int(i) for i in np.unravel_index(int(np.argmax(bad)), block.shape))
            first = (start + row, *position)
    if first is not None:
        raise DataError(
            f"{where}: expected finite numbers in {key} that fit float32; got {array[first]} at {_place(first)} "
            f"({count} such values)"
        )


def _place(index: tuple[int, ...]) -> str:
    row, *position = index
    if len(position) == 1:
        return f"row {row}, column {position[0]} (counted from 0)"
    return f"row {row}, position {tuple(position)} (counted from 0)" if position else f"row {row} (counted from 0)"


def _check_lengths(columns: Mapping[str, Array], split: str, where: str) -> None:
    rows = len(columns["x"])
    for name, array in columns.items():
        if len(array) != rows:
            x, other = _key("x", split), _key(name, split)
            raise DataError(f"{where}: expected columns of one length; got {x}: {rows}, {other}: {len(array)}")


def _check_alike(raw: Raw) -> None:
    """Every split needs the columns of train, with the same shapes, and `x` of the same dtype."""
    train = raw.splits["train"]
    for split, columns in raw.splits.items():
        for name in sorted(set(train) ^ set(columns)):
            present, absent = (name, _key(name, split)) if name in train else (_key(name, split), name)
            raise DataError(f"{raw.where}: expected the same columns in every split; got {present} without {absent}")
        for name, array in columns.items():
            if array.shape[1:] != train[name].shape[1:]:
                found = f"{name}: {train[name].shape[1:]}, {_key(name, split)}: {array.shape[1:]}"
                raise DataError(f"{raw.where}: expected rows of one shape; got {found}")
            if array.dtype != train[name].dtype and name == "x":
                found = f"x: {train[name].dtype}, {_key(name, split)}: {array.dtype}"
                raise DataError(f"{raw.where}: expected one dtype in every split; got {found}")


def _with_labels(raw: Raw) -> Raw:
    if "y" not in raw.splits["train"]:
        return raw
    try:
        return _labelled(raw)
    except DataError as error:
        return _with_values(raw, str(error))


def _with_values(raw: Raw, reason: str) -> Raw:
    """Takes `y` for a column like others: what a regression predicts, say."""
    for split, columns in raw.splits.items():
        if columns["y"].dtype.kind == "f":
            check_finite(columns["y"], _key("y", split), raw.where)
        elif int(columns["y"].max()) > _LARGEST_INTEGER:
            raise DataError(reason)
    note = f"y: values, no labels ({reason.removeprefix(f'{raw.where}: ')})"
    return dataclasses.replace(raw, classes=None, no_labels=reason, notes=(*raw.notes, note))


def _labelled(raw: Raw) -> Raw:
    labels = {split: _whole(columns["y"], _key("y", split), raw.where) for split, columns in raw.splits.items()}
    notes = [
        f"{_key('y', split)}: {columns['y'].dtype} cast to int64"
        for split, columns in raw.splits.items()
        if columns["y"].dtype.kind in "fb"
    ]
    for split, y in labels.items():
        if split != "train" and (y < 0).any() and (labels["train"] >= 0).any():
            key, row = _key("y", split), int(np.argmax(y < 0))
            raise DataError(f"{raw.where}: expected a label in every row of {key}; got -1 at row {row}: move it to x")
    every = np.concatenate(list(labels.values()))
    if (every < 0).all():
        splits = {s: {name: a for name, a in c.items() if name != "y"} for s, c in raw.splits.items()}
        return dataclasses.replace(raw, splits=splits, classes=None, notes=(*raw.notes, "y: no label known, left out"))
    _check_no_gap(every, raw.classes, raw.where)
    classes = raw.classes or tuple(str(number) for number in range(int(every.max()) + 1))
    _check_enough(labels, classes, raw)
    splits = {split: {**columns, "y": labels[split]} for split, columns in raw.splits.items()}
    return dataclasses.replace(raw, splits=splits, classes=classes, notes=(*raw.notes, *notes))


def _check_enough(labels: Mapping[str, Array], classes: tuple[str, ...], raw: Raw) -> None:
    """Every split that is taken from train needs a row of each class."""
    parts = 0 if raw.holdouts else len({"validation", "test"} - set(labels))
    counts = np.bincount(labels["train"][labels["train"] >= 0], minlength=len(classes))
    few = np.flatnonzero((counts > 0) & (counts <= parts))
    if parts and len(few):
        raise DataError(
            f"{raw.where}: expected at least {parts + 1} labelled rows of class {classes[few[0]]}, to split into train"
            f" and {' and '.join(sorted({'validation', 'test'} - set(labels), reverse=True))}; got {counts[few[0]]}"
        )


def _whole(y: Array, key: str, where: str) -> Array:
    if y.ndim != 1:
        raise DataError(f"{where}: expected one class number a row in {key}, shape (n,); got shape {y.shape}")
    faults = (
        (~np.isfinite(y) | (y != np.round(y)), "whole numbers"),
        (y < -1, "-1 (missing) or more"),
        (y > _LARGEST_INTEGER, "class numbers"),
    )
    for bad, wanted in faults:
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{where}: expected labels in {key} to be {wanted}; got {y[row]} at row {row} (counted from 0; "
                f"{int(bad.sum())} of {len(y)} labels are wrong)"
            )
    return y.astype(np.int64)


def _check_no_gap(y: Array, classes: tuple[str, ...] | None, where: str) -> None:
    found, counts = np.unique(y[y >= 0], return_counts=True)
    wanted = int(found[-1]) + 1 if classes is None else len(classes)
    if len(found) == wanted:
        return
    # the largest label may be huge: look for the gap without counting up to it
    missing = next(number for number, label in enumerate([*found.tolist(), -1]) if number != label)
    listed = ", ".join(f"{label}: {count}" for label, count in list(zip(found, counts, strict=True))[:12])
    raise DataError(
        f"{where}: expected rows of every class 0 to {wanted - 1}; got none of class {missing} "
        f"(rows by class: {listed}): number the classes from 0 without gaps"
    )


def _with_layout(raw: Raw) -> Raw:
    shape = raw.splits["train"]["x"].shape
    if len(shape) == 3:
        note = f"x: images {shape[1:]} given a channel: {(1, *shape[1:])}"
        change = _add_channel
    elif len(shape) == 4 and not raw.channels_first and _channels_last(shape, raw.where):
        note = f"x: channels moved from last to first: {(shape[3], *shape[1:3])}"
        change = _channels_first
    else:
        return raw
    splits = {split: {**columns, "x": change(columns["x"])} for split, columns in raw.splits.items()}
    return dataclasses.replace(raw, splits=splits, notes=(*raw.notes, note))


def _channels_last(shape: tuple[int, ...], where: str) -> bool:
    """Whether images (n, ...) have 1, 3 or 4 channels at their end and not at their beginning.

    Raises:
        DataError: if they may have them at either.
    """
    _, first, middle, last = shape
    if first not in _CHANNELS or last not in _CHANNELS:
        return last in _CHANNELS
    # of two readings, that with a side of one pixel is no picture
    thin_if_first, thin_if_last = min(middle, last) == 1, min(first, middle) == 1
    if thin_if_first != thin_if_last:
        return thin_if_first
    raise DataError(
        f"{where}: expected images whose shape tells channels from sides; got {first} x {middle} x {last}, which may "
        "be (channels, height, width) or (height, width, channels): give grey ones as (n, height, width), or others "
        "as a folder of images or with sides padded to 5 or more"
    )


def _add_channel(x: Array) -> Array:
    return x[:, None]


def _channels_first(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2)
