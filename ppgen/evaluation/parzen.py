"""The Parzen estimate of a likelihood, for comparison with old papers only."""

import math

import torch
from torch import Tensor

from ppgen.evaluation.intervals import Estimate
from ppgen.evaluation.two_sample import comparable

WARNING = (
    "a Parzen estimate misleads: it ranks models wrongly, and in many dimensions is far from the likelihood"
    " (arXiv:1511.01844, arXiv:1611.04273)"
)
MOST_VALIDATION_ROWS = 1_000
_CHUNK = 1_000


def parzen(samples: Tensor, validation: Tensor, test: Tensor) -> dict[str, float | int | str | None]:
    r"""Estimates ``log p(x)`` of test rows by Gaussians about samples; the result carries the warning that it misleads.

    ``log 1/n sum_i N(x; x_i, h^2 I)`` with the bandwidth ``h`` of the largest value on at most 1,000 validation rows,
    of 40 between 1/1000 and 3 standard deviations of the data.

    Args:
        samples: ``(n, ...)``, flattened.
        validation: ``(m, ...)``, flattened.
        test: ``(k, ...)``, flattened.

    Returns:
        "value" and "stderr" in nats per row, "bandwidth", "samples", and "warning".

    Raises:
        DataError: if a set has fewer than 8 rows, their shapes differ, or a value is not finite.

    References:
        Goodfellow et al., 2014, arXiv:1406.2661. Against it: Theis, van den Oord, Bethge, 2016, arXiv:1511.01844, and
        Wu, Burda, Salakhutdinov, Grosse, 2017, arXiv:1611.04273.
    """
    centres, rows = comparable(samples, validation[:MOST_VALIDATION_ROWS])
    spread = float(rows.std(0).square().mean().sqrt()) or 1.0
    bandwidths = spread * torch.logspace(-3, math.log10(3), 40, dtype=torch.float64)
    distances, width = torch.cdist(rows, centres), rows.shape[1]
    best = max(bandwidths.tolist(), key=lambda h: float(_log_density(distances, width, h).mean()))
    _, held_out = comparable(samples, test)
    parts = [_log_density(torch.cdist(part, centres), width, best) for part in held_out.split(_CHUNK)]
    found = Estimate.of(torch.cat(parts), particles=1).as_dict()
    numbers = {"value": found["value"], "stderr": found["stderr"], "bandwidth": best, "samples": len(centres)}
    return {**numbers, "warning": WARNING}


def _log_density(distances: Tensor, width: int, bandwidth: float) -> Tensor:
    constant = math.log(distances.shape[1]) + width * math.log(bandwidth * math.sqrt(2 * math.pi))
    return (-0.5 * (distances / bandwidth).square()).logsumexp(1) - constant
