"""Which log probabilities of a pair depend on which draws of the guide."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger

from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.joint import prune


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
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        args, kwargs = arguments(guide, batch)
        with _Tracked():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        args, kwargs = arguments(model, batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        found: dict[str, frozenset[str]] = {}
        for trace in (prune(guide_trace), prune(model_trace)):
            for name, site in trace.nodes.items():
                if site["type"] == "sample":
                    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                    found[name] = found.get(name, frozenset()) | get_provenance(log_prob)
    return found
