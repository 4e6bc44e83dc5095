"""From a name or a path to a checked, split data set."""

import dataclasses
import difflib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppgen.data.checking import Array, Raw, checked
from ppgen.data.datasets import SPLITS, Columns, Dataset, fingerprint
from ppgen.data.files import read_csv, read_npy, read_npz
from ppgen.data.images import read_images
from ppgen.data.sources import SOURCES
from ppgen.data.sources import data_root as resolved_data_root
from ppgen.data.splitting import keep_labels, split_rows
from ppgen.data.streaming import Source, Streamed
from ppgen.errors import ConfigError, DataError

_SUFFIXES = (".npz", ".npy", ".csv")
_MOST_HELD_OUT, _MOST_BYTES_HELD_OUT = 10_000, 2**28
_SUPPORTED = "a .npz, .npy or .csv file, or a folder of images"


def names() -> dict[str, str]:
    """The built-in data sets: name -> one line.

    Example:
        >>> names()["mnist"]
        '70,000 handwritten digits, 28 x 28'
    """
    return {name: source.description for name, source in SOURCES.items()}


def found(data_root: str | Path | None = None) -> set[str]:
    """Names of the built-in data sets that need no download: those that lie below the data root, or need no files.

    >>> "digits" in found("no/such/folder")
    True
    """
    root = resolved_data_root(data_root)
    return {name for name, s in SOURCES.items() if not s.signs or any((root / sign).is_file() for sign in s.signs)}


def load(
    name_or_path: str | Path,
    *,
    data_root: str | Path | None = None,
    download: bool = True,
    labels: int | None = None,
    label_column: str | None = None,
    seed: int = 0,
    max_bytes: int | None = None,
    stream: bool | None = None,
) -> Dataset:
    """Load a built-in data set by name, or the user's own by path.

    Args:
        name_or_path: A name from `names()`; or a `.npz` (`x`, optional `y`, further columns; keys ending in `_test`
            and `_validation` give own splits), `.npy` (`x`; `y` from NAME_y.npy where that lies beside NAME.npy),
            `.csv` (header line, numeric columns), or a folder of images (a sub-folder a class, `_unlabelled/`
            besides). Own data is split 70/10/20, stratified, always alike.
        data_root: Folder of the built-in data sets; default: `PPGEN_DATA`, else a cache folder of the user.
        download: Whether a built-in data set that is not there may be downloaded.
        labels: Number of train labels to keep, balanced over the classes; the others become -1.
        label_column: Name of the column of labels of a `.csv`.
        seed: Chooses the labels to keep, and nothing else.
        max_bytes: Refuse own files that would take more memory; default: half of what is available.
        stream: Whether `x` of a `.npy` stays on disk, memory-mapped, and at most 10,000 rows each are split off for
            validation and test; None: if it would take more than `max_bytes` in memory.

    Raises:
        ConfigError: if the name is unknown or an option does not fit.
        DataError: if files are missing, damaged, or not what they should be.

    Example:
        >>> digits = load("digits", labels=100)
        >>> digits.shape, len(digits.labelled()["x"]), len(digits.unlabelled()["x"]), len(digits.test["x"])
        ((1, 8, 8), 100, 1097, 500)
    """
    if seed < 0:
        raise ConfigError(f"expected a seed of at least 0; got {seed}")
    if isinstance(name_or_path, str) and name_or_path in SOURCES:
        if stream:
            raise ConfigError(f"expected a .npy file to stream from disk; got data set {name_or_path!r}")
        if label_column is not None:
            raise ConfigError(f"expected --label-column with a .csv file only; got it with {name_or_path!r}")
        root = resolved_data_root(data_root)
        name, raw = name_or_path, SOURCES[name_or_path].read(name_or_path, root, download)
    else:
        path = _existing_path(name_or_path)
        name, raw = path.name, _read_path(path, label_column, max_bytes, stream)
    dataset = _dataset(name, checked(raw))
    return _note_few_labels(dataset if labels is None else _with_labels_kept(dataset, labels, seed))


def _existing_path(name_or_path: str | Path) -> Path:
    path = Path(os.path.expanduser(name_or_path))
    if str(name_or_path) and os.path.exists(path):  # unlike Path.exists, false for names that cannot be
        return path
    looks_like_path = isinstance(name_or_path, Path) or path.suffix in _SUFFIXES or os.sep in str(name_or_path)
    if looks_like_path:
        raise DataError(f"{path}: no such file or folder")
    near = difflib.get_close_matches(str(name_or_path).lower(), SOURCES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SOURCES)}"
    raise ConfigError(f"unknown data set {str(name_or_path)!r}: {hint} (or give the path of {_SUPPORTED})")


