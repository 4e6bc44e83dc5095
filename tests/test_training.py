"""The one loop: what it reaches, whom it moves, what it keeps, and what stops it."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset
from zoo import binary_rows, small_m2, small_vae

from ppgen import guides, models, nn, programs
from ppgen.errors import CheckpointError, ConfigError, DataError, DivergedError
from ppgen.objectives import ELBO, EnumeratedELBO, Objective, SemiSupervised
from ppgen.packing import pack, unpack
from ppgen.players import Optimizer
from ppgen.training import Trainer

sgd = functools.partial(torch.optim.SGD, lr=0.1)
adam = functools.partial(torch.optim.Adam, lr=0.01)
eager = functools.partial(Trainer, device="cpu", compile="off")


def mean_model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def mean_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


MEAN = {"x": torch.tensor([2.0, 3.0, 4.0])}


def run(trainer: Trainer, batch: Any, steps: int) -> list[float]:
    """The loss of each step."""
    stream = iter(lambda: batch, None)
    return [float(trainer.step(stream)["loss"]) for _ in range(steps)]


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of a trainer's state by name."""
    return {name: tensor.clone() for name, tensor in pack(trainer.state_dict())[0].items()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


# ----------------------------------------------------------------------------------------- a known optimum is reached


class PrincipalComponents:
    """Data, and the largest evidence that probabilistic PCA of known noise can have (Tipping, Bishop 1999)."""

    def __init__(self, *, pixels: int = 8, z_dim: int = 2, rows: int = 400, noise: float = 0.5) -> None:
        torch.manual_seed(2)
        self.pixels, self.z_dim, self.noise = pixels, z_dim, noise
        weight = torch.randn(pixels, z_dim)
        self.x = torch.randn(rows, z_dim) @ weight.T + noise * torch.randn(rows, pixels) + torch.randn(pixels)
        self.mean = self.x.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(self.x.T, correction=0))
        kept = (values[-z_dim:] - noise**2).clamp(min=0).sqrt()
        self.weight = vectors[:, -z_dim:] * kept
        self.best = self.evidence(self.weight, self.mean)

    def evidence(self, weight: Tensor, mean: Tensor) -> float:
        """Mean log p(x) in nats per datum."""
        covariance = weight @ weight.T + self.noise**2 * torch.eye(self.pixels)
        return float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(self.x).mean())

    def model(self) -> models.VAE:
        likelihood = nn.Gaussian((self.pixels,), covariance="fixed", scale=self.noise)
        return models.VAE(torch.nn.Linear(self.z_dim, self.pixels), likelihood, self.z_dim)

    def full(self) -> guides.FullGaussian:
        return guides.FullGaussian(nn.MLP(self.pixels, [], guides.FullGaussian.features(self.z_dim)), self.z_dim)

    def diagonal(self) -> guides.DiagonalGaussian:
        return guides.DiagonalGaussian(nn.MLP(self.pixels, [], 2 * self.z_dim), self.z_dim)

    def train(self, model: models.VAE, guide: Any, *, steps: int) -> tuple[float, float]:
        """Evidence and bound per dimension below the best evidence, after some steps."""
        cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
        optimizer = Optimizer(functools.partial(torch.optim.Adam, lr=0.03), schedule=cosine)
        trainer = eager(model, guide, ELBO(particles=4), optimizer, total_steps=steps)
        for _ in trainer.fit({"x": self.x}):
            pass
        with trainer.evaluating():
            bound = -float(ELBO(particles=100).loss(model, guide, {"x": self.x}))
        decoder: Any = model.decoder
        evidence = self.evidence(decoder.weight.detach(), decoder.bias.detach())
        return (self.best - evidence) / self.pixels, (self.best - bound) / self.pixels


def test_probabilistic_pca_reaches_its_closed_form_evidence() -> None:
    known = PrincipalComponents()
    evidence, bound = known.train(known.model(), known.full(), steps=800)
    assert -1e-4 < evidence < 0.01
    assert evidence - 0.002 < bound < 0.01


