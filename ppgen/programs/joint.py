"""Model and guide run together: every site's log probability, with its dimensions kept apart."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.programs.calling import Batch, Program, arguments

PARTICLES = "ppgen_particles"


def prune(trace: poutine.Trace) -> poutine.Trace:
    """Drops the sites that only hold subsample indices."""
    return poutine.util.prune_subsample_sites(trace)


def frames(site: Mapping[str, Any]) -> frozenset[str]:
    """Returns the names of the vectorised plates that a site lies in."""
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)


def _is_latent(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def plate_nesting(*traces: poutine.Trace) -> int:
    """Returns how many dimensions from the right the plates of the traces take."""
    dims = [
        -frame.dim
        for trace in traces
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max(dims, default=0)


@dataclass(frozen=True)
class DataPlate:
    """The plate over data: its name, the rows in the batch, and the rows in the whole data set."""

    name: str
    rows: int
    size: int

    @property
    def scale(self) -> float:
        """What a sum over the batch is multiplied by to stand for the whole data set (N/B)."""
        return self.size / self.rows


def data_plate_of(model: poutine.Trace) -> DataPlate | None:
    """Returns the plate at dim -1 of the first observed site that has one."""
    for site in model.nodes.values():
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic"):
            for frame in site["cond_indep_stack"]:
                if frame.vectorized and frame.dim == -1:
                    size = frame.size if frame.full_size is None else frame.full_size
                    return DataPlate(frame.name, int(frame.size), int(size))
    return None


class Joint:
    """One joint run of guide and model: every site's log probability, with its dimensions kept apart.

    Tensors have dimensions ``(enumerated sites..., particles, plates..., data)``; `reduce` brings a term to
    ``(particles, batch)`` if it lies in the data plate (*local*) and to ``(particles,)`` otherwise (*global*).
    """

    def __init__(self, model: poutine.Trace, guide: poutine.Trace, *, nesting: int, vectorized: bool) -> None:
        self.model = model
        self.guide = guide
        self.plate = data_plate_of(model)
        self.nesting = nesting
        self.vectorized = vectorized
        self.latents = [name for name, site in guide.nodes.items() if _is_latent(site)]
        self.observed = [n for n, s in model.nodes.items() if s["type"] == "sample" and s["is_observed"]]
        # pyro.factor in the guide: a part of log q
        self.factors = [
            n for n, s in guide.nodes.items() if s["type"] == "sample" and s["is_observed"] and n not in model.nodes
        ]
        self.enumerated = {
            name: dim for name in self.latents if (dim := guide.nodes[name]["infer"].get("_enumerate_dim")) is not None
        }

    def check(self) -> None:
        """Checks that every latent site of one program is a site of the other.

        Raises:
            ConfigError: if not.
        """
        for name, site in self.model.nodes.items():
            if _is_latent(site) and name not in self.guide.nodes:
                raise ConfigError(
                    f"model site '{name}' is neither observed nor sampled by the guide: add it to the guide"
                    " (a discrete site can be summed out by the stock pyro.infer.TraceEnum_ELBO)"
                )
        for name in self.latents:
            auxiliary = self.guide.nodes[name]["infer"].get("is_auxiliary")
            if name not in self.model.nodes and not auxiliary:
                raise ConfigError(f"guide site '{name}' is not in the model: rename it, or mark it is_auxiliary")

    def log_p(self, name: str) -> Tensor:
        """Log probability of a model site, with its scale and mask."""
        return _scaled(self.model.nodes[name], log_prob_of(self.model.nodes[name]))

    def log_q(self, name: str) -> Tensor:
        """Log probability of a guide site, with its scale and mask."""
        return _scaled(self.guide.nodes[name], log_prob_of(self.guide.nodes[name]))

    def is_local(self, name: str) -> bool:
        """Whether a site lies in the data plate."""
        node = self.model.nodes.get(name) or self.guide.nodes[name]
        return self.plate is not None and self.plate.name in frames(node)

    def expectation(self, name: str, term: Tensor) -> Tensor:
        """Sums the enumerated dimensions of a term of site ``name``, weighted by the guide's probabilities."""
        if not self.enumerated:
            return term
        weights = self._weights(name, term)
        term = term if weights is None else weights * term
        keep = self.nesting + self.vectorized
        return term.sum(tuple(range(-term.dim(), -keep))) if term.dim() > keep else term

    def _weights(self, name: str, term: Tensor) -> Tensor | None:
        own = frames(self.model.nodes.get(name) or self.guide.nodes[name])
        chosen: dict[str, Tensor] = {}
        pending = [term]
        while pending:
            tensor = pending.pop()
            for site, dim in self.enumerated.items():
                if site in chosen or tensor.dim() < -dim or tensor.shape[dim] == 1:
                    continue
                if outside := frames(self.guide.nodes[site]) - own:
                    raise ConfigError(
                        f"site '{name}' depends on the enumerated site '{site}' from outside its plate"
                        f" '{min(outside)}': the sum has one term for every joint state; put '{name}' inside the plate"
                    )
                chosen[site] = log_prob_of(self.guide.nodes[site])
                pending.append(chosen[site])
        total: Tensor | None = None
        for log_prob in chosen.values():
            total = log_prob if total is None else total + log_prob
        return None if total is None else total.exp()

    def reduce(self, name: str, term: Tensor) -> Tensor:
        """Sums the plates of a term without enumerated dimensions: to ``(particles, batch)`` or ``(particles,)``."""
        _require_plates(self.model.nodes.get(name) or self.guide.nodes[name], term.shape, self.nesting)
        rank = self.nesting + self.vectorized
        while term.dim() < rank:
            term = term.unsqueeze(0)
        last = 1 if self.is_local(name) else 0
        first = self.nesting if self.vectorized else term.dim()
        plates = tuple(range(-first, -last))
        term = term.sum(plates) if plates else term
        return term if self.vectorized else term.unsqueeze(0)

    def sum_inner_plates(self, term: Tensor) -> Tensor:
        """Sums the plates inside the data plate of a local term, keeping enumerated dimensions."""
        while term.dim() < self.nesting + self.vectorized:
            term = term.unsqueeze(0)
        return term.sum(tuple(range(-self.nesting, -1))) if self.nesting > 1 else term

    def reduced(self, name: str, term: Tensor) -> Tensor:
        """`expectation`, then `reduce`."""
        return self.reduce(name, self.expectation(name, term))


