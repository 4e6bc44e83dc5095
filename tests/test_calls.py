"""How programs are called: by position, by name and both, with columns of rows and with one value for all."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    SVI,
    EnergyDistance,
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    config_enumerate,
)
from pyro.infer import ReweightedWakeSleep as PyrosReweightedWakeSleep
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen import ELBO, IWAE, EnumeratedELBO, Trainer
from ppgen.data import Batches
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation import elbo, negative_log_likelihood, to_arviz
from ppgen.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep
from ppgen.programs import Call, arguments, generate

X = torch.tensor([0.5, -1.0, 2.0, 0.1])
WIDTH = 0.5
fast = functools.partial(torch.optim.Adam, lr=0.01)


@pytest.fixture(autouse=True)
def _own_store() -> Any:
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def train(model: Any, guide: Any, objective: Any, batch: Any, steps: int = 3) -> Trainer:
    trainer = Trainer(model, guide, objective, fast, compile="off")
    list(trainer.fit(batch, steps=steps))
    return trainer


# ------------------------------------------------------------------------------------- by position and by name


def binary(x: Tensor, width: float = 1.0) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, width), obs=x)


def binary_guide(x: Tensor, width: float = 1.0) -> None:
    slope = pyro.param("slope", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=slope * x / width))


def exact_loss(width: float) -> float:
    """The negative ELBO of the pair above in nats a row, summed by hand."""
    total = 0.0
    for x in X.tolist():
        one = 1 / (1 + math.exp(-0.7 * x / width))
        for z, q in ((0, 1 - one), (1, one)):
            log_p = -0.5 * ((x - z) / width) ** 2 - math.log(width * math.sqrt(2 * math.pi)) + math.log(0.5)
            total -= q * (log_p - math.log(q))
    return total / len(X)


class Module(nn.Module):
    def __init__(self, program: Callable[..., None]) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor, width: float = 1.0) -> None:
        self.program(x, width)


class Module2(PyroModule[nn.Module]):  # type: ignore[misc]
    def __init__(self, program: Callable[..., None]) -> None:
        super().__init__()
        self.program = program

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.program(*args, **kwargs)


def catching(program: Callable[..., None]) -> Callable[..., None]:
    def caught(*args: Any, **kwargs: Any) -> None:
        program(*args, **kwargs)

    return caught


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "functions": lambda program: program,
    "functions of anything": catching,
    "modules": Module,
    "Pyro's modules": Module2,
    "partials": functools.partial,
    "handlers": lambda program: poutine.block(program, hide=[]),
    "handled modules": lambda program: poutine.block(Module(program), hide=[]),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_arguments_by_position_and_by_name_reach_both_programs(kind: str) -> None:
    model, guide = (WRAPPERS[kind](program) for program in (binary, binary_guide))

    def loss(*args: Any, **kwargs: Any) -> float:
        pyro.clear_param_store()
        optimizer = pyro.optim.SGD({"lr": 0.0})
        return float(SVI(model, guide, optimizer, loss=EnumeratedELBO()).step(*args, **kwargs))

    assert loss(X, width=WIDTH) == pytest.approx(exact_loss(WIDTH), abs=1e-5)
    assert loss(X, WIDTH) == pytest.approx(exact_loss(WIDTH), abs=1e-5)
    assert loss(x=X, width=WIDTH) == pytest.approx(exact_loss(WIDTH), abs=1e-5)
    assert loss(X) == pytest.approx(exact_loss(1.0), abs=1e-5)
    assert abs(exact_loss(1.0) - exact_loss(WIDTH)) > 0.1  # control: the width matters


def test_a_call_trains_and_compiled_steps_take_it() -> None:
    trainer = train(binary, binary_guide, EnumeratedELBO(), [Call((X,), {"width": WIDTH})], steps=2)
    report, *_ = trainer.fit([Call((X,), {"width": WIDTH})], steps=1)
    assert report["loss"] == pytest.approx(exact_loss(WIDTH), abs=0.05)
    drawn = generate(binary, Call((X,), {"width": torch.tensor(WIDTH)}), 7)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {"z": (7,), "x": (7,)}


def test_autoguides_take_positional_and_named_arguments() -> None:
    def model(x: Tensor, width: float = 1.0) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, width), obs=x)

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.02}), loss=ELBO())
    for _ in range(400):
        svi.step(X, width=WIDTH)
    precision = 1 + len(X) / WIDTH**2
    loc = pyro.param("AutoNormal.locs.z").item()
    assert loc == pytest.approx(float(X.sum()) / WIDTH**2 / precision, abs=0.06)
    assert pyro.param("AutoNormal.scales.z").item() == pytest.approx(precision**-0.5, rel=0.15)


def test_programs_that_name_no_columns_are_refused() -> None:
    def nameless(*columns: Any) -> None:
        binary(*columns)

    def positional(x: Tensor, /) -> None:
        binary(x)

    for program, name in ((nameless, r"'\*columns'"), (positional, "'x'")):
        with pytest.raises(ConfigError, match=f"takes {name} by position only: name the columns"):
            train(program, binary_guide, ELBO(), {"x": X})
        train(program, binary_guide, EnumeratedELBO(), [(X,)])  # by position they are right


# -------------------------------------------------------------------------------------------------- messengers


def clustered(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


class Easy(EasyGuide):
    def guide(self, *args: Any, **kwargs: Any) -> None:
        self.group(match=".*").map_estimate()


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_guides_that_run_their_model_take_its_columns(kind: Any) -> None:
    guide = kind(clustered)
    batch = {"x": X, "other": torch.zeros(4)}
    assert arguments(guide, batch) == ((), {"x": X})
    trainer = train(clustered, guide, ELBO(particles=5), batch, steps=600)
    precision = 1 / 9 + len(X)
    with trainer.evaluating():
        draws = torch.stack([guide(X)["mean"] for _ in range(2000)])
    assert float(draws.mean()) == pytest.approx(float(X.sum()) / precision, abs=0.1)
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.2)
    assert negative_log_likelihood(trainer, {"x": X}, particles=10).isfinite().all()


def test_reconstruction_by_a_guide_that_runs_its_model() -> None:
    from ppgen.programs import reconstruct

    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.01), obs=x)

    guide = AutoNormalMessenger(local)
    drawn = reconstruct(local, guide, {"x": X})
    assert (drawn["x"] - drawn["z"]).abs().max() < 0.1
    assert not torch.equal(drawn["x"], X)


def test_an_easy_guide_takes_the_columns_of_its_model() -> None:
    assert arguments(Easy(clustered), {"x": X, "other": X}) == ((), {"x": X})


# ---------------------------------------------------------------------------------------------- Pyro's own ELBOs


def toy(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def toy_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.6))


def subsampled(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data", 40, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def subsampled_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.7))
    with pyro.plate("data", 40, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.6))


TRAIN: dict[str, Callable[[], Any]] = {
    "Trace_ELBO": Trace_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "RenyiELBO": lambda: RenyiELBO(alpha=0.0, num_particles=5),
    "ReweightedWakeSleep": lambda: PyrosReweightedWakeSleep(num_particles=5),
    "Trace_MMD": lambda: Trace_MMD(RBF(1)),
    "EnergyDistance": EnergyDistance,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TRAIN)
def test_pyros_own_objectives_train(name: str) -> None:
    trainer = Trainer(toy, toy_guide, TRAIN[name](), fast, compile="off")
    first, *_, last = trainer.fit({"x": X}, steps=60, every=20)
    assert math.isfinite(last["loss"])
    assert last["loss"] < first["loss"] + 0.1
    assert trainer.param_store["slope"].item() != pytest.approx(0.7, abs=1e-4)


def test_pyros_enumerating_elbo_trains() -> None:
    guide = config_enumerate(binary_guide)
    trainer = Trainer(binary, guide, TraceEnum_ELBO(), functools.partial(torch.optim.SGD, lr=0.0), compile="off")
    report, *_ = trainer.fit({"x": X, "width": WIDTH}, steps=1)
    assert report["loss"] == pytest.approx(exact_loss(WIDTH), abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "model", "guide", "message"),
    [
        (JitTrace_ELBO, toy, toy_guide, "leaves compiling to the trainer; got JitTrace_ELBO: take Trace_ELBO"),
        (lambda: TraceTailAdaptive_ELBO(num_particles=5), toy, toy_guide, "has a gradient but no value.* take Renyi"),
        (TraceMeanField_ELBO, binary, binary_guide, "TraceMeanField_ELBO does not accept this pair: "),
        (EnergyDistance, binary, binary_guide, "EnergyDistance does not accept this pair: "),
        (lambda: RenyiELBO(alpha=0.0), binary, binary_guide, "no right gradient for guide site 'z'.* take IWAE"),
        (
            lambda: PyrosReweightedWakeSleep(insomnia=0.5),
            toy,
            toy_guide,
            "its dreams as an argument 'observations'.* take insomnia=1",
        ),
    ],
)
def test_what_one_of_pyros_objectives_cannot_do_is_refused(
    objective: Any, model: Any, guide: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(model, guide, objective(), {"x": X})


def test_pyros_reweighted_wake_sleep_gives_the_guide_its_dreams() -> None:
    def model(x: Tensor, observations: dict[str, Tensor]) -> None:
        toy(observations["x"])

    def guide(x: Tensor, observations: dict[str, Tensor]) -> None:
        toy_guide(observations["x"])

    batch = {"x": X, "observations": {"x": X}}
    trainer = train(model, guide, PyrosReweightedWakeSleep(insomnia=0.5), batch, steps=30)
    assert trainer.param_store["slope"].item() > 0.72


def test_a_renyi_bound_of_a_subsampled_plate_is_said_to_be_none(caplog: pytest.LogCaptureFixture) -> None:
    def loss(model: Any, guide: Any) -> float:
        pyro.clear_param_store()
        torch.manual_seed(0)
        elbo = RenyiELBO(alpha=0.0, num_particles=2000, vectorize_particles=True)
        still = functools.partial(torch.optim.SGD, lr=0.0)
        report, *_ = Trainer(model, guide, elbo, still, compile="off").fit({"x": X}, steps=2)
        return report["loss"]

    with caplog.at_level(logging.WARNING, "ppgen"):
        assert loss(toy, toy_guide) == pytest.approx(1.5565, abs=0.02)  # the exact -log p(x), nats a row
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "ppgen"):
        assert loss(subsampled, subsampled_guide) < 1.45
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "Pyro's RenyiELBO takes the scale of the plate 'data' (4 of 40 rows) into a logarithm, where its value is no"
        " bound"
    ]
    pyro.clear_param_store()
    still = functools.partial(torch.optim.SGD, lr=0.0)
    report, *_ = Trainer(subsampled, subsampled_guide, IWAE(particles=2000), still, compile="off").fit(
        {"x": X}, steps=2
    )
    assert report["loss"] == pytest.approx(1.5565, abs=0.02)


# ---------------------------------------------------------------------------------- programs without parameters


def fixed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def fixed_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.7 * x, 0.6))


def test_reweighted_wake_sleep_of_a_model_without_parameters_trains_the_guide() -> None:
    trainer = Trainer(fixed, toy_guide, ReweightedWakeSleep(particles=20), fast, compile="off")
    *_, last = trainer.fit({"x": X}, steps=300, every=100)
    assert trainer.param_store["slope"].item() == pytest.approx(0.8, abs=0.08)  # the exact posterior's
    assert {"loss/guide", "bound"} <= last.keys()
    assert "loss/model" not in last


def test_plain_wake_sleep_of_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="got a model without parameters: take ReweightedWakeSleep"):
        train(fixed, toy_guide, WakeSleep(), {"x": X})
    with pytest.raises(ConfigError, match="got a guide without parameters"):
        train(toy, fixed_guide, WakeSleep(), {"x": X})


# ------------------------------------------------------------------------------ columns of one value for all rows


def annealed(x: Tensor, width: Any = 1.0) -> None:
    toy_of(x, width)


def toy_of(x: Tensor, width: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, width), obs=x)


def annealed_guide(x: Tensor, width: Any = 1.0) -> None:
    toy_guide(x)


@pytest.mark.parametrize("width", [0.5, torch.tensor(0.5)], ids=["float", "scalar tensor"])
def test_one_value_for_all_rows_is_a_column(width: Any) -> None:
    rows = X.repeat(5)
    batches = Batches({"x": rows, "width": width}, 10)
    batch = next(batches)
    assert batch["x"].shape == (10,)
    assert float(batch["width"]) == 0.5
    trainer = Trainer(annealed, annealed_guide, ELBO(), functools.partial(torch.optim.SGD, lr=0.0), compile="off")
    list(trainer.fit(batches, steps=3))
    columns: dict[str, Any] = {"x": rows, "width": width}
    nll = negative_log_likelihood(trainer, columns, particles=2000, batch_size=7)
    assert float(nll.mean()) == pytest.approx(1.5565, abs=0.01)
    assert elbo(trainer, columns, particles=5).shape == (20,)
    others: dict[str, Any] = {**columns, "width": 3.0}
    other = negative_log_likelihood(trainer, others, particles=2000)
    assert abs(float(other.mean()) - 1.5565) > 0.05  # control: the value reaches the model
    drawn = to_arviz(trainer, columns, draws=3)
    assert drawn["posterior"]["z"].shape == (1, 3, 20)


def test_columns_that_are_neither_rows_nor_a_number_are_named() -> None:
    with pytest.raises(DataError, match="column 'w' as a tensor, or one number for all rows; got a ndarray"):
        Batches({"x": X, "w": np.zeros(4)}, 2)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="a column of rows to draw batches from; got width, one value each"):
        Batches({"width": 0.5}, 2)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="columns of one length; got x: 4, w: 3"):
        Batches({"x": X, "w": torch.zeros(3)}, 2)