def test_probabilistic_pca_does_not_reach_it_in_few_steps_or_with_a_wrong_guide() -> None:
    """Negative controls."""
    known = PrincipalComponents()
    evidence, bound = known.train(known.model(), known.full(), steps=20)
    assert min(evidence, bound) > 0.01
    model = known.model()
    decoder: Any = model.decoder
    # turned by 45 degrees the evidence is the same, but the posterior is correlated
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    decoder.weight.data, decoder.bias.data = known.weight @ turn, known.mean
    model.requires_grad_(False)
    evidence, bound = known.train(model, known.diagonal(), steps=800)
    assert abs(evidence) < 1e-4
    assert bound > 0.01


# ------------------------------------------------------------------------------------------------------------- players


class Game(Objective):
    """A critic estimates the mean of x; the model's loss reads the critic."""

    def __init__(self, *, shared: bool = False, together: bool = False) -> None:
        super().__init__()
        self.critic = torch.nn.Linear(1, 1)
        self.bound = ELBO()
        self.shared = shared
        self.together = together

    def players(self, model: Any, guide: Any, batch: Any) -> dict[str, dict[str, Tensor]]:
        critic = {f"critic.{name}": p for name, p in self.critic.named_parameters()}
        generator = programs.leaves(model, guide)
        return {"critic": critic | (generator if self.shared else {}), "generator": generator}

    def phases(self) -> tuple[Any, ...]:
        if self.together:
            return (lambda *args: (self._critic(*args)[0] | self._generator(*args)[0], {}),)
        return self._critic, self._generator

    def _scores(self, batch: Any) -> Tensor:
        scores: Tensor = self.critic(batch["x"].unsqueeze(-1))
        return scores

    def _critic(self, model: Any, guide: Any, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # it depends on the generator's parameters too, which it must not move
        bound = self.bound.loss(model, guide, batch)
        return {"critic": self._scores(batch).square().mean() + bound}, {"scores": self._scores(batch).detach().mean()}

    def _generator(self, model: Any, guide: Any, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"generator": self.bound.loss(model, guide, batch) * self._scores(batch).mean().exp()}, {}


def game(
    compile: Any = "off", *, model: Any = mean_model, together: bool = False, rates: tuple[float, float] = (0.1, 0.1)
) -> Trainer:
    torch.manual_seed(0)
    optimizer: dict[str, Any] = {
        "critic": functools.partial(torch.optim.SGD, lr=rates[0]),
        "generator": functools.partial(torch.optim.Adam, lr=rates[1]),
    }
    return Trainer(model, mean_guide, Game(together=together), optimizer, device="cpu", compile=compile)


def moved(trainer: Trainer, before: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name, leaf in trainer.leaves.items() if not torch.equal(leaf, before[name])}


@pytest.mark.parametrize("together", [False, True])
def test_no_players_loss_moves_anothers_parameters(together: bool) -> None:
    for rates, expected in [((0.1, 0.0), {"critic"}), ((0.0, 0.1), {"store"}), ((0.1, 0.1), {"critic", "store"})]:
        trainer = game(together=together, rates=rates)
        trainer.setup(MEAN)
        before = {name: leaf.detach().clone() for name, leaf in trainer.leaves.items()}
        metrics = trainer.step(iter([MEAN, MEAN]))
        assert moved(trainer, before) == expected
        assert {"loss/critic", "loss/generator", "gradient_norm/critic", "gradient_norm/generator"} <= metrics.keys()
        assert ("scores" in metrics) == (not together)


def test_each_phase_draws_a_batch_and_an_incomplete_step_changes_nothing() -> None:
    trainer = game()
    stream = iter([MEAN] * 5)
    reports = list(trainer.fit(stream, every=1))
    assert [report["step"] for report in reports] == [1, 2]
    before = everything(trainer)
    with pytest.raises(StopIteration):
        trainer.step(iter([MEAN]))
    assert_same(before, everything(trainer))


def test_a_parameter_of_two_players_is_refused() -> None:
    optimizer = {"critic": sgd, "generator": sgd}
    with pytest.raises(ConfigError, match=r"'store.loc' belongs to two players: critic and generator"):
        run(eager(mean_model, mean_guide, Game(shared=True), optimizer), MEAN, 1)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"critic": sgd}, "no optimizer for player 'generator'; there are critic"),
        ({"critic": sgd, "generator": sgd, "forger": sgd}, "there is an optimizer for 'forger'"),
        (pyro.optim.Adam({"lr": 0.1}), "expected a factory"),
        (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), "expected a factory"),
    ],
)
def test_wrong_optimizers_are_refused(optimizer: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        eager(mean_model, mean_guide, Game(), optimizer).setup(MEAN)


@pytest.mark.parametrize("start", [float("nan"), float("inf")])
def test_a_parameter_that_starts_at_no_number_is_refused(start: float) -> None:
    def guide(x: Tensor) -> None:
        pyro.param("loc", torch.tensor([0.0, start]))
        pyro.sample("mean", dist.Normal(pyro.param("other", torch.tensor(0.0)), 1.0))

    with pytest.raises(ConfigError, match=r"'store.loc' starts at (NaN|infinity): give it a finite start"):
        run(eager(mean_model, guide, ELBO(), sgd), MEAN, 1)


def test_a_loss_of_nobody_is_refused() -> None:
    class Stranger(Objective):
        def phases(self) -> tuple[Any, ...]:
            return (lambda *args: ({"ghost": torch.zeros((), requires_grad=True)}, {}),)

    class Constant(Objective):
        def loss(self, model: Any, guide: Any, batch: Any) -> Tensor:
            return torch.zeros(())

    def bare(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    with pytest.raises(ConfigError, match="there is a loss for 'ghost'; players are all"):
        run(eager(mean_model, mean_guide, Stranger()), MEAN, 1)
    with pytest.raises(ConfigError, match="the loss of player 'all' depends on no parameter"):
        run(eager(mean_model, mean_guide, Constant()), MEAN, 1)
    with pytest.raises(ConfigError, match="player 'all' has nothing to train"):
        run(eager(mean_model, bare, ELBO()), MEAN, 1)


# -------------------------------------------------------------------------------------- schedules, clipping, averages

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
    "cosine": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10),
    "steps": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.3),
    "lambda": functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_follow_a_torch_schedule(name: str) -> None:
    reference = sgd([torch.zeros(1, requires_grad=True)])
    schedule = SCHEDULES[name](reference)
    trainer = eager(mean_model, mean_guide, ELBO(), Optimizer(sgd, schedule=SCHEDULES[name]))
    for _ in range(10):
        before = dict(trainer.leaves)
        start = {key: leaf.detach().clone() for key, leaf in before.items()}
        norm = float(trainer.step(iter([MEAN]))["gradient_norm"])
        if start:
            size = sum(float((leaf.detach() - start[key]).square().sum()) for key, leaf in before.items()) ** 0.5
            assert size == pytest.approx(norm * reference.param_groups[0]["lr"], rel=1e-4)
        reference.step()
        schedule.step()


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    for clip, clipped in [(0.5, True), (1e6, False)]:
        trainer = eager(
            mean_model, mean_guide, ELBO(), Optimizer(functools.partial(torch.optim.SGD, lr=1.0), clip=clip)
        )
        trainer.setup(MEAN)
        before = {name: leaf.detach().clone() for name, leaf in trainer.leaves.items()}
        norm = float(trainer.step(iter([MEAN]))["gradient_norm"])
        size = sum(float((leaf.detach() - before[k]).square().sum()) for k, leaf in trainer.leaves.items()) ** 0.5
        assert norm > 0.5
        assert size == pytest.approx(clip if clipped else norm, rel=1e-4)


