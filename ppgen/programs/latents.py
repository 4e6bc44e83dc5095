"""Runs whose latents the guide did not draw: dreamed by the model, or set to given values."""

import contextlib
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.joint import PARTICLES, Joint, Layout, prune
from ppgen.programs.rows import plate_nesting
from ppgen.programs.sites import is_factor, is_named, unobserved
from ppgen.programs.tracing import traced


class DetachedDraws(Messenger):
    """Within it, draws of programs carry no gradient.

    Attributes:
        indices: the rows that subsampling plates drew, by the name of the plate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: dict[str, Tensor] = {}

    # as the outermost handler it is the first that sees a draw, before a trace records it
    def _pyro_post_sample(self, site: Any) -> None:
        if not site["is_observed"]:
            site["value"] = site["value"].detach()
        if poutine.util.site_is_subsample(site):
            self.indices[site["name"]] = site["value"]


def dream(model: Program, guide: Program, batch: Batch) -> Joint:
    """Draws latents and data from the model, and runs the guide on the data at these latents.

    The columns of ``batch`` that the model observes are replaced by draws of the same shape and type; the others stay.

    Returns:
        The joint run; its ``log_q`` is the guide's log probability of what the model dreamed.
    """
    args, kwargs = arguments(model, batch)
    with torch.no_grad():
        model_trace = traced(unobserved(model), args, kwargs)
    for site in model_trace.nodes.values():
        if site["type"] == "sample" and site["infer"].get("was_observed"):
            site["is_observed"] = True
    dreamed = {name: _as_column(site, batch[name]) for name, site in _observed(model_trace) if name in batch}
    latents = {k: v["value"] for k, v in model_trace.nodes.items() if v["type"] == "sample" and not v["is_observed"]}
    guide_trace = _trace_at(guide, {**batch, **dreamed}, latents)
    nesting = plate_nesting(guide_trace, model_trace)
    return Joint(prune(model_trace), prune(guide_trace), Layout(nesting))


def at(
    joint: Joint,
    values: Mapping[str, Tensor],
    model: Program,
    batch: Batch,
    *,
    guide: Program | None = None,
) -> Joint:
    """Runs the model again, with the latents of a joint run at other values; the guide too, if it is given.

    Args:
        joint: the earlier run.
        values: by site, each of the shape it had there; indices of subsampling plates are told by the plate's name.
        model: the generative program.
        batch: that of the earlier run.
        guide: the inference program; without it the result keeps the guide of the earlier run.
    """
    particles = pyro.plate(PARTICLES, joint.layout.particles, dim=-1 - joint.nesting)
    with particles if joint.vectorized else contextlib.nullcontext():
        guide_trace = joint.guide if guide is None else prune(_trace_at(guide, batch, values))
        model_trace = prune(_trace_at(model, batch, values))
    return Joint(model_trace, guide_trace, joint.layout)


def _trace_at(program: Program, batch: Batch, values: Mapping[str, Tensor]) -> poutine.Trace:
    given = poutine.Trace()
    for name, value in values.items():
        given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    args, kwargs = arguments(program, batch)
    return traced(poutine.replay(program, trace=given), args, kwargs)


def _observed(trace: poutine.Trace) -> list[tuple[str, Any]]:
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not is_named(site)
    ]


def _as_column(site: Mapping[str, Any], column: Tensor) -> Tensor:
    value: Tensor = site["value"]
    return value.reshape(column.shape).to(column.dtype)


def require_separate_sites(joint: Joint) -> None:
    """Checks that no site is drawn by the guide and observed by the model.

    Raises:
        ConfigError: if one is.
    """
    if both := sorted(set(joint.latents) & set(joint.observed)):
        raise ConfigError(
            f"site '{both[0]}' is observed by the model and drawn by the guide: leave the column '{both[0]}' out"
        )


def require_dreams(joint: Joint, batch: Batch) -> None:
    """Checks that a guide can be given what the model dreams: each observed site is a column of its name.

    Raises:
        ConfigError: if not.
    """
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise ConfigError(
            f"expected batches as dicts of columns, {{'x': ...}} say, which dreams can replace; got a {kind}"
        )
    for name, site in _observed(joint.model):
        if is_factor(site):
            raise ConfigError(
                f"the model cannot dream: its site '{name}' is a pyro.factor, from which nothing is drawn"
            )
        column = batch.get(name)
        if not isinstance(column, Tensor):
            raise ConfigError(
                f"the guide cannot be given dreams of the observed site '{name}': name the column that it observes"
                f" '{name}' too (columns: {', '.join(batch)})"
            )
        value = site["value"]
        if value.numel() != column.numel() or not torch.equal(_as_column(site, column), column):
            raise ConfigError(
                f"the guide cannot be given dreams of site '{name}', which observes something made of the column"
                f" '{name}': have it observe the column itself"
            )


def require_densities(joint: Joint) -> None:
    """Checks that the guide has a density at any values of the latents, not only at those that it draws.

    Raises:
        ConfigError: if not.
    """
    for name in joint.latents:
        site = joint.guide.nodes[name]
        distribution = site["fn"]
        while isinstance(distribution, (Independent, MaskedDistribution)):
            distribution = distribution.base_dist
        if site["infer"].get("is_auxiliary") or isinstance(distribution, Delta):
            kind = "auxiliary" if site["infer"].get("is_auxiliary") else "a Delta"
            raise ConfigError(
                f"guide site '{name}' is {kind}, so the guide has no density at latents that it did not draw: write a"
                " guide that samples each latent from a distribution of its own (most autoguides do not)"
            )
