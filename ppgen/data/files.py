"""The user's own files: `.npz`, `.npy`, `.csv`. Nothing is unpickled."""

import csv
import difflib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ppgen.data.checking import Array, Raw, memory_limit, reading, require_memory
from ppgen.errors import DataError

_SPLIT_SUFFIXES = ("validation", "test")
_LARGEST = float(np.finfo(np.float32).max)


def read_npz(path: Path, *, max_bytes: int | None) -> Raw:
    """Read `x`, optional `y` and further columns; keys that end in `_test` or `_validation` give those splits.

    Raises:
        DataError: if the file is damaged, too large, holds objects or no `x`.
    """
    splits: dict[str, dict[str, Array]] = {"train": {}}
    for key, array in arrays_of(path, max_bytes=max_bytes).items():
        name, split = _name_and_split(key)
        splits.setdefault(split, {})[name] = array
    for split, columns in splits.items():
        if "x" not in columns:
            wanted = "x" if split == "train" else f"x_{split}"
            found = ", ".join(name if split == "train" else f"{name}_{split}" for name in columns) or "no array"
            raise DataError(f"{path}: expected an array named {wanted!r}; got {found}")
    return Raw(str(path), splits)


def arrays_of(path: Path, *, max_bytes: int | None = None) -> dict[str, Array]:
    """Read all arrays of a `.npz`, after checking what its headers announce.

    Raises:
        DataError: if the file is damaged, too large or holds objects.
    """
    _require_content(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        require_memory(sum(member.file_size for member in members), max_bytes, path)
        arrays: dict[str, Array] = {}
        for member in members:
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                _check_header(stream, member.file_size, f"{path}, array {key!r}", max_bytes)
            with archive.open(member) as stream:
                arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def read_npy(path: Path, *, max_bytes: int | None, stream: bool | None = None) -> Raw:
    """Read `x`, and `y` from NAME_y.npy if that lies beside NAME.npy.

    Args:
        path: The file of `x`.
        max_bytes: The most memory to take.
        stream: Whether `x` stays on disk, memory-mapped; None: if it would take more than `max_bytes` in memory.

    Raises:
        DataError: if a file is damaged, too large or holds objects, or `x` cannot be streamed.
    """
    labels = path.with_name(f"{path.stem}_y.npy")
    columns = {"y": _array_of(labels, max_bytes)} if labels.is_file() else {}
    where = f"{path} (y: {labels.name})" if columns else str(path)
    notes = (f"y: read from {labels.name}",) if columns else ()
    if stream is None:
        stream = _bytes_in_memory(path) > memory_limit(max_bytes)
    if not stream:
        return Raw(where, {"train": {"x": _array_of(path, max_bytes), **columns}}, notes=notes)
    return Raw(where, {"train": {"x": _mapped(path), **columns}}, notes=notes, mapped=path)


def _array_of(path: Path, max_bytes: int | None) -> Array:
    _require_content(path)
    with reading(path), path.open("rb") as stream:
        _check_header(stream, path.stat().st_size, str(path), max_bytes)
        stream.seek(0)
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _mapped(path: Path) -> Array:
    _require_content(path)
    with reading(path):
        with path.open("rb") as stream:
            _check_header(stream, path.stat().st_size, str(path), None, in_memory=False)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not array.flags.c_contiguous:
        raise DataError(f"{path}: expected rows that lie one after the other (C order) to stream; got Fortran order")
    return array.view(np.ndarray)


def _bytes_in_memory(path: Path) -> int:
    """What loading takes at its peak: the array as it lies in the file, and as float32."""
    _require_content(path)
    with reading(path), path.open("rb") as stream:
        shape, dtype = _check_header(stream, path.stat().st_size, str(path), None, in_memory=False)
    return math.prod(shape) * (dtype.itemsize + 4)


def _name_and_split(key: str) -> tuple[str, str]:
    for split in _SPLIT_SUFFIXES:
        if key.endswith(f"_{split}"):
            return key.removesuffix(f"_{split}"), split
    return key, "train"


def _require_content(path: Path) -> None:
    with reading(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: expected data; got an empty file")


def _check_header(
    stream: IO[bytes], size: int, where: str, max_bytes: int | None, *, in_memory: bool = True
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Compare what the header announces with what there is: numpy would allocate first and read then."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"{where}: expected a plain array of numbers; got .npy format {version[0]}.{version[1]}")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise DataError(f"{where}: expected numbers; got an object array, which would have to be unpickled")
    announced, present = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if in_memory:
        require_memory(announced, max_bytes, where)
    if announced != present:
        raise DataError(f"{where}: expected {announced:,} bytes for shape {shape}; got {present:,}: truncated?")
    return shape, dtype


def read_csv(path: Path, *, label_column: str | None, max_bytes: int | None) -> Raw:
    """Read a table with a header line: its numeric columns become `x` (n, columns), in order.

    Args:
        path: The file, UTF-8.
        label_column: The column of labels: class numbers, or names of classes; an empty cell is a missing label. Or of
            real values, none of which may be missing.
        max_bytes: The most memory to take.

    Raises:
        DataError: naming line and column of the first fault.
    """
    _require_content(path)
    require_memory(path.stat().st_size * 4, max_bytes, path)
    with reading(path), path.open(newline="", encoding="utf-8-sig") as stream:
        lines = csv.reader(stream)
        header = _header(next(lines, []), label_column, path)
        table = _Table(path, header, label_column)
        for cells in lines:
            if cells:
                table.add(cells, lines.line_num)
    return table.raw()


def _header(cells: Sequence[str], label_column: str | None, path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not names or all(_number(name) is not None for name in names):
        raise DataError(f"{path}: expected a header line with the names of the columns; got {','.join(names)[:60]!r}")
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{path}: expected columns of different names; got {doubled!r} more than once")
    if label_column is not None and label_column not in names:
        near = difflib.get_close_matches(label_column, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:20])}"
        raise DataError(f"{path}: expected a column {label_column!r} (--label-column); got none: {hint}")
    return names


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


class _Table:
    """Rows of numbers and labels; columns of text are left out, columns of both are refused."""

    def __init__(self, path: Path, header: list[str], label_column: str | None) -> None:
        self.path, self.header = path, header
        self.label = None if label_column is None else header.index(label_column)
        self.columns = [index for index in range(len(header)) if index != self.label]
        self.numeric: list[int] | None = None
        self.text: list[int] = []
        self.rows: list[Array] = []
        self.labels: list[str] = []

    def add(self, cells: list[str], line: int) -> None:
        if len(cells) != len(self.header):
            raise DataError(f"{self.path}, line {line}: expected {len(self.header)} cells; got {len(cells)}")
        if self.numeric is None:
            self.numeric = [i for i in self.columns if _number(cells[i]) is not None or not cells[i].strip()]
            self.text = [i for i in self.columns if i not in self.numeric]
        for index in self.text:
            if _number(cells[index]) is not None:
                self._refuse(index, line, f"text, as in the lines above; got {cells[index]!r}")
        row = [_number(cells[index]) for index in self.numeric]
        for index, number in zip(self.numeric, row, strict=True):
            if number is None or not abs(number) <= _LARGEST:
                self._refuse(index, line, f"a finite number that fits float32; got {cells[index]!r}")
        self.rows.append(np.array(row, dtype=np.float32))
        if self.label is not None:
            self.labels.append(cells[self.label].strip())

    def _refuse(self, index: int, line: int, message: str) -> None:
        raise DataError(f"{self.path}, line {line}, column {self.header[index]!r}: expected {message}")

    def raw(self) -> Raw:
        if not self.rows:
            raise DataError(f"{self.path}: expected rows below the header line; got none")
        if not self.numeric:
            raise DataError(f"{self.path}: expected a column of numbers; got {', '.join(self.header[:20])}")
        columns = {"x": np.stack(self.rows)}
        notes = [f"left out, no numbers: {', '.join(self.header[i] for i in self.text)}"] if self.text else []
        classes = None
        if self.label is not None:
            columns["y"], classes = _labels(self.labels)
        return Raw(str(self.path), {"train": columns}, classes, tuple(notes))


def _labels(cells: Sequence[str]) -> tuple[Array, tuple[str, ...] | None]:
    known = sorted({cell for cell in cells if cell})
    if all(_number(cell) is not None for cell in known):
        numbers: dict[str, Any] = {cell: float(cell) for cell in known}
        y = np.array([numbers.get(cell, -1.0) for cell in cells])
        if np.array_equal(y, np.round(y)) and np.isfinite(y).all():
            return y.astype(np.int64), None
        # of real values none stands for a missing one
        return np.array([numbers.get(cell, np.nan) for cell in cells]), None
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([numbers.get(cell, -1) for cell in cells], dtype=np.int64), tuple(known)
