"""Monte Carlo EM: the sampler against posteriors with closed forms, and training against the ML optimum."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from zoo import z_score

from ppgen import Trainer, programs
from ppgen.errors import ConfigError
from ppgen.objectives import Objective
from ppgen.objectives.monte_carlo_em import MonteCarloEM, hamiltonian_move
from ppgen.objectives.wake_sleep import WakeSleep
from ppgen.programs.unconstrained import RowVectors

adam = functools.partial(torch.optim.Adam, lr=0.02)
ROWS = 4_000


# --------------------------------------------------------------------------------------------------------- the sampler


class Linear(nn.Module):
    """``z ~ N(0, I)`` in two dimensions, ``x ~ N(W z + b, 0.7)`` in three; the plate stands for ten times its rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.pixels = nn.Linear(2, 3)
        nn.init.normal_(self.pixels.weight, std=1.2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 10 * len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.pixels(z), 0.7).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of z given one row, and covariance."""
        weight = self.pixels.weight.detach()
        inner = torch.linalg.inv(weight.T @ weight + 0.7**2 * torch.eye(2))
        return (x - self.pixels.bias.detach()) @ weight @ inner, 0.7**2 * inner


def start_at(site: str, draw: Callable[[int], Any]) -> Callable[..., None]:
    """A guide without parameters."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 10 * len(x), subsample_size=len(x)):
            pyro.sample(site, draw(len(x)))

    return guide


def prior(rows: int) -> Any:
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def moved(model: Any, guide: Any, x: Tensor, *, moves: int, step_size: float, leapfrog_steps: int = 8) -> Tensor:
    """Vectors ``(rows, dims)`` after some moves from the guide's draws, and the mean probability of acceptance."""
    torch.manual_seed(0)
    with programs.quiet():
        rows = RowVectors(programs.run(model, guide, {"x": x}), model, {"x": x}, fixed={})
        position, rates = rows.start().detach(), []
        for _ in range(moves):
            position, rate = hamiltonian_move(rows.log_density, position, step_size, leapfrog_steps)
            rates.append(rate.mean())
    if moves:
        assert float(torch.stack(rates).mean()) < 0.995, "some are rejected"
    return position[0]


def moments(z: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The largest z-score of means, squares and products."""
    apart = z - mean
    products = apart.unsqueeze(-1) * apart.unsqueeze(-2)
    return max(z_score(z, mean), z_score(products.flatten(1), covariance.flatten()))


def test_the_sampler_draws_from_the_posterior() -> None:
    model = Linear()
    x = torch.tensor([1.5, -0.4, 0.8]).expand(ROWS, 3)
    mean, covariance = model.posterior(x[0])
    guide = start_at("z", prior)
    assert moments(moved(model, guide, x, moves=15, step_size=0.4), mean, covariance) < 4.5
    assert moments(moved(model, guide, x, moves=0, step_size=0.3), mean, covariance) > 6, "negative control: the start"


@pytest.mark.parametrize("rejecting", [True, False])
def test_steps_that_are_too_large_are_made_good_by_rejection(rejecting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Linear()
    x = torch.tensor([1.5, -0.4, 0.8]).expand(ROWS, 3)
    mean, covariance = model.posterior(x[0])
    exact = dist.MultivariateNormal(mean, covariance)
    if not rejecting:
        # the draw that decides, below any probability; that of the step size has a dimension more
        monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, float(like.dim() > 2)))
    z = moved(model, start_at("z", lambda rows: exact), x, moves=4, step_size=0.7, leapfrog_steps=3)
    assert (moments(z, mean, covariance) < 4.5) == rejecting


def counts_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(1.5, 0.8))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def shares_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 1.5])))
        pyro.sample("x", dist.Multinomial(5, shares, validate_args=False), obs=x)


def rate_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(0.0, 1.0))


def shares_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("shares", dist.Dirichlet(torch.ones(3)))


@pytest.mark.parametrize("with_volume", [True, False])
@pytest.mark.parametrize(
    ("model", "guide", "x", "posterior"),
    [
        (counts_model, rate_guide, torch.tensor(2.0), dist.Gamma(3.5, 1.8)),
        (shares_model, shares_guide, torch.tensor([3.0, 0.0, 2.0]), dist.Dirichlet(torch.tensor([4.0, 2.0, 3.5]))),
    ],
    ids=["positive", "simplex"],
)
def test_constrained_latents_have_the_right_posterior(
    model: Any, guide: Any, x: Tensor, posterior: Any, with_volume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control leaves out the change of volume."""
    if not with_volume:
        without = lambda self, name, value, joint: value.new_zeros(len(value))  # noqa: E731
        monkeypatch.setattr(RowVectors, "_log_volume", without)
    x = x.expand(ROWS, *x.shape)
    free = moved(model, guide, x, moves=15, step_size=0.7, leapfrog_steps=5)
    z = torch.distributions.biject_to(posterior.support)(free if free.shape[1] > 1 else free.squeeze(-1))
    z_scores = z_score(z, posterior.mean), z_score((z - posterior.mean) ** 2, posterior.variance)
    assert (max(z_scores) < 4.5) == with_volume


def nested_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("inner", 3, dim=-2):
            low = pyro.sample("low", dist.LogNormal(top.sum(-1), 0.5))
            pyro.sample("x", dist.Normal(low, 0.8), obs=x.T)


def nested_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("top", dist.Normal(torch.ones(2), 0.5).to_event(1))
        with pyro.plate("inner", 3, dim=-2):
            pyro.sample("low", dist.LogNormal(0.1, 0.3))


@pytest.mark.parametrize("particles", [1, 4])
def test_the_density_of_nested_plates_is_that_of_each_row(particles: int) -> None:
    x = torch.rand(5, 3)
    joint = programs.run(nested_model, nested_guide, {"x": x}, particles=particles)
    rows = RowVectors(joint, nested_model, {"x": x}, fixed={})
    position = rows.start()
    assert position.shape == (particles, 5, 2 + 3)
    assert torch.equal(rows.start(), position)
    top, log_low = position[..., :2], position[..., 2:]
    expected = dist.Normal(0.0, 1.0).log_prob(top).sum(-1)
    expected += dist.Normal(top.sum(-1, keepdim=True), 0.5).log_prob(log_low).sum(-1)
    expected += dist.Normal(log_low.exp(), 0.8).log_prob(x).sum(-1)
    assert torch.allclose(rows.log_density(position), expected, atol=1e-4)
    assert not torch.allclose(rows.log_density(position.flip(1)), expected, atol=1e-2), "negative control"
    values = {name: site["value"] for name, site in joint.guide.nodes.items() if name in ("top", "low")}
    for name, value in values.items():
        assert torch.allclose(rows.at(position).model.nodes[name]["value"], value, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ training


class Factor(nn.Module):
    """Probabilistic PCA with one factor of three values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.values = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.values(z), 0.6).to_event(1), obs=x)

    def evidence(self, x: Tensor) -> float:
        weight = self.values.weight.detach()
        covariance = weight @ weight.T + 0.6**2 * torch.eye(3)
        return float(dist.MultivariateNormal(self.values.bias.detach(), covariance).log_prob(x).mean())


class FactorGuide(nn.Module):
    """Linear, Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mean = nn.Linear(3, 1)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1))


