"""Exact bounds of pairs with discrete sites, by running them once for each joint state: without any enumeration."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppgen import programs

States = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Path:
    """One joint state: ``(rows,)`` each, in nats.

    Attributes:
        log_probability: of the guide's discrete sites.
        log_p: of the model, with its masks.
        log_q: of the guide, with its masks.
    """

    log_probability: Tensor
    log_p: Tensor
    log_q: Tensor


def paths(model: Any, guide: Any, batch: Any, states: States, *, of_model: States | None = None) -> Iterator[Path]:
    """Yields every joint state of local discrete sites: those of the guide, or of the model alone."""
    of_model = of_model or {}
    for path in itertools.product(*states.values()):
        values = dict(zip(states, path, strict=True))
        guide_trace = _trace(guide, batch, values)
        given = values | {
            n: s["value"] for n, s in guide_trace.nodes.items() if s["type"] == "sample" and n not in values
        }
        totals = []
        for further in itertools.product(*of_model.values()):
            model_trace = _trace(model, batch, given | dict(zip(of_model, further, strict=True)))
            totals.append(_total(model_trace))
        yield Path(
            sum((_log_prob(guide_trace.nodes[name]) for name in states), torch.zeros(())),
            torch.stack(totals).logsumexp(0) if of_model else totals[0],
            _total(guide_trace),
        )


def _trace(program: Any, batch: Any, values: Mapping[str, Any]) -> Any:
    args, kwargs = programs.arguments(program, batch)
    with _At(values):
        return poutine.trace(program).get_trace(*args, **kwargs)


class _At(poutine.messenger.Messenger):
    """Puts sites at values, given for one row, in every row."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            value = torch.as_tensor(self.values[msg["name"]])
            subsample = poutine.util.site_is_subsample(msg)
            msg["value"] = value if subsample else value.expand(msg["fn"].batch_shape + msg["fn"].event_shape)
            msg["done"] = True


def _log_prob(site: Any) -> Tensor:
    fn = site["fn"]
    while isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    log_prob: Tensor = fn.log_prob(site["value"])
    return log_prob


def _total(trace: Any) -> Tensor:
    """Log probability by row: of all but the last dimension the sum."""
    total = torch.zeros(())
    for site in trace.nodes.values():
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
            term = site["fn"].log_prob(site["value"])
            if site["mask"] is not None:
                term = torch.where(torch.as_tensor(site["mask"]), term, torch.zeros(()))
            total = total + (term.sum(tuple(range(term.dim() - 1))) if term.dim() > 1 else term)
    return total


def elbo(found: Sequence[Path]) -> Tensor:
    """The evidence lower bound of every row, states without probability left out."""
    total = torch.zeros(())
    for path in found:
        possible = path.log_probability > -math.inf
        term = torch.where(possible, path.log_p - path.log_q, torch.zeros(()))
        total = total + path.log_probability.exp() * term
    return total


def evidence(found: Sequence[Path]) -> Tensor:
    """The log of the sum of all weights of every row, where the guide has no continuous site."""
    weights = []
    for path in found:
        possible = path.log_probability > -math.inf
        # where the guide's sites are not masked, their probability is log q, and nothing is left of it
        rest = torch.where(possible, path.log_probability - path.log_q, torch.zeros(()))
        weights.append(torch.where(possible, path.log_p + rest, -math.inf))
    return torch.stack(weights).logsumexp(0)
