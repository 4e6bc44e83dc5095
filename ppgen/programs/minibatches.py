"""What the batches of a training have to be, by what its programs keep of rows and share between them."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils import _pytree as pytree

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program
from ppgen.programs.joint import Joint, log_prob_of
from ppgen.programs.parameters import Store, buffers, leaves
from ppgen.programs.rows import DataPlate
from ppgen.programs.running import run
from ppgen.programs.scales import is_scaled, own_scale
from ppgen.randomness import forked

logger = logging.getLogger("ppgen")

Rule = Callable[[Batch], None]
"""Raises a `ConfigError` if a batch does not go with the first one."""


class BatchRules:
    """Sees to it that a pair learns from batches what it would learn from all rows.

    A latent that all rows share has to be told how many rows there are: where the number is known, rows count for as
    many as they stand for. Parameters of single rows go by position, so that rows have to come in one order.

    Args:
        model: the generative program.
        guide: the inference program.

    Attributes:
        counting: the context in which the pair trains.
    """

    def __init__(self, model: Program, guide: Program) -> None:
        self.counting: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._pair = model, guide
        self._rules: list[Rule] | None = None

    def keep(self, batches: Sequence[Batch], rows: Any, store: Store, objective: Any) -> None:
        """Checks batches of a step; those of the first one say what later ones have to be.

        Args:
            batches: of one step.
            rows: how many there are in all, by name if there are several batches in one; None if nobody knows.
            store: of the pair.
            objective: set up anew if rows begin to count for others.

        Raises:
            ConfigError: if there are more rows than a batch has, and the programs need all of them.
        """
        if self._rules is None:
            with store.active(), _unchanged(*self._pair):
                self._rules = self._found(batches[0], rows)
                if isinstance(self.counting, Counted):
                    with self.counting:
                        objective.setup(*self._pair, batches[0])
        for rule in self._rules:
            for batch in batches:
                rule(batch)

    def _found(self, batch: Batch, rows: Any) -> list[Rule]:
        if isinstance(batch, Mapping) and batch and all(isinstance(part, Mapping) for part in batch.values()):
            counts = rows if isinstance(rows, Mapping) else {}
            return [
                functools.partial(_rule_of_part, name, rule)
                for name, part in batch.items()
                for rule in rules_of(*self._pair, part, counts.get(name))
            ]
        joint = _tried(*self._pair, batch)
        plate = joint.plate if joint else None
        if joint and plate and isinstance(rows, int) and rows > plate.rows and (name := _unscaled(joint)):
            logger.info("latent '%s' is shared by all %d rows: each of a batch counts for N/B of them", name, rows)
            self.counting = Counted(plate.names, rows)
            return _positions(*self._pair, batch, joint)
        return rules_of(*self._pair, batch, rows)


def _rule_of_part(name: str, rule: Rule, batch: Batch) -> None:
    rule(batch[name])


class Counted(Messenger):
    """Within it, a plate along the rows stands for all rows, as one with ``subsample_size`` does.

    Args:
        names: of the plates.
        rows: how many there are in all.
    """

    def __init__(self, names: frozenset[str], rows: int) -> None:
        super().__init__()
        self.names = names
        self.rows = rows

    def _pyro_sample(self, msg: Any) -> None:
        stack = []
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and frame.name in self.names and frame.full_size in (None, frame.size):
                size = msg["fn"].batch_shape[frame.dim] if frame.size == -1 else frame.size
                msg["scale"] = msg["scale"] * (self.rows / size)
                frame = frame._replace(size=size, full_size=self.rows)
            stack.append(frame)
        msg["cond_indep_stack"] = tuple(stack)


@contextlib.contextmanager
def _unchanged(model: Program, guide: Program) -> Iterator[None]:
    """Puts back at its end what runs change: the random streams, a batch normalisation's statistics."""
    kept = list(buffers({"model": model, "guide": guide}).values())
    saved = [tensor.clone() for tensor in kept]
    try:
        with forked():
            yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(kept, saved, strict=True):
                tensor.copy_(before)


