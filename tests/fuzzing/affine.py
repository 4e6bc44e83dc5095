"""Values that are affine in independent standard normal noise."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Affine:
    """``constant + sum_k coefficients[k] * noise_k``; numbers or one for each row."""

    constant: Tensor
    coefficients: dict[str, Tensor] = field(default_factory=dict)

    def plus(self, other: "Affine", factor: Tensor) -> "Affine":
        """Returns ``self + factor * other``."""
        found = dict(self.coefficients)
        for noise, coefficient in other.coefficients.items():
            found[noise] = found.get(noise, torch.zeros((), dtype=torch.float64)) + factor * coefficient
        return Affine(self.constant + factor * other.constant, found)

    def mean_square(self) -> Tensor:
        """Returns the expectation of the square."""
        return self.constant.square() + sum((c.square() for c in self.coefficients.values()), torch.zeros(()))