def test_the_average_follows_its_formula_and_evaluation_uses_it() -> None:
    trainer = eager(mean_model, mean_guide, ELBO(), sgd, average=0.8)
    trainer.setup(MEAN)
    average = trainer.leaves["store.loc"].detach().clone()
    for step in range(40):
        trainer.step(iter([MEAN]))
        weight = max(1 - 0.8, 9 / (10 + step))
        average = average + weight * (trainer.leaves["store.loc"].detach() - average)
    own = trainer.leaves["store.loc"].detach().clone()
    assert not torch.allclose(own, average, atol=1e-5), "negative control"
    with trainer.evaluating():
        assert torch.allclose(pyro.param("loc").detach(), average, atol=1e-5)
        assert torch.allclose(trainer.param_store["loc"].detach(), average, atol=1e-5)
    assert torch.equal(trainer.leaves["store.loc"], own)
    with pytest.raises(ZeroDivisionError), trainer.evaluating():
        raise ZeroDivisionError
    assert torch.equal(trainer.leaves["store.loc"], own)
    for average_of in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="expected 0 <= average < 1"):
            eager(mean_model, mean_guide, ELBO(), average=average_of)


def test_evaluation_leaves_modules_in_the_mode_they_were_in() -> None:
    model, guide = small_vae(dropout=0.5)
    model.decoder.eval()
    trainer = eager(model, guide, ELBO())
    with trainer.evaluating():
        assert not any(module.training for module in (*model.modules(), *guide.modules()))
    assert model.training
    assert not model.decoder.training
    assert all(module.training for module in guide.modules())


