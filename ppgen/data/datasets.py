"""What a loaded data set is."""

import dataclasses
import hashlib
import textwrap
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from ppgen.data.streaming import Streamed, held_if_small
from ppgen.errors import ConfigError, DataError

Columns = dict[str, Tensor]
Binarization = Literal["none", "static", "dynamic"]
SPLITS = ("train", "validation", "test")
_MOST_LISTED = 100  # classes; EMNIST has 47


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Columns of three splits, and what was done to them.

    Attributes:
        name: The name it was loaded by.
        train: `x` float32 (n, *shape), `y` int64 (n,) with -1 for a missing label, and further columns (n, ...), as
            which a `y` counts that holds no labels;
            `x` of data larger than memory is `Streamed`: index its rows to read them.
        validation: The same columns; where there are labels, no label is missing here.
        test: As `validation`; it never depends on a seed.
        classes: Names of the classes, in the order of `y`; None without labels.
        binarization: What ppgen does to `x`: "none", "static" (drawn once), "dynamic" (train is redrawn by batch).
        fingerprint: SHA-256, in hex, of all columns as loaded, before labels are hidden and anything is binarized; of
            the whole file where data are streamed, which is then another one than that of the same data in memory.
        notes: Every cast, rescaling and reordering that was done, in words.
        no_labels: Why `y` holds no labels, though there is one.
        rows: Where each row of a split came from: its row number in the source, int64 (n,), by split; may be empty.
    """

    name: str
    train: Columns
    validation: Columns
    test: Columns
    classes: tuple[str, ...] | None
    binarization: Binarization
    fingerprint: str
    notes: tuple[str, ...]
    rows: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    no_labels: str = ""

    @property
    def splits(self) -> dict[str, Columns]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def streamed(self) -> bool:
        """Whether the train rows stay on disk."""
        return any(isinstance(column, Streamed) for column in self.train.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one `x`."""
        return tuple(self.train["x"].shape[1:])

    def card(self) -> str:
        """Describe the data in a few lines of plain text."""
        lines = [f"{self.name}  (fingerprint {self.fingerprint[:12]})"]
        lines += [f"  {split:<11}{len(columns['x'])} rows" for split, columns in self.splits.items()]
        plain = {name: column for name, column in self.train.items() if name != "y" or self.classes is None}
        lines += [f"  {name:<11}{_summary(column)}" for name, column in plain.items()]
        if self.classes is not None:
            unlabelled = int((self.train["y"] < 0).sum())
            text = f"{len(self.classes)} classes; kept in train: {self._counts()}; unlabelled: {unlabelled}"
            lines += textwrap.wrap(text, 110, initial_indent="  y          ", subsequent_indent=" " * 13)
        if self.binarization != "none":
            lines.append(f"  binarized  {self.binarization}")
        return "\n".join(lines + [f"  note       {note}" for note in self.notes])

    def binarized(self, how: str, *, seed: int = 0) -> "Dataset":
        """Replace intensities by Bernoulli draws of them.

        Args:
            how: "static": one draw for all splits. "dynamic": one draw for validation and test; train keeps its
                intensities, of which `Batches` makes a new draw for every batch. "none": as it is.
            seed: Seed of the draws.

        Raises:
            ConfigError: if `how` is another word, "none" is asked of data already binarized, or "static" of data
                that are streamed.
            DataError: if `x` leaves [0, 1].
        """
        if how not in ("none", "static", "dynamic"):
            raise ConfigError(f"expected binarization none, static or dynamic; got {how!r}")
        if how == self.binarization:
            return self
        if how == "none":
            raise ConfigError(f"expected data not yet binarized; got {self.name} binarized {self.binarization}")
        if how == "static" and self.streamed:
            raise ConfigError(
                f"expected binarization none or dynamic for data streamed from disk ({self.name}); got static"
            )
        self.require_unit_interval(what="binarization", remedy="take binarization none")
        return dataclasses.replace(
            self,
            train=self.train if how == "dynamic" else _bernoulli(self.train, seed, 0),
            validation=_bernoulli(self.validation, seed, 1),
            test=_bernoulli(self.test, seed, 2),
            binarization=cast(Binarization, how),
        )

    def require_unit_interval(
        self, column: str = "x", *, what: str = "a Bernoulli likelihood", remedy: str = "choose a Gaussian likelihood"
    ) -> None:
        """Check that a column suits a Bernoulli likelihood.

        Args:
            column: Its name.
            what: What it is to suit, if that is something else.
            remedy: What to do but to rescale the data.

        Raises:
            DataError: naming row and position of the first value outside [0, 1].
        """
        for split, columns in self.splits.items():
            if column not in columns:
                raise DataError(f"expected a column {column!r} in {self.name}; got {', '.join(columns)}")
            if (place := _outside_unit_interval(columns[column])) is not None:
                row, *position = place
                value = columns[column][place].item()
                source_row = int(self.rows[split][row]) if split in self.rows else row
                raise DataError(
                    f"{self.name}: expected {column} in [0, 1] for {what}; got {value:g} at row "
                    f"{source_row}, position {tuple(position)} (counted from 0; {split} split): "
                    f"rescale the data or {remedy}"
                )

    def count_classes(self, what: str = "this recipe", *, at_least: int = 1) -> int:
        """Returns how many classes there are; ``what`` needs labels.

        Raises:
            DataError: if there are no labels, or fewer classes.
        """
        if self.classes is None:
            raise DataError(self.no_labels or f"{self.name}: expected labels; got none: {what} needs a column y")
        if len(self.classes) < at_least:
            only = f"the class '{self.classes[0]}' only" if self.classes else "none"
            raise DataError(f"{self.name}: expected labels of at least {at_least} classes to tell apart; got {only}")
        return len(self.classes)

    def require_labels(self) -> None:
        """Check that every class can be learnt.

        Raises:
            DataError: if there are no labels, or a class has no labelled row in train.
        """
        self.count_classes()
        counts = self._labels_by_class()
        empty = [name for name, count in counts.items() if count == 0]
        if empty:
            found = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[:20])
            raise DataError(f"{self.name}: expected labelled train rows of every class; got {found}")

    def labelled(self) -> Columns:
        """The train rows whose label is known, with all columns.

        Raises:
            DataError: if there are no labels.
        """
        self.count_classes()
        known = self.train["y"] >= 0
        return {name: held_if_small(column[known]) for name, column in self.train.items()}

    def unlabelled(self) -> Columns:
        """The train rows whose label is missing, without `y`: all rows where there are no labels; maybe none."""
        if self.classes is None:
            return dict(self.train)
        missing = self.train["y"] < 0
        return {name: held_if_small(column[missing]) for name, column in self.train.items() if name != "y"}

    def _counts(self) -> str:
        counts = self._labels_by_class()
        if len(counts) > _MOST_LISTED:
            return f"{min(counts.values())} to {max(counts.values())} of each, {sum(counts.values())} in all"
        return " | ".join(f"{name}: {count}" for name, count in counts.items())

    def _labels_by_class(self) -> dict[str, int]:
        classes = self.classes or ()
        y = self.train["y"]
        counts = torch.bincount(y[y >= 0], minlength=len(classes)).tolist()
        return dict(zip(classes, counts, strict=True))