def rules_of(model: Program, guide: Program, batch: Batch, rows: int | None) -> list[Rule]:
    """Returns what later batches have to keep to, given the first; most pairs take any.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: the first one.
        rows: how many rows there are in all; None if nobody knows.

    Raises:
        ConfigError: if there are more rows than the batch has, and the programs need all of them.
    """
    joint = _tried(model, guide, batch)
    if joint is None or joint.plate is None:
        return []
    name = _unscaled(joint)
    return [*(_all_rows(name, joint, batch, rows) if name else ()), *_positions(model, guide, batch, joint)]


def _positions(model: Program, guide: Program, batch: Batch, joint: Joint) -> list[Rule]:
    name = positional_site(model, guide, batch, joint)
    return [_same_rows(name, batch)] if name else []


def _tried(model: Program, guide: Program, batch: Batch, *, seed: int | None = None) -> Joint | None:
    try:
        with forked(seed), torch.enable_grad():
            return run(model, guide, batch, check=False)
    except Exception:  # what does not run as a pair (a generator without a guide, say) has no density either
        return None


# ------------------------------------------------------------------------------------------------ shared latents


def _unscaled(joint: Joint) -> str | None:
    """Names a latent that all rows share where rows stand for themselves only."""
    shared = [name for name in joint.latents if name in joint.model.nodes and not joint.is_local(name)]
    data = [joint.model.nodes[name] for name in joint.observed if joint.is_local(name)]
    if not shared or not data or joint.plate is None or joint.plate.size != joint.plate.rows:
        return None
    if is_scaled(data[0]):  # by hand: N/B, say, unless what is shared is scaled alike
        one, other = (torch.as_tensor(own_scale(site)) for site in (data[0], joint.model.nodes[shared[0]]))
        if not torch.allclose(*torch.broadcast_tensors(one, other.to(one))):
            return None
    return str(shared[0])


def _all_rows(name: str, joint: Joint, batch: Batch, rows: int | None) -> list[Rule]:
    plate = joint.plate.name if joint.plate else ""
    count = joint.plate.rows if joint.plate else 0

    def refusal(total: str) -> ConfigError:
        return ConfigError(
            f"latent '{name}' is shared by all rows, and a batch holds {count}{total}, which the plate '{plate}' takes"
            f" for all there are: its posterior would be too wide. Write pyro.plate('{plate}', N, subsample_size="
            "len(x)) with N the number of all rows, or take all rows in every step"
        )

    if rows is not None:
        if rows > count:
            raise refusal(f" of {rows}")
        return []
    first, sums = tensors_of(batch), _sums(batch)

    def rule(later: Batch) -> None:
        if _are_the_same(first, later):
            return
        # in whatever order they come, the same rows have the same sums
        for one, other in zip(sums, _sums(later), strict=False):
            if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise refusal(", others than the batch before")

    return [rule]


def _sums(batch: Batch) -> list[Tensor]:
    return [column.double().sum(0).flatten() for column in tensors_of(batch) if column.dim()]


def tensors_of(batch: Batch) -> list[Tensor]:
    """Returns the tensors of a batch."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _are_the_same(first: list[Tensor], later: Batch) -> bool:
    now = tensors_of(later)
    return len(first) == len(now) and all(a.data_ptr() == b.data_ptr() for a, b in zip(first, now, strict=True))


# ----------------------------------------------------------------------------------------- parameters of single rows


def positional_site(model: Program, guide: Program, batch: Batch, joint: Joint) -> str | None:
    """Names a site whose parameters go by the position of rows in the batch, not by what the rows are.

    They do if the first and the last row depend on different parts of one parameter, and still on the same ones when
    the rows come in reverse order. An amortised guide turns with the rows, and so does one that is told their numbers.
    Where a plate draws numbers of rows by chance, these parts change though the rows do not.
    """
    if joint.plate is None or joint.plate.rows < 2:
        return None
    tensors = leaves(model, guide)
    own = _ends(joint, tensors)
    if not own:
        return None
    reverse = _reversed(batch, joint.plate.rows)
    for seed in range(_RUNS):
        turned, again = (_tried(model, guide, part, seed=seed) for part in (reverse, batch))
        others, same = ({} if found is None else _ends(found, tensors) for found in (turned, again))
        own = {key: ends for key, ends in own.items() if key in others and key in same}
        stay = {key: ends for key, ends in own.items() if _are_equal(ends, others[key])}
        chance = {key: ends for key, ends in own.items() if not _are_equal(ends, same[key])}
        own = stay | {key: ends for key, ends in chance.items() if _has_all_rows(tensors[key[1]], joint.plate)}
    return next((site for site, _ in own), None)


_RUNS = 3
"""Often enough that draws of a decoder's latents do not look like positions."""


