"""Wake-sleep and Monte Carlo EM against the auto-encoding variational Bayes of the VAE paper, at equal time."""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

LABELS = {"aevb": "AEVB (ELBO)", "wake-sleep": "wake-sleep", "mcem": "Monte Carlo EM"}
COLOURS = {"aevb": "tab:blue", "wake-sleep": "tab:orange", "mcem": "tab:green"}
HIDDEN, BATCH, LEARNING_RATE = 500, 100, 1e-3
POINTS, PARTICLES, LIKELIHOOD_ROWS = 12, 100, 1_000


@dataclass(frozen=True)
class Panel:
    """One comparison.

    Attributes:
        name: in the JSON document.
        z: size of the latent vector.
        methods: what is compared.
        rows: how many train rows are used; None for all.
    """

    name: str
    z: int
    methods: tuple[str, ...] = ("aevb", "wake-sleep")
    rows: int | None = None

    @property
    def title(self) -> str:
        """What stands above it."""
        return f"$N_z$ = {self.z}, " + ("all train rows" if self.rows is None else f"{self.rows:,} train rows")


PANELS = [Panel("z3", 3), Panel("z10", 10), Panel("z20", 20), Panel("z3-few", 3, ("aevb", "wake-sleep", "mcem"), 5_000)]


@dataclass(frozen=True)
class Point:
    """What a method has reached.

    Attributes:
        seconds: of training, without compiling and evaluating.
        samples: data that the model was trained on.
        bound: the evidence lower bound, the mean of all test rows, nats.
        likelihood: log p(x) by importance sampling from the guide, the mean of the first test rows, nats.
    """

    seconds: float
    samples: int
    bound: float
    likelihood: float


@dataclass
class Curve:
    """One method on one panel, trained slice by slice."""

    panel: Panel
    method: str
    seed: int
    data: Any
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Builds the paper's net: 500 tanh units on either side."""
        import torch

        import ppgen
        from ppgen import guides, models, nn
        from ppgen.data import Batches
        from ppgen.objectives.monte_carlo_em import MonteCarloEM
        from ppgen.objectives.wake_sleep import WakeSleep

        torch.manual_seed(self.seed)
        shape, z = self.data.shape, self.panel.z
        decoder = nn.decoder([z], shape, hidden=(HIDDEN,), activation="tanh")
        encoder = nn.encoder(shape, 2 * z, hidden=(HIDDEN,), activation="tanh")
        pair = models.VAE(decoder, nn.Bernoulli(shape), z), guides.DiagonalGaussian(encoder, z)
        made: dict[str, Callable[[], Any]] = {"aevb": ppgen.ELBO, "wake-sleep": WakeSleep, "mcem": MonteCarloEM}
        adam = functools.partial(torch.optim.Adam, lr=LEARNING_RATE)
        self.trainer = ppgen.Trainer(*pair, made[self.method](), adam, device="cpu", compile="on")
        self.batches = Batches({"x": self.data.train["x"][: self.panel.rows]}, BATCH, seed=self.seed)

    def advance(self, seconds: float) -> None:
        """Trains until so many seconds of training have passed, and notes what was reached."""
        from ppgen import evaluation

        compiled, start = self.trainer.compiling_seconds, time.perf_counter()
        spent = 0.0
        while self.seconds + spent < seconds:
            self.trainer.step(self.batches)
            spent = time.perf_counter() - start - (self.trainer.compiling_seconds - compiled)
        self.seconds += spent
        test = {"x": self.data.test["x"]}
        bound = evaluation.elbo(self.trainer, test, particles=1).mean()
        first = {"x": test["x"][:LIKELIHOOD_ROWS]}
        likelihood = -evaluation.negative_log_likelihood(self.trainer, first, particles=PARTICLES).mean()
        self.points.append(Point(self.seconds, self.trainer.steps * BATCH, float(bound), float(likelihood)))


