"""Draws from a model, from a guide, and from a model given a guide's draws."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Call, Program, arguments
from ppgen.programs.joint import prune
from ppgen.programs.parameters import quiet
from ppgen.programs.sites import is_factor, is_named, unobserved
from ppgen.programs.tracing import traced
from ppgen.streams import has_rows


def template(batch: Batch, rows: int) -> Any:
    """Returns a batch of ``rows`` rows with the columns, shapes and dtypes of ``batch``; its values do not matter.

    What has one value for all rows stays as it is.
    """
    if isinstance(batch, Call):
        return Call(template(batch.args, rows), template(batch.kwargs, rows))
    if isinstance(batch, Mapping):
        return {name: template(column, rows) for name, column in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(template(column, rows) for column in batch)
    return batch[:1].expand(rows, *batch.shape[1:]) if has_rows(batch) else batch


def _draws(trace: poutine.Trace, sites: Iterable[str], *, mean: Iterable[str] = ()) -> dict[str, Tensor]:
    nodes, means = trace.nodes, set(mean)
    return {name: (_mean(nodes[name]) if name in means else nodes[name]["value"]).detach() for name in sites}


def _mean(site: Mapping[str, Any]) -> Tensor:
    value: Tensor = site["value"]
    if is_named(site):
        return value
    try:
        mean: Tensor = site["fn"].mean
    except (NotImplementedError, AttributeError):
        return value
    # unordered categories have no mean: torch says nan
    return value if mean.isnan().any() else mean


def _sites(trace: poutine.Trace) -> list[str]:
    nodes = prune(trace).nodes
    return [name for name, site in nodes.items() if site["type"] == "sample" and not is_factor(site)]


def generate(
    model: Program,
    batch: Batch,
    rows: int | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    mean: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Draws every site of the model from the model alone.

    Args:
        model: the generative program.
        batch: stored shapes and dtypes; its values do not matter.
        rows: how many rows to draw; those of ``batch`` unless told.
        given: sites that are clamped to these values.
        mean: data sites of which the mean given the latents is returned instead of a draw, where it is known.

    Returns:
        The value of every sample site but factors, each ``(rows, ...)`` if it lies in the data plate.
    """
    batch = batch if rows is None else template(batch, rows)
    program = unobserved(model)
    program = poutine.condition(program, data=dict(given)) if given else program
    args, kwargs = arguments(model, batch)
    with torch.no_grad(), quiet():
        trace = traced(program, args, kwargs)
        return _draws(trace, _sites(trace), mean=mean)


def posterior(guide: Program, batch: Batch) -> dict[str, Tensor]:
    """Draws the latent sites of the guide for the rows of ``batch``."""
    args, kwargs = arguments(guide, batch)
    with torch.no_grad(), quiet():
        trace = traced(guide, args, kwargs)
        return _draws(trace, (name for name in _sites(trace) if not trace.nodes[name]["is_observed"]))


def reconstruct(model: Program, guide: Program, batch: Batch, *, mean: Iterable[str] = ()) -> dict[str, Tensor]:
    """Draws the latents from the guide, then the observed sites of the model given them (posterior predictive)."""
    args, kwargs = arguments(guide, batch)
    with torch.no_grad(), quiet():
        guide_trace = traced(guide, args, kwargs)
        args, kwargs = arguments(model, batch)
        # a guide that runs its model observes the data as well
        for name in [name for name, site in guide_trace.nodes.items() if site.get("is_observed")]:
            guide_trace.remove_node(name)
        program = poutine.replay(unobserved(model), trace=guide_trace)
        trace = traced(program, args, kwargs)
        return _draws(trace, _sites(trace), mean=mean)


def label_log_probs(guide: Program, batch: Batch, site: str = "y") -> Tensor:
    """Returns the guide's log probability of every state of one discrete local site: ``(batch, classes)``.

    It is read off the site's distribution, so the guide need not bear enumeration; where that distribution depends on
    other latents of the guide, these are drawn.

    Raises:
        ConfigError: if the guide has no such discrete site, or not one value of it a row.
    """
    args, kwargs = arguments(guide, batch)
    with torch.no_grad(), quiet():
        trace = prune(traced(guide, args, kwargs))
    node = trace.nodes.get(site)
    if node is None or node["type"] != "sample" or node["is_observed"] or not node["fn"].has_enumerate_support:
        raise ConfigError(f"the guide has no discrete site '{site}'")
    fn = node["fn"]
    if fn.event_shape or len(fn.batch_shape) != 1:
        raise ConfigError(f"expected site '{site}' of the guide to have one value a row; got {tuple(fn.shape())}")
    with torch.no_grad():
        log_probs: Tensor = fn.log_prob(fn.enumerate_support(expand=False)).movedim(0, -1)
    return log_probs
