"""Which log probabilities of a pair depend on which draws of the guide."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.tracing import aside, traced

_CONVERSIONS = ("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__format__")
_VALUES = ("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "__contains__")
_SHAPES = ("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive")
_READS = frozenset((*_CONVERSIONS, *_VALUES, *_SHAPES))
"""What tells a program a value, or gives a tensor a shape that depends on values."""


@dataclass
class Dependencies:
    """On which latent sites of the guide the sites of a pair depend, as one run of it shows.

    A site that comes after a value was read by the program, which may have chosen what runs from there on, is not
    told: in another run it may depend on anything.

    Attributes:
        terms: for each site, the latent sites that its log probability depends on, directly or through other draws.
        draws: for each latent site, those that its value depends on.
        latents: all latent sites of the run.
        read: the latent sites whose draws the program read, or what it computed of them.
    """

    terms: dict[str, frozenset[str]] = field(default_factory=dict)
    draws: dict[str, frozenset[str]] = field(default_factory=dict)
    latents: set[str] = field(default_factory=set)
    read: frozenset[str] = frozenset()

    @classmethod
    def unknown(cls) -> "Dependencies":
        """Returns those of a pair of which nothing is known: anything may depend on anything, across all plates."""
        return cls(read=frozenset({""}))

    def of_term(self, site: str, latent: str) -> bool:
        """Whether the log probability of a site may depend on a draw."""
        return _in(self.terms, site, latent) or latent not in self.latents

    def of_draw(self, site: str, latent: str) -> bool:
        """Whether the value of a latent site may depend on a draw before it."""
        return _in(self.draws, site, latent) or latent not in self.latents

    def is_known(self, site: str) -> bool:
        """Whether it is known on what a site depends."""
        return site in self.terms


def _in(found: Mapping[str, frozenset[str]], site: str, latent: str) -> bool:
    return site not in found or latent in found[site]


class Reads(TorchFunctionMode):
    """Notes whether a program reads a value, and of which draws that is made.

    Attributes:
        found: whether it does.
        of: the draws, if they are followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self.of: frozenset[str] = frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function."""
        name = getattr(func, "__name__", "")
        if name in _READS or (name == "__getitem__" and _by_mask(args[1])) or (name == "where" and len(args) == 1):
            self.found = True
            self.of |= get_provenance([args, kwargs or {}])
        return func(*args, **(kwargs or {}))


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


class _Followed(Messenger):
    """Marks each draw with its name, and notes what came before any value was read."""

    def __init__(self, reads: Reads, found: Dependencies) -> None:
        super().__init__()
        self.reads = reads
        self.found = found
        self.early: set[str] = set()

    def _pyro_post_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if not self.reads.found:
            self.early.add(name)
        if msg["is_observed"] or poutine.util.site_is_subsample(msg) or name in self.found.latents:
            return
        self.found.latents.add(name)
        before = get_provenance(value)
        if not self.reads.found:
            self.found.draws[name] = before
        msg["value"] = track_provenance(value, before | {name})


def dependencies(model: Program, guide: Program, batch: Batch) -> Dependencies:
    """Returns on which draws of the guide the log probabilities of a pair depend.

    The pair is run once, without moving any random stream; draws are followed through every operation of torch.
    """
    found, reads, late = Dependencies(), Reads(), set[str]()
    with aside(0):
        for trace, early in _followed(model, guide, batch, found, reads, reads):
            late |= _add_terms(found.terms, trace, early)
    for name in late & found.terms.keys():
        del found.terms[name]
    found.read = reads.of
    return found


def late_priors(model: Program, guide: Program, batch: Batch) -> frozenset[str]:
    """Returns the latent sites whose distribution in the model depends on what the guide draws from the site on.

    As `dependencies` finds them; where the model reads a draw, that of every site from there on may.
    """
    reads = Reads()
    with aside(0):
        (guide_trace, _), (model_trace, early) = _followed(model, guide, batch, Dependencies(), Reads(), reads)
        latents = [n for n, s in guide_trace.nodes.items() if _is_sample(s) and not s["is_observed"]]
        priors = {name: model_trace.nodes[name] for name in latents if name in model_trace.nodes}
        return frozenset(
            name
            for name, site in priors.items()
            if not _sources(site, detach_provenance(site["value"])).isdisjoint(latents[latents.index(name) :])
            or (name not in early and reads.of)
        )


def _followed(
    model: Program, guide: Program, batch: Batch, found: Dependencies, *reads: Reads
) -> list[tuple[poutine.Trace, set[str]]]:
    """Runs the guide, then the model: returns their traces, each with the sites before any value was read."""
    runs: list[tuple[poutine.Trace, set[str]]] = []
    for program, noted in zip((guide, model), reads, strict=True):
        args, kwargs = arguments(program, batch)
        replayed = poutine.replay(program, trace=runs[0][0]) if runs else program
        with noted, _Followed(noted, found) as followed:
            runs.append((traced(replayed, args, kwargs), followed.early))
    return runs


def _is_sample(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not poutine.util.site_is_subsample(site)


def _sources(site: Mapping[str, Any], value: Any) -> frozenset[str]:
    log_prob = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    found: frozenset[str] = get_provenance([log_prob, site["scale"], site["mask"]])
    return found


def _add_terms(terms: dict[str, frozenset[str]], trace: poutine.Trace, early: set[str]) -> set[str]:
    """Adds what the sites of a run depend on, those of ``early``; returns the other ones."""
    late = set()
    for name, site in trace.nodes.items():
        if _is_sample(site) and name in early:
            terms[name] = terms.get(name, frozenset()) | _sources(site, site["value"])
        elif _is_sample(site):
            late.add(name)
    return late


def latents_of_runs(guide: Program, batch: Batch, *, runs: int = 20) -> dict[str, tuple[Any, bool]]:
    """Returns the latent sites that a guide draws in one of several runs: its distribution, and if all have it."""
    found: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    with aside(0):
        args, kwargs = arguments(guide, batch)
        for _ in range(runs):
            for name, site in traced(guide, args, kwargs).nodes.items():
                if _is_sample(site) and not site["is_observed"]:
                    found[name] = site["fn"]
                    counts[name] += 1
    return {name: (fn, counts[name] == runs) for name, fn in found.items()}