def prior_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def factor_rows() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(400, 1) @ torch.tensor([[1.0, -1.5, 0.8]]) + 0.6 * torch.randn(400, 3) + 0.5


def optimum(x: Tensor) -> float:
    """The evidence at the maximum likelihood of probabilistic PCA, by the eigenvectors of the covariance."""
    best = Factor()
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    best.values.weight.data = vectors[:, -1:] * (values[-1] - 0.6**2).sqrt()
    best.values.bias.data = x.mean(0)
    return best.evidence(x)


def trained(objective: Objective, guide: Any, *, steps: int, **options: Any) -> Trainer:
    options = {"compile": "off", "device": "cpu"} | options
    made = Trainer(Factor(), guide, objective, adam, **options)
    torch.manual_seed(0)
    list(made.fit({"x": factor_rows()}, steps=steps))
    return made


def test_training_reaches_the_ml_optimum_and_the_guide_the_posterior() -> None:
    x = factor_rows()
    made = trained(MonteCarloEM(leapfrog_steps=5), guide := FactorGuide(), steps=400)
    assert isinstance(made.model, Factor)
    assert abs(made.model.evidence(x) / optimum(x) - 1) < 0.005
    weight = made.model.values.weight.detach()
    precision = float(weight.square().sum() / 0.6**2 + 1)
    assert guide.log_scale.item() == pytest.approx(-0.5 * math.log(precision), abs=0.1)
    assert torch.allclose(guide.mean.weight.detach(), weight.T / 0.6**2 / precision, atol=0.05)
    still = trained(MonteCarloEM(leapfrog_steps=1, step_size=1e-6, adaptation=0.0), prior_guide, steps=200)
    assert isinstance(still.model, Factor)
    assert abs(still.model.evidence(x) / optimum(x) - 1) > 0.05, "negative control: latents that do not move"


@pytest.mark.slow
def test_from_the_prior_more_moves_bring_it_closer_to_the_ml_optimum() -> None:
    x = factor_rows()
    evidence = []
    for moves in (1, 3, 12):
        made = trained(MonteCarloEM(leapfrog_steps=5, moves=moves), prior_guide, steps=400)
        assert isinstance(made.model, Factor)
        evidence.append(made.model.evidence(x))
    assert evidence[0] < evidence[1] < evidence[2]
    assert abs(evidence[2] / optimum(x) - 1) < 0.005
    assert abs(evidence[0] / optimum(x) - 1) > 0.05, "negative control: draws that are still the prior's"


