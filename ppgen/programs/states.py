"""Which discrete sites of a run are enumerated, and how probable each of their joint states is."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError

MOST_NUMBERS = 2**26
"""How many log probabilities a site may have in one run: 256 MiB of float32."""
MOST_DIMENSIONS = 60
"""How many dimensions, those of plates and particles included; torch has 64."""
MOST_PATHS = 1024
"""How many joint states may be run one after another."""

STATE = "ppgen_state"
"""Key of the ``infer`` of a site that is enumerated by one run a state."""

_KEYS = ("enumerate", "expand", "num_samples", "tmc")


class Chosen(Messenger):
    """Marks the sites that are enumerated, and no others, whatever a program says of them.

    Every state is taken once: ``num_samples`` of Pyro's local sampling, which would put draws in their place, is
    left out.

    Attributes:
        names: the sites of the last run.

    Args:
        which: whether a site of that name is.
        rank: how many dimensions are not those of enumerated sites.
        paths: for sites that the program marks "sequential", which are then run state by state; None for a model.
    """

    def __init__(self, which: Callable[[str], bool], *, rank: int, paths: "Paths | None" = None) -> None:
        super().__init__()
        self.which = which
        self.rank = rank
        self.paths = paths
        self.names: set[str] = set()
        self._places = 0

    def __enter__(self) -> Any:
        self._places = 0
        self.names = set()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        self.names.add(msg["name"])
        if poutine.util.site_is_subsample(msg):
            return
        require_size(f"site '{msg['name']}'", msg["fn"].batch_shape, self.rank)
        if msg["done"] or msg["is_observed"]:
            return
        infer = msg["infer"]
        sequential = infer.get("enumerate") == "sequential"
        msg["infer"] = infer = {key: value for key, value in infer.items() if key not in _KEYS}
        if not (getattr(msg["fn"], "has_enumerate_support", False) and self.which(msg["name"])):
            return
        if self.paths is None:
            infer["enumerate"] = "parallel"
            _refuse_sequential(msg["name"], refused=sequential)
            return
        # pyro.markov would let sites take turns at a dimension, as if earlier ones were summed already
        infer.pop("_markov_scope", None)
        infer.pop("_markov_depth", None)
        if sequential:
            self.paths.set_state(msg)
            return
        self._places += 1
        if self.rank + self._places > MOST_DIMENSIONS:
            raise ConfigError(
                f"guide site '{msg['name']}' is one of more than {MOST_DIMENSIONS - self.rank} discrete sites that are"
                " enumerated, each in a dimension of its own: leave long chains to the model, whose sites are summed"
                " step by step, or take another estimator"
            )
        infer["enumerate"] = "parallel"


def _refuse_sequential(name: str, *, refused: bool) -> None:
    if refused:
        raise ConfigError(
            f"model site '{name}' is marked to be enumerated sequentially, and a site that only the model has is summed"
            ' in parallel: mark it "parallel", or let the guide draw it'
        )


def require_size(what: str, shape: torch.Size, rank: int) -> None:
    """Checks that something does not depend on too many joint states.

    Args:
        what: it is.
        shape: of its log probabilities.
        rank: how many of its dimensions, on the right, are not those of states.

    Raises:
        ConfigError: if it does.
    """
    if len(shape) <= rank or math.prod(shape) <= MOST_NUMBERS:
        return
    raise ConfigError(
        f"{what} depends on {math.prod(shape[: len(shape) - rank]):,} joint states of enumerated sites,"
        f" {math.prod(shape):,} numbers in all, and at most {MOST_NUMBERS:,} are taken: take fewer rows, or another"
        " estimator for some of the sites"
    )


class Paths(Messenger):
    """The joint states of sites that are enumerated one run at a time, depth first.

    All runs share what the guide draws before the states that they differ in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._choices: list[tuple[str, int, int]] = []
        self._place = 0
        self._drawn: dict[str, Any] = {}
        self._shared: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """The sites of the last run that were enumerated so."""
        return [name for name, _, _ in self._choices]

    def set_state(self, msg: Any) -> None:
        """Gives a site the state that it has in this run."""
        states = msg["fn"].enumerate_support(expand=True)
        if self._place == len(self._choices):
            self._choices.append((msg["name"], 0, len(states)))
            if math.prod(count for _, _, count in self._choices) > MOST_PATHS:
                raise ConfigError(
                    f"site '{msg['name']}' is enumerated sequentially, one run for each joint state, of which there"
                    f' are more than {MOST_PATHS}: mark it "parallel", or take another estimator'
                )
        _, index, _ = self._choices[self._place]
        self._place += 1
        if self._place == len(self._choices):
            # from here on the run is another one
            self._shared = {}
        msg["value"], msg["done"] = states[index], True
        msg["infer"][STATE] = True

    def advance(self) -> bool:
        """Goes on to the next joint state; False if there is none."""
        while self._choices and self._choices[-1][1] + 1 == self._choices[-1][2]:
            self._choices.pop()
        if not self._choices:
            return False
        name, index, count = self._choices.pop()
        self._choices.append((name, index + 1, count))
        self._shared, self._drawn, self._place = self._drawn, {}, 0
        return True

    def _pyro_sample(self, msg: Any) -> None:
        found = self._shared.get(msg["name"])
        if found is not None and not msg["done"] and not msg["is_observed"]:
            msg["value"], msg["infer"], msg["done"] = found["value"], found["infer"], True

    def _pyro_post_sample(self, msg: Any) -> None:
        # those enumerated in parallel are so again, in the same dimensions
        if not msg["is_observed"] and "_enumerate_dim" not in msg["infer"] and STATE not in msg["infer"]:
            self._drawn[msg["name"]] = {"value": msg["value"], "infer": msg["infer"]}


