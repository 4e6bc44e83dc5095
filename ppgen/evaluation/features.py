"""Distances between samples and data in a space of features, whatever made the features.

Published figures of these names stand on features of the Inception network, which was trained on ImageNet. Those of
ppgen stand on features of a small classifier that is trained on the data set at hand: they compare models of one data
set with each other, and must not be set beside published ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.evaluation.two_sample import comparable, share_as_large

NEIGHBOURS = 3
PERMUTATIONS = 199
_CHUNK = 1_000


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Returns the Frechet distance between Gaussians with the moments of two sets of features (FID).

    ``|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))``. It is biased upwards, the more so the fewer rows there are:
    compare figures of equal numbers of rows only.

    Args:
        x: ``(n, width)``.
        y: ``(m, width)``.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, 2017, arXiv:1706.08500.

    >>> rows = torch.randn(100, 3)
    >>> round(frechet_distance(rows, rows + 2.0), 3)
    12.0
    """
    x, y = comparable(x, y)
    covariance, other = _covariance(x), _covariance(y)
    root = _root(covariance)
    # the product has the eigenvalues of this symmetric matrix
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + covariance.trace() + other.trace() - 2 * cross
    return max(0.0, float(distance))


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


@dataclass(frozen=True)
class KernelDistance:
    """A squared distance, its standard error and how often as large a one arises by chance.

    Attributes:
        value: unbiased; it may be negative.
        stderr: its standard error over sets of rows.
        p_value: the probability of one as large if both sets come from one distribution; None if not asked for.
    """

    value: float
    stderr: float
    p_value: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Returns ``{"value", "stderr", "p_value"}``, the last one if it was asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}


def kernel_distance(x: Tensor, y: Tensor, *, permutations: int = PERMUTATIONS, seed: int = 0) -> KernelDistance:
    r"""Returns the unbiased squared MMD with the kernel ``(x'y / width + 1)^3`` between two sets of features (KID).

    ``mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)`` over all rows: for equal
    distributions its mean is 0. The standard error is that of a U-statistic, of its first and its second order, so
    that it holds where the distributions are equal and the first order vanishes; there the statistic is skewed, and
    the p-value, that of permutations of which row is in which set, is the test.

    The papers' mean over subsets of rows has the same expectation, and far less power where the subsets are small.

    Args:
        x: ``(n, width)``.
        y: ``(m, width)``.
        permutations: how many, for the p-value; 0 for none.
        seed: of the permutations; no random stream moves.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Binkowski, Sutherland, Arbel, Gretton, 2018, arXiv:1801.01401. Variance: Hoeffding, 1948, Annals of
        Mathematical Statistics 19.
    """
    x, y = comparable(x, y)
    n, m = len(x), len(y)
    sides = torch.zeros(n + m, 1 + permutations, dtype=torch.float64)
    sides[:n, 0] = 1.0
    generator = torch.Generator().manual_seed(seed)
    for order in range(1, 1 + permutations):
        sides[torch.randperm(n + m, generator=generator)[:n], order] = 1.0
    sums, squares = _kernel_sums(torch.cat([x, y]), sides)
    found = _unbiased(sums, sides, n, m)
    error = _standard_error(sums[:, 0], sums[:, -1] - sums[:, 0], squares, n)
    return KernelDistance(float(found[0]), error, share_as_large(found) if permutations else None)


