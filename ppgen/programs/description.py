"""What a pair of programs consists of, in words: its sites and plates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution

from ppgen.programs.calling import Batch, Program
from ppgen.programs.joint import Joint
from ppgen.programs.running import run
from ppgen.programs.sites import is_factor, is_named

_WRAPPERS = (dist.Independent, dist.MaskedDistribution, ExpandedDistribution)


@dataclass(frozen=True)
class SiteDescription:
    """One site of a pair.

    Attributes:
        name: its name.
        model: its distribution in the model; empty if it is not there.
        guide: its distribution in the guide; empty if it is not there.
        role: "latent", "observed", "observed where known", "deterministic" or "factor".
        shape: of one value, without plates.
        plates: the plates that it lies in, outermost first.
    """

    name: str
    model: str
    guide: str
    role: str
    shape: tuple[int, ...]
    plates: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """Sites and plates of a pair; plates by name, with their full size."""

    sites: tuple[SiteDescription, ...]
    plates: Mapping[str, int]


def describe(model: Program, guide: Program, batch: Batch) -> Description:
    """Runs a pair once and says what sites and plates it has; a game's need not match.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: columns, or dicts of columns by name: the last of them is run, and columns of the others say what is
            known of some rows.
    """
    parts = list(batch.values()) if isinstance(batch, Mapping) else []
    nested = bool(parts) and all(isinstance(part, Mapping) for part in parts)
    known = {name for part in parts[:-1] for name in part} if nested else set()
    with torch.no_grad():
        joint = run(model, guide, parts[-1] if nested else batch, check=False)
    names = [n for t in (joint.model, joint.guide) for n, site in t.nodes.items() if site["type"] == "sample"]
    sites = tuple(_described(joint, name, known) for name in dict.fromkeys(names))
    plates = {
        frame.name: int(frame.size if frame.full_size is None else frame.full_size)
        for trace in (joint.guide, joint.model)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in _plates(site)
    }
    return Description(sites, plates)


def _described(joint: Joint, name: str, known: set[str]) -> SiteDescription:
    model, guide = joint.model.nodes.get(name), joint.guide.nodes.get(name)
    site: Mapping[str, Any] = model or guide
    role = "observed" if site["is_observed"] else "observed where known" if name in known else "latent"
    role = "deterministic" if is_named(site) else "factor" if is_factor(site) else role
    return SiteDescription(
        name,
        model=_name(model["fn"]) if model else "",
        guide=_name(guide["fn"]) if guide else "",
        role=role,
        shape=tuple(site["fn"].event_shape),
        plates=tuple(frame.name for frame in sorted(_plates(site), key=lambda frame: frame.dim)),
    )


def _plates(site: Mapping[str, Any]) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _name(distribution: Any) -> str:
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    return next(kind.__name__ for kind in type(distribution).__mro__ if not kind.__name__.startswith("_"))