def _read_path(path: Path, label_column: str | None, max_bytes: int | None, stream: bool | None) -> Raw:
    suffix = path.suffix.lower()
    if stream and (suffix != ".npy" or path.is_dir()):
        raise ConfigError(f"expected a .npy file to stream from disk; got {path}: write its x with numpy.save")
    if label_column is not None and suffix != ".csv":
        raise ConfigError(f"expected --label-column with a .csv file only; got it with {path}")
    if path.is_dir():
        return read_images(path, max_bytes=max_bytes)
    if suffix == ".npz":
        return read_npz(path, max_bytes=max_bytes)
    if suffix == ".npy":
        return read_npy(path, max_bytes=max_bytes, stream=stream)
    if suffix == ".csv":
        return read_csv(path, label_column=label_column, max_bytes=max_bytes)
    raise DataError(f"{path}: expected {_SUPPORTED}; got a file ending in {suffix or 'nothing'!r}")


def _dataset(name: str, raw: Raw) -> Dataset:
    if raw.mapped is not None:
        raw = _with_few_held_out(raw)
    parts = split_rows(raw)
    rows = {split: parts[split] for split in SPLITS}
    source = None if raw.mapped is None else Source.of(raw.mapped, raw.splits["train"]["x"])
    # whether small integers are grey levels or already 0 and 1 is decided on all splits together
    divisor = source.divisor if source else _divisor([columns["x"] for columns in raw.splits.values()])
    splits: dict[str, Columns] = {}
    for split, (origin, numbers) in rows.items():
        splits[split] = {
            column: Streamed.of(source, numbers)
            if source is not None and (split, column) == ("train", "x")
            else _tensor(column, array[numbers], divisor)
            for column, array in raw.splits[origin].items()
        }
    casts = [note for column, array in raw.splits["train"].items() if (note := _cast(column, array.dtype, divisor))]
    return Dataset(
        name=name,
        **splits,
        classes=raw.classes,
        binarization="none",
        fingerprint=fingerprint(splits),
        notes=(*raw.notes, *casts),
        no_labels=raw.no_labels,
        rows={split: torch.from_numpy(numbers) for split, (_, numbers) in rows.items()},
    )


def _with_few_held_out(raw: Raw) -> Raw:
    """Validation and test rows are held in memory, also where train rows are not."""
    x = raw.splits["train"]["x"]
    most = min(_MOST_HELD_OUT, max(1, _MOST_BYTES_HELD_OUT // (4 * max(1, x[0].size))))
    notes = (f"x: streamed from disk ({x.nbytes:,} bytes); at most {most:,} rows each in validation and test",)
    return dataclasses.replace(raw, most=most, notes=(*raw.notes, *notes))


def _divisor(parts: list[Array]) -> int:
    return 255 if parts[0].dtype == np.uint8 and max(int(part.max()) for part in parts) > 1 else 1


def _tensor(column: str, array: Array, divisor: int) -> Tensor:
    if column == "x":
        array = np.ascontiguousarray(array, dtype=np.float32)
        return torch.from_numpy(array if divisor == 1 else array / np.float32(divisor))
    kind = np.int64 if array.dtype.kind in "iu" else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))


def _cast(column: str, dtype: np.dtype[np.generic], divisor: int) -> str | None:
    if column == "x" and divisor != 1:
        return f"x: {dtype} 0..{divisor} divided by {divisor}"
    target = np.dtype(np.int64 if column != "x" and dtype.kind in "iu" else np.float32)
    return None if dtype == target else f"{column}: {dtype} cast to {target}"


def _with_labels_kept(dataset: Dataset, labels: int, seed: int) -> Dataset:
    if dataset.classes is None:
        raise DataError(dataset.no_labels or f"{dataset.name}: expected labels to keep {labels} of; got none")
    y = dataset.train["y"]
    kept = keep_labels(y, dataset.classes, labels, seed=seed)
    note = f"y: {labels} of {int((y >= 0).sum())} train labels kept, chosen by seed {seed}"
    return dataclasses.replace(dataset, train={**dataset.train, "y": kept}, notes=(*dataset.notes, note))


def _note_few_labels(dataset: Dataset) -> Dataset:
    if dataset.classes is None:
        return dataset
    y = dataset.train["y"]
    counts = torch.bincount(y[y >= 0], minlength=len(dataset.classes)).tolist()
    few = [f"{name} ({count})" for name, count in zip(dataset.classes, counts, strict=True) if count < 5]
    if not few:
        return dataset
    return dataclasses.replace(
        dataset, notes=(*dataset.notes, f"y: fewer than 5 train labels of class {', '.join(few[:20])}")
    )
