"""One site of a run, and what its signal is made of."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen import programs
from ppgen.gradients.base import base_of
from ppgen.programs import Dependencies, Joint


@dataclass(frozen=True)
class Cost:
    """A term of the loss of a run, before anything is summed.

    Attributes:
        sources: the sites that it is made of.
        node: a site that lies in the same plates.
        value: its value, with its scale, mask and weight.
        differentiated: what has the value's derivative, without parts of which it is 0 in expectation; the value
            itself, unless told.
    """

    sources: tuple[str, ...]
    node: Mapping[str, Any]
    value: Tensor
    differentiated: Tensor | None = None


class Plates:
    """Along which plates a term of a run has an element of its own for each element of a draw.

    That takes the same plate, not only the same dimension, in the model as in the guide; and that the one depends on
    the other within it only: not by way of a site outside of it, nor of a branch of the program.

    Args:
        joint: the run.
        dependencies: of the pair.
    """

    def __init__(self, joint: Joint, dependencies: Dependencies) -> None:
        self.joint = joint
        self.dependencies = dependencies
        self._rows = joint.plate.names if joint.plate else frozenset()

    def shared(self, name: str, cost: Cost) -> frozenset[int]:
        """Returns the dimensions of the plates that a latent site shares with a cost."""
        if self.dependencies.read and not all(map(self.dependencies.is_known, cost.sources)):
            return frozenset()
        own, theirs = self._of_guide(name), self._of(cost.node)
        found = frozenset(own)
        for dim in own:
            if dim not in theirs or not self._same(name, cost, dim) or self._goes_round(name, cost, dim):
                found -= {dim}
        return found

    def _same(self, name: str, cost: Cost, dim: int) -> bool:
        guide, model = self.joint.guide.nodes, self.joint.model.nodes
        inferred = [source for source in cost.sources if source in guide]
        pairs = [(self._of_guide(name), self._of(guide[source])) for source in inferred]
        if any(source in model or source not in guide for source in cost.sources):
            pairs.append((self._of(model[name] if name in model else guide[name]), self._of(cost.node)))
        return all(one.get(dim) == other.get(dim) for one, other in pairs)

    def _goes_round(self, name: str, cost: Cost, dim: int) -> bool:
        """Whether the cost depends on the draw by way of a later one that lies outside of the plate."""
        latents, known = self.joint.latents, self.dependencies
        plate = self._of_guide(name)[dim]
        return any(
            self._of_guide(later).get(dim) != plate
            and known.of_draw(later, name)
            and any(known.of_term(source, later) for source in cost.sources)
            for later in latents[latents.index(name) + 1 :]
        )

    def _of_guide(self, name: str) -> dict[int, str]:
        return self._of(self.joint.guide.nodes[name])

    def _of(self, node: Mapping[str, Any]) -> dict[int, str]:
        """Returns the plate of each dimension, those along the rows as one."""
        return {
            frame.dim: "" if frame.name in self._rows else frame.name
            for frame in node["cond_indep_stack"]
            if frame.vectorized
        }


class LatentSite:
    """A latent site of a run, and the shape of its log probability, to which signals are brought."""

    def __init__(self, joint: Joint, name: str, plates: Plates) -> None:
        self.joint = joint
        self.name = name
        self.plates = plates
        node = joint.guide.nodes[name]
        rank = joint.layout.rank
        log_q = joint.first_version(joint.padded(programs.log_prob_of(node)))
        self.log_q: Tensor = scale_and_mask(log_q, mask=node["mask"])
        self.keep = frozenset(d for d in range(-log_q.dim(), -rank) if log_q.shape[d] > 1)
        size = joint.plate.size if joint.plate else 1
        self.unit = joint.plate.scale if joint.plate and joint.is_local(name) else float(size)
        self.share = 1 / (size * joint.layout.particles)
        states = joint.probabilities(name, log_q) if self.keep else None
        ones = torch.ones((), device=log_q.device) if states is None else joint.first_version(states).detach()
        self.weight = ones * (self.unit * self.share)

    def signal(self, costs: Sequence[Cost], version: int = 0) -> Tensor:
        """Sums costs to the shape of the site's log probability: nats per row, or per datum of a global site."""
        total = sum((self._brought(cost, version) for cost in costs), torch.zeros(()))
        return (total / self.unit).expand_as(self.log_q)

    def total(self, costs: Sequence[Cost], version: int) -> Tensor:
        """Sums costs to their share in the loss, as it is in one version."""
        joint = self.joint
        terms = [self._version(joint.expectation(cost.node, cost.value), version).sum() for cost in costs]
        return sum(terms, torch.zeros(())) * self.share

    def _version(self, term: Tensor, version: int) -> Tensor:
        dim = -self.joint.layout.rank
        several = self.joint.layout.versions > 1 and term.dim() >= -dim and term.shape[dim] > 1
        return term.narrow(dim, version, 1) if several else term

    def _brought(self, cost: Cost, version: int) -> Tensor:
        term = self.joint.padded(self.joint.expectation(cost.node, cost.value, keep=self.keep))
        term = self._version(term, version)
        shared = self.plates.shared(self.name, cost)
        gone = tuple(d for d in range(-self.joint.nesting, 0) if d not in shared)
        return term.sum(gone, keepdim=True) if gone else term

    def left_out(self, signal: Tensor) -> Tensor | None:
        """Returns the mean signal of the other particles."""
        particles = self.joint.layout.particles
        if particles < 2:
            return None
        return (signal.sum(-1 - self.joint.nesting, keepdim=True) - signal) / (particles - 1)


def inputs_of(joint: Joint, name: str, summed: Collection[str]) -> list[Tensor]:
    """What a row shows before a site is drawn: observed values and earlier draws, each ``(..., features)``."""
    own = _frames(joint, joint.guide.nodes[name])
    earlier = joint.latents[: joint.latents.index(name)] if name in joint.latents else []
    nodes = [
        joint.model.nodes[n] for n in (*joint.observed, *sorted(joint.absorbed)) if joint.model.nodes[n]["is_observed"]
    ]
    nodes += [joint.guide.nodes[n] for n in earlier if n not in summed]
    found = []
    for node in nodes:
        fn, value = node["fn"], node["value"]
        inside = _frames(joint, node) <= own and (joint.is_local_node(node) or not joint.is_local(name))
        if not inside or not isinstance(value, Tensor) or isinstance(base_of(fn), dist.Delta):
            continue
        event = len(fn.event_shape)
        flat = value.flatten(-event) if event else value.unsqueeze(-1)
        while flat.dim() < joint.layout.rank + 1:
            flat = flat.unsqueeze(0)
        if joint.layout.versions > 1:
            flat = flat.narrow(-1 - joint.layout.rank, 0, 1)
        found.append(flat.detach().to(torch.get_default_dtype()))
    return found


def joined(inputs: Sequence[Tensor]) -> Tensor:
    """Returns inputs side by side: ``(..., features)``."""
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return torch.cat([x.expand(*shape, x.shape[-1]) for x in inputs], -1)


def _frames(joint: Joint, node: Mapping[str, Any]) -> frozenset[str]:
    """The plates that a site lies in, those along the rows as one."""
    rows = joint.plate.names if joint.plate else frozenset()
    return frozenset("" if name in rows else name for name in programs.frames(node))
