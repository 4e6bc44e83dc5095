"""The log densities of a joint run's draws, rows apart from what all rows share, and their (weighted) means."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppgen.programs import Joint


@dataclass(frozen=True)
class LogDensity:
    """A log density of K draws, in nats.

    Attributes:
        local: ``(particles, batch)``, of each row, without the N/B scale of a subsampled plate.
        shared: ``(particles,)``, of what lies outside the data plate.
        scale: N/B.
        size: of the whole data set; 1 without a data plate.
    """

    local: Tensor
    shared: Tensor
    scale: float
    size: float

    def __sub__(self, other: "LogDensity") -> "LogDensity":
        """Returns the log ratio."""
        return replace(self, local=self.local - other.local, shared=self.shared - other.shared)

    def detach(self) -> "LogDensity":
        """Returns it without its gradient."""
        return replace(self, local=self.local.detach(), shared=self.shared.detach())

    def total(self) -> "LogDensity":
        """Returns it with the sum over rows in the shared part."""
        return replace(self, local=self.local[:, :0], shared=self.shared + self.scale * self.local.sum(1))

    def mean(self, log_weights: "LogDensity | None" = None) -> Tensor:
        """Returns nats per datum, the mean over draws or, with log weights, that under their softmax."""
        if log_weights is None:
            return (self.scale * self.local.sum() + self.shared.sum()) / (len(self.shared) * self.size)
        local, shared = log_weights.local.softmax(0) * self.local, log_weights.shared.softmax(0) * self.shared
        return (self.scale * local.sum() + shared.sum()) / self.size

    def log_mean(self) -> Tensor:
        """Returns the log of the mean over draws, of each row and of the shared part: nats per datum."""
        rows = (self.local.logsumexp(0) - math.log(len(self.shared))).sum()
        return (self.scale * rows + self.shared.logsumexp(0) - math.log(len(self.shared))) / self.size


def log_p(joint: Joint) -> LogDensity:
    """Returns ``log p(x, z)`` of a joint run."""
    names = [name for name in (*joint.observed, *joint.latents) if joint.has_log_p(name)]
    return _density(joint, [(name, joint.log_p(name)) for name in names])


def log_q(joint: Joint) -> LogDensity:
    """Returns ``log q(z | x)`` of a joint run."""
    return _density(joint, [(name, joint.log_q(name)) for name in (*joint.latents, *joint.factors)])


def _density(joint: Joint, terms: Iterable[tuple[str, Tensor]]) -> LogDensity:
    local, shared = torch.zeros(()), torch.zeros(())
    for name, term in terms:
        # so that parts without a term are on the right device as well
        local, shared = local.to(term.device), shared.to(term.device)
        if joint.is_local(name):
            local = local + joint.reduce(name, term)
        else:
            shared = shared + joint.reduce(name, term)
    rows, size, scale = (joint.plate.rows, joint.plate.size, joint.plate.scale) if joint.plate else (0, 1, 1.0)
    particles = joint.layout.particles
    return LogDensity((local / scale).expand(particles, rows), shared.expand(particles), scale, float(size))