def test_the_step_size_is_adapted_to_the_acceptance() -> None:
    objective = MonteCarloEM(leapfrog_steps=5)
    made = Trainer(Factor(), FactorGuide(), objective, adam, compile="off", device="cpu")
    torch.manual_seed(0)
    first, *_, last = made.fit({"x": factor_rows()}, steps=300, every=30)
    assert abs(last["acceptance"] - 0.9) < 0.03
    assert abs(first["acceptance"] - 0.9) > 0.05, "negative control"
    assert last["step_size"] > 2 * first["step_size"]
    assert last["step_size"] == pytest.approx(float(objective.log_step_size.exp()), rel=0.1)


def test_compiled_equals_eager() -> None:
    reports = []
    for mode in ("off", "on"):
        objective = MonteCarloEM(leapfrog_steps=2, particles=2)
        made = Trainer(Factor(), FactorGuide(), objective, adam, compile=mode, device="cpu")  # type: ignore[arg-type]
        torch.manual_seed(0)
        reports.append(list(made.fit({"x": factor_rows()}, steps=12, every=1)))
        assert made.compiled == (mode == "on")
    for eager, compiled in zip(*reports, strict=True):
        assert eager == pytest.approx(compiled, rel=1e-4, abs=1e-5)
    assert reports[0][0]["step_size"] != pytest.approx(reports[0][-1]["step_size"], rel=1e-3), "negative control"


def test_resumed_is_bit_identical_to_uninterrupted() -> None:
    def make() -> Trainer:
        return Trainer(Factor(), FactorGuide(), MonteCarloEM(), adam, compile="off", device="cpu")

    whole, half, rest = make(), make(), make()
    batch = {"x": factor_rows()}
    torch.manual_seed(0)
    expected = list(whole.fit(batch, steps=6, every=1))
    torch.manual_seed(0)
    found = list(half.fit(batch, steps=3, every=1))
    state = half.state_dict()
    torch.manual_seed(77)
    rest.load_state_dict(state)
    assert found + list(rest.fit(batch, steps=3, every=1)) == expected
    torch.manual_seed(0)
    again = make()
    again.load_state_dict({**state, "buffers": {**state["buffers"], "objective.log_step_size": torch.tensor(-9.0)}})
    assert list(again.fit(batch, steps=3, every=1)) != expected[3:], "negative control: another step size"


def test_a_plate_that_subsamples_keeps_its_rows_while_latents_move() -> None:
    x = torch.arange(40.0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=8) as rows:
            z = pyro.sample("z", dist.Normal(x[rows], 1e-3))
            pyro.sample("x", dist.Normal(pyro.param("weight", torch.tensor(1.0)) * z, 1e-3), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=8) as rows:
            pyro.sample("z", dist.Normal(x[rows], 1e-3))

    objective = MonteCarloEM(leapfrog_steps=3, step_size=3e-4, adaptation=0.0)
    report, *_ = Trainer(model, guide, objective, adam, compile="off", device="cpu").fit({"x": x}, steps=1)
    assert report["acceptance"] > 0.8, "with other rows the density would be 0"


# ------------------------------------------------------------------------------------------------------------ refusals


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z + pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.5))


def global_(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, pyro.param("width", torch.tensor(1.0))))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def global_guide(x: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))


def computed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", dist.Uniform(torch.zeros(()), width))
        pyro.sample("x", dist.Normal(z + pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def computed_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.Uniform(torch.zeros(()), width))


X = {"x": torch.randn(6)}


@pytest.mark.parametrize(
    ("model", "guide", "reason"),
    [
        (discrete, discrete_guide, r"latent 'z' is discrete.*take WakeSleep or ReweightedWakeSleep"),
        (global_, global_guide, r"latent 'mean' lies outside the data plate"),
        (computed, computed_guide, r"the support of latent 'z' \(Uniform\) is computed"),
        (counts_model, AutoNormal(counts_model), r"guide site 'rate_unconstrained' is auxiliary"),
    ],
    ids=["discrete", "global", "computed", "auxiliary"],
)
def test_what_cannot_be_moved_is_refused(model: Any, guide: Any, reason: str) -> None:
    batch = {"x": X["x"].abs().round()} if model is counts_model else X
    with pytest.raises(ConfigError, match=reason) as caught:
        Trainer(model, guide, MonteCarloEM(), adam, compile="off", device="cpu").step(itertools.repeat(batch))
    assert "\n" not in str(caught.value)


def test_wake_sleep_takes_what_monte_carlo_em_refuses() -> None:
    """Negative control of the refusals."""
    learned = Factor()
    objective = WakeSleep()
    Trainer(learned, FactorGuide(), objective, adam, compile="off", device="cpu").step(
        itertools.repeat({"x": factor_rows()})
    )
    with pytest.raises(TypeError, match="MonteCarloEM has a loss for each of its players"):
        MonteCarloEM().loss(learned, prior_guide, X)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"moves": 0}, "expected leapfrog_steps, moves, particles >= 1; got 10, 0, 1"),
        ({"step_size": 0.0}, r"expected step_size > 0, 0 < acceptance < 1, adaptation >= 0; got 0.0, 0.9, 0.1"),
        ({"acceptance": 1.0}, "got 0.1, 1.0, 0.1"),
        ({"adaptation": -1.0}, "got 0.1, 0.9, -1.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        MonteCarloEM(**options)