def _require_plates(site: Mapping[str, Any], shape: torch.Size, nesting: int) -> None:
    dims = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    for dim in range(-min(nesting, len(shape)), 0):
        if shape[dim] != 1 and dim not in dims:
            raise ConfigError(
                f"site '{site['name']}' has {shape[dim]} log probabilities along dimension {dim}, where it lies in no"
                " plate: put it into a plate, or make them one event with .to_event(1)"
            )


def log_prob_of(site: Mapping[str, Any]) -> Tensor:
    """Returns the log probability of a site's value, without its scale and mask, in float32."""
    with in_full_precision():
        log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return log_prob


def in_full_precision() -> contextlib.AbstractContextManager[None]:
    """Within it, matrix products inside densities (a full covariance, say) are float32 in a bfloat16 training too."""
    mode: contextlib.AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return mode


def _scaled(site: Mapping[str, Any], term: Tensor) -> Tensor:
    scaled: Tensor = pyro.distributions.util.scale_and_mask(term, scale=site["scale"], mask=site["mask"])
    return scaled


def run(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    particles: int = 1,
    enumerate_discrete: bool = False,
    labels: Mapping[str, Tensor] | None = None,
    nesting: int | None = None,
    check: bool = True,
) -> Joint:
    """Runs the guide, then the model on the guide's draws.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: the columns; those whose name a model site bears are observed there.
        particles: independent draws, vectorised by a plate left of all others; 1 adds no dimension.
        enumerate_discrete: enumerate every discrete site of the guide in a dimension of its own.
        labels: guide sites that are conditioned on given values, so that the guide yields their log probability.
        nesting: how many dimensions the plates take, if known; else it is found by one more run.
        check: whether model and guide have to match.

    Raises:
        ConfigError: if model and guide do not match.
    """
    if nesting is None and (particles > 1 or enumerate_discrete):
        nesting = nesting_of(model, guide, batch)
    columns = {k: v for k, v in batch.items() if k not in labels} if labels else batch
    inference = poutine.condition(guide, data=dict(labels)) if labels else guide
    with contextlib.ExitStack() as stack:
        if particles > 1:
            stack.enter_context(pyro.plate(PARTICLES, particles, dim=-1 - (nesting or 0)))
        if enumerate_discrete:
            stack.enter_context(poutine.enum(first_available_dim=-1 - (nesting or 0) - (particles > 1)))
            inference = config_enumerate(inference, default="parallel")
        args, kwargs = arguments(guide, columns)
        guide_trace = poutine.trace(inference).get_trace(*args, **kwargs)
        args, kwargs = arguments(model, batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    # only now: subsample indices drawn by the guide had to reach the model
    guide_trace, model_trace = prune(guide_trace), prune(model_trace)
    depth = plate_nesting(guide_trace, model_trace) - (particles > 1) if nesting is None else nesting
    joint = Joint(model_trace, guide_trace, nesting=depth, vectorized=particles > 1)
    if check:
        joint.check()
    return joint


def data_plate(model: Program, batch: Batch) -> DataPlate | None:
    """Returns the data plate of a model, by running it once without moving any random stream."""
    args, kwargs = arguments(model, batch)
    with torch.random.fork_rng(devices=_devices()), torch.no_grad():
        return data_plate_of(poutine.trace(model).get_trace(*args, **kwargs))


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def nesting_of(model: Program, guide: Program, batch: Batch) -> int:
    """Returns how many dimensions the plates of a pair take, by running it once without moving any random stream."""
    with torch.random.fork_rng(devices=_devices()), torch.no_grad():
        joint = run(model, guide, batch)
    return joint.nesting


def check(model: Program, guide: Program, batch: Batch, *, labels: Mapping[str, Tensor] | None = None) -> Joint:
    """Runs a pair once with Pyro's validation on, so that wrong shapes and values are named by their site.

    Raises:
        ConfigError: if model and guide do not match.
        DataError: if a value lies outside the support of its distribution.
    """
    with pyro.validation_enabled(True), torch.no_grad():
        joint = run(model, guide, batch, labels=labels)
        for trace in (joint.guide, joint.model):
            try:
                trace.compute_log_prob()
            except ValueError as error:
                raise DataError(" ".join(str(error).split("\n")[:2])) from error
            for site in trace.nodes.values():
                if site["type"] == "sample" and "log_prob" in site:
                    _require_plates(site, site["log_prob"].shape, site["log_prob"].dim())
    return joint


def first_nonfinite(
    model: Program, guide: Program, batch: Batch, *, labels: Mapping[str, Tensor] | None = None
) -> str | None:
    """Says at which site and rows of the batch a value or log probability is not finite; None if all are."""
    with torch.no_grad():
        joint = run(model, guide, batch, labels=labels, check=False)
    for role, trace in (("guide", joint.guide), ("model", joint.model)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            try:
                bad = ~(_scaled(site, log_prob_of(site)).isfinite())
            except ValueError as error:
                return f"{role} site '{name}' ({str(error).splitlines()[0]})"
            if bad.any():
                rows = bad.nonzero()[:, -1].unique().tolist() if bad.dim() and joint.is_local(name) else []
                return f"{role} site '{name}'" + (f", rows {_shortened(rows)}" if rows else "")
    return None


def _shortened(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
