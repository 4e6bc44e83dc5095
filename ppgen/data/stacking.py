"""Images stacked as the channels of one: as many modes as there are combinations of their classes."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from ppgen.data.checking import Array, Raw, checked
from ppgen.data.datasets import Columns, Dataset
from ppgen.data.splitting import split_rows

IMAGES = 3
ROWS = {"train": 50_000, "validation": 1_000, "test": 10_000}
Reader = Callable[[str, Path, bool], Raw]


def stacked(read: Reader) -> Reader:
    """Makes a reader of stacked images: three random images of one split each, their classes written side by side.

    The images of train, validation and test are those of the single images' data set, so that none is in two splits.

    Args:
        read: Reader of the single images, (n, height, width) or (n, 1, height, width), with labels.
    """

    def read_stacked(name: str, root: Path, download: bool) -> Raw:
        single = checked(read(name, root, download))
        parts = split_rows(single)
        # RandomState, not a Generator: its numbers stay the same in every version, and so does the fingerprint
        random = np.random.RandomState(0)
        splits = {}
        for split, rows in ROWS.items():
            origin, numbers = parts[split]
            chosen = numbers[random.randint(len(numbers), size=(rows, IMAGES))]
            splits[split] = _stack(single.splits[origin], chosen, len(single.classes or ()))
        classes = tuple("".join(names) for names in itertools.product(single.classes or (), repeat=IMAGES))
        note = f"x: {IMAGES} random images of {name.removeprefix('stacked-')} as channels; drawn once, from seed 0"
        return Raw(single.where, splits, classes, (*single.notes, note))

    return read_stacked


def _stack(columns: Mapping[str, Array], chosen: Array, classes: int) -> dict[str, Array]:
    labels = columns["y"][chosen]
    y = np.ravel_multi_index(tuple(labels.T), (classes,) * IMAGES)
    return {"x": columns["x"][chosen, 0], "y": y}


def letters(data: Dataset) -> tuple[str, ...] | None:
    """Returns the classes of one of the images that are stacked in a row of data; None if the data are not stacked.

    Data are stacked if their classes are all combinations of one-letter classes, one for each channel, in order: "000"
    to "999" for three digits.

    Example:
        >>> from ppgen.data import load
        >>> letters(load("digits")) is None
        True
        >>> "".join(letters(load("stacked-digits")))
        '0123456789'
    """
    if data.classes is None or len(data.shape) != 3 or data.shape[0] < 2:
        return None
    single = tuple(dict.fromkeys(name[:1] for name in data.classes))
    combined = tuple("".join(names) for names in itertools.product(single, repeat=data.shape[0]))
    return single if combined == data.classes else None


def separated(columns: Columns, classes: int) -> Columns:
    """Takes stacked rows apart.

    Args:
        columns: `x` (n, images, height, width) and `y` (n,), the number of the combination, -1 where missing.
        classes: How many an image may have.

    Returns:
        `x` (m * images, 1, height, width) and `y` (m * images,) of the m rows that have a label.
    """
    x, y = columns["x"], columns["y"]
    known = y >= 0
    x, y = (x, y) if known.all() else (x[known], y[known])
    weights = torch.tensor([classes**power for power in reversed(range(x.shape[1]))])
    return {"x": x.flatten(0, 1).unsqueeze(1), "y": (y[:, None] // weights % classes).flatten()}
