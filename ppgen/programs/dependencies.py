"""Which log probabilities of a pair depend on which draws of the guide."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger

from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.joint import prune
from ppgen.programs.tracing import traced


class _Tracked(Messenger):
    """Marks each draw with its name."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not poutine.util.site_is_subsample(msg):
            msg["value"] = track_provenance(msg["value"], get_provenance(msg["value"]) | {msg["name"]})


def dependencies(model: Program, guide: Program, batch: Batch) -> Mapping[str, frozenset[str]]:
    """Returns, for each site of a pair, the latent sites whose draws its log probabilities depend on.

    Directly or through other draws. The pair is run once, without moving any random stream; draws are followed through
    every operation of torch, and lost where a program leaves torch (``.item()``, NumPy).
    """
    found: dict[str, frozenset[str]] = {}
    with _unrecorded():
        for trace in _tracked(model, guide, batch):
            for name, site in trace.nodes.items():
                if site["type"] == "sample":
                    found[name] = found.get(name, frozenset()) | _sources(site, site["value"])
    return found


def late_priors(model: Program, guide: Program, batch: Batch) -> frozenset[str]:
    """Returns the latent sites whose distribution in the model depends on what the guide draws from the site on.

    As `dependencies` finds them.
    """
    with _unrecorded():
        guide_trace, model_trace = _tracked(model, guide, batch)
        latents = [n for n, site in guide_trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]]
        priors = {name: model_trace.nodes[name] for name in latents if name in model_trace.nodes}
        return frozenset(
            name
            for name, site in priors.items()
            if not _sources(site, detach_provenance(site["value"])).isdisjoint(latents[latents.index(name) :])
        )


@contextlib.contextmanager
def _unrecorded() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield


def _tracked(model: Program, guide: Program, batch: Batch) -> tuple[poutine.Trace, poutine.Trace]:
    args, kwargs = arguments(guide, batch)
    with _Tracked():
        guide_trace = traced(guide, args, kwargs)
    args, kwargs = arguments(model, batch)
    model_trace = traced(poutine.replay(model, trace=guide_trace), args, kwargs)
    return prune(guide_trace), prune(model_trace)


def _sources(site: Mapping[str, Any], value: Any) -> frozenset[str]:
    found: frozenset[str] = get_provenance(site["fn"].log_prob(value, *site["args"], **site["kwargs"]))
    return found
