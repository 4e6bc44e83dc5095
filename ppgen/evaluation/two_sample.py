"""Whether two sets of rows come from one distribution: tests whose p-values are exact for any number of rows."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import DataError

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernel, in median distances: what differs may be fine or coarse."""
HIDDEN, PASSES = 20, 100
FEWEST = 8
_CHUNK = 1_000


@dataclass(frozen=True)
class TwoSample:
    """What a two-sample test found.

    Attributes:
        value: the statistic.
        p_value: the probability of one as large if both sets come from one distribution.
        samples: rows of the first set.
        rows: rows of the second set.
    """

    value: float
    p_value: float
    samples: int
    rows: int

    def as_dict(self) -> dict[str, float | int]:
        """Returns ``{"value", "p_value", "samples", "rows"}``."""
        return dict(vars(self))


def kernel_test(x: Tensor, y: Tensor, *, permutations: int = 999, seed: int = 0) -> TwoSample:
    r"""Compares two sets of rows by the squared kernel maximum mean discrepancy (MMD), unbiased: it may be negative.

    ``mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)``, where ``k`` is the mean of
    Gaussian kernels whose bandwidths are 1/4, 1/2, 1, 2 and 4 times the median distance between all rows, so that it is
    at most 2. The p-value is that of permutations of which row is in which set.

    Args:
        x: ``(n, ...)``, flattened.
        y: ``(m, ...)``, flattened.
        permutations: how many; no p-value is below ``1 / (permutations + 1)``.
        seed: of the permutations; no random stream moves.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf, Smola, 2012, JMLR 13.

    >>> generator = torch.Generator().manual_seed(0)
    >>> one, other = torch.randn(2, 50, 2, generator=generator)
    >>> kernel_test(one, other).p_value > 0.05, kernel_test(one, other + 2).p_value
    (True, 0.001)
    """
    x, y = comparable(x, y)
    kernel = _kernel(torch.cat([x, y]))
    n, m = len(x), len(y)
    first = torch.zeros(permutations + 1, n + m, dtype=torch.float64)
    first[0, :n] = 1.0
    generator = torch.Generator().manual_seed(seed)
    for row in first[1:]:
        row[torch.randperm(n + m, generator=generator)[:n]] = 1.0
    within = ((first @ kernel) * first).sum(1)
    touching = first @ kernel.sum(1)
    between = touching - within
    rest = kernel.sum() - 2 * touching + within
    found = within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * between / (n * m)
    return TwoSample(float(found[0]), share_as_large(found), n, m)


def _kernel(rows: Tensor) -> Tensor:
    squared = torch.cdist(rows, rows).square()
    above = squared[torch.triu_indices(len(rows), len(rows), offset=1).unbind()]
    variance = above.median().clamp(min=1e-12)
    kernel = sum((torch.exp(-0.5 * squared / (variance * scale**2)) for scale in SCALES), torch.zeros_like(squared))
    return (kernel / len(SCALES)).fill_diagonal_(0.0)


def share_as_large(found: Tensor) -> float:
    """The p-value of the first statistic among those of permutations; rounding must not break ties."""
    slack = 1e-10 * float(found.abs().max())
    return int((found >= found[0] - slack).sum()) / len(found)


def classifier_test(x: Tensor, y: Tensor, *, seed: int = 0) -> TwoSample:
    """Compares two sets of rows by how well a classifier tells them apart: a half is trained on, a half predicted.

    The statistic is the accuracy on the second half, 0.5 for equal distributions. The classifier is a network with 20
    hidden units, trained for 100 passes; of both sets, equally many rows are used. The p-value is that of Fisher's
    exact test, which is never too small, though with few rows rather too large.

    Args:
        x: ``(n, ...)``, flattened.
        y: ``(m, ...)``, flattened.
        seed: of the halves and of the network; no random stream moves.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Lopez-Paz, Oquab, 2016, arXiv:1610.06545.
    """
    from scipy.stats import hypergeom

    x, y = comparable(x, y)
    count = min(len(x), len(y))
    rows = torch.cat([x[:count], y[:count]]).numpy()
    labels = np.repeat([0, 1], count)
    order = np.random.default_rng(seed).permutation(2 * count)
    learnt, held_out = order[:count], order[count:]
    predicted = _predicted(rows[learnt], labels[learnt], rows[held_out], seed)
    truth = labels[held_out]
    both = int((predicted & truth).sum())
    p_value = hypergeom.sf(both - 1, count, int(truth.sum()), int(predicted.sum()))
    return TwoSample(float((predicted == truth).mean()), float(p_value), count, count)


def _predicted(rows: np.ndarray, labels: np.ndarray, held_out: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((HIDDEN,), max_iter=PASSES, batch_size=min(100, len(rows)), random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after so many passes by design
        predicted: np.ndarray = make_pipeline(StandardScaler(), network).fit(rows, labels).predict(held_out)
    return predicted


def neighbour_test(x: Tensor, y: Tensor, *, permutations: int = 999, seed: int = 0) -> TwoSample:
    """Compares two sets of rows by whether each row's nearest other one is of its own set.

    The statistic is the leave-one-out accuracy of one nearest neighbour: 0.5 for equal distributions, 1 if they lie
    apart; below 0.5 one set repeats rows of the other. Of both sets, equally many rows are used. The p-value, that of
    permutations, is one-sided: small where the accuracy is large.

    Args:
        x: ``(n, ...)``, flattened.
        y: ``(m, ...)``, flattened.
        permutations: how many.
        seed: of the permutations; no random stream moves.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Lopez-Paz, Oquab, 2016, arXiv:1610.06545. Xu et al., 2018, arXiv:1806.07755.
    """
    x, y = comparable(x, y)
    count = min(len(x), len(y))
    rows = torch.cat([x[:count], y[:count]])
    nearest = torch.cat([_nearest_other(rows, start) for start in range(0, len(rows), _CHUNK)])
    labels = torch.arange(2 * count) < count
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(2 * count), *(torch.randperm(2 * count, generator=generator) for _ in range(permutations))]
    permuted = labels[torch.stack(orders)]
    found = (permuted == permuted[:, nearest]).double().mean(1)
    return TwoSample(float(found[0]), share_as_large(found), count, count)


def _nearest_other(rows: Tensor, start: int) -> Tensor:
    """The nearest other row of each of a part of the rows: all distances may be too many."""
    distances = torch.cdist(rows[start : start + _CHUNK], rows)
    distances.diagonal(start).fill_(math.inf)
    return distances.argmin(1)


def comparable(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two sets of rows as float64 ``(rows, values)`` on the CPU.

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.
    """
    for name, rows in (("samples", x), ("rows", y)):
        if len(rows) < FEWEST:
            raise DataError(f"expected at least {FEWEST} {name} to compare; got {len(rows)}")
        if not rows.isfinite().all():
            raise DataError(f"expected finite {name} to compare; got some that are not")
    x, y = x.detach().cpu().double().flatten(1), y.detach().cpu().double().flatten(1)
    if x.shape[1] != y.shape[1]:
        raise DataError(f"expected samples of {y.shape[1]} values, as the rows have; got {x.shape[1]}")
    return x, y