def _kernel_sums(rows: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the kernel without its diagonal, in parts, since all of it may be too much.

    Returns:
        ``(rows, sides + 1)``, of each row with the rows of every side, and with all; and ``(rows, 2)``, of the squares
        with the rows of the first side, and with all.
    """
    everything = torch.ones(len(rows), 1, dtype=rows.dtype)
    chosen, first = torch.cat([sides, everything], 1), torch.cat([sides[:, :1], everything], 1)
    parts = []
    for start in range(0, len(rows), _CHUNK):
        kernel = (rows[start : start + _CHUNK] @ rows.T / rows.shape[1] + 1) ** 3
        kernel.diagonal(start).fill_(0.0)
        parts.append((kernel @ chosen, kernel.square_() @ first))
    sums, squares = zip(*parts, strict=True)
    return torch.cat(sums), torch.cat(squares)


def _unbiased(sums: Tensor, sides: Tensor, n: int, m: int) -> Tensor:
    """The statistic for every side, if its rows are the first set and the others the second."""
    with_all = sums[:, -1:]
    within = (sides * sums[:, :-1]).sum(0)
    between = (sides * with_all).sum(0) - within
    rest = with_all.sum() - within - 2 * between
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * between / (n * m)


def _standard_error(to_x: Tensor, to_y: Tensor, squares: Tensor, n: int) -> float:
    """By the parts of first and second order of the statistic, which do not correlate.

    Args:
        to_x: sums of the kernel of each of all rows with those of the first set.
        to_y: and with those of the second.
        squares: sums of its squares with the first set, and with all.
        n: rows of the first set.
    """
    m = len(to_x) - n
    xx = _second_order(to_x[:n], squares[:n, 0], n)
    yy = _second_order(to_y[n:], (squares[n:, 1] - squares[n:, 0]), m)
    xy = _crossed(to_y[:n], to_x[n:], squares[n:, 0])
    witness_x, witness_y = to_x[:n] / (n - 1) - to_y[:n] / m, to_x[n:] / n - to_y[n:] / (m - 1)
    # the witness, too, is known from these rows only
    first_x = max(0.0, float(witness_x.var()) - xx / (n - 1) - xy / m)
    first_y = max(0.0, float(witness_y.var()) - yy / (m - 1) - xy / n)
    second = 2 * xx / (n * (n - 1)) + 2 * yy / (m * (m - 1)) + 4 * xy / (n * m)
    return math.sqrt(4 * first_x / n + 4 * first_y / m + second)


def _second_order(sums: Tensor, squares: Tensor, n: int) -> float:
    """The variance of the kernel of two rows of one set, less what each row makes of it (n > 3)."""
    total = (
        float(squares.sum()) - 2 * float(sums.square().sum()) / (n - 2) + float(sums.sum()) ** 2 / ((n - 1) * (n - 2))
    )
    return max(0.0, total / (n * (n - 3)))


def _crossed(rows: Tensor, columns: Tensor, squares: Tensor) -> float:
    """As `_second_order`, of two rows of different sets."""
    n, m = len(rows), len(columns)
    total = float(squares.sum()) - float(rows.square().sum()) / m - float(columns.square().sum()) / n
    total += float(rows.sum()) ** 2 / (n * m)
    return max(0.0, total / ((n - 1) * (m - 1)))


def precision(samples: Tensor, rows: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Returns what share of samples lies where data are; `recall` is the share of data that lies where samples are.

    A set is taken to lie within the balls about its members that reach to their third nearest neighbours. A generator
    of few kinds of good samples has precision without recall; one of noise has no precision.

    Args:
        samples: features ``(n, width)``.
        rows: features of the data ``(m, width)``.
        neighbours: which neighbour a ball reaches to.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Kynkaanniemi, Karras, Laine, Lehtinen, Aila, 2019, arXiv:1904.06991.

    >>> line = torch.arange(10.0)[:, None]
    >>> precision(line, line), precision(line / 10 + 4, line), recall(line / 10 + 4, line)
    (1.0, 1.0, 0.2)
    """
    points, centres = comparable(samples, rows)
    return _covered(points, centres, neighbours)


def recall(samples: Tensor, rows: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Returns what share of data lies where samples are: see `precision`."""
    centres, points = comparable(samples, rows)
    return _covered(points, centres, neighbours)


def _covered(points: Tensor, centres: Tensor, neighbours: int) -> float:
    """The share of points in a ball about a centre; in parts, since all distances may be too many."""
    # the nearest of all centres is the centre itself
    radius = torch.cat([torch.cdist(p, centres).kthvalue(neighbours + 1).values for p in centres.split(_CHUNK)])
    inside = [(torch.cdist(part, centres) <= radius).any(1) for part in points.split(_CHUNK)]
    return float(torch.cat(inside).double().mean())
