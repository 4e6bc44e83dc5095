"""Collapses of adversarial training, noticed in the reports of a run: a pure function of its records."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Records = Sequence[Record]

FIRST_STEP = 500
"""Before it nothing counts: a generator that has learnt nothing yet draws nearly the same sample each time, too."""
PATIENCE = 10
"""Reports in a row (a tenth of a run) that show a fault there from the start: the first ones are often poor."""
CERTAIN = 5
"""Reports in a row that a saturated critic takes: one report is a mean over few batches."""
SHORT = 3
"""Reports in a row without the modes that were there before: a generator that only swings brings them back."""
LEAST_SPREAD = 0.3
"""Share of the data's spread below which modes are lost: half of the modes of a ring spread 0.5, blurred images 0.6."""
RIGHT_SPREAD = (0.5, 2.0)
"""Shares of the data's spread that are no sign of anything wrong."""
FEWEST_MODES = 4
"""Modes that must have been covered before some count as lost: one sample in a mode covers it, maybe by chance."""
LOST_SHARE = 0.5
"""Share of the most modes found so far below which modes are lost."""
SATURATED_ACCURACY = 0.99
"""Share of rows told right above which a critic has nothing more to learn from a generator."""
VANISHED_GRADIENT = 1e-3
"""Share of its largest norm so far below which a gradient moves nothing more."""
BLIND_ACCURACY = 0.01
"""How close to 0.5 the accuracy of a critic that guesses is: 4 standard errors of 40,000 rows."""

_REMEDIES = {
    "modes lost": "a lower learning rate, or the recipes pacgan or wgan-gp",
    "critic saturated": "a critic with a lower learning rate, fewer steps or noise on its input, or the recipe wgan-gp",
    "critic blind": "a larger critic, or one with a higher learning rate or more steps",
}
KINDS = tuple(_REMEDIES)
"""Names of what can be noticed; a record bears one as "collapse"."""


@dataclass(frozen=True)
class Collapse:
    """What went wrong.

    Attributes:
        kind: one of `KINDS`.
        evidence: the numbers that show it, in words.
    """

    kind: str
    evidence: str

    @property
    def remedy(self) -> str:
        """What to try against it."""
        return _REMEDIES[self.kind]


def noticed(records: Records) -> Collapse | None:
    """Returns what the last record shows to have gone wrong, unless an earlier one bears its name as "collapse".

    Args:
        records: reports of a run from its first, as in ``metrics.jsonl``. Of its keys count "step", "spread", "modes"
            (beside which "modes_of_data" is said), "critic_accuracy", and "loss/PLAYER" and "gradient_norm/PLAYER" of
            those who play against the critic.

    Example:
        >>> records = [{"step": 100 * i, "spread": 0.02} for i in range(1, 15)]
        >>> noticed(records[:9]), noticed(records).kind
        (None, 'modes lost')
        >>> noticed([{**records[0], "collapse": "modes lost"}, *records[1:]])
    """
    if not records or records[-1].get("step", 0) < FIRST_STEP:
        return None
    named = {record.get("collapse") for record in records[:-1]}
    for kind, look in _LOOKS.items():
        if kind not in named and (evidence := look(records)):
            return Collapse(kind, evidence)
    return None


def _modes_lost(records: Records) -> str:
    modes = _numbers(records, "modes")
    most = max(_finite(modes), default=0.0)
    if most >= FEWEST_MODES and all(number < LOST_SHARE * most for number in modes[-SHORT:]):
        of_data = records[-1].get("modes_of_data")
        beside = "" if of_data is None else f"; as many rows of the data cover {of_data}"
        return f"{modes[-1]:.0f} of {most:.0f} modes that were covered are left{beside}"
    spread = _numbers(records, "spread")
    if _all(_last(spread, PATIENCE), lambda s: s < LEAST_SPREAD):
        return f"samples lie {spread[-1]:.2g} times as far from one another as the data do"
    return ""


def _critic_saturated(records: Records) -> str:
    accuracy = _numbers(records, "critic_accuracy")
    if not _all(_last(accuracy, CERTAIN), lambda a: a > SATURATED_ACCURACY):
        return ""
    told = f"the critic tells {100 * accuracy[-1]:.1f} % of rows right"
    for player in _opponents(records[-1]):
        norms = _numbers(records, f"gradient_norm/{player}")
        vanished = VANISHED_GRADIENT * max(_finite(norms), default=0.0)
        if all(norm < vanished for norm in norms[-CERTAIN:]):
            return f"{told} and leaves the {player} no gradient"
        losses = _last(_numbers(records, f"loss/{player}"), CERTAIN)
        if losses and all(now > before for before, now in itertools.pairwise(losses)):
            return f"{told} and the loss of the {player} keeps growing, to {losses[-1]:.3g}"
    return ""


def _critic_blind(records: Records) -> str:
    accuracy, spread = _numbers(records, "critic_accuracy"), _numbers(records, "spread")
    low, high = RIGHT_SPREAD
    guesses = len(accuracy) >= PATIENCE and _all(accuracy, lambda a: abs(a - 0.5) <= BLIND_ACCURACY)
    if guesses and _all(spread[-CERTAIN:], lambda s: not low <= s <= high):
        return (
            f"the critic has only guessed so far, while samples lie {spread[-1]:.2g} times as far from one another"
            " as the data do"
        )
    return ""


_LOOKS: dict[str, Callable[[Records], str]] = {
    "modes lost": _modes_lost,
    "critic saturated": _critic_saturated,
    "critic blind": _critic_blind,
}


def _opponents(record: Record) -> list[str]:
    players = [name.partition("/")[2] for name in record if name.startswith("loss/")]
    return [player for player in players if not player.startswith("critic")]


def _numbers(records: Records, name: str) -> list[float]:
    """Returns the values of a key, NaN where it is missing (``metrics.jsonl`` has null for what is not finite)."""
    values = [record.get(name) for record in records]
    return [math.nan if value is None else float(value) for value in values]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _last(values: Sequence[float], count: int) -> Sequence[float]:
    """Returns the last values, none if there are fewer."""
    return values[-count:] if len(values) >= count else []


def _all(values: Sequence[float], holds: Callable[[float], bool]) -> bool:
    """Says whether there are values, all of them numbers for which it holds."""
    return bool(values) and all(math.isfinite(value) and holds(value) for value in values)
