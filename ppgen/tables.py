"""What a sweep came to: means over seeds, each with its 95 % interval."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppgen.display import show_table
from ppgen.errors import DataError
from ppgen.grids import Point, as_text
from ppgen.runs import Record

MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL, at most",
    "elbo": "ELBO",
    "modes": "modes",
    "mmd": "squared MMD",
    "c2st": "told apart (C2ST)",
}
PERCENT = (100, " %", 1)
UNITS = {"accuracy": PERCENT, "c2st": PERCENT, "seconds": (1, "", 1), "modes": (1, "", 1), "mmd": (1, "", 4)}
"""What a measure is multiplied by, its unit and its digits; those of nats unless here."""


@dataclass(frozen=True)
class Mean:
    """A mean over runs.

    Attributes:
        value: the mean; None if a value was not finite.
        low: lower end of the 95 % interval of Student's t distribution; None for one run.
        high: its upper end.
        runs: how many values there were.
    """

    value: float | None
    low: float | None
    high: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Mean":
        """Summarises one value a run.

        >>> mean = Mean.of([1.0, 3.0])
        >>> mean.value, round(mean.low, 3), round(mean.high, 3)
        (2.0, -10.706, 14.706)
        >>> Mean.of([1.0])
        Mean(value=1.0, low=None, high=None, runs=1)

        Raises:
            DataError: if there are no values.
        """
        from scipy.stats import t

        if not values:
            raise DataError("expected runs to average over; got none")
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < len(values):
            return cls(None, None, None, len(values))
        value = statistics.fmean(known)
        if len(known) == 1:
            return cls(value, None, None, 1)
        half = float(t.ppf(0.975, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
        return cls(value, value - half, value + half, len(known))

    def as_dict(self) -> dict[str, float | int | None]:
        """Returns ``{"value", "low", "high", "runs"}``."""
        return {"value": self.value, "low": self.low, "high": self.high, "runs": self.runs}


def summary(points: Sequence[Point], outcomes: Mapping[str, Record]) -> list[Record]:
    """Returns a row for each setting: means of what its runs measured, and how many failed.

    Args:
        points: every run of the sweep.
        outcomes: what each came to, by folder: "result", or "error" and "exit_code".
    """
    rows: list[Record] = []
    for setting in _each_once(point.setting for point in points):
        found = [outcomes[point.folder] for point in points if point.setting == setting]
        results = [outcome["result"] for outcome in found if "result" in outcome]
        row: Record = {"setting": setting, "runs": len(results), "failed": len(found) - len(results)}
        for part in ("test", "baselines"):
            names = _each_once(name for result in results for name in result.get(part, {}))
            row[part] = {name: _mean(result.get(part, {}).get(name) for result in results) for name in names}
        row["seconds"] = Mean.of([result["seconds"] for result in results]).as_dict() if results else None
        rows.append(row)
    return rows


def show_sweep(document: Record) -> None:
    """Prints the table of a sweep, and the runs that failed, to standard output."""
    rows = document["settings"]
    axes = list(rows[0]["setting"])
    tests = [name for name in MEASURES if any(name in row["test"] for row in rows)]
    baselines = _each_once(name for row in rows for name in row["baselines"])
    failed = ["failed"] if any(row["failed"] for row in rows) else []
    titles = [name.replace("_", " ") for name in baselines]
    columns = [*axes, "runs", *(MEASURES[name] for name in tests), *titles, "seconds", *failed]
    table = [
        [as_text(value) for value in row["setting"].values()]
        + [str(row["runs"])]
        + [_cell(row["test"].get(name), name) for name in tests]
        + [_cell(_without_interval(row["baselines"].get(name)), "accuracy") for name in baselines]
        + [_cell(_without_interval(row["seconds"]), "seconds")]
        + [str(row["failed"])] * len(failed)
        for row in rows
    ]
    caption = "Means over seeds ± half their 95 % interval, by Student's t distribution. NLL and ELBO in nats."
    title = f"{document['recipe']} on {document['data']}, {len(document['runs'])} runs"
    show_table(title, columns, table, caption=caption, right=range(len(axes), len(columns)))
    errors = [(_title(run), run["exit_code"], run["error"]) for run in document["runs"] if "error" in run]
    if errors:
        show_table("Failed", ("run", "exit code", "error"), errors)


def _title(run: Record) -> str:
    return " ".join([*(f"{key}={as_text(value)}" for key, value in run["setting"].items()), f"seed {run['seed']}"])


def _mean(found: Iterable[Mapping[str, Any] | None]) -> dict[str, float | int | None]:
    return Mean.of([None if each is None else each["value"] for each in found]).as_dict()


def _without_interval(mean: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if mean is None else {**mean, "low": None}


def _cell(mean: Mapping[str, Any] | None, name: str) -> str:
    if mean is None:
        return "-"
    if mean["value"] is None:
        return "not finite"
    factor, unit, digits = UNITS.get(name, (1, "", 2))
    half = None if mean["low"] is None else mean["high"] - mean["value"]
    interval = "" if half is None else f" ± {factor * half:.{digits}f}"
    return f"{factor * mean['value']:.{digits}f}{interval}{unit}"


def _each_once(items: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
