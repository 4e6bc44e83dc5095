"""Model and guide run together: every site's log probability, with its dimensions kept apart."""

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.marginals import Summed, sum_out
from ppgen.programs.rows import Rows, as_one_plate, data_plate_of, guessed, rows_of_guide
from ppgen.programs.scales import both_masks, without_mask
from ppgen.programs.states import States

PARTICLES = "ppgen_particles"
LOCAL_PARTICLES = "ppgen_local_particles"
UNCONSTRAINED = "_unconstrained"
"""Ends the name of the site from which an autoguide computes the latent of that name."""
DENSITY = "ppgen_density"
"""Key of a site's ``infer``: a function from its distribution to the one that scores its value."""


def prune(trace: poutine.Trace) -> poutine.Trace:
    """Drops the sites that only hold subsample indices."""
    return poutine.util.prune_subsample_sites(trace)


def frames(site: Mapping[str, Any]) -> frozenset[str]:
    """Returns the names of the vectorised plates that a site lies in."""
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)


def _is_enumerated(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and site["infer"].get("_enumerate_dim") is not None


def _summed(model: poutine.Trace, guide: poutine.Trace) -> tuple[list[Summed], frozenset[str]]:
    only = [name for name, site in model.nodes.items() if _is_enumerated(site) and name not in guide.nodes]
    return sum_out(model, guide, only) if only else ([], frozenset())


def _is_latent(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


@dataclass(frozen=True)
class Layout:
    """How many dimensions the terms of a run have, enumerated ones left of these.

    Attributes:
        nesting: dimensions of plates.
        particles: independent draws of everything.
        local: draws of what lies in the data plate, given the rest; None where a run does not tell them apart.
        versions: of the draws, by which control variates are evaluated; the first one counts.
        rows: the plates along the rows; None takes those of the first data site.
    """

    nesting: int
    particles: int = 1
    local: int | None = None
    versions: int = 1
    rows: Rows | None = None

    @property
    def rank(self) -> int:
        """How many dimensions are not those of enumerated sites."""
        return self.nesting + ((self.local or 1) > 1) + (self.particles > 1) + (self.versions > 1)


class Joint:
    """One joint run of guide and model: every site's log probability, with its dimensions kept apart.

    Tensors have dimensions ``(enumerated sites..., versions, particles, local particles, plates..., data)``, of which
    those of size 1 may be missing; `reduce` brings a term to ``(particles, batch)`` if it lies in the data plate
    (*local*) and to ``(particles,)`` otherwise (*global*).

    Attributes:
        model: the trace of the model.
        guide: the trace of the guide.
        layout: how many dimensions there are of what.
        rows: the plates along the rows, those of the guide among them; None if there are none.
        plate: the data plate, None if there is none.
        latents: sites that the guide draws.
        observed: sites of the model that are observed, without those that went into `summed`.
        factors: factors of the guide, a part of log q.
        enumerated: the dimension of each enumerated site of the guide.
        states: how probable the states of these sites are.
        summed: log sums over discrete sites that only the model has, with the plates that each lies in.
        absorbed: sites of the model that went into `summed`.
    """

    def __init__(
        self,
        model: poutine.Trace,
        guide: poutine.Trace,
        layout: "Layout",
        *,
        summed: tuple[list[Summed], frozenset[str]] | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.layout = layout
        rows = layout.rows or guessed(model)
        self.rows = None if rows is None else rows_of_guide(guide, model, rows)
        self.plate = data_plate_of(model, self.rows)
        if self.plate is not None:
            for trace in (model, guide):
                as_one_plate(trace, self.plate)
        self.latents = [name for name, site in guide.nodes.items() if _is_latent(site)]
        for name in self.latents:
            # what the model leaves out has no place in log q either
            if node := model.nodes.get(name) or model.nodes.get(name.removesuffix(UNCONSTRAINED)):
                guide.nodes[name]["mask"] = both_masks(guide.nodes[name]["mask"], node["mask"])
        self.summed, self.absorbed = _summed(model, guide) if summed is None else summed
        self.observed = [
            n for n, s in model.nodes.items() if s["type"] == "sample" and s["is_observed"] and n not in self.absorbed
        ]
        # pyro.factor in the guide: a part of log q
        self.factors = [
            n for n, s in guide.nodes.items() if s["type"] == "sample" and s["is_observed"] and n not in model.nodes
        ]
        self.enumerated = {
            name: guide.nodes[name]["infer"]["_enumerate_dim"]
            for name in self.latents
            if _is_enumerated(guide.nodes[name])
        }
        self.states = States(self.enumerated, {name: log_prob_of_states(guide.nodes[name]) for name in self.enumerated})

    @property
    def nesting(self) -> int:
        """How many dimensions the plates take."""
        return self.layout.nesting

    @property
    def vectorized(self) -> bool:
        """Whether there is a dimension of particles."""
        return self.layout.particles > 1

    def log_p(self, name: str) -> Tensor:
        """Log probability of a model site, with its scale and mask."""
        return scaled(self.model.nodes[name], log_prob_of(self.model.nodes[name]))

    def log_q(self, name: str) -> Tensor:
        """Log probability of a guide site, with its scale and mask."""
        return scaled(self.guide.nodes[name], log_prob_of(self.guide.nodes[name]))

    def has_log_p(self, name: str) -> bool:
        """Whether the model has a log probability of a site, apart from what was summed."""
        return name in self.model.nodes and name not in self.absorbed

    def is_local(self, name: str) -> bool:
        """Whether a site lies in the data plate."""
        return self.is_local_node(self.node(name))

    def is_local_node(self, node: Mapping[str, Any]) -> bool:
        """Whether what stands for a site lies in the data plate."""
        return self.plate is not None and not self.plate.names.isdisjoint(frames(node))

    def expectation(self, site: str | Mapping[str, Any], term: Tensor, *, keep: Collection[int] = ()) -> Tensor:
        """Sums the enumerated dimensions of a term, weighted by the guide's probabilities.

        Args:
            site: the site that it is of, or its name.
            term: one of its quantities.
            keep: enumerated dimensions, counted from the right, whose states are given.
        """
        node = self.node(site)
        self.require_states(node, term.shape)
        if not self.enumerated:
            return term
        self._depended(node, term, keep)
        weights = self.states.weights(node["name"], term, keep=keep)
        if weights is not None:
            # a state without probability may have a term without a value
            term = weights * torch.where(weights > 0, term, torch.zeros_like(term))
        dims = tuple(d for d in range(-term.dim(), -self.layout.rank) if d not in keep)
        return term.sum(dims, keepdim=bool(keep)) if dims else term

    def probabilities(
        self, site: str | Mapping[str, Any], term: Tensor, *, keep: Collection[int] = ()
    ) -> Tensor | None:
        """Returns the guide's probability of every joint state of the enumerated sites that a term depends on.

        Directly, or through the probabilities of others. Those of the dimensions to keep are left out. None if it
        depends on none.
        """
        log_probs = [self.states.log_probs[name] for name in self._depended(self.node(site), term, keep)]
        return sum(log_probs[1:], log_probs[0]).exp() if log_probs else None

    def _depended(self, node: Mapping[str, Any], term: Tensor, keep: Collection[int]) -> list[str]:
        """Returns the enumerated sites that a term depends on; it has to lie in all their plates."""
        found = self.states.depended(term, keep=keep)
        for state in found:
            if outside := frames(self.guide.nodes[state]) - frames(node):
                raise ConfigError(
                    f"site '{node['name']}' depends on the enumerated site '{state}' from outside its plate"
                    f" '{min(outside)}': the sum has one term for every joint state; put '{node['name']}' inside"
                    " the plate"
                )
        return found

    def node(self, site: str | Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the site of that name: of the model if it has it, else of the guide."""
        if not isinstance(site, str):
            return site
        node: Mapping[str, Any] = self.model.nodes.get(site) or self.guide.nodes[site]
        return node

    def require_states(self, node: Mapping[str, Any], shape: torch.Size) -> None:
        """Checks that dimensions left of all plates and particles are those of enumerated sites.

        Raises:
            ConfigError: if not: the program gives a dimension that it was drawn with another meaning.
        """
        known = set(self.enumerated.values())
        for dim in range(-len(shape), -self.layout.rank):
            if shape[dim] > 1 and dim not in known:
                raise ConfigError(
                    f"site '{node['name']}' has {shape[dim]} log probabilities along dimension {dim}, left of all its"
                    " plates: when several draws are made at once, write the program so that further dimensions on the"
                    " left pass through (x[..., 0] for x[0], say)"
                )

    def first_version(self, term: Tensor) -> Tensor:
        """Returns a term as it is in the draws that count, where the run has several versions of them."""
        dim = -self.layout.rank
        return term.narrow(dim, 0, 1) if self.layout.versions > 1 and term.dim() >= -dim else term

    def reduce(self, name: str, term: Tensor) -> Tensor:
        """Sums the plates of a term without enumerated dimensions: to ``(particles, batch)`` or ``(particles,)``.

        In a run with local particles, to ``(particles, local particles, batch)`` or ``(particles,)``.
        """
        return self.reduce_plates(self.node(name), term)

    def reduce_plates(self, node: Mapping[str, Any], term: Tensor) -> Tensor:
        """`reduce` for what lies in the plates of ``node``."""
        require_plates(node, term.shape, self.nesting)
        local = self.is_local_node(node)
        term = self.padded(self.first_version(term))
        plates = self._inner_plates() if local else tuple(range(-self.nesting, 0))
        term = term.sum(plates) if plates else term
        rank = 1 if local else 0
        layout = self.layout
        term = term.squeeze(-rank - layout.rank + self.nesting) if layout.versions > 1 else term
        if layout.local is None:
            return term if layout.particles > 1 else term.unsqueeze(-1 - rank)
        if layout.local == 1:
            term = term.unsqueeze(-1 - rank)
        term = term if layout.particles > 1 else term.unsqueeze(-2 - rank)
        return term if local else term.squeeze(-1)

    def padded(self, term: Tensor) -> Tensor:
        """Returns a term with all its dimensions, those of enumerated sites apart."""
        while term.dim() < self.layout.rank:
            term = term.unsqueeze(0)
        return term

    def collapsed(self, term: Tensor, rows: int) -> Tensor:
        """Returns a local term as ``(enumerated..., particles, local particles, rows)``.

        In a run that tells no local particles apart, as ``(enumerated..., particles, rows)``.
        """
        layout, term = self.layout, self.first_version(term)
        while term.dim() < layout.rank:
            term = term.unsqueeze(0)
        lead = term.shape[: term.dim() - layout.rank]
        inner = () if layout.local is None else (layout.local,)
        # other plates, and versions, have size 1 by now
        flat = term.reshape(*lead, *(n for n in self._sizes(term)))
        return flat.expand(*lead, layout.particles, *inner, rows)

    def _sizes(self, term: Tensor) -> tuple[int, ...]:
        sizes = list(term.shape[term.dim() - self.layout.rank :])
        plates = len(sizes) - self.nesting
        rows, sizes = math.prod(sizes[plates:]), sizes[:plates]
        layout = self.layout
        local = (sizes.pop() if (layout.local or 1) > 1 else 1,) if layout.local is not None else ()
        return (sizes.pop() if layout.particles > 1 else 1, *local, rows)

    def sum_inner_plates(self, term: Tensor) -> Tensor:
        """Sums the plates inside the data plate of a local term, keeping all dimensions."""
        term, plates = self.padded(term), self._inner_plates()
        return term.sum(plates, keepdim=True) if plates else term

    def _inner_plates(self) -> tuple[int, ...]:
        own = self.plate.dim if self.plate else -1
        return tuple(dim for dim in range(-self.nesting, 0) if dim != own)

    def reduced(self, name: str, term: Tensor) -> Tensor:
        """`expectation`, then `reduce`."""
        return self.reduce(name, self.expectation(name, term))


def require_plates(site: Mapping[str, Any], shape: torch.Size, nesting: int) -> None:
    """Checks that a term varies along plates of its site only.

    Raises:
        ConfigError: if not.
    """
    dims = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    for dim in range(-min(nesting, len(shape)), 0):
        if shape[dim] != 1 and dim not in dims:
            raise ConfigError(
                f"site '{site['name']}' has {shape[dim]} log probabilities along dimension {dim}, where it lies in no"
                " plate: put it into a plate, or make them one event with .to_event(1)"
            )


def log_prob_of(site: Mapping[str, Any]) -> Tensor:
    """Returns the log probability of a site's value, without its scale and mask, in float32.

    Where a value was drawn from a relaxation of a discrete distribution, ``infer`` says what scores it.
    """
    fn = site.get("infer", {}).get(DENSITY, _same)(site["fn"])
    with in_full_precision():
        log_prob: Tensor = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    return log_prob


def log_prob_of_states(site: Mapping[str, Any]) -> Tensor:
    """Returns the log probability of every state of an enumerated site, those of masked rows as well."""
    return log_prob_of({**site, "fn": without_mask(site["fn"])})


def in_full_precision() -> contextlib.AbstractContextManager[None]:
    """Within it, matrix products inside densities (a full covariance, say) are float32 in a bfloat16 training too."""
    mode: contextlib.AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return mode


def _same(fn: Any) -> Any:
    return fn


def scaled(site: Mapping[str, Any], term: Tensor) -> Tensor:
    """Returns a term of a site with its scale and mask."""
    result: Tensor = pyro.distributions.util.scale_and_mask(term, scale=site["scale"], mask=site["mask"])
    return result
