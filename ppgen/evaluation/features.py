"""Distances between samples and data in a space of features, whatever made the features.

Published figures of these names stand on features of the Inception network, which was trained on ImageNet. Those of
ppgen stand on features of a small classifier that is trained on the data set at hand: they compare models of one data
set with each other, and must not be set beside published ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import DataError
from ppgen.evaluation.two_sample import comparable

NEIGHBOURS = 3
BLOCKS, FEWEST_IN_BLOCK = 10, 10
_CHUNK = 2_000


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
    """A squared distance and its standard error over blocks of rows.

    Attributes:
        value: the mean over blocks; it may be negative.
        stderr: its standard error.
    """

    value: float
    stderr: float

    def as_dict(self) -> dict[str, float]:
        """Returns ``{"value", "stderr"}``."""
        return dict(vars(self))


def kernel_distance(x: Tensor, y: Tensor, *, blocks: int = BLOCKS) -> KernelDistance:
    r"""Returns the unbiased squared MMD with the kernel ``(x'y / width + 1)^3`` between two sets of features (KID).

    It is the mean over disjoint blocks of rows, which do not depend on each other, so that its standard error is an
    honest one; fewer than 10 rows make no block. For equal distributions its mean is 0.

    Args:
        x: ``(n, width)``, in random order.
        y: ``(m, width)``, in random order.
        blocks: how many, at least 2.

    Raises:
        DataError: if there are fewer than 20 rows, their shapes differ, or a value is not finite.

    References:
        Binkowski, Sutherland, Arbel, Gretton, 2018, arXiv:1801.01401.
    """
    x, y = comparable(x, y)
    count = min(blocks, len(x) // FEWEST_IN_BLOCK, len(y) // FEWEST_IN_BLOCK)
    if count < 2:
        raise DataError(
            f"expected at least {2 * FEWEST_IN_BLOCK} samples and as many rows for a kernel distance; got {len(x)}"
            f" and {len(y)}"
        )
    pairs = zip(x.tensor_split(count), y.tensor_split(count), strict=True)
    found = torch.stack([_polynomial_mmd(a, b) for a, b in pairs])
    return KernelDistance(float(found.mean()), float(found.std()) / math.sqrt(count))


def _polynomial_mmd(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        matrix = kernel(a, a)
        return (matrix.sum() - matrix.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


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
