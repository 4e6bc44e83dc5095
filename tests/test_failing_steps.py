"""Steps that raise instead of giving a number, and numbers that float32 or batch statistics do not carry."""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from run_helpers import go_on, reports_and_checkpoints, tiny
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen import compilation, failures
from ppgen.cautions import SMALLEST_SHAPE, SMALLEST_UPPER_SHAPE
from ppgen.errors import ConfigError, DataError, DivergedError
from ppgen.objectives import ELBO, IWAE, Objective
from ppgen.packing import pack
from ppgen.players import Optimizer
from ppgen.training import Trainer

OWN = Path(__file__).with_name("failing_recipes.py")
X = {"x": torch.tensor([2.0, 3.0, 4.0])}
adam = functools.partial(torch.optim.Adam, lr=0.05)
sgd = functools.partial(torch.optim.SGD, lr=0.8)
cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=100)
eager = functools.partial(Trainer, device="cpu", compile="off")


def everything(trainer: Trainer) -> tuple[dict[str, Tensor], Any]:
    """Every tensor of a trainer's state by name, and every other value of it."""
    tensors, rest = pack(trainer.state_dict())
    return {name: tensor.clone() for name, tensor in tensors.items()}, rest


def assert_same(one: tuple[dict[str, Tensor], Any], two: tuple[dict[str, Tensor], Any]) -> None:
    assert one[0].keys() == two[0].keys()
    assert [name for name, tensor in one[0].items() if not torch.equal(tensor, two[0][name])] == []
    assert one[1] == two[1]


def run(trainer: Trainer, steps: int, batch: Any = X) -> None:
    stream = iter(lambda: batch, None)
    for _ in range(steps):
        trainer.step(stream)


def until_it_fails(trainer: Trainer, batch: Any = X) -> tuple[Exception, Any, Any]:
    """The exception of the step that fails, and the states before and after it."""
    trainer.setup(batch)
    for _ in range(100):
        before = everything(trainer)
        try:
            run(trainer, 1, batch)
        except Exception as error:
            return error, before, everything(trainer)
    pytest.fail("no step failed")


# ------------------------------------------------------------------------------------------- programs that break down


def rows(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def covariant(x: Tensor) -> None:
    pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + 1e-3 * torch.eye(3)))
    rows(x)


def factorized(x: Tensor, *, validated: bool | None = None) -> None:
    """Its covariance is singular where the correlation, which grows, is 1."""
    correlation = pyro.param("correlation", torch.tensor(0.8))
    covariance = torch.eye(3) * (1 - correlation) + correlation
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, pyro.param("scale", torch.tensor(0.5)).exp()))
    pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), covariance, validate_args=validated))


def rooted(x: Tensor) -> None:
    """Its location is NaN once a large step has taken the parameter below 0."""
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope.sqrt() * x, 0.5, validate_args=True))


def sampled(x: Tensor) -> None:
    """Torch refuses to draw from probabilities that are NaN, and no site is to blame."""
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        torch.multinomial(torch.stack([slope.sqrt(), slope.new_ones(())]), 1)
        pyro.sample("z", dist.Normal(slope.sqrt() * x, 0.5))