# ----------------------------------------------------------------------------------------------------- whose parameters


class Slope(PyroModule):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor(start))
        self.weight = PyroSample(lambda self: dist.Normal(self.loc, 1.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        mean = self.weight * x
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


LINE = {"x": torch.linspace(-1, 1, 6), "y": 3 * torch.linspace(-1, 1, 6)}


def test_two_instances_of_a_pyro_module_share_nothing() -> None:
    ones, twos = Slope(1.0), Slope(2.0)
    first = eager(ones, AutoNormal(ones), ELBO(), adam)
    second = eager(twos, AutoNormal(twos), ELBO(), adam)
    run(first, LINE, 5)
    kept = {name: leaf.detach().clone() for name, leaf in first.leaves.items()}
    run(second, LINE, 30)
    assert_same(kept, first.leaves)
    assert float(second.leaves["model.loc_unconstrained"].detach()) > 1.5
    assert float(first.leaves["model.loc_unconstrained"].detach()) < 1.2
    assert not {id(leaf) for leaf in first.leaves.values()} & {id(leaf) for leaf in second.leaves.values()}
    assert dict(pyro.get_param_store()) == {}


def test_a_name_that_model_and_guide_share_is_one_parameter() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(9.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale))

    trainer = eager(model, guide, ELBO(), sgd)
    run(trainer, MEAN, 3)
    assert list(trainer.leaves) == ["store.scale"]


def test_constraints_hold_while_the_unconstrained_tensor_moves() -> None:
    trainer = eager(mean_model, mean_guide, ELBO(), functools.partial(torch.optim.SGD, lr=1.0))
    run(trainer, MEAN, 20)
    assert float(trainer.param_store["scale"].detach()) > 0
    assert torch.allclose(trainer.param_store["scale"].log(), trainer.leaves["store.scale"])
    assert float(trainer.leaves["store.scale"].detach()) < 0, "negative control: what is optimised may be negative"


def test_modules_that_are_not_registered_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Stock SVI trains nothing there, and says nothing."""
    network = torch.nn.Linear(1, 1)

    def model(x: Tensor, *, register: bool = False) -> None:
        if register:
            pyro.module("network", network)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(network(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)) * x, 1.0))

    message = "a Linear that a program uses is not trained: register it there with pyro.module"
    unregistered = eager(model, guide, ELBO(), sgd)
    unregistered.setup(MEAN)
    assert list(unregistered.leaves) == ["store.loc"]
    assert [record.getMessage() for record in caplog.records] == [message]
    caplog.clear()
    trainer = eager(functools.partial(model, register=True), guide, ELBO(), sgd)
    before = network.weight.detach().clone()
    run(trainer, MEAN, 2)
    assert caplog.records == []
    assert not torch.equal(before, network.weight)


def test_modules_behind_handlers_partial_calls_and_methods_are_trained() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(0.1))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(self.slope, 1.0)), 1.0), obs=x)

        def guide(self, x: Tensor, offset: float = 0.0) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x + offset, 1.0))

    both = Both()
    model: Any = pyro.poutine.scale(pyro.poutine.mask(both.model, mask=torch.tensor(True)), 0.5)
    trainer = eager(model, functools.partial(both.guide, offset=1.0), ELBO(), sgd)
    run(trainer, {**MEAN, "unused": torch.zeros(3)}, 2)
    assert list(trainer.leaves) == ["model.slope"]
    assert float(both.slope.detach()) != pytest.approx(0.1)


# ------------------------------------------------------------------------------------------------------------- batches


def assert_trains(trainer: Trainer, batches: Any, *, steps: int | None, expected: int) -> None:
    reports = list(trainer.fit(batches, steps=steps, every=2))
    assert trainer.steps == expected
    assert [report["step"] for report in reports] == [*range(2, expected + 1, 2), *([expected] if expected % 2 else [])]


def test_batches_may_be_columns_tuples_or_a_loader() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 6, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = torch.arange(6.0)
    make = functools.partial(eager, model, mean_guide, ELBO(), sgd)
    assert_trains(make(), {"x": x}, steps=5, expected=5)
    assert_trains(make(), {"x": x}, steps=None, expected=1)
    assert_trains(make(), [(x,), (x[:3],)], steps=None, expected=2)
    assert_trains(make(), [(x,), (x[:3],)], steps=5, expected=5)
    assert_trains(make(), [x, x[:3]], steps=3, expected=3)
    loader = DataLoader(TensorDataset(x), batch_size=4)
    assert_trains(make(), loader, steps=None, expected=2)
    assert_trains(make(), loader, steps=7, expected=7)
    assert_trains(make(), iter([{"x": x}] * 3), steps=10, expected=3)
    assert_trains(make(total_steps=4), [{"x": x}], steps=None, expected=4)


def test_no_batches_are_an_error_and_not_an_endless_search() -> None:
    empty: list[Any] = []
    with pytest.raises(DataError, match="expected batches to train on; got none"):
        list(eager(mean_model, mean_guide, ELBO()).fit(empty, steps=3))
    assert list(eager(mean_model, mean_guide, ELBO()).fit(empty)) == []


def test_training_goes_on_with_a_second_fit() -> None:
    trainer = eager(mean_model, mean_guide, ELBO(), sgd)
    list(trainer.fit(MEAN, steps=3))
    list(trainer.fit([MEAN] * 4))
    assert trainer.steps == 7
    list(trainer.fit(MEAN, steps=5, until=lambda: trainer.steps >= 9))
    assert trainer.steps == 9


def test_columns_that_no_program_asks_for_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ppgen")
    run(eager(mean_model, mean_guide, ELBO(), sgd), {**MEAN, "colour": torch.zeros(3)}, 4)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["columns colour are used by no program (programs ask for x)"]
    caplog.clear()
    run(eager(mean_model, mean_guide, ELBO(), sgd), MEAN, 2)
    assert caplog.records == [], "negative control"


def test_trainers_that_share_an_objective_have_a_step_each() -> None:
    alone, shared = ([ELBO(warmup=8) for _ in range(2)], [ELBO(warmup=8)] * 2)
    losses = []
    for objectives in (alone, shared):
        trainers = [eager(mean_model, mean_guide, objective, sgd) for objective in objectives]
        torch.manual_seed(5)
        losses.append([run(trainer, MEAN, steps) for steps in (3, 1, 2) for trainer in trainers])
    assert losses[0] == losses[1]


def test_an_objective_used_before_starts_its_clock_anew() -> None:
    objective = ELBO(warmup=100)
    run(eager(mean_model, mean_guide, objective, sgd), MEAN, 30)
    assert int(objective.step) == 30
    second = eager(mean_model, mean_guide, objective, sgd)
    assert int(objective.step) == 0
    run(second, MEAN, 2)
    semi = SemiSupervised(labelled=ELBO(warmup=10), unlabelled=EnumeratedELBO(warmup=10))
    model, guide = small_m2(classes=3)
    batch = {
        "labelled": {"x": binary_rows(3), "y": torch.tensor([0, 1, 2])},
        "unlabelled": {"x": binary_rows(4)},
    }
    run(eager(model, guide, semi, sgd), batch, 4)
    assert [int(part.step) for part in (semi, semi.labelled, semi.unlabelled)] == [4, 4, 4]


# ---------------------------------------------------------------------------------------------- interrupted and resumed


def normalised_vae() -> tuple[Any, Any]:
    return small_vae(batch_norm=True, dropout=0.3)


def automatic() -> tuple[Any, Any]:
    model = Slope(0.3)
    return model, AutoNormal(model)


def plain() -> tuple[Any, Any]:
    return mean_model, mean_guide


CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[], Any], Any]] = {
    "batch norm, dropout": (normalised_vae, lambda: ELBO(warmup=10), {"x": binary_rows(6)}),
    "particles": (normalised_vae, lambda: ELBO(particles=2), {"x": binary_rows(6)}),
    "m2": (lambda: small_m2(classes=3), EnumeratedELBO, {"x": binary_rows(6)}),
    "autoguide": (automatic, ELBO, LINE),
    "plain functions": (plain, ELBO, MEAN),
    "stock": (plain, pyro.infer.Trace_ELBO, MEAN),
    "without differentiable loss": (normalised_vae, TraceGraph_ELBO, {"x": binary_rows(6)}),
}


def made(case: str) -> Trainer:
    pair, objective, _ = CASES[case]
    optimizer = Optimizer(adam, schedule=SCHEDULES["steps"], clip=5.0)
    return eager(*pair(), objective(), optimizer, average=0.9)


@pytest.mark.parametrize("before_setup", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_resumed_is_bit_identical_to_uninterrupted(case: str, before_setup: bool) -> None:
    batch = CASES[case][2]
    whole = made(case)
    run(whole, batch, 4)
    tensors, rest = pack(whole.state_dict())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    losses = run(whole, batch, 4)
    torch.manual_seed(99)
    part = made(case)
    if not before_setup:
        run(part, batch, 2)
    part.load_state_dict(unpack(tensors, rest))
    assert part.steps == 4
    again = pack(part.state_dict())[0]
    assert_same(tensors, again)
    assert run(part, batch, 4) == losses
    assert_same(everything(whole), everything(part))
    torch.manual_seed(99)
    fresh = made(case)
    assert run(fresh, batch, 4) != losses, "negative control"


def test_looking_before_the_first_step_moves_no_statistics() -> None:
    model, guide = normalised_vae()
    before = {name: tensor.clone() for name, tensor in guide.named_buffers()}
    trainer = eager(model, guide, ELBO(particles=2))
    trainer.setup({"x": binary_rows(6)})
    assert_same(before, dict(guide.named_buffers()))
    run(trainer, {"x": binary_rows(6)}, 1)
    counts = [int(tensor) for name, tensor in guide.named_buffers() if "num_batches" in name]
    assert counts == [1]


def test_running_baselines_of_a_stock_estimator_survive() -> None:
    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.2))
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("b", dist.Bernoulli(logits=logit), infer=infer)

    whole = eager(model, guide, TraceGraph_ELBO(), sgd)
    run(whole, MEAN, 4)
    state = whole.state_dict()
    assert len(state["store"]) == 1
    assert all(tensor.abs().sum() > 0 for tensor in state["store"].values())
    losses = run(whole, MEAN, 6)
    part = eager(model, guide, TraceGraph_ELBO(), sgd)
    part.load_state_dict(state)
    assert run(part, MEAN, 6) == losses
    assert_same(everything(whole), everything(part))
    forgetful = eager(model, guide, TraceGraph_ELBO(), sgd)
    forgetful.load_state_dict({**state, "store": {}})
    run(forgetful, MEAN, 6)
    assert not torch.equal(forgetful.leaves["store.logit"], whole.leaves["store.logit"]), "negative control"


def test_the_state_of_another_program_is_refused() -> None:
    trainer = eager(mean_model, mean_guide, ELBO(), sgd)
    run(trainer, MEAN, 1)
    state = trainer.state_dict()
    model, guide = small_vae()
    other = eager(model, guide, ELBO(), sgd)
    other.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"another program: parameters differ \("):
        other.setup({"x": binary_rows(3)})
    wide = eager(*small_vae(hidden=9), ELBO(), sgd)
    narrow = eager(model, guide, ELBO(), sgd)
    for one in (wide, narrow):
        one.setup({"x": binary_rows(3)})
    with pytest.raises(
        CheckpointError, match=r"'model.decoder.first.0.weight' has shape \(9, 2\) there, \(8, 2\) here"
    ):
        narrow.load_state_dict(wide.state_dict())
    players = game()
    players.setup(MEAN)
    with pytest.raises(CheckpointError, match="another objective: it has players critic, generator; expected all"):
        trainer.load_state_dict(players.state_dict())
    scheduled = eager(mean_model, mean_guide, ELBO(), Optimizer(sgd, schedule=SCHEDULES["steps"]))
    scheduled.setup(MEAN)
    with pytest.raises(CheckpointError, match="another optimizer"):
        scheduled.load_state_dict(state)


# ---------------------------------------------------------------------------------------------------------- divergence


def stream_with_nan(at: int, *, rows: int = 6) -> Iterator[dict[str, Tensor]]:
    step = 0
    while True:
        step += 1
        x = binary_rows(rows).clone()
        if step == at:
            x[2, 0] = x[4, 3] = torch.nan
        yield {"x": x}


def gaussian_vae() -> tuple[models.VAE, guides.DiagonalGaussian]:
    torch.manual_seed(5)
    model = models.VAE(nn.MLP(2, [8], 12), nn.Gaussian((6,)), 2)
    return model, guides.DiagonalGaussian(nn.MLP(6, [8], 4, batch_norm=True), 2)


def test_a_nan_in_the_data_names_step_site_and_rows_and_changes_nothing() -> None:
    model, guide = gaussian_vae()
    trainer = eager(model, guide, ELBO(), Optimizer(adam, schedule=SCHEDULES["steps"]), average=0.9)
    stream = stream_with_nan(4)
    for _ in range(3):
        trainer.step(stream)
    before = everything(trainer)
    with pytest.raises(DivergedError, match=r"not finite at step 4: .*site '[xz]', rows ") as caught:
        trainer.step(stream)
    assert "\n" not in str(caught.value)
    assert_same(before, everything(trainer))
    trainer.step(stream)
    assert trainer.steps == 4


def test_without_normalisation_only_the_bad_rows_are_named() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 30, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    trainer = eager(model, mean_guide, ELBO(), sgd)
    run(trainer, MEAN, 2)
    with pytest.raises(DivergedError, match=r"at step 3: model site 'x', rows 1, 2$"):
        run(trainer, {"x": torch.tensor([1.0, torch.nan, torch.inf])}, 1)


def test_a_nan_of_the_model_or_of_a_gradient_is_named() -> None:
    def sharp(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + (shift - 1.0).abs().sqrt(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(DivergedError, match=r"at step 1: the gradient of 'store.shift'"):
        run(eager(sharp, guide, ELBO(), sgd), MEAN, 1)

    def exploding(x: Tensor) -> None:
        size = pyro.param("size", torch.tensor(100.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, (size - x).exp()), obs=x)

    with pytest.raises(DivergedError, match=r"at step 1: model site 'x', rows 0, 1"):
        run(eager(exploding, guide, ELBO(), sgd), {"x": torch.tensor([1.0, 2.0, 99.0])}, 1)


def test_masked_rows_may_hold_nan() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x.nan_to_num())

    losses = run(eager(model, mean_guide, ELBO(), sgd), {"x": torch.tensor([1.0, torch.nan, 2.0])}, 3)
    assert all(loss == loss for loss in losses)


def test_steps_that_are_not_finite_may_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    model, guide = gaussian_vae()
    trainer = eager(model, guide, ELBO(), adam, average=0.9, nonfinite="skip")
    stream = stream_with_nan(3)
    for _ in range(2):
        trainer.step(stream)
    before = everything(trainer)
    trainer.step(stream)
    after = everything(trainer)
    for name in before.keys() - {"random/torch"}:
        assert torch.equal(before[name], after[name]), name
    assert (trainer.steps, trainer.skipped) == (3, 1)
    assert "step 3 was skipped, its loss is not finite" in caplog.text
    assert torch.isfinite(trainer.step(stream)["loss"])
    assert trainer.skipped == 1


def test_data_outside_the_support_are_named_at_the_first_step() -> None:
    model, guide = small_vae()
    with pytest.raises(DataError, match=r"site 'x' observes 255 .*divide pixels .* by 255") as caught:
        run(eager(model, guide, ELBO()), {"x": 255 * binary_rows(3)}, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "expected device"),
        ({"precision": "fp7"}, "expected precision"),
        ({"compile": "maybe"}, "expected compile"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(mean_model, mean_guide, ELBO(), **options)
