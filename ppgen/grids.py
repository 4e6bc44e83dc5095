"""What a sweep is asked to do: every combination of option values and seeds, as text and as configurations of runs."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic
import tomli_w

from ppgen.configuration import Config, from_toml, read_config, versions
from ppgen.errors import ConfigError
from ppgen.places import subject
from ppgen.recipes import Entry
from ppgen.runs import resolve

FORMAT = 1
LONGEST_VALUE = 40
"""Characters of a value that stand in the name of a folder."""
LARGEST = 2**22
"""Characters of a request, which may have 100,000 seeds."""
LABELS = "--labels"
"""How the axis of labels is called: no option of a recipe can have this name."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        setting: the values of its axes, by name as the user knows them.
        seed: its seed.
        config: what the run is asked to do.
        folder: its place in the folder of the sweep.
    """

    setting: Mapping[str, Any]
    seed: int
    config: Config
    folder: str

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return " ".join([*(f"{key}={as_text(value)}" for key, value in self.setting.items()), f"seed {self.seed}"])


class _File(pydantic.BaseModel):
    """What ``sweep.toml`` holds."""

    model_config = pydantic.ConfigDict(extra="forbid")
    format: int
    seeds: list[int]
    labels: list[int] = []
    axes: dict[str, list[str]] = {}
    base: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Grid:
    """Every combination of values, times seeds.

    Attributes:
        base: what all runs share.
        axes: options with several values, as text, each once.
        labels: several numbers of labels; none where all runs have the same.
        seeds: seeds, each once.
    """

    base: Config
    axes: Mapping[str, tuple[str, ...]]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, request: Config, entry: Entry, sets: Sequence[str], *, seeds: str, labels: str | None = None) -> "Grid":
        """Reads the alternatives in what was typed.

        Args:
            request: what was asked for besides.
            entry: its recipe.
            sets: the texts after ``--set``, ``KEY=V1,V2``; commas part alternatives, except in an option that is itself
                a list, whose alternatives are given by repeating ``--set``.
            seeds: such as ``0-9`` or ``0,3,5-7``.
            labels: numbers of labels, likewise.

        Raises:
            ConfigError: if a value is wrong, or given twice.
        """
        typed = _alternatives(entry, request.data.name, sets)
        if request.epochs is not None and len(typed.get("epochs", ())) > 1:
            raise ConfigError("--epochs and --set epochs=... exclude each other: give one of them")
        first = request.options | {key: texts[0] for key, texts in typed.items()}
        checked = {
            key: tuple(as_text(entry.resolve(request.data.name, first | {key: text})[key]) for text in texts)
            for key, texts in typed.items()
        }
        for key, texts in checked.items():
            _refuse_twice(f"--set {key}", texts)
        axes = {key: texts for key, texts in checked.items() if len(texts) > 1}
        counts = numbers(labels, option=LABELS) if labels is not None else ()
        data = request.data.model_copy(update={"labels": counts[0]} if counts else {})
        base = resolve(request.model_copy(update={"options": first, "data": data, "seed": 0}), entry)
        # what the axes vary belongs to no run in particular
        base.options = {key: value for key, value in base.options.items() if key not in axes}
        several = counts if len(counts) > 1 else ()
        if several:
            base.data.labels = None
        return cls(base, axes, several, numbers(seeds, option="--seeds"))

    @classmethod
    def from_toml(cls, text: str, *, source: str) -> "Grid":
        """Reads what `to_toml` wrote.

        Raises:
            ConfigError: if it is not valid, or of a newer format.
        """
        values = from_toml(text, source=source, most=LARGEST)
        if isinstance(values.get("format"), int) and values["format"] > FORMAT:
            raise ConfigError(f"{source} has format {values['format']}; this version of ppgen reads up to {FORMAT}")
        try:
            file = _File(**values)
        except pydantic.ValidationError as error:
            # a value that is wrong says more than one that is missing
            first = min(error.errors(), key=lambda found: found["type"] == "missing")
            key = f"'{'.'.join(map(str, first['loc']))}'"
            what = "is missing" if first["type"] == "missing" else f": {first['msg'].lower()}"
            raise ConfigError(f"{source}: {key} {what}".replace(" :", ":")) from error
        axes = {key: tuple(texts) for key, texts in file.axes.items()}
        return cls(read_config(file.base, source=source), axes, tuple(file.labels), tuple(file.seeds))

    def to_toml(self) -> str:
        """Returns the text of ``sweep.toml``."""
        lists = {"seeds": list(self.seeds), "labels": list(self.labels)}
        axes = {key: list(texts) for key, texts in self.axes.items()}
        base = from_toml(self.base.to_toml(), source="the sweep")
        return tomli_w.dumps({"format": FORMAT, **lists, "axes": axes, "versions": versions(), "base": base})

    def points(self, entry: Entry) -> list[Point]:
        """Returns every run, the seeds of one setting together."""
        return [self._point(entry, setting, seed) for setting in self.settings() for seed in self.seeds]

    def settings(self) -> Iterator[dict[str, str]]:
        """Yields every combination of the values of the axes, as text."""
        axes = ({LABELS: tuple(map(str, self.labels))} if self.labels else {}) | dict(self.axes)
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def _point(self, entry: Entry, setting: Mapping[str, str], seed: int) -> Point:
        options = {key: text for key, text in setting.items() if key != LABELS}
        labels = int(setting[LABELS]) if LABELS in setting else self.base.data.labels
        data = self.base.data.model_copy(update={"labels": labels})
        changes = {"seed": seed, "data": data, "options": self.base.options | options}
        config = resolve(self.base.model_copy(update=changes), entry)
        shown = {key.lstrip("-"): labels if key == LABELS else config.options[key] for key in setting}
        parts = ",".join(f"{key.lstrip('-')}={_in_name(text)}" for key, text in setting.items())
        return Point(shown, seed, config, f"{parts}/seed-{seed}" if parts else f"seed-{seed}")

    def joined(self, asked: "Grid", *, place: str) -> "Grid":
        """Returns this grid with the seeds and the values that another one adds.

        Raises:
            ConfigError: if the two differ in anything else.
        """
        found = self._differences(asked)
        if found:
            raise ConfigError(
                f"{place} holds another sweep: {'; '.join(found[:3])}: repeat its own request, or choose another --out"
            )
        axes = {key: tuple(dict.fromkeys((*texts, *asked.axes[key]))) for key, texts in self.axes.items()}
        labels = tuple(dict.fromkeys((*self.labels, *asked.labels)))
        return replace(self, axes=axes, labels=labels, seeds=tuple(sorted({*self.seeds, *asked.seeds})))

    def _differences(self, asked: "Grid") -> list[str]:
        own, other = self._shared(), asked._shared()
        if asked.base.threads is None:  # not told: the runs that are there decide
            other.pop("threads", None)
            own.pop("threads", None)
        pairs = [(key, own.get(key, "unset"), other.get(key, "unset")) for key in own | other]
        return [f"{key} is {there} there; got {here}" for key, there, here in pairs if there != here]

    def _shared(self) -> dict[str, str]:
        """What two sweeps are compared by; the values of axes may differ, what is an axis may not."""
        found = {}
        for key, value in from_toml(self.base.to_toml(), source="the sweep").items():
            for inner, item in value.items() if isinstance(value, dict) else [("", value)]:
                found[f"{key} {inner}".strip().removeprefix("options ").replace("data name", "data")] = as_text(item)
        axes = [*self.axes, *(["data labels"] if self.labels else [])]
        return found | dict.fromkeys(axes, "an axis of several values")


def numbers(text: str, *, option: str) -> tuple[int, ...]:
    """Reads numbers and ranges of numbers.

    >>> numbers("0,3,5-7", option="--seeds")
    (0, 3, 5, 6, 7)

    Raises:
        ConfigError: if it is something else, or names a number twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part, flags=re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first:
            raise ConfigError(f"expected {option} such as 0-9 or 0,3,5-7; got '{text}'")
        if last - first >= 100_000:
            raise ConfigError(f"expected {option} of fewer than 100,000 numbers; got '{text}'")
        found += range(first, last + 1)
    _refuse_twice(option, list(map(str, found)))
    return tuple(found)


