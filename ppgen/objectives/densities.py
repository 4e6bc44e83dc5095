"""The log densities of a joint run's draws, rows apart from what all rows share, and their (weighted) means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen.programs import Joint, log_prob_of
from ppgen.programs.scales import of_rows, own_scale, plate_scale


@dataclass(frozen=True)
class LogDensity:
    """A log density of K draws, in nats.

    Attributes:
        local: ``(particles, batch)``, of each row, without the N/B scale of a subsampled plate.
        shared: ``(particles,)``, of what lies outside the data plate.
        scale: what a row stands for: N/B, times what the program itself scales it by; a number or ``(batch,)``.
        size: of the whole data set; 1 without a data plate.
    """

    local: Tensor
    shared: Tensor
    scale: float | Tensor
    size: float

    def __sub__(self, other: "LogDensity") -> "LogDensity":
        """Returns the log ratio."""
        return replace(self, local=self.local - other.local, shared=self.shared - other.shared)

    def detach(self) -> "LogDensity":
        """Returns it without its gradient."""
        return replace(self, local=self.local.detach(), shared=self.shared.detach())

    def total(self) -> "LogDensity":
        """Returns it with the sum over rows in the shared part."""
        return replace(self, local=self.local[:, :0], shared=self.shared + (self.scale * self.local).sum(1), scale=1.0)

    def mean(self, log_weights: "LogDensity | None" = None) -> Tensor:
        """Returns nats per datum, the mean over draws or, with log weights, that under their softmax."""
        if log_weights is None:
            return ((self.scale * self.local).sum() + self.shared.sum()) / (len(self.shared) * self.size)
        local, shared = log_weights.local.softmax(0) * self.local, log_weights.shared.softmax(0) * self.shared
        return ((self.scale * local).sum() + shared.sum()) / self.size

    def log_mean(self) -> Tensor:
        """Returns the log of the mean over draws, of each row and of the shared part: nats per datum."""
        rows = self.scale * (self.local.logsumexp(0) - math.log(len(self.shared)))
        return (rows.sum() + self.shared.logsumexp(0) - math.log(len(self.shared))) / self.size


def log_p(joint: Joint, *, scaled: bool = True) -> LogDensity:
    """Returns ``log p(x, z)`` of a joint run.

    ``scaled`` tells whether sites have the scale that the program gives them, or rows as a whole, as weights want it.
    """
    return _density(
        joint, [joint.model.nodes[n] for n in (*joint.observed, *joint.latents) if joint.has_log_p(n)], scaled
    )


def log_q(joint: Joint, *, scaled: bool = True) -> LogDensity:
    """Returns ``log q(z | x)`` of a joint run; see `log_p`."""
    return _density(joint, [joint.guide.nodes[name] for name in (*joint.latents, *joint.factors)], scaled)


def _density(joint: Joint, sites: Sequence[Mapping[str, Any]], scaled: bool) -> LogDensity:
    plate, own = joint.plate, joint.plate.names if joint.plate else frozenset()
    local, shared, row_scale = torch.zeros(()), torch.zeros(()), None
    for site in sites:
        log_prob, is_local = log_prob_of(site), joint.is_local(site["name"])
        inner = plate_scale(site, without=own if is_local else ())
        scale = inner * own_scale(site) if scaled else inner
        term = joint.reduce(site["name"], scale_and_mask(log_prob, scale=scale, mask=site["mask"]))
        # so that parts without a term are on the right device as well
        local, shared = local.to(term.device), shared.to(term.device)
        if is_local:
            local = local + term
            row_scale = of_rows(own_scale(site), joint.nesting, plate.dim) if row_scale is None and plate else row_scale
        else:
            shared = shared + term
    rows, size, scale = (plate.rows, plate.size, plate.scale) if plate else (0, 1, 1.0)
    scale = scale if scaled or row_scale is None else scale * row_scale
    particles = joint.layout.particles
    return LogDensity(local.expand(particles, rows), shared.expand(particles), scale, float(size))
