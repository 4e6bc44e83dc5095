"""What was measured as a table, as JSON, and as the part of a document between two markers."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.contenders import OURS
from benchmarks.measuring import Row
from benchmarks.works import WORKS
from ppgen.errors import StorageError

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
LIBRARIES = ("ppgen", "torch", "pyro-ppl", "numpyro", "jax", "pythae", "numpy")
Results = Mapping[str, Sequence[Row]]


def machine(threads: int) -> dict[str, Any]:
    """Returns what the figures depend on: processor, threads, versions, date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
        "bf16": "avx512_bf16" in _cpu_flags(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def processor() -> str:
    """Returns the processor's name."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    return _cpu_field("flags").split()


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "ppgen":
            return None
        import ppgen

        return str(ppgen.__version__)


def conditions(about: Mapping[str, Any]) -> str:
    """Returns one line of what the figures depend on."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    half = "with" if about["bf16"] else "without"
    timed = "; the processor's time" if about.get("clock") == "processor" else ""
    return (
        f"{about['date']}; {about['processor']} ({half} AVX512-BF16), {about['threads']} of {about['cores']} cores,"
        f" load {about['load']} at the start{timed}; Python {about['python']}, {versions}"
    )


def document(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything as nested dicts for JSON; times are seconds."""
    works = [
        {
            "work": name,
            "description": WORKS[name].description,
            "unit": WORKS[name].unit,
            "contenders": [asdict(row) for row in rows],
        }
        for name, rows in results.items()
    ]
    return {"machine": dict(about), "works": works}


def cells(row: Row, scale: float) -> list[str]:
    """Returns a row of the table: label, minimum, median, ratio, start-up."""
    if row.timing is None:
        return [row.label, row.reason, "", "", ""]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    times = [f"{scale * seconds:.2f}" for seconds in (row.timing.minimum, row.timing.median)]
    return [row.label, *times, ratio, f"{row.startup or 0:.1f}"]


def headings(name: str) -> tuple[list[str], float]:
    """Returns the table's headings and the factor that turns seconds into its unit."""
    unit, scale = ("s", 1.0) if WORKS[name].unit == "epoch" else ("ms", 1e3)
    first = [f"minimum, {unit} per {WORKS[name].unit}", "median"]
    return ["contender", *first, f"minimum / {OURS}'s", "start-up, s"], scale


def table(name: str, rows: Sequence[Row]) -> Table:
    """Returns the table of one work for the terminal."""
    titles, scale = headings(name)
    made = Table(*titles, title=f"{name}: {WORKS[name].description}", title_justify="left")
    for column in made.columns[1:]:
        column.justify = "right"
    for row in rows:
        made.add_row(*cells(row, scale), style="bold" if row.contender == OURS else None)
    return made


def markdown(results: Results, about: Mapping[str, Any]) -> str:
    """Returns every table as Markdown, below the conditions they were measured under."""
    parts = [conditions(about) + "."]
    for name, rows in results.items():
        titles, scale = headings(name)
        lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
        for row in rows:
            texts = cells(row, scale)
            lines.append([f"**{text}**" if row.contender == OURS and text else text for text in texts])
        rendered = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### `{name}`: {WORKS[name].description}\n\n{rendered}")
    return "\n\n".join(parts)


def around(path: Path) -> tuple[str, str]:
    """Returns what stands before and after the place for the tables in a document.

    Raises:
        StorageError: if there is no such document, or no place in it.
    """
    try:
        before, begin, rest = path.read_text().partition(BEGIN)
    except OSError as error:
        raise StorageError(f"cannot read the document '{path}' to write the tables into") from error
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise StorageError(f"expected the lines {BEGIN} and {END} in {path}; got a document without them")
    return before, after


def write(path: Path, text: str) -> None:
    """Replaces what stands between the markers of a document.

    Raises:
        StorageError: if there is no such document, or no place in it.
    """
    before, after = around(path)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