def as_text(value: Any) -> str:
    """Writes a value as it is typed after ``--set``.

    >>> as_text((400, 200)), as_text(None)
    ('400,200', 'none')
    """
    if isinstance(value, (tuple, list)):
        return ",".join(map(as_text, value))
    return "none" if value is None else str(value)


def new_folder(config: Config) -> Path:
    """Returns a folder below ``runs`` that is not there yet."""
    stem = f"sweep-{subject(config)}"
    for number in itertools.count(1):
        path = Path("runs", stem if number == 1 else f"{stem}-{number}")
        if not path.exists():
            break
    return path


def _alternatives(entry: Entry, data: str, sets: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    known = entry.defaults(data)
    for text in sets:
        key, _, value = (part.strip() for part in text.partition("="))
        whole = key not in known or _is_list(entry.annotation(key))
        found.setdefault(key, []).extend([value] if whole else [part.strip() for part in value.split(",")])
    return found


def _is_list(annotation: str) -> bool:
    return re.search(r"\b(tuple|list)\b", re.sub(r"'[^']*'", "", annotation)) is not None


def _refuse_twice(option: str, texts: Sequence[str]) -> None:
    text, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"expected every value of {option} once; got {text} twice")


def _in_name(text: str) -> str:
    """Makes a value fit for the name of a folder; one that had to be changed is told apart by a digest."""
    if re.fullmatch(rf"[A-Za-z0-9_.,+-]{{1,{LONGEST_VALUE}}}", text):
        return text
    safe = re.sub(r"[^A-Za-z0-9_.,+-]+", "_", text)[:LONGEST_VALUE]
    return f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
