"""How the log weights of several samples become one bound."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Reduction(Protocol):
    """Brings log weights ``(states..., particles, samples, rows)`` to bounds ``(particles, rows)``, in nats.

    ``states`` are those of enumerated sites, of log probability ``log_q``, whose sum is exact.
    """

    def __call__(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """Returns the bounds."""

    def coefficients(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """Returns what doubly reparameterised gradients weigh the derivative of each log weight by."""

    @property
    def linear(self) -> bool:
        """Whether the bound is the mean of log weights."""


def _reduced(term: Tensor) -> tuple[int, ...]:
    return (*range(-term.dim(), -3), -2)


@dataclass(frozen=True)
class PowerMean:
    """``1 / (1 - alpha) * log mean_k w_k^(1 - alpha)``; its limit, the mean of ``log w``, for ``alpha = 1``.

    Attributes:
        alpha: 0 for the importance-weighted bound; minus infinity for the largest log weight.
    """

    alpha: float = 0.0

    @property
    def linear(self) -> bool:
        """See `Reduction`."""
        return self.alpha == 1

    def __call__(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """See `Reduction`."""
        samples = log_w.shape[-2]
        if self.alpha == 1:
            weighted = log_w if log_q is None else log_q.exp() * log_w
            return weighted.sum(_reduced(weighted)) / samples
        if math.isinf(self.alpha):
            return log_w.amax(_reduced(log_w))
        powers = self._powers(log_w, log_q)
        return (powers.logsumexp(_reduced(powers)) - math.log(samples)) / (1 - self.alpha)

    def _powers(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        powers = (1 - self.alpha) * log_w
        return powers if log_q is None else powers + log_q

    def coefficients(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """See `Reduction`; ``alpha * v + (1 - alpha) * v^2`` of normalised weights v."""
        if math.isinf(self.alpha):
            return (log_w == log_w.amax(_reduced(log_w), keepdim=True)).to(log_w.dtype)
        powers = self._powers(log_w, log_q)
        normalised = (powers - powers.logsumexp(_reduced(powers), keepdim=True)).exp()
        return self.alpha * normalised + (1 - self.alpha) * normalised.square()


@dataclass(frozen=True)
class Mixed:
    """``beta * mean_k log w_k + (1 - beta) * log mean_k w_k``.

    Attributes:
        beta: share of the evidence lower bound.
    """

    beta: float

    @property
    def linear(self) -> bool:
        """See `Reduction`."""
        return self.beta == 1

    def __call__(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """See `Reduction`."""
        return self.beta * PowerMean(1.0)(log_w, log_q) + (1 - self.beta) * PowerMean(0.0)(log_w, log_q)

    def coefficients(self, log_w: Tensor, log_q: Tensor | None) -> Tensor:
        """See `Reduction`."""
        one, other = (PowerMean(alpha).coefficients(log_w, log_q) for alpha in (1.0, 0.0))
        return self.beta * one + (1 - self.beta) * other


def left_out(reduction: Reduction, log_w: Tensor, log_q: Tensor | None, kind: str) -> Tensor:
    """Returns, for each sample, the bound that does not know its weight: ``(particles, samples, rows)``.

    Args:
        reduction: of the bound.
        log_w: log weights ``(states..., particles, samples, rows)``.
        log_q: of the states.
        kind: "geometric" puts the geometric mean of the other samples' weights in its place, "arithmetic" takes the
            bound of the other samples.
    """
    samples = log_w.shape[-2]
    places = torch.arange(samples, device=log_w.device)
    rest = (places.unsqueeze(-1) + places[1:]) % samples
    own = torch.eye(samples, dtype=torch.bool, device=log_w.device).unsqueeze(-1)  # (left out, samples, 1)
    spread = log_w.unsqueeze(-3)
    if kind == "geometric":
        others = (log_w.sum(-2, keepdim=True) - log_w) / (samples - 1)
        spread = torch.where(own, others.unsqueeze(-2), spread)
    else:
        spread = log_w[..., rest, :]
    # (states..., particles, left out, samples, rows): the left-out dimension joins that of the particles
    merged = spread.flatten(-4, -3)
    if log_q is not None:
        log_q = log_q.unsqueeze(-3) if kind == "geometric" else log_q[..., rest, :]
        log_q = log_q.expand(*spread.shape).flatten(-4, -3)
    bounds = reduction(merged, log_q)
    unflattened: Tensor = bounds.unflatten(0, (log_w.shape[-3], samples))
    return unflattened