def _outside_unit_interval(column: Tensor) -> tuple[int, ...] | None:
    """Returns the place of the first value outside [0, 1]."""
    if column.numel() == 0 or (column.min() >= 0 and column.max() <= 1):
        return None
    rows = max(1, 2**24 // max(1, column[0].numel()))
    for start in range(0, len(column), rows):
        part = column[start : start + rows]
        outside = torch.nonzero((part < 0) | (part > 1))
        if len(outside):
            row, *position = outside[0].tolist()
            return start + row, *position
    return None


def fingerprint(splits: Mapping[str, Columns]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all columns."""
    digest = hashlib.sha256()
    for split, columns in splits.items():
        for name in sorted(columns):
            if isinstance(column := columns[name], Streamed):
                digest.update(f"{split}/{name} streamed {column.source.survey.digest}\n".encode())
                continue
            array = np.ascontiguousarray(column.numpy())
            digest.update(f"{split}/{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
    return digest.hexdigest()


def _bernoulli(columns: Columns, seed: int, number: int) -> Columns:
    entropy = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    return {**columns, "x": torch.bernoulli(columns["x"], generator=generator)}


def _summary(column: Tensor) -> str:
    kind = str(column.dtype).removeprefix("torch.")
    where = "the file" if isinstance(column, Streamed) else "train"
    return f"{kind} {tuple(column.shape[1:])}, {column.min().item():g} to {column.max().item():g} in {where}"
