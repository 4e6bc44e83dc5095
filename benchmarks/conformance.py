"""Whether programs of every kind train to the bound of stock Pyro SVI: same steps, same optimizer, same start."""

import functools
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from rich.table import Table
from torch import Tensor

from ppgen import programs
from ppgen.players import Optimizer
from ppgen.training import Trainer

if TYPE_CHECKING:
    from programs_zoo import Case

TESTS = Path(__file__).resolve().parents[1] / "tests"


def zoo() -> Any:
    """The programs, which lie beside the tests that run them."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module("programs_zoo")


@dataclass(frozen=True)
class Bound:
    """Estimates of a trained pair's loss, minus the bound, in nats of the whole data set.

    Attributes:
        draws: ``(runs, draws)``.
        seconds: how long training took in all.
        compiled: whether it was compiled.
    """

    draws: Tensor
    seconds: float
    compiled: bool = False

    @property
    def mean(self) -> float:
        """The mean over runs and draws."""
        return float(self.draws.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean: of the draws where there is one run, else of the runs."""
        means = self.draws.mean(1)
        if len(means) > 1:
            return float(means.std()) / math.sqrt(len(means))
        return float(self.draws.std()) / math.sqrt(self.draws.numel())


def apart(one: Bound, two: Bound) -> float:
    """How much higher the first loss is, in combined standard errors."""
    return (one.mean - two.mean) / math.hypot(one.error, two.error)


def judged(case: "Case", model: Any, guide: Any, batch: dict[str, Any], *, draws: int) -> Tensor:
    """Draws of stock Pyro's loss ``(draws,)`` of the whole data set, in the active parameter store."""
    elbo = case.stock()
    model, guide = (zoo().for_svi(case, program) for program in (model, guide))
    arguments = programs.arguments(model, batch)[1]
    torch.manual_seed(7)
    with torch.no_grad():
        return torch.tensor([elbo.loss(model, guide, **arguments) for _ in range(draws)])


def by_svi(case: "Case", *, steps: int, seed: int = 0, draws: int = 1000) -> Bound:
    """Trains by `pyro.infer.SVI`."""
    pyro.set_rng_seed(seed)
    model, guide, batch = case.pair()
    arguments = programs.arguments(model, batch | dict(case.extra))[1]
    cosine = {"optimizer": torch.optim.Adam, "optim_args": {"lr": case.rate}, "T_max": steps}
    scheduler = pyro.optim.CosineAnnealingLR(cosine)
    registered = programs.registered(model, "model"), programs.registered(guide, "guide")
    annotated = (zoo().for_svi(case, program) for program in registered)
    svi = pyro.infer.SVI(*annotated, scheduler, case.stock())
    with pyro.get_param_store().scope():
        svi.evaluate_loss(**arguments)
        pyro.set_rng_seed(seed + 1)
        start = time.perf_counter()
        for _ in range(steps):
            svi.step(**arguments)
            scheduler.step()
        seconds = time.perf_counter() - start
        return Bound(judged(case, *registered, batch, draws=draws).unsqueeze(0), seconds)


def trainer_of(
    case: "Case", *, steps: int, compile: Any = "off", objective: Any = None
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer of a new pair, and what it trains on."""
    model, guide, batch = case.pair()
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    optimizer = Optimizer(functools.partial(torch.optim.Adam, lr=case.rate), schedule=cosine)
    chosen = case.ours() if objective is None else objective
    trainer = Trainer(model, guide, chosen, optimizer, total_steps=steps, device="cpu", compile=compile)
    return trainer, batch | dict(case.extra)


def by_trainer(
    case: "Case",
    *,
    steps: int,
    seed: int = 0,
    draws: int = 1000,
    compile: Any = "off",
    objective: Any = None,
    of: int | None = None,
) -> Bound:
    """Trains by `ppgen.Trainer`; with ``of``, for the first ``steps`` of that many."""
    pyro.set_rng_seed(seed)
    trainer, batch = trainer_of(case, steps=of or steps, compile=compile, objective=objective)
    trainer.setup(batch)
    pyro.set_rng_seed(seed + 1)
    start = time.perf_counter()
    for _ in trainer.fit(batch, steps=steps, every=max(1, steps)):
        pass
    seconds = time.perf_counter() - start
    model, guide = trainer.model, trainer.guide
    whole = {name: value for name, value in batch.items() if name not in dict(case.extra)}
    with trainer.evaluating():
        found = judged(case, model, guide, whole, draws=draws).unsqueeze(0)
    return Bound(found, seconds, bool(trainer.compiled))


def several(train: Callable[..., Bound], case: "Case", *, seeds: Sequence[int], **options: Any) -> Bound:
    """One run for each seed."""
    runs = [train(case, seed=seed, **options) for seed in seeds]
    draws = torch.cat([run.draws for run in runs])
    return Bound(draws, sum(run.seconds for run in runs), runs[-1].compiled)


@dataclass(frozen=True)
class Compared:
    """One program trained both ways; losses in nats of the whole data set."""

    name: str
    objective: str
    elbo: str
    steps: int
    ours: Bound
    stock: Bound
    half: Bound

    @property
    def z(self) -> float:
        """How much higher our loss is, in combined standard errors."""
        return apart(self.ours, self.stock)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        bounds = {"ours": self.ours, "pyro": self.stock, "pyro_half_the_steps": self.half}
        return {
            "program": self.name,
            "objective": self.objective,
            "elbo": self.elbo,
            "steps": self.steps,
            "z": self.z,
            "compiled": self.ours.compiled,
            **{n: {"loss": b.mean, "standard_error": b.error, "seconds": b.seconds} for n, b in bounds.items()},
        }


def compare(name: str, *, seeds: Sequence[int] = (0,), draws: int = 1000, compile: Any = "auto") -> Compared:
    """Trains one program both ways, past its plateau."""
    case = zoo().CASES[name]
    ours = several(by_trainer, case, seeds=seeds, steps=case.steps, draws=draws, compile=compile)
    stock = several(by_svi, case, seeds=seeds, steps=case.steps, draws=draws)
    half = several(by_svi, case, seeds=seeds, steps=case.steps // 2, draws=draws)
    objective, elbo = type(case.ours()).__name__, type(case.stock()).__name__
    return Compared(name, objective, elbo, case.steps, ours, stock, half)


def compare_all(names: Sequence[str], say: Callable[[str], None], **options: Any) -> Iterator[Compared]:
    """Trains programs one after the other."""
    for name in names:
        say(name)
        yield compare(name, **options)


def _cells(row: Compared) -> list[str]:
    def bound(value: Bound) -> str:
        return f"{value.mean:.3f} ± {value.error:.3f}"

    manner = "compiled" if row.ours.compiled else "eager"
    own = f"{row.objective}, {manner}"
    times = f"{row.ours.seconds:.0f} / {row.stock.seconds:.0f}"
    return [row.name, own, row.elbo, str(row.steps), bound(row.ours), bound(row.stock), f"{row.z:+.2f}",
            bound(row.half), times]  # fmt: skip


HEADER = [
    "program",
    "ppgen's objective",
    "Pyro's",
    "steps",
    "ppgen, nats",
    "Pyro, nats",
    "z",
    "Pyro, half the steps",
    "seconds, ppgen / Pyro",
]


def table(rows: Sequence[Compared]) -> Table:
    """For a terminal."""
    made = Table(*HEADER, title="Minus the bound after training, lower is better")
    for row in rows:
        made.add_row(*_cells(row))
    return made


def markdown(rows: Sequence[Compared]) -> str:
    """For a document."""
    lines = [HEADER, ["---"] * len(HEADER), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
