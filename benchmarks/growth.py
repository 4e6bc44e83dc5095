"""How time and memory grow with the size of the work: one fresh process for each point, one picture for each size."""

import dataclasses
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.works import WORKS, Work
from ppgen.errors import PpgenError

VAE, M2 = WORKS["vae-400-20"], WORKS["m2-digits"]
LABELS = {"ppgen": "ppgen, compiled", "ppgen-eager": "ppgen, not compiled", "pyro": "Pyro SVI"}
WARM_UP, FEWEST, MOST, SECONDS = 3, 10, 200, 2.0


@dataclass(frozen=True)
class Axis:
    """One size that grows while the others stay.

    Attributes:
        name: of the picture.
        title: what the horizontal axis says.
        work: what it starts from.
        field: the size of the work that grows; "rows" is the number of training rows.
        values: the points.
    """

    name: str
    title: str
    work: Work
    field: str
    values: tuple[int, ...]

    @property
    def base(self) -> str:
        """What stays."""
        words = {"batch": "batch", "z": "latents"}
        sizes = "784-400-20" if self.work is VAE else "64-128-16"
        kind = "VAE" if self.work is VAE else "M2"
        return f"{kind} {sizes}" + ("" if self.field in words else f", batch {self.work.batch}")


AXES = [
    Axis("batch", "rows of a batch", VAE, "batch", (25, 100, 400, 1600)),
    Axis("particles", "particles", VAE, "particles", (1, 8, 64)),
    Axis("classes", "enumerated classes", M2, "classes", (2, 10, 100)),
    Axis("latents", "size of the latent vector", VAE, "z", (2, 32, 512)),
    Axis("data", "training rows in memory", VAE, "rows", (1_000, 10_000, 100_000)),
]


def measure_point(axis: Axis, value: int, contender: str) -> dict[str, float]:
    """Measures one point in this process: seconds of a step, and the peak memory of the process in bytes."""
    step = step_of(axis, value, contender)
    start = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    startup = time.perf_counter() - start
    seconds: list[float] = []
    while len(seconds) < FEWEST or (len(seconds) < MOST and sum(seconds) < SECONDS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    # Linux counts in KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"minimum": min(seconds), "median": statistics.median(seconds), "startup": startup, "peak": float(peak)}


def step_of(axis: Axis, value: int, contender: str) -> Callable[[], float]:
    """Returns the step of one point."""
    from benchmarks.contenders import own, pyro_svi

    rows = value if axis.field == "rows" else None
    work = axis.work if rows else dataclasses.replace(axis.work, **{axis.field: value})  # type: ignore[arg-type]
    if contender == "pyro":
        elbo = pyro_svi.enumerating() if work.classes else pyro_svi.vectorised(work)
        return pyro_svi.build(work, elbo, _drawn(work, rows) if rows else None)
    compile = "off" if contender == "ppgen-eager" else "on"
    return own.build(work, _batches(work, rows) if rows else None, compile=compile)


def _rows(work: Work, rows: int) -> Mapping[str, Any]:
    import torch

    return {"x": (torch.rand(rows, work.x) < 0.2).float()}


def _batches(work: Work, rows: int) -> Iterator[Any]:
    from ppgen.data import Batches

    return Batches(_rows(work, rows), work.batch)


def _drawn(work: Work, rows: int) -> Iterator[Any]:
    import torch

    x = _rows(work, rows)["x"]
    for _ in itertools.count():
        for chosen in torch.randperm(rows)[: rows // work.batch * work.batch].view(-1, work.batch):
            yield {"x": x[chosen]}


def in_fresh_process(axis: Axis, value: int, contender: str, threads: int) -> dict[str, float]:
    """Measures one point in a process of its own, so that its peak memory is its own too."""
    command = [sys.executable, "-m", "benchmarks", "--threads", str(threads)]
    command += ["growth-point", axis.name, str(value), contender]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise PpgenError(f"growth of {axis.name} at {value}, {LABELS[contender]}: {last}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures every point of every axis; returns lists by axis and contender."""
    found: dict[str, Any] = {}
    for axis in AXES:
        found[axis.name] = {"title": axis.title, "base": axis.base, "values": list(axis.values), "contenders": {}}
        for contender in LABELS:
            say(f"{axis.name}: {LABELS[contender]}")
            points = [in_fresh_process(axis, value, contender, threads) for value in axis.values]
            found[axis.name]["contenders"][contender] = points
    return found


def draw(found: Mapping[str, Any], folder: Path, about: Mapping[str, Any]) -> list[Path]:
    """Draws one picture for each axis: milliseconds of a step, and peak memory; `about` is `report.machine`."""
    from matplotlib.figure import Figure

    paths = []
    for name, axis in found.items():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for index, (key, scale, title) in enumerate(
            [("minimum", 1e3, "ms per step (fastest)"), ("peak", 2**-20, "peak memory of the process, MiB")]
        ):
            plot = figure.add_subplot(1, 2, index + 1)
            for contender, points in axis["contenders"].items():
                heights = [scale * point[key] for point in points]
                plot.plot(axis["values"], heights, marker="o", label=LABELS[contender])
            plot.set(xscale="log", xlabel=axis["title"], ylabel=title)
            plot.set_xticks(axis["values"], [f"{value:,}" for value in axis["values"]])
            plot.minorticks_off()
            plot.grid(alpha=0.3)
            if key == "minimum":
                plot.set_yscale("log")
                plot.legend()
            else:
                plot.set_ylim(0, 1.1 * plot.get_ylim()[1])
        where = f"{about['processor']}, {about['threads']} threads, load {about['load']} at the start"
        figure.suptitle(f"{axis['base']} ({where})", fontsize="medium")
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths
