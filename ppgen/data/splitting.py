"""Splits that never depend on a seed, and the labels that do."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppgen.data.checking import Array, Raw, reading
from ppgen.errors import DataError

_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def split_rows(raw: Raw) -> dict[str, tuple[str, Array]]:
    """Say where each split comes from: split -> (split of the source, row numbers there)."""
    train = raw.splits["train"]
    y = None if raw.classes is None else train.get("y")
    given = {split: (split, np.arange(len(columns["x"]))) for split, columns in raw.splits.items()}
    missing = [split for split in _SHARES if split not in given]
    if raw.holdouts:
        rows = _holdouts(np.arange(len(train["x"])), y, raw)
    elif missing:
        rows = _shares(len(train["x"]), y, missing, raw)
    else:
        return given
    return {**given, **{split: ("train", part) for split, part in rows.items()}}


def _holdouts(rows: Array, y: Array | None, raw: Raw) -> dict[str, Array]:
    """Take fixed numbers of rows, one split after the other, as scikit-learn's `train_test_split` does."""
    from sklearn.model_selection import train_test_split

    parts = {}
    for split, size in raw.holdouts.items():
        if len(rows) <= size:
            raise DataError(f"{raw.where}: expected more than {size} rows to take {split} from; got {len(rows)}")
        stratify = None if y is None else y[rows]
        with reading(raw.where):
            rows, parts[split] = train_test_split(rows, test_size=size, stratify=stratify, random_state=0)
    return {"train": rows, **parts}


def _shares(count: int, y: Array | None, missing: Sequence[str], raw: Raw) -> dict[str, Array]:
    """Take 10 % for validation and 20 % for test of each class, or less; rows without a label stay in train."""
    labels = np.zeros(count, dtype=np.int64) if y is None else y
    total = _SHARES["train"] + sum(_SHARES[split] for split in missing)
    generator = np.random.default_rng(0)
    cap = 1.0 if raw.most is None else raw.most / max(1, int((labels >= 0).sum()))
    parts: dict[str, list[Array]] = {"train": [np.flatnonzero(labels < 0)], **{split: [] for split in missing}}
    for label in np.unique(labels[labels >= 0]):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) <= len(missing):
            raise DataError(
                f"{raw.where}: expected at least {len(missing) + 1} rows, to split into train and "
                f"{' and '.join(missing)}; got {len(rows)}"
            )
        sizes = {split: max(1, round(len(rows) * min(_SHARES[split] / total, cap))) for split in missing}
        for split, size in sizes.items():
            parts[split].append(rows[:size])
            rows = rows[size:]
        parts["train"].append(rows)
    return {split: np.sort(np.concatenate(pieces)) for split, pieces in parts.items()}


def keep_labels(y: Tensor, classes: Sequence[str], count: int, *, seed: int) -> Tensor:
    """Keep `count` labels, balanced over the classes; hide the others.

    Args:
        y: Labels (n,), -1 where missing.
        classes: Names of the classes.
        count: Labels to keep: `count // len(classes)` of each class, the remainder from random classes.
        seed: Chooses rows and classes.

    Returns:
        Labels (n,), -1 where missing or hidden.

    Raises:
        DataError: if that many cannot be kept of each class.
    """
    labels = y.numpy()
    available = np.bincount(labels[labels >= 0], minlength=len(classes))
    listed = ", ".join(f"{name}: {number}" for name, number in list(zip(classes, available, strict=True))[:20])
    if not len(classes) <= count <= available.sum():
        raise DataError(
            f"expected --labels between {len(classes)} (one a class) and {available.sum()} (all labelled train rows); "
            f"got {count} (there are {listed})"
        )
    generator = np.random.default_rng(seed)
    quota = np.full(len(classes), count // len(classes))
    extra = count % len(classes)
    able = np.flatnonzero(available > quota)
    if (available < quota).any() or len(able) < extra:
        needed = quota[0] + (1 if extra else 0)
        raise DataError(f"expected {needed} labels a class for --labels {count}; got too few (there are {listed})")
    quota[generator.choice(able, size=extra, replace=False)] += 1
    kept = np.full_like(labels, -1)
    for label, number in enumerate(quota):
        rows = generator.choice(np.flatnonzero(labels == label), size=number, replace=False)
        kept[rows] = label
    return torch.from_numpy(kept)
