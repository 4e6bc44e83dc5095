"""Runs the phases of a step, and looks whether they were finite; of one that was not, nothing stays."""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen import compilation, players, randomness
from ppgen.divergence import LINEAR_ALGEBRA, is_divergence, place_of, refuse_one_row, said
from ppgen.errors import DivergedError
from ppgen.players import Gradients, Player
from ppgen.programs import Batch, Program, Store

Results = dict[str, Tensor]
LOOKS = 20
"""In how many of its first runs a phase is asked whether it draws from NumPy's or Python's random streams."""

logger = logging.getLogger("ppgen")


@dataclass(frozen=True)
class Moment:
    """What a step may move besides the tensors that it leaves alone if it fails: random streams, Pyro's store.

    Attributes:
        streams: of the device, of the CPU, and all others where a program draws from them.
        content: which tensors are in the store.
    """

    streams: Mapping[str, Any]
    content: Mapping[str, Any]

    @classmethod
    def now(cls, device: torch.device, store: Store, *, all_streams: bool) -> "Moment":
        """Returns the present."""
        if all_streams:
            return cls(randomness.all_random_states(), store.content())
        streams = {"torch": torch.get_rng_state()}
        own = {"device": randomness.random_state(device)} if device.type == "cuda" else {}
        return cls(streams | own, store.content())

    def draws_elsewhere(self) -> bool:
        """Whether NumPy's or Python's random streams have moved since; False if they were not taken."""
        return "numpy" in self.streams and randomness.draws_elsewhere(dict(self.streams))

    def rewind(self, device: torch.device) -> None:
        """Restores the random streams."""
        if "numpy" in self.streams:
            randomness.set_all_random_states(dict(self.streams))
            return
        torch.set_rng_state(self.streams["torch"])
        if "device" in self.streams:
            randomness.set_random_state(device, self.streams["device"])


@dataclass(frozen=True)
class Taken:
    """A phase that was run and is yet to be looked at.

    Attributes:
        step: the number of its step.
        index: the number of the phase.
        batch: what it ran on.
        before: the moment before it.
        finite: whether loss and gradient were.
        error: what it raised, a divergence too.
    """

    step: int
    index: int
    batch: Batch
    before: Moment
    finite: Tensor | bool
    error: Exception | None = None


@dataclass(frozen=True)
class Subject:
    """What is watched: a pair and its objective in training.

    Attributes:
        device: where it is.
        store: the parameter store of the pair.
        players: returns the players.
        state: returns the tensors that a phase changes.
        ready: a context in which phases run.
        losses: runs the phase of that number on a batch.
        forget: makes the last batch one that was not seen.
        parts: model, guide and objective.
        alone: whether no other process trains with this one.
    """

    device: torch.device
    store: Store
    players: Callable[[], Mapping[str, Player]]
    state: Callable[[], Sequence[Tensor]]
    ready: Callable[[], contextlib.AbstractContextManager[None]]
    losses: Callable[[int, Batch], tuple[Mapping[str, Tensor], Gradients]]
    forget: Callable[[], None]
    parts: Mapping[str, Program]
    alone: bool