def measure(seconds: float, *, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains every method of every panel for so many seconds, in turns, so that a busy machine slows all alike."""
    from ppgen import data

    mnist = data.load("mnist")
    marks = [seconds * (mark / POINTS) ** 2 for mark in range(1, POINTS + 1)]
    found: dict[str, Any] = {}
    for panel in PANELS:
        curves = [Curve(panel, method, seed, mnist) for method in panel.methods]
        for mark in marks:
            for curve in curves:
                say(f"{panel.name}: {LABELS[curve.method]}, {mark:.0f} of {seconds:.0f} s")
                curve.advance(mark)
        found[panel.name] = {curve.method: [asdict(point) for point in curve.points] for curve in curves}
    return found


def settings(seconds: float, seed: int) -> dict[str, Any]:
    """Returns what the figures depend on besides the machine."""
    return {
        "seconds": seconds,
        "seed": seed,
        "hidden": HIDDEN,
        "batch": BATCH,
        "optimizer": f"Adam, {LEARNING_RATE}",
        "bound": "all test rows, one draw each",
        "likelihood": f"first {LIKELIHOOD_ROWS} test rows, {PARTICLES} draws from the guide each",
    }


def draw(found: Mapping[str, Any], path: Path, *, seconds: float, about: Mapping[str, Any]) -> None:
    """Draws the test bound of every panel against time, and against data seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), layout="constrained")
    plots = figure.subplots(2, len(found), sharey="col")
    for column, panel in enumerate(panel for panel in PANELS if panel.name in found):
        for row, (key, label) in enumerate([("seconds", "seconds of training"), ("samples", "data seen")]):
            plot = plots[row][column]
            for method, points in found[panel.name].items():
                _lines(plot, method, points, key)
            plot.set(xscale="log", xlabel=label)
            plot.grid(alpha=0.3)
        plots[0][column].set_title(panel.title)
        _focus(plots[0][column], list(found[panel.name].values()))
    for row in range(2):
        plots[row][0].set_ylabel("nats per test datum")
    plots[0][-1].legend(fontsize="small")
    where = f"{about['processor']}, {about['threads']} thread, load {about['load']} at the start"
    figure.suptitle(
        f"MNIST, {HIDDEN} tanh units, batch {BATCH}, Adam; {seconds:.0f} s for each method ({where})\n"
        f"solid: evidence lower bound; dashed: log-likelihood from {PARTICLES} draws of the guide",
        fontsize="medium",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _lines(plot: Any, method: str, points: Sequence[Mapping[str, float]], key: str) -> None:
    across = [point[key] for point in points]
    style = {"color": COLOURS[method]}
    plot.plot(across, [point["bound"] for point in points], marker=".", label=LABELS[method], **style)
    plot.plot(across, [point["likelihood"] for point in points], linestyle="--", **style)


def _focus(plot: Any, curves: Sequence[Sequence[Mapping[str, float]]]) -> None:
    """Leaves out what lies below all that is reached after the first seconds."""
    reached = [value for points in curves for point in points[3:] for value in (point["bound"], point["likelihood"])]
    margin = 0.05 * (max(reached) - min(reached))
    plot.set_ylim(min(reached) - margin, max(reached) + margin)


@click.command("wake-sleep")
@click.option("--seconds", default=120.0, show_default=True, help="Training time for each method of each panel.")
@click.option("--seed", default=0, show_default=True)
@click.option("--write", "folder", default="docs", show_default=True, type=click.Path(path_type=Path))
def command(seconds: float, seed: int, folder: Path) -> None:
    """Trains the VAE paper's net on MNIST by AEVB, wake-sleep and Monte Carlo EM at equal time; on one thread."""
    import torch
    from rich.console import Console

    from benchmarks import report

    torch.set_num_threads(1)
    about = report.machine(1)
    with Console(stderr=True).status("wake-sleep") as status:
        found = measure(seconds, seed=seed, say=status.update)
    draw(found, folder / "wake_sleep.png", seconds=seconds, about=about)
    document = {"machine": about, "settings": settings(seconds, seed), "panels": found}
    (folder / "wake_sleep.json").write_text(json.dumps(document, indent=1) + "\n")
    click.echo(str(folder / "wake_sleep.png"))