FAILING: dict[str, tuple[Any, Any, Any, str]] = {
    "a factorization": (covariant, factorized, adam, "guide site 'w'"),
    "a factorization, checked": (covariant, functools.partial(factorized, validated=True), adam, "guide site 'w'"),
    "a check": (rows, rooted, sgd, "guide site 'z', rows 0, 1, 2"),
    "a draw": (rows, sampled, sgd, "a value that is not finite"),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_a_step_raises_for_its_numbers_is_a_divergence_and_changes_nothing(case: str) -> None:
    model, guide, optimizer, place = FAILING[case]
    trainer = eager(model, guide, ELBO(), Optimizer(optimizer, schedule=cosine), average=0.9)
    error, before, after = until_it_fails(trainer)
    assert isinstance(error, DivergedError)
    assert f"not finite at step {trainer.steps + 1}: {place} (" in str(error)
    assert error.exit_code == 5
    assert "\n" not in str(error)
    assert trainer.steps > 0
    assert_same(before, after)


@pytest.mark.parametrize("case", FAILING)
def test_such_a_step_can_be_skipped(case: str, caplog: pytest.LogCaptureFixture) -> None:
    model, guide, optimizer, place = FAILING[case]
    trainer = eager(model, guide, ELBO(), optimizer, nonfinite="skip")
    reports = list(trainer.fit(X, steps=40, every=40))
    assert trainer.steps == 40
    assert trainer.skipped > 0
    assert np.isnan(reports[0]["loss"])
    assert f"was skipped, its loss is not finite: {place} (" in caplog.text
    assert all(leaf.isfinite().all() for leaf in trainer.leaves.values())


def test_a_factorization_that_fails_in_a_compiled_step_diverges_at_the_step_at_which_an_eager_one_does() -> None:
    slow = eager(covariant, factorized, ELBO(), adam)
    until_it_fails(slow)
    fast = Trainer(covariant, factorized, ELBO(), adam, device="cpu", compile="on")
    error, before, after = until_it_fails(fast)
    assert isinstance(error, DivergedError)
    assert fast.compiled
    assert fast.steps == slow.steps
    assert_same(before, after)


@pytest.mark.parametrize("softly", [True, False])
def test_a_compiled_factorization_fails_softly(softly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without our change to the graph it raises in the middle of a step."""
    if not softly:
        monkeypatch.setattr(compilation.Graph, "fail_softly", lambda self: None)
    matrix = torch.eye(2).requires_grad_()

    def total(x: Tensor) -> list[Tensor]:
        return [torch.linalg.cholesky(matrix * x[0]).sum()]

    function = compilation.compile_function(total, [torch.ones(2)], [])
    assert function(4 * torch.ones(2))[0] == 4
    if softly:
        assert function(-torch.ones(2))[0].isnan()
        return
    with pytest.raises(RuntimeError):
        function(-torch.ones(2))


MISTAKES: dict[str, Callable[[], None]] = {
    "ValueError": lambda: (_ for _ in ()).throw(ValueError("my mistake")),
    "RuntimeError": lambda: torch.zeros(2) @ torch.zeros(3),  # type: ignore[dict-item,return-value]
    "KeyError": lambda: dict[str, None]()["absent"],
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_of_a_program_is_no_divergence(kind: str) -> None:
    late = [False]

    def guide(x: Tensor) -> None:
        if late[0]:
            MISTAKES[kind]()
        rooted(x)

    trainer = eager(rows, guide, ELBO(), adam, nonfinite="skip")
    run(trainer, 2)
    before = everything(trainer)
    late[0] = True
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(trainer, 1)
    assert type(caught.value).__name__ == kind
    assert_same(before, everything(trainer))
    late[0] = False
    run(trainer, 1)
    assert trainer.steps == 3


def test_a_program_that_fails_from_the_first_is_not_said_to_diverge() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * torch.nan, pyro.param("scale", torch.tensor(0.5))))

    with pytest.raises((ConfigError, DataError, ValueError)) as caught:
        run(eager(rows, guide, ELBO(), adam), 1)
    assert not isinstance(caught.value, DivergedError)


# --------------------------------------------------------------------------------------------------- nothing has moved


class Restless(nn.Module):
    """Batch normalisation, dropout, and draws from NumPy."""

    def __init__(self, *, on_bad_rows: str = "nan") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.on_bad_rows = on_bad_rows

    def forward(self, x: Tensor) -> None:
        shift = 0.1 * np.random.normal()
        loc = self.net(x.nan_to_num().unsqueeze(-1)).squeeze(-1) + shift
        if x.isnan().any():
            if self.on_bad_rows == "raise":
                torch.linalg.cholesky(-torch.eye(2) * loc.exp().mean())
            loc = loc * torch.nan
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))


def clean(x: Tensor) -> None:
    rows(x.nan_to_num())


@pytest.mark.parametrize("on_bad_rows", ["nan", "raise"])
@pytest.mark.parametrize("objective", [ELBO, lambda: IWAE(particles=2), pyro.infer.TraceGraph_ELBO])
def test_all_of_the_state_is_that_before_the_step(objective: Callable[[], Any], on_bad_rows: str) -> None:
    trainer = eager(clean, Restless(on_bad_rows=on_bad_rows), objective(), adam, average=0.9)
    run(trainer, 3)
    before = everything(trainer)
    names = set(trainer.param_store.keys())
    with pytest.raises(DivergedError, match="at step 4"):
        run(trainer, 1, {"x": torch.tensor([1.0, torch.nan, 2.0])})
    assert_same(before, everything(trainer))
    assert set(trainer.param_store.keys()) == names
    run(trainer, 1)
    torch.testing.assert_close(int(trainer.state_dict()["buffers"]["guide.net.1.num_batches_tracked"]), 4)


def test_the_step_after_a_divergence_is_the_one_that_would_have_been_taken() -> None:
    guides = Restless(), Restless()
    straight, stumbled = (eager(clean, restless, ELBO(), adam) for restless in guides)
    for trainer, restless in zip((straight, stumbled), guides, strict=True):
        torch.manual_seed(3)
        np.random.seed(3)
        for leaf in restless.parameters():
            nn.init.constant_(leaf, 0.1)
        run(trainer, 2)
        if trainer is stumbled:
            with pytest.raises(DivergedError):
                run(trainer, 1, {"x": torch.full((3,), torch.nan)})
        run(trainer, 3)
    assert_same(everything(straight), everything(stumbled))


class TwoPhases(Objective):
    """A critic and a pair, whose phase may fail after the critic has moved."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(1, 1)
        self.bound = ELBO()

    def players(self, model: Any, guide: Any, batch: Any) -> dict[str, dict[str, Tensor]]:
        pair = {f"guide.{name}": p for name, p in guide.named_parameters()}
        return {"critic": dict(self.critic.named_parameters()), "pair": pair}

    def phases(self) -> tuple[Any, ...]:
        def critic(model: Any, guide: Any, batch: Any) -> Any:
            return {"critic": self.critic(batch["x"].nan_to_num().unsqueeze(-1) + torch.randn(1)).square().mean()}, {}

        def pair(model: Any, guide: Any, batch: Any) -> Any:
            return {"pair": self.bound.loss(model, guide, batch)}, {}

        return critic, pair


@pytest.mark.parametrize("on_bad_rows", ["nan", "raise"])
def test_in_a_game_it_is_that_before_the_phase_that_failed(on_bad_rows: str) -> None:
    """The critic has taken its step; everything else stands where the critic left it."""
    bad = {"x": torch.tensor([1.0, torch.nan, 2.0])}
    trainer = eager(clean, Restless(on_bad_rows=on_bad_rows), TwoPhases(), adam)
    run(trainer, 2)
    before = everything(trainer)
    with pytest.raises(DivergedError, match="at step 3"):
        trainer.step(iter([X, bad]))
    tensors, rest = everything(trainer)
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, before[0][name])}
    assert {name.split("/")[1] for name in changed if name.startswith("players")} == {"critic"}
    assert {name for name in changed if not name.startswith("players/critic")} == {"random/torch"}
    assert rest["dict"][0] == ["steps", 2]
    # the stream stands where the critic's one draw left it
    torch.set_rng_state(before[0]["random/torch"])
    torch.randn(1)
    assert torch.equal(torch.get_rng_state(), tensors["random/torch"])


