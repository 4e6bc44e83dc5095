"""Several runs of a pair, one for each state of sites that are enumerated one run at a time, as one run."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.joint import Joint, frames, log_prob_of, log_prob_of_states
from ppgen.programs.marginals import Summed
from ppgen.programs.scales import both_masks, own_mask
from ppgen.programs.states import STATE, Along, stacked


def along_paths(joints: Sequence[Joint]) -> Joint:
    """Puts runs side by side, along a dimension left of all others that stands for the states they differ in.

    Raises:
        ConfigError: if a site that lies outside the plates of these states depends on them.
    """
    plates = _plates(joints)
    roles = [[joint.model for joint in joints], [joint.guide for joint in joints]]
    terms = [log_prob_of(s) for traces in roles for t in traces for s in t.nodes.values() if s["type"] == "sample"]
    terms += [summed.unscaled for joint in joints for summed in joint.summed]
    rank = max(joints[0].layout.rank, *(term.dim() for term in terms))
    first = next(name for name, site in joints[0].guide.nodes.items() if STATE in site.get("infer", {}))
    names = list(joints[0].guide.nodes)
    model, guide = _merged(roles[0], plates, rank), _merged(roles[1], plates, rank, shared=names[: names.index(first)])
    return Joint(model, guide, joints[0].layout, summed=_sums(joints, plates, rank))


def _plates(joints: Sequence[Joint]) -> frozenset[str]:
    sites = [site for joint in joints for site in joint.guide.nodes.values() if STATE in site.get("infer", {})]
    first = sites[0]
    for site in sites:
        if frames(site) != frames(first):
            raise ConfigError(
                f"sites '{first['name']}' and '{site['name']}' are enumerated sequentially and lie in different plates:"
                ' mark one of them "parallel"'
            )
    return frames(first)


def _merged(
    traces: Sequence[poutine.Trace], plates: frozenset[str], rank: int, *, shared: Collection[str] = ()
) -> poutine.Trace:
    whole = poutine.Trace()
    for name in dict.fromkeys(name for trace in traces for name in trace.nodes):
        sites = [trace.nodes.get(name) for trace in traces]
        node = dict(next(site for site in sites if site is not None))
        if node["type"] == "sample" and name not in shared:
            if plates <= frames(node):
                node = _along(node, sites, rank)
            else:
                _require_shared(node, sites)
        whole.add_node(name, **node)
    return whole


def _along(node: dict[str, Any], sites: Sequence[Mapping[str, Any] | None], rank: int) -> dict[str, Any]:
    # what a distribution masks itself is masked by the site instead, so that its states keep their probabilities
    terms = [None if site is None else log_prob_of_states(site) for site in sites]
    absent = _absent(node["infer"], next(term for term in terms if term is not None))
    parts = [None if site is None else site["fn"] for site in sites]
    infer = {key: value for key, value in node["infer"].items() if key != "ppgen_density"}
    if STATE in infer:
        infer["_enumerate_dim"] = -1 - rank
    masks = [False if site is None else both_masks(site["mask"], own_mask(site["fn"])) for site in sites]
    return node | {
        "fn": Along(parts, stacked([absent if term is None else term for term in terms], rank)),
        "args": (),
        "kwargs": {},
        "infer": infer,
        "mask": _common(masks, rank),
        "scale": _common([(site or node)["scale"] for site in sites], rank),
    }


def _absent(infer: Mapping[str, Any], term: Tensor) -> float:
    """The log probability of each state of a site in a run that lacks it, of which together there is one."""
    dim = infer.get("_enumerate_dim")
    return 0.0 if dim is None else -math.log(term.shape[dim])


def _common(values: Sequence[Any], rank: int) -> Any:
    """Returns the scale or mask of all runs, along them where they differ."""
    first, plain = values[0], not any(isinstance(value, Tensor) for value in values)
    alike = all(value is first or (plain and value == first) for value in values)
    return first if alike else stacked([torch.as_tensor(True if v is None else v) for v in values], rank)


def _require_shared(node: Mapping[str, Any], sites: Sequence[Mapping[str, Any] | None]) -> None:
    if any(site is None or (not site["is_observed"] and site["value"] is not node["value"]) for site in sites):
        raise ConfigError(
            f"site '{node['name']}' is drawn after a site that is enumerated sequentially, and outside of its plate:"
            " draw it before, or inside the plate"
        )


def _sums(joints: Sequence[Joint], plates: frozenset[str], rank: int) -> tuple[list[Summed], frozenset[str]]:
    found = []
    for several in zip(*(joint.summed for joint in joints), strict=True):
        first = several[0]
        inside = plates <= frames(first.node)
        found.append(Summed(stacked([one.unscaled for one in several], rank), first.node) if inside else first)
    return found, joints[0].absorbed
