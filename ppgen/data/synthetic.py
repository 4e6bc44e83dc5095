"""Small data sets whose distribution is known: what mode collapse, priors and posteriors are tried on.

Their rows are drawn once, from a fixed seed, and split into 50,000, 1,000 and 10,000 rows for train, validation and
test unless said otherwise; `y` numbers the component that a row was drawn from.

References:
    Lin, Khetan, Fanti, Oh 2018, PacGAN, arXiv:1712.04086 (ring and grid, after Srivastava et al. 2017, VEEGAN,
    arXiv:1705.07761); Makhzani et al. 2015, Adversarial autoencoders, arXiv:1511.05644 (swiss roll); Mescheder,
    Nowozin, Geiger 2017, Adversarial variational Bayes, arXiv:1701.04722 (four points).
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ppgen.data.checking import Array, Raw

ROWS = {"train": 50_000, "validation": 1_000, "test": 10_000}
SEGMENTS = 10
_REPEATS = {"train": 1024, "validation": 128, "test": 128}


def ring(name: str, root: Path, download: bool) -> Raw:
    """Eight Gaussians of standard deviation 0.01, evenly on the unit circle."""
    angles = np.arange(8) * (2 * np.pi / 8)
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _mixture(name, centres, 0.01, [f"{45 * number} degrees" for number in range(8)])


def grid(name: str, root: Path, download: bool) -> Raw:
    """25 Gaussians of standard deviation 0.05 at the points whose two coordinates are -4, -2, 0, 2 or 4."""
    points = list(itertools.product([-4, -2, 0, 2, 4], repeat=2))
    return _mixture(name, np.array(points, dtype=np.float64), 0.05, [f"({x}, {y})" for x, y in points])


def swiss_roll(name: str, root: Path, download: bool) -> Raw:
    """A spiral of two turns out to radius 3, with noise of standard deviation 0.05, cut into 10 segments.

    A point at share u of its rows lies at radius 3 sqrt(u) and angle 4 pi sqrt(u): segments are equally likely.
    """

    def draw(random: np.random.RandomState, rows: int) -> tuple[Array, Array]:
        share = random.uniform(size=rows)
        turn = np.sqrt(share)
        curve = 3 * turn[:, None] * np.stack([np.cos(4 * np.pi * turn), np.sin(4 * np.pi * turn)], axis=1)
        x = curve + 0.05 * random.standard_normal((rows, 2))
        return x, np.minimum((share * SEGMENTS).astype(np.int64), SEGMENTS - 1)

    return _drawn(name, draw, [f"segment {number}" for number in range(SEGMENTS)])


def four_points(name: str, root: Path, download: bool) -> Raw:
    """The four unit vectors of length 4, each in 1,024 rows of train and 128 of validation and test.

    So the best evidence lower bound that any model reaches is -log 4 nats a row.
    """
    points = np.eye(4, dtype=np.float32)
    numbers = {split: np.tile(np.arange(4), times) for split, times in _REPEATS.items()}
    return Raw(
        name,
        {split: {"x": points[y], "y": y} for split, y in numbers.items()},
        tuple(f"point {number}" for number in range(4)),
    )


def _mixture(name: str, centres: Array, deviation: float, classes: Sequence[str]) -> Raw:
    def draw(random: np.random.RandomState, rows: int) -> tuple[Array, Array]:
        y = random.randint(len(centres), size=rows)
        return centres[y] + deviation * random.standard_normal((rows, centres.shape[1])), y

    return _drawn(name, draw, classes)


def _drawn(name: str, draw: Callable[[np.random.RandomState, int], tuple[Array, Array]], classes: Sequence[str]) -> Raw:
    # RandomState, not a Generator: its numbers stay the same in every version, and so does the fingerprint
    random = np.random.RandomState(0)
    splits: dict[str, dict[str, Array]] = {}
    for split, rows in ROWS.items():
        x, y = draw(random, rows)
        splits[split] = {"x": x.astype(np.float32), "y": y.astype(np.int64)}
    return Raw(name, splits, tuple(classes), ("x: drawn once, from seed 0",))