def test_a_stock_baseline_does_not_remember_a_step_that_was_skipped() -> None:
    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))), infer=infer)

    trainer = eager(model, guide, pyro.infer.TraceGraph_ELBO(), adam, nonfinite="skip")
    run(trainer, 2)
    trainer._rules._rules = []  # rows that change are refused by themselves
    run(trainer, 1, {"x": torch.full((3,), torch.nan)})
    assert trainer.skipped == 1
    assert all(tensor.isfinite().all() for tensor in trainer.state_dict()["store"].values())


# ----------------------------------------------------------------------------------------------- on the command line


@pytest.mark.parametrize("recipe", ["cholesky", "checked"])
def test_runs_stop_skip_and_roll_back(
    recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gently trained the run comes through: at step 38 it goes back to step 30, with half the learning rate."""
    reports_and_checkpoints(monkeypatch, reports=8, checkpoints=4)
    name = f"{OWN}:{recipe}"
    with pytest.raises(DivergedError, match=r"not finite at step 2: guide site 'w'") as caught:
        go_on(tmp_path / "stop", tiny(name))
    assert failures.exit_code(caught.value) == 5
    assert go_on(tmp_path / "skip", tiny(name, on_nan="skip", steps=10)).trainer.skipped == 9
    assert "validation rows are left out" in caplog.text
    run = go_on(tmp_path / "rollback", tiny(name, on_nan="rollback", options={"gentle": True}))
    assert run.trainer.steps == 40
    assert caplog.text.count("back to step 30 with half the learning rate") == 1
    assert 0.98 < float(run.trainer.leaves["store.correlation"].detach()) < 1


# --------------------------------------------------------------------------------------------------- what float32 holds


@pytest.mark.parametrize(
    ("make", "limit", "border"),
    [
        (lambda shape: dist.Gamma(shape, 1.0), SMALLEST_SHAPE, 0),
        (lambda shape: dist.Dirichlet(shape.expand(4)), SMALLEST_SHAPE, 0),
        (lambda shape: dist.Beta(shape, 1.0), SMALLEST_SHAPE, 0),
        (lambda shape: dist.Beta(1.0, shape), SMALLEST_UPPER_SHAPE, 1),
    ],
)
def test_the_limits_are_where_a_thousandth_of_the_draws_is_cut_off(make: Any, limit: float, border: int) -> None:
    def share(shape: float) -> float:
        draws = make(torch.tensor(shape)).sample((400_000,))
        at = draws >= 1 - 2**-24 if border else draws <= 2 * torch.finfo(torch.float32).tiny
        return float(at.float().mean())

    torch.manual_seed(0)
    assert 2e-4 < share(limit) < 1.3e-3
    assert share(0.75 * limit) > 2e-3


def small(shape: float, *, dtype: torch.dtype = torch.float32, wrap: Any = lambda x: x) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.ones((), dtype=dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        free = pyro.param("shape", torch.tensor(shape, dtype=dtype), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", wrap(dist.Gamma(free, torch.ones((), dtype=dtype))))

    return model, guide


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "float32" in message]


def test_a_shape_that_float32_does_not_carry_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    trainer = eager(*small(0.05), ELBO(), adam)
    for _ in trainer.fit(X, steps=6, every=2):
        pass
    assert len(said(caplog)) == 1
    assert "guide site 'z' is a Gamma of shape 0.05" in said(caplog)[0]
    assert "constraints.greater_than(0.08)" in said(caplog)[0]
    assert "LogNormal" in said(caplog)[0]


def test_a_shape_that_shrinks_is_noticed_at_a_report(caplog: pytest.LogCaptureFixture) -> None:
    trainer = eager(*small(0.3), ELBO(), adam)
    trainer.setup(X)
    assert said(caplog) == []
    before = everything(trainer)
    trainer._cautions.look(X, trainer._store, trainer._buffers)
    assert_same(before, everything(trainer))
    run(trainer, 1)
    trainer.leaves["store.shape"].data.fill_(-3.0)
    list(trainer.fit(X, steps=2, every=2))
    assert len(said(caplog)) == 1


def test_a_shape_that_is_carried_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Negative controls: a shape above the limit, float64, a guide without such a site."""
    list(eager(*small(0.2), ELBO(), functools.partial(torch.optim.SGD, lr=1e-5)).fit(X, steps=2))
    double = eager(*small(0.05, dtype=torch.float64), ELBO(), functools.partial(torch.optim.SGD, lr=1e-5))
    list(double.fit(X, steps=2))
    plain = eager(rows, rooted, ELBO(), adam)
    plain.setup(X)
    assert said(caplog) == []
    assert not plain._cautions._watched


def test_a_draw_at_the_border_of_its_support_is_named_with_the_remedy() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(1.0, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(0.1), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Kumaraswamy(shape.expand(len(x)), 0.1))

    x = {"x": torch.rand(100)}
    remedy = (
        r"guide site 'z', rows .*its value 1 is the border of the support of Kumaraswamy.*clamp them, or use float64"
    )
    with pytest.warns(UserWarning, match="log_prob"), pytest.raises(DivergedError, match=remedy):
        run(eager(model, guide, ELBO(), adam), 5, x)


# -------------------------------------------------------------------------------------------------- batch normalisation


class Normalised(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 2), *layers, nn.Linear(2, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = self.net(z.reshape(-1, 1)).reshape(z.shape)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_one_row_under_batch_normalisation_is_named_and_changes_nothing() -> None:
    one = {"x": torch.tensor([1.0])}
    wanted = r"batch normalisation \('model.net.1'\) needs two rows or more.*drop_last=True.*layer normalisation"
    with pytest.raises(ConfigError, match=wanted):
        eager(Normalised(nn.BatchNorm1d(2)), rooted, ELBO(), adam).setup(one)
    trainer = eager(Normalised(nn.BatchNorm1d(2)), rooted, ELBO(), adam)
    run(trainer, 2)
    before = everything(trainer)
    with pytest.raises(ConfigError, match=wanted):
        run(trainer, 1, one)
    assert_same(before, everything(trainer))
    run(eager(Normalised(nn.LayerNorm(2)), rooted, ELBO(), adam), 2, one)


@pytest.mark.parametrize(
    ("layer", "particles", "count"), [(nn.BatchNorm1d, 3, 1), (nn.BatchNorm1d, 1, 0), (nn.LayerNorm, 3, 0)]
)
def test_rows_of_several_particles_under_batch_normalisation_are_named_once(
    layer: Any, particles: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    objective = IWAE(particles=particles) if particles > 1 else ELBO()
    run(eager(Normalised(layer(2)), rooted, objective, adam), 3)
    found = [message for message in caplog.messages if "takes its statistics of the rows of all 3 particles" in message]
    assert len(found) == count
    assert all("'model.net.1'" in message and "(9 of a batch of 3)" in message for message in found)


def test_batch_normalisation_before_the_particles_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    run(eager(clean, Restless(), IWAE(particles=3), adam), 2)
    assert caplog.messages == []


# ------------------------------------------------------------------------------------------------ steps without a move


def still(x: Tensor) -> None:
    loc, scale = pyro.param("loc", torch.tensor(0.0)), pyro.param("scale", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, scale.exp()))


def test_a_compiled_step_in_which_nothing_moves_is_no_difference() -> None:
    trainer = Trainer(
        rows, still, ELBO(), functools.partial(torch.optim.Adam, lr=0.0), device="cpu", compile="on", average=0.9
    )
    run(trainer, 11)
    assert trainer.compiled
    assert all(abs(float(leaf.detach())) < 1e-25 for leaf in trainer.leaves.values())


@pytest.fixture(autouse=True)
def _warnings_of_ours(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.WARNING, logger="ppgen")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