def _reversed(batch: Batch, rows: int) -> Any:
    def turned(column: Tensor) -> Tensor:
        return column.flip(0) if column.dim() and len(column) >= rows else column

    return pytree.tree_map_only(Tensor, turned, batch)


Ends = tuple[Tensor, Tensor]
"""Which numbers of a leaf the first and the last row depend on."""


def _ends(joint: Joint, tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Ends]:
    """By site and leaf, where the first and the last row depend on different parts, each no larger than a row's."""
    found = {}
    for name, term in _row_terms(joint):
        first, last = (
            torch.autograd.grad(row, list(tensors.values()), retain_graph=True, allow_unused=True)
            for row in (term[0], term[-1])
        )
        for leaf, one, other in zip(tensors, first, last, strict=True):
            if one is None or other is None:
                continue
            ends = one.to_dense() != 0, other.to_dense() != 0  # those of an embedding may be sparse
            if _are_apart(*ends, len(term)):
                found[name, leaf] = ends
    return found


def _are_apart(one: Tensor, other: Tensor, rows: int) -> bool:
    sizes = [int(part.sum()) for part in (one, other)]
    return min(sizes) > 0 and max(sizes) * rows <= one.numel() and not (one & other).any()


def _are_equal(one: Ends, other: Ends) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def _has_all_rows(leaf: Tensor, plate: DataPlate) -> bool:
    return plate.size > plate.rows and plate.size in leaf.shape


def _row_terms(joint: Joint) -> Iterator[tuple[str, Tensor]]:
    """Yields, for sites in the data plate, a number for each row that depends on what the site's parameters are."""
    for trace in (joint.guide, joint.model):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or not joint.is_local_node(site):
                continue
            event = len(site["fn"].event_shape)
            for term, rank in ((_of_value(site["value"]), event), (_of_density(site), 0)):
                row = _per_row(joint, term, rank)
                if row is not None and row.requires_grad:
                    yield name, row


def _of_value(value: Tensor) -> Tensor:
    # not the value itself, whose sum is 1 for a point of the simplex
    return value.square() + value if value.is_floating_point() else value.detach().float()


def _of_density(site: Mapping[str, Any]) -> Tensor:
    try:
        return log_prob_of(site)
    except (NotImplementedError, ValueError):
        return torch.zeros(())


def _per_row(joint: Joint, term: Tensor, event: int) -> Tensor | None:
    place = term.dim() - event + (joint.plate.dim if joint.plate else -1)
    if place < 0 or joint.plate is None or term.shape[place] != joint.plate.rows:
        return None
    row: Tensor = term.movedim(place, 0).flatten(1).sum(1) if term.dim() > 1 else term
    return row


def _same_rows(name: str, batch: Batch) -> Rule:
    first = tensors_of(batch)

    def rule(later: Batch) -> None:
        now = tensors_of(later)
        alike = len(first) == len(now) and all(
            one.shape == other.shape and torch.equal(one, other) for one, other in zip(first, now, strict=True)
        )
        if not (_are_the_same(first, later) or alike):
            raise ConfigError(
                f"site '{name}' has parameters of its own for each row, by its place in the batch, and this batch has"
                " other rows, or in another order: train on all rows in one order (one dict of columns), or let the"
                " site depend on what a row is: an encoder, or a column of row numbers, pyro.plate('data', N,"
                " subsample=number) in the model and in create_plates of an autoguide"
            )

    return rule


def needs_training_rows(guide: Program) -> str | None:
    """Names a latent of which an autoguide keeps parameters for each row that it was trained on; None if none.

    One that is told the numbers of rows, by plates of its own (``create_plates``), finds those of other batches.
    """
    prototype = None if getattr(guide, "create_plates", None) else getattr(guide, "prototype_trace", None)
    if not isinstance(prototype, poutine.Trace):
        parts = getattr(guide, "_parts", ())
        return next((name for part in parts if (name := needs_training_rows(part))), None)
    for name, site in prototype.iter_stochastic_nodes():
        if any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"]):
            return str(name)
    return None