class Watch:
    """Runs phases, and looks whether they were finite; of one that was not, nothing stays.

    Args:
        subject: what runs.
        raising: whether such a phase ends training; else it is left out.

    Attributes:
        skipped: how many were left out.
        all_streams: whether a phase has drawn from NumPy's or Python's random streams, too.
    """

    def __init__(self, subject: Subject, *, raising: bool) -> None:
        self.subject, self.raising = subject, raising
        self.skipped = 0
        self.all_streams = False
        self._runs = Counter[int]()
        self._unchecked: list[Taken] = []
        self._names: dict[int, tuple[str, ...]] = {}

    def run(self, attempt: Callable[[], Results], index: int, batch: Batch, *, step: int) -> Results:
        """Runs a phase.

        Args:
            attempt: runs it, and returns its results, with "finite" among them.
            index: the number of the phase.
            batch: what it runs on.
            step: the number of the step.

        Raises:
            DivergedError: if it was not finite; the state is that before it.
        """
        looked = self.all_streams or self._runs[index] < LOOKS
        before = Moment.now(self.subject.device, self.subject.store, all_streams=looked)
        error: Exception | None = None
        try:
            results = attempt()
        except Exception as raised:
            self._require_divergence(raised, index, batch, before)
            error, results = raised, self._nothing(index)
        self._runs[index] += 1
        self.all_streams = self.all_streams or before.draws_elsewhere()
        taken = Taken(step, index, batch, before, results.pop("finite"), error)
        self._unchecked.append(taken)
        self._names[index] = tuple(results)
        # on a CPU looking costs nothing; a GPU is not made to wait
        if error or self.subject.device.type == "cpu" or len(self._unchecked) >= 50:
            self.check(latest=taken)
        return results

    def check(self, *, latest: Taken | None = None) -> None:
        """Looks whether the phases since the last look were finite.

        Args:
            latest: the one that was just run, from which there is a way back.

        Raises:
            DivergedError: if one was not, naming step, site and rows (when not raising it is only counted).
        """
        unchecked, self._unchecked = self._unchecked, []
        for taken in unchecked:
            if taken.finite:
                continue
            where = self._explain(taken)
            if self.raising:
                if taken is latest:
                    self._undo(taken.before)
                raise DivergedError(f"the loss is not finite at step {taken.step}: {where}") from taken.error
            if taken is latest:
                self.subject.store.put_back(taken.before.content)
            self.skipped += 1
            logger.warning("step %d was skipped, its loss is not finite: %s", taken.step, where)

    @contextlib.contextmanager
    def judging(self, batch: Batch | None) -> Iterator[None]:
        """Within it, what a pair raises that has diverged is a `DivergedError`, as it is in a step.

        Args:
            batch: one that it trained on; None if there is none.
        """
        try:
            yield
        except Exception as error:
            if self._diverged_by(error, batch):
                raise DivergedError(f"what was trained cannot be judged, it has diverged: {said(error)}") from error
            raise

    def _diverged_by(self, error: Exception, batch: Batch | None) -> bool:
        if isinstance(error, LINEAR_ALGEBRA) or batch is None or not self._names:
            return isinstance(error, LINEAR_ALGEBRA)
        now = Moment.now(self.subject.device, self.subject.store, all_streams=True)
        with torch.enable_grad(), self._again(now):
            losses = [functools.partial(self.subject.losses, index, batch) for index in self._names]
            return any(is_divergence(error, loss, self.subject.players()) for loss in losses)

    def restart(self, skipped: int) -> None:
        """Forgets what has been run, as another state has been loaded."""
        self.skipped, self._unchecked = skipped, []

    def _nothing(self, index: int) -> Results:
        """Returns what a phase reports that could not be computed."""
        labels = [players.label("loss", player) for player in self.subject.players()]
        nothing = torch.tensor(torch.nan, device=self.subject.device)
        return dict.fromkeys(self._names.get(index, labels), nothing) | {"finite": torch.tensor(False)}

    def _require_divergence(self, error: Exception, index: int, batch: Batch, before: Moment) -> None:
        """Raises what a phase raised, unless it is a divergence; the state is then that before it."""
        subject = self.subject
        # other processes would wait for this one
        if subject.alone:
            with self._again(before):
                if is_divergence(error, functools.partial(subject.losses, index, batch), subject.players()):
                    return
        self._undo(before)
        refuse_one_row(error, subject.parts)
        raise error

    def _explain(self, taken: Taken) -> str:
        losses = functools.partial(self.subject.losses, taken.index, taken.batch)
        objective, model, guide = (self.subject.parts[part] for part in ("objective", "model", "guide"))
        explain = functools.partial(objective.explain, model, guide, taken.batch)  # type: ignore[attr-defined]
        with self._again(taken.before) as rewind:
            return place_of(taken.error, losses, explain, self.subject.players(), rewind=rewind)

    def _undo(self, before: Moment) -> None:
        before.rewind(self.subject.device)
        self.subject.store.put_back(before.content)
        self.subject.forget()

    @contextlib.contextmanager
    def _again(self, before: Moment) -> Iterator[Callable[[], None]]:
        """Within it, what a phase did can be done once more; nothing changes."""
        subject = self.subject
        rewind = functools.partial(before.rewind, subject.device)
        with randomness.forked(), compilation.preserved(subject.state()), subject.store.unchanged():
            rewind()
            subject.store.put_back(before.content)
            with subject.ready():
                yield rewind
