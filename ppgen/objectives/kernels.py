"""Kernels and their bandwidths by name, and the maximum mean discrepancy between two sets of draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError


def _root(squared: Tensor) -> Tensor:
    # the slope of a square root at 0 is infinite
    return squared.clamp(min=1e-12).sqrt()


def _rbf(squared: Tensor, variance: Tensor) -> Tensor:
    return (-0.5 * squared / variance).exp()


def _imq(squared: Tensor, variance: Tensor) -> Tensor:
    return 2 * variance / (2 * variance + squared)


def _laplace(squared: Tensor, variance: Tensor) -> Tensor:
    return (-_root(squared / variance)).exp()


def _energy(squared: Tensor, variance: Tensor) -> Tensor:
    return -_root(squared / variance)


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rbf": _rbf,
    "imq": _imq,
    "laplace": _laplace,
    "energy": _energy,
}
"""By name, of squared distances and a squared bandwidth."""

BANDWIDTHS = ("dimension", "median")


@dataclass(frozen=True)
class Kernel:
    r"""A kernel between vectors, of their distance ``r`` and a bandwidth ``s``.

    ``rbf``: ``exp(-r^2 / 2 s^2)``; ``imq`` (inverse multiquadratic): ``2 s^2 / (2 s^2 + r^2)``; ``laplace``:
    ``exp(-r / s)``; ``energy``: ``-r / s``, whose discrepancy is the energy distance over ``s``.

    Args:
        name: which of these.
        bandwidth: ``s``: a number; "dimension": ``s^2`` is the number of dimensions, as for draws from ``N(0, I)``
            whose expected squared distance is twice that; "median": the median distance between the two sets of draws,
            through which no gradient passes.
        scales: the kernel is the sum over ``s^2`` times each of these.

    Raises:
        ConfigError: if there is no such kernel or bandwidth, or a scale is not positive.

    References:
        ``imq``, ``scales`` and "dimension": Tolstikhin, Bousquet, Gelly, Schoelkopf, 2018, arXiv:1711.01558, section 4.
        "median": Gretton, Borgwardt, Rasch, Schoelkopf, Smola, 2012, JMLR 13, section 8.

    >>> Kernel("imq", 1.0).matrix(torch.zeros(1, 2), torch.ones(1, 2)).item()
    0.5
    """

    name: str = "rbf"
    bandwidth: float | str = "dimension"
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.name not in KERNELS:
            raise ConfigError(f"expected kernel {', '.join(KERNELS)}; got '{self.name}'")
        if self.bandwidth not in BANDWIDTHS and not is_positive(self.bandwidth):
            expected = f"{', '.join(BANDWIDTHS)} or a positive number"
            raise ConfigError(f"expected bandwidth {expected}; got {self.bandwidth!r}")
        if not self.scales or not all(is_positive(scale) for scale in self.scales):
            raise ConfigError(f"expected scales > 0, at least one; got {self.scales}")

    def variance(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the squared bandwidth for two sets of draws, a scalar tensor without gradient."""
        if self.bandwidth == "dimension":
            return x.new_tensor(float(x.shape[1]))
        if self.bandwidth == "median":
            return squared_distances(x, y).detach().median().clamp(min=1e-12)
        return x.new_tensor(float(self.bandwidth) ** 2)

    def matrix(self, x: Tensor, y: Tensor, variance: Tensor | None = None) -> Tensor:
        """Returns the kernel of every row of ``x`` ``(n, dims)`` with every row of ``y`` ``(m, dims)``: ``(n, m)``."""
        squared = squared_distances(x, y)
        variance = self.variance(x, y) if variance is None else variance
        return torch.stack([KERNELS[self.name](squared, variance * scale) for scale in self.scales]).sum(0)


def is_positive(number: object) -> bool:
    """Whether that is a positive number, as a number or as text."""
    try:
        value = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return 0 < value < math.inf


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns the squared Euclidean distance of every row of ``x`` to every row of ``y``: ``(n, m)``."""
    # a distance is the same from any origin, and loses the fewest digits from one in the middle
    middle = y.detach().mean(0)
    x, y = x - middle, y - middle
    squared = x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.T
    return squared.clamp(min=0)


def mmd(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    r"""The squared maximum mean discrepancy between two sets of draws, as an unbiased U-statistic: it may be negative.

    ``mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)``. With the bandwidth "median"
    the kernel depends on the draws, and it is unbiased only approximately.

    Args:
        x: ``(n, dims)``, at least two rows.
        y: ``(m, dims)``, at least two rows.
        kernel: which kernel.

    Returns:
        A scalar, in the kernel's unit.

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf, Smola, 2012, JMLR 13, lemma 6.

    >>> one, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    >>> round(mmd(one, other, Kernel("energy", 1.0)).item(), 4)  # 2 E|x - y| - E|x - x'| - E|y - y'|
    2.0
    """
    variance = kernel.variance(x, y)
    within = sum((_mean_off_diagonal(kernel.matrix(z, z, variance)) for z in (x, y)), x.new_zeros(()))
    return within - 2 * kernel.matrix(x, y, variance).mean()


def _mean_off_diagonal(matrix: Tensor) -> Tensor:
    rows = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (rows * (rows - 1))