class Along(dist.TorchDistribution):
    """Stands for the distributions of a site in several runs, whose log probability it knows.

    Attributes:
        parts: that of each run, None where a run has no such site.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[Any], log_prob: Tensor) -> None:
        self.parts = tuple(parts)
        first = next(part for part in parts if part is not None)
        self._log_prob = log_prob
        super().__init__(first.batch_shape, first.event_shape, validate_args=False)

    def log_prob(self, value: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Returns the log probability of every run's value."""
        return self._log_prob

    def stacked(self, terms: Sequence[Tensor]) -> Tensor:
        """Returns terms of the parts that have one more dimension, of events, as the log probability has them."""
        return stacked(terms, self._log_prob.dim())


def stacked(values: Sequence[Any], rank: int) -> Tensor:
    """Returns tensors and numbers of several runs along a new dimension, left of ``rank`` others."""
    like = next(value for value in values if isinstance(value, Tensor))
    tensors = [torch.as_tensor(value, device=like.device) for value in values]
    wide = [tensor.reshape((1,) * (rank - tensor.dim()) + tensor.shape) for tensor in tensors]
    return torch.stack(torch.broadcast_tensors(*wide))


class States:
    """The probabilities of the joint states of enumerated sites, in the order in which the guide draws them.

    Args:
        dims: the dimension of each site.
        log_probs: the log probability of each site's states, which may vary along the dimensions of earlier sites.
    """

    def __init__(self, dims: Mapping[str, int], log_probs: Mapping[str, Tensor]) -> None:
        self.log_probs = dict(log_probs)
        self._names, self._dims = list(dims), list(dims.values())
        self._known: dict[tuple[frozenset[int], frozenset[int], int], Tensor | None] = {}

    def varied(self, term: Tensor, *, keep: Collection[int] = ()) -> frozenset[int]:
        """Returns the dimensions of sites along which a term varies, without those to keep."""
        return frozenset(d for d in self._dims if d not in keep and term.dim() >= -d and term.shape[d] > 1)

    def depended(self, term: Tensor, *, keep: Collection[int] = ()) -> list[str]:
        """Returns the sites whose states a term depends on: directly, or through the probabilities of others."""
        dims, found = self.varied(term, keep=keep), list[str]()
        for name, dim in zip(reversed(self._names), reversed(self._dims), strict=True):
            if dim in dims:
                found.append(name)
                dims |= self.varied(self.log_probs[name], keep=keep)
        return found

    def marginal(self, name: str, dims: Collection[int], *, keep: Collection[int] = ()) -> Tensor | None:
        """Returns the probability of the joint states of some dimensions, all others summed; None of no dimensions.

        Earlier sites are summed one by one, so that of a chain no more than two have to be held at once.

        Args:
            name: for errors, of the site that asks.
            dims: of which the states are.
            keep: dimensions whose states are given.
        """
        return self._marginal(name, frozenset(dims), frozenset(keep), len(self._dims))

    def weights(self, name: str, term: Tensor, *, keep: Collection[int] = ()) -> Tensor | None:
        """Returns the probability of the states along which a term varies, given those to keep; None if there are none.

        Args:
            name: for errors, of the site that the term is of.
            term: one of its quantities.
            keep: dimensions whose states are given.
        """
        dims = self.varied(term, keep=keep)
        kept = frozenset(self._dims) & frozenset(keep)
        if not self._earlier(kept).intersection(self.depended(term, keep=keep)):
            return self.marginal(name, dims, keep=keep)
        # what is given says something of the states before it
        whole, given = self.marginal(name, dims | kept), self.marginal(name, kept)
        if whole is None or given is None:
            return whole
        return torch.where(given > 0, whole / torch.where(given > 0, given, torch.ones_like(given)), 0.0)

    def _earlier(self, kept: frozenset[int]) -> frozenset[str]:
        """The sites whose states the probabilities of kept dimensions depend on, without these themselves."""
        places = dict(zip(self._names, self._dims, strict=True))
        found = {n for name, dim in places.items() if dim in kept for n in self.depended(self.log_probs[name])}
        return frozenset(name for name in found if places[name] not in kept)

    def _marginal(self, name: str, dims: frozenset[int], keep: frozenset[int], end: int) -> Tensor | None:
        place = next((i for i in reversed(range(end)) if self._dims[i] in dims), None)
        if place is None:
            return None
        key = dims, keep, place
        if key not in self._known:
            self._known[key] = self._summed(name, dims, keep, place)
        return self._known[key]

    def _summed(self, name: str, dims: frozenset[int], keep: frozenset[int], place: int) -> Tensor:
        last, log_prob = self._dims[place], self.log_probs[self._names[place]]
        together = dims | self.varied(log_prob, keep=keep)
        before = together if last in self._dims[:place] else together - {last}
        found = log_prob.exp()
        if (earlier := self._marginal(name, before, keep, place)) is not None:
            require_size(f"site '{name}'", torch.broadcast_shapes(found.shape, earlier.shape), 0)
            found = found * earlier
        return found.sum(tuple(gone), keepdim=True) if (gone := together - dims) else found
