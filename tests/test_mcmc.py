"""Points and draws of posteriors against closed forms: MAP and NUTS, as samplers and as runs."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cli_helpers import command
from torch import Tensor, nn

from ppgen.configuration import Config, DataConfig
from ppgen.data import Dataset, load
from ppgen.errors import CheckpointError, ConfigError, DivergedError
from ppgen.evaluation import evaluate
from ppgen.evaluation.diagnostics import summarize
from ppgen.objectives import ELBO
from ppgen.processes import Processes
from ppgen.programs.points import latents_of
from ppgen.recipes import Entry, Recipe, find
from ppgen.recipes.methods import METHODS
from ppgen.runs import Run
from ppgen.sampling import Sampler, Sampling
from ppgen.training import Trainer

Columns = dict[str, Tensor]
OWN = '''
import pyro, pyro.distributions as dist, torch
from ppgen import ELBO

def mean(data):
    """A mean with a normal prior."""
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).expand([x.shape[-1]]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))

    return model, guide, ELBO()
'''


def no_guide(**columns: Tensor) -> None:
    """Recipes name a guide, which the methods replace."""


def table(**columns: Tensor) -> Dataset:
    return Dataset("table", columns, columns, columns, None, "none", "", ())


def fitted(model: Callable[..., Any], method: str, columns: Columns, **options: Any) -> Recipe:
    recipe = Recipe(model, no_guide, ELBO(), table(**columns))
    chosen = METHODS[method]
    return chosen.apply(recipe, {**chosen.defaults({}), **options})


def first_rows(recipe: Recipe) -> Tensor:
    batch: Any = next(recipe.batches(0, torch.device("cpu")))
    return torch.as_tensor(batch["x"])


def sampled(model: Callable[..., Any], columns: Columns, *, seed: int = 0, **options: Any) -> Sampler:
    sampler = Sampler(model, Sampling(**{"draws": 250, "warmup": 100, "chains": 2} | options), seed=seed)
    for _ in sampler.fit(itertools.repeat(columns)):
        pass
    return sampler


def point(model: Callable[..., Any], columns: Columns, **options: Any) -> dict[str, Tensor]:
    recipe = fitted(model, "map", columns, **options)
    steps = recipe.epochs
    trainer = Trainer(recipe.model, recipe.guide, recipe.objective, recipe.optimizer(steps), compile="off")
    for _ in trainer.fit(recipe.batches(0, torch.device("cpu")), steps=steps, every=steps):
        pass
    with trainer.evaluating():
        return {name: recipe.guide.value(name).detach() for name in recipe.guide.latents.continuous}  # type: ignore[attr-defined]


def z_scores(draws: Tensor, mean: Tensor, sd: Tensor) -> list[float]:
    """Of the mean and of the variance of ``(chains, draws, n)`` draws, by their effective sample size."""
    found = []
    for values, exact in ((draws, mean), ((draws - mean).square(), sd.square())):
        for line, value in zip(summarize({"v": values}, chains=True).values(), exact, strict=True):
            average, spread, size = line["mean"], line["sd"], line["ess_bulk"]
            assert average is not None
            assert spread is not None
            assert size is not None
            found.append(abs(average - float(value)) / (spread / size**0.5))
    return found


class Regression:
    """Bayesian linear regression with its posterior in closed form."""

    def __init__(self, rows: int = 12, prior: float = 1.0, noise: float = 0.7) -> None:
        generator = torch.Generator().manual_seed(3)
        self.prior, self.noise = prior, noise
        x = torch.randn(rows, 2, generator=generator)
        x[:, 1] += x[:, 0]
        target = x @ torch.tensor([1.0, -1.0]) + noise * torch.randn(rows, generator=generator)
        self.columns = {"x": x, "target": target}

    def model(self, x: Tensor, target: Tensor | None = None) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), self.prior).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("target", dist.Normal(weights @ x.T, self.noise), obs=target)

    def exact(self, prior: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior."""
        x, target = self.columns["x"].double(), self.columns["target"].double()
        precision = x.T @ x / self.noise**2 + torch.eye(2, dtype=torch.float64) / (prior or self.prior) ** 2
        covariance = precision.inverse()
        return covariance @ x.T @ target / self.noise**2, covariance


def mean_model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


MEAN_ROWS = torch.tensor([1.0, 2.5, 0.5, 3.0])


def mean_exact(prior: float) -> tuple[float, float]:
    """Mean and standard deviation of the posterior of `mean_model`, with a prior standard deviation."""
    precision = 1 / prior**2 + len(MEAN_ROWS)
    return float(MEAN_ROWS.sum()) / precision, precision**-0.5


# ------------------------------------------------------------------------------------------------- NUTS, exact


@pytest.fixture(scope="module")
def mean_sampler() -> Sampler:
    return sampled(mean_model, {"x": MEAN_ROWS})


def test_nuts_draws_from_the_posterior_of_a_normal_mean(mean_sampler: Sampler) -> None:
    draws = mean_sampler.draws["mean"].unsqueeze(-1)
    mean, sd = (torch.tensor([value]) for value in mean_exact(1.0))
    assert max(z_scores(draws, mean, sd)) < 4.5
    wrong, other = (torch.tensor([value]) for value in mean_exact(2.0))
    assert max(z_scores(draws, wrong, other)) > 6  # the posterior under another prior is told apart


def test_nuts_draws_from_the_posterior_of_a_linear_regression() -> None:
    regression = Regression()
    draws = sampled(regression.model, regression.columns).draws["weights"]
    mean, covariance = regression.exact()
    assert draws.shape == (2, 250, 2)
    assert max(z_scores(draws, mean, covariance.diagonal().sqrt())) < 4.5
    correlation = torch.corrcoef(draws.flatten(0, 1).double().T)[0, 1]
    exact = covariance[0, 1] / covariance.diagonal().prod().sqrt()
    assert abs(torch.atanh(correlation) - torch.atanh(exact)) < 4.5 / 60**0.5  # at least 60 effective draws
    other, wider = regression.exact(prior=0.4)
    assert max(z_scores(draws, other, wider.diagonal().sqrt())) > 6


def two_kinds(x: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(share))
        pyro.sample("x", dist.Normal(3 * kind - 1, 1.0), obs=x)


def share_exact(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean, standard deviation and mode of the share of `two_kinds`, by summing over a grid."""
    grid = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    one, two = (dist.Normal(place, 1.0).log_prob(x.double()).exp() for place in (2.0, -1.0))
    log_density = (grid[:, None] * one + (1 - grid[:, None]) * two).log().sum(-1) + dist.Beta(2.0, 2.0).log_prob(grid)
    weights = (log_density - log_density.logsumexp(0)).exp()
    mean = (weights * grid).sum()
    return mean[None], (weights * (grid - mean) ** 2).sum().sqrt()[None], float(grid[log_density.argmax()])


KINDS = torch.tensor([2.2, 1.6, 0.4, -1.3, 2.9, 1.1])


def test_nuts_sums_discrete_latents_out_and_keeps_constraints() -> None:
    draws = sampled(two_kinds, {"x": KINDS}).draws["share"].unsqueeze(-1)
    assert (draws > 0).all()
    assert (draws < 1).all()
    mean, sd, _ = share_exact(KINDS)
    assert max(z_scores(draws, mean, sd)) < 4.5
    other, wider, _ = share_exact(-KINDS)  # the two kinds exchanged
    assert max(z_scores(draws, other, wider)) > 6


# ---------------------------------------------------------------------------------------------------- MAP, exact


def test_the_point_of_a_linear_regression_is_the_mode() -> None:
    regression = Regression()
    weights = point(regression.model, regression.columns, epochs=800)["weights"]
    mean, _ = regression.exact()
    assert torch.allclose(weights.double(), mean, atol=1e-3)
    other, _ = regression.exact(prior=0.4)
    assert not torch.allclose(weights.double(), other, atol=1e-2)


def test_the_point_is_the_mode_in_constrained_space_with_discrete_latents_summed_out() -> None:
    share = point(two_kinds, {"x": KINDS}, epochs=300)["share"]
    _, _, mode = share_exact(KINDS)
    assert abs(float(share) - mode) < 2e-3
    mean, _, _ = share_exact(KINDS)
    assert abs(float(share) - float(mean)) > 1e-2  # which is what is not looked for


def schools(x: Tensor) -> None:
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        own = pyro.sample("own", dist.Normal(centre, 1.0))
        pyro.sample("x", dist.Normal(own, 1.0), obs=x)


def test_local_latents_have_a_point_for_each_row_and_held_out_rows_are_judged() -> None:
    x = torch.tensor([1.0, 3.0, -2.0])
    found = point(schools, {"x": x}, epochs=400)
    centre = x.sum() / 2 / (1 + 3 / 2)  # own_i = (centre + x_i) / 2 put into the density of the centre
    assert torch.allclose(found["centre"], centre, atol=1e-3)
    assert torch.allclose(found["own"], (centre + x) / 2, atol=1e-3)
    recipe = fitted(schools, "map", {"x": x}, epochs=3)
    trainer = Trainer(recipe.model, recipe.guide, recipe.objective, compile="off")
    list(trainer.fit({"x": x}, steps=3))
    judged = evaluate(trainer, {"x": torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5])}, particles=2000).nll
    assert judged is not None
    with trainer.evaluating():
        centre = recipe.guide.value("centre").detach()  # type: ignore[attr-defined]
    exact = -dist.Normal(centre, 2**0.5).log_prob(torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5])).mean()
    assert judged.value == pytest.approx(float(exact), abs=0.05)


# ----------------------------------------------------------------------------------------- chains and their state


SHORT: dict[str, Any] = {"draws": 20, "warmup": 20}


def test_chains_depend_on_the_seed_and_their_number_only() -> None:
    columns = {"x": MEAN_ROWS}
    state = torch.get_rng_state()
    two, three = (sampled(mean_model, columns, chains=chains, **SHORT).draws["mean"] for chains in (2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = sampled(mean_model, columns, chains=2, **SHORT).draws["mean"]
    assert torch.equal(two, three[:2])
    assert torch.equal(two, again)
    assert not torch.equal(two[0], two[1])
    assert not torch.equal(two, sampled(mean_model, columns, seed=1, chains=2, **SHORT).draws["mean"])


def test_reports_may_come_often_and_change_nothing() -> None:
    def drawn(every: int) -> Tensor:
        sampler = Sampler(mean_model, Sampling(chains=2, **SHORT))
        while sampler.steps < sampler.sampling.steps:
            for record in sampler.fit(itertools.repeat({"x": MEAN_ROWS}), steps=every, every=every):
                torch.rand(3)  # what is done between two reports has no effect
                assert record["step"] == sampler.steps
        return sampler.draws["mean"]

    assert torch.equal(drawn(7), drawn(40))


def test_a_state_is_that_of_finished_chains_and_of_one_model() -> None:
    columns = {"x": MEAN_ROWS}
    whole = sampled(mean_model, columns, **SHORT)
    begun = Sampler(mean_model, Sampling(chains=2, **SHORT))
    calls = itertools.count()
    list(begun.fit(itertools.repeat(columns), until=lambda: next(calls) > 50))
    assert begun.steps == 40
    other = Sampler(mean_model, Sampling(chains=2, **SHORT))
    other.setup(columns)
    other.load_state_dict(begun.state_dict())
    list(other.fit(itertools.repeat(columns)))
    assert torch.equal(other.draws["mean"], whole.draws["mean"])
    regression = Regression()
    strange = Sampler(regression.model, Sampling(chains=2, **SHORT))
    strange.setup(regression.columns)
    with pytest.raises(CheckpointError, match="another model or length"):
        strange.load_state_dict(begun.state_dict())


def test_judging_before_a_chain_is_finished_is_refused_not_answered_from_the_prior() -> None:
    sampler = Sampler(mean_model, Sampling(chains=2, **SHORT))
    sampler.setup({"x": MEAN_ROWS})
    sampler.load_state_dict({"steps": 0, "chains": []})
    with pytest.raises(CheckpointError, match="no chain is finished"):
        evaluate(sampler, {"x": MEAN_ROWS}, particles=10)
    with pytest.raises(CheckpointError, match="no chain is finished"):
        sampler.to_arviz()


def test_held_out_rows_are_judged_by_the_posterior_predictive_density(mean_sampler: Sampler) -> None:
    held_out = torch.tensor([-2.0, 0.0, 1.0, 4.0])
    judged = evaluate(mean_sampler, {"x": held_out}, particles=4000).nll
    assert judged is not None
    mean, sd = mean_exact(1.0)
    exact = -dist.Normal(mean, (1 + sd**2) ** 0.5).log_prob(held_out).mean()
    assert judged.value == pytest.approx(float(exact), abs=0.05)
    assert abs(float(-dist.Normal(mean, 1.0).log_prob(held_out).mean()) - float(exact)) > 0.1  # of the mean alone


def grouped(x: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3, dim=-2):
        place = pyro.sample("place", dist.Normal(torch.zeros(2), spread[..., None]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(place.sum(-1).sum(-2, keepdim=True) + 0 * x, 1.0), obs=x)


def test_draws_keep_their_plates_in_arviz_and_in_particles() -> None:
    sampler = sampled(grouped, {"x": MEAN_ROWS}, chains=1, draws=10, warmup=10)
    found = sampler.to_arviz()
    assert found["posterior"]["place"].dims == ("chain", "draw", "groups", "place_dim_1", "place_dim_2")
    assert found["posterior"]["place"].shape == (1, 10, 3, 1, 2)
    assert found["sample_stats"]["diverging"].dtype == bool
    assert sampler.report()["posterior"]["spread"]["r_hat"] is None  # of one chain there is none
    with sampler.evaluating():
        torch.manual_seed(0)
        with pyro.plate("particles", 5, dim=-3):
            traced = pyro.poutine.trace(sampler.guide).get_trace(x=MEAN_ROWS[:2])
    assert traced.nodes["place"]["value"].shape == (5, 3, 1, 2)
    drawn = sampler.guide.draws
    assert drawn is not None
    chosen = traced.nodes["place"]["value"][3]
    match = (drawn["place"] == chosen).flatten(1).all(1).nonzero().item()
    assert torch.equal(drawn["spread"][match], traced.nodes["spread"]["value"].flatten()[3])  # one draw of both


# ------------------------------------------------------------------------------------------------------ refusals


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.layer(x) * z, 1.0).to_event(1), obs=x[:, :1])


def subsampled(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])


def counted(x: Tensor) -> None:
    number = pyro.sample("number", dist.Poisson(3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(number, 1.0), obs=x)


def only_kinds(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(kind, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Network(), torch.ones(3, 2), "trains no parameters, but the model has 'model.layer.weight' and 1 more"),
        (subsampled, MEAN_ROWS, "draws a subsample of its own"),
        (counted, MEAN_ROWS, r"'number' \(Poisson\) is discrete and has no end of states"),
        (only_kinds, MEAN_ROWS, "samples continuous latents; the model has none"),
    ],
)
def test_what_nuts_cannot_sample_is_refused(model: Any, x: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampled(model, {"x": x}, **SHORT)


def improper(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_an_improper_prior_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot be drawn from .*: give each latent a proper prior"):
        sampled(improper, {"x": MEAN_ROWS}, **SHORT)


def test_impossible_densities_are_refused() -> None:
    def nowhere(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("never", mean * float("nan"))

    with pytest.raises(ConfigError, match="no starting point"):
        sampled(nowhere, {"x": MEAN_ROWS}, **SHORT)


@pytest.mark.parametrize("options", [{"draws": 3}, {"warmup": 0}, {"chains": 0}])
def test_lengths_that_say_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected draws >= 4, warmup >= 1 and chains >= 1; got"):
        Sampling(**options)


def test_several_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="without torchrun"):
        Sampler(mean_model, Sampling(), processes=Processes(rank=0, size=2, store=None))


def scaled(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_minibatches_are_refused_where_they_would_move_the_mode() -> None:
    small = {"minibatches": True}
    recipe = Recipe(schools, no_guide, ELBO(), table(x=MEAN_ROWS), batch_size=2)
    values = {**METHODS["map"].defaults({}), **small}
    with pytest.raises(ConfigError, match=r"a point of 'own' for each of the 4 rows.*leave minibatches out"):
        METHODS["map"].apply(recipe, values)
    with pytest.raises(ConfigError, match=r"the prior would weigh too much.*subsample_size=len\(x\)"):
        METHODS["map"].apply(Recipe(mean_model, no_guide, ELBO(), table(x=MEAN_ROWS), batch_size=2), values)
    allowed = METHODS["map"].apply(Recipe(scaled, no_guide, ELBO(), table(x=MEAN_ROWS), batch_size=2), values)
    assert first_rows(allowed).shape == (2,)
    assert torch.equal(first_rows(METHODS["map"].apply(recipe, METHODS["map"].defaults({}))), MEAN_ROWS)


@pytest.mark.parametrize("method", ["map", "nuts"])
def test_a_semi_supervised_recipe_is_refused(method: str) -> None:
    entry = find("m2")
    data = load("digits", labels=100)
    with pytest.raises(ConfigError, match=f"objective={method} fits one table of rows"):
        entry.build(data, entry.resolve("digits", {"objective": method}))


# ------------------------------------------------------------------------------------------------------- options


def plain(data: Dataset, *, learning_rate: float = 0.5, warmup: int = 7) -> Recipe:
    return Recipe(mean_model, no_guide, ELBO(), table(x=MEAN_ROWS))


def named(data: Dataset, *, objective: str = "own words") -> Recipe:
    return Recipe(mean_model, no_guide, ELBO(), table(x=MEAN_ROWS), epochs=len(objective))


def test_every_recipe_has_the_options_of_a_method_and_only_under_it() -> None:
    entry = Entry("plain", plain)
    assert entry.resolve() == {"learning_rate": 0.5, "warmup": 7}
    found = entry.resolve("", {"objective": "nuts", "draws": "30", "full_mass": "true"})
    assert found == {
        "learning_rate": 0.5,
        "objective": "nuts",
        "draws": 30,
        "warmup": 500,
        "chains": 4,
        "target_acceptance": 0.8,
        "max_tree_depth": 10,
        "full_mass": True,
    }
    assert entry.resolve("", found) == found  # as a run that is opened again has them
    built = entry.build(table(x=MEAN_ROWS), found)
    assert built.sampling == Sampling(draws=30, full_mass=True)
    pointed = entry.resolve("", {"objective": "map"})
    assert pointed["learning_rate"] == 0.5  # the recipe's own
    assert entry.build(table(x=MEAN_ROWS), pointed).epochs == 2_000
    with pytest.raises(ConfigError, match="has no option 'draws'"):
        entry.resolve("", {"objective": "map", "draws": 3})
    with pytest.raises(ConfigError, match="has no option 'draws'"):
        entry.resolve("", {"draws": 3})
    with pytest.raises(ConfigError, match=r"option 'target_acceptance': .*; got "):
        entry.resolve("", {"objective": "nuts", "target_acceptance": "1.5"})
    with pytest.raises(ConfigError, match="no objective 'nut' for recipe 'plain': did you mean 'nuts'"):
        entry.resolve("", {"objective": "nut"})
    with pytest.raises(ConfigError, match="did you mean 'objective'"):
        entry.resolve("", {"objectve": "nuts"})


def test_a_recipe_with_objectives_of_its_own_keeps_them() -> None:
    entry = Entry("named", named)
    assert entry.resolve("", {"objective": "mine"}) == {"objective": "mine"}
    assert entry.build(table(x=MEAN_ROWS), {"objective": "mine"}).epochs == 4
    assert entry.build(table(x=MEAN_ROWS), entry.resolve("", {"objective": "nuts"})).sampling == Sampling()


def test_latents_are_told_apart() -> None:
    found = latents_of(schools, {"x": MEAN_ROWS})
    assert found.global_ == ("centre",)
    assert found.local == {"own"}
    assert found.rows == 4
    assert found.summarized == ("centre", "own")


# ---------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    rows = np.random.default_rng(0).normal(1.0, 1.0, size=(40, 1)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    return f"{tmp_path / 'own.py'}:mean"


def config(recipe: str, **options: Any) -> Config:
    data = DataConfig(name=str(Path(recipe).parent / "rows.npz"))
    return Config(
        recipe=recipe, data=data, device="cpu", options={"objective": "nuts", "chains": 3, **SHORT, **options}
    )


def finished(run: Run, until: Callable[[], bool] = lambda: False) -> Run:
    with run.folder.lock():
        for _ in run.train(until):
            pass
    return run


def test_a_run_that_is_stopped_in_a_chain_goes_on_bit_for_bit(tmp_path: Path, recipe: str) -> None:
    straight = finished(Run.create(config(recipe), tmp_path / "straight"))
    stopped = Run.create(config(recipe), tmp_path / "stopped")
    finished(stopped, lambda: stopped.trainer.steps > 60)
    again = Run.open(tmp_path / "stopped", recipe=recipe)
    assert again.trainer.steps == 40
    finished(again)
    ones, others = (Run.open(tmp_path / name, recipe=recipe) for name in ("straight", "stopped"))
    assert isinstance(ones.trainer, Sampler)
    assert isinstance(others.trainer, Sampler)
    assert torch.equal(ones.trainer.draws["mean"], others.trainer.draws["mean"])
    assert [r["step"] for r in ones.folder.metrics()] == [r["step"] for r in others.folder.metrics()]
    assert isinstance(straight.trainer, Sampler)
    assert torch.equal(straight.trainer.draws["mean"], ones.trainer.draws["mean"])


def test_a_flipped_bit_costs_one_chain_and_is_told(
    tmp_path: Path, recipe: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished(Run.create(config(recipe), tmp_path / "run"))
    assert isinstance(run.trainer, Sampler)
    damaged = tmp_path / "run" / "step-00000120" / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    opened = Run.open(tmp_path / "run", recipe=recipe)
    assert "does not match its checksum" in caplog.text
    assert opened.trainer.steps == 80
    assert isinstance(finished(opened).trainer, Sampler)
    assert torch.equal(opened.trainer.draws["mean"], run.trainer.draws["mean"])  # type: ignore[union-attr]


def test_draws_that_are_not_finite_are_never_kept(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(config(recipe), tmp_path / "run")
    calls = itertools.count()
    from pyro.infer import NUTS

    sample = NUTS.sample

    def broken(self: Any, params: Any) -> Any:
        found = sample(self, params)
        return {name: value * float("inf") for name, value in found.items()} if next(calls) == 75 else found

    monkeypatch.setattr(NUTS, "sample", broken)
    with pytest.raises(DivergedError, match="draws of 'mean' are not finite"):
        finished(run)
    assert Run.open(tmp_path / "run", recipe=recipe).trainer.steps == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "has no --epochs"),
        ({"steps": 3}, "has no --steps"),
        ({"compile": "on"}, "has no --compile on"),
        ({"precision": "bf16"}, "has no --precision bf16"),
    ],
)
def test_what_only_training_has_is_refused(tmp_path: Path, recipe: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run.create(config(recipe).model_copy(update=change), tmp_path / "run")


def test_the_command_line_samples_resumes_judges_and_exports(tmp_path: Path, recipe: str) -> None:
    run, data = tmp_path / "run", Path(recipe).parent / "rows.npz"
    sizes = [part for name, value in {"chains": 2, **SHORT}.items() for part in ("--set", f"{name}={value}")]
    done = command("train", recipe, "--data", data, "--set", "objective=nuts", *sizes, "--out", run, "--json")
    assert done.code == 0
    sampling = done.document["sampling"]
    assert sampling["chains"] == 2
    assert set(sampling["posterior"]) == {"mean"}
    assert 0 < sampling["acceptance"][0] <= 1
    assert json.loads((run / "result.json").read_text())["sampling"] == sampling
    assert command("resume", run, "--recipe", recipe, "--json").document["sampling"] == sampling
    shown = command("evaluate", run, "--recipe", recipe, "--arviz", tmp_path / "draws.nc")
    assert "r_hat" in shown.out
    assert "2 chains of 20 draws of the posterior" in shown.err
    assert (tmp_path / "draws.nc").exists()
    assert command("sample", run, "--recipe", recipe, "-n", 3, "--out", tmp_path / "s.npz").code == 0
    assert np.load(tmp_path / "s.npz")["x"].shape == (3, 1)


def test_the_command_line_finds_a_mode(tmp_path: Path, recipe: str) -> None:
    run, data = tmp_path / "run", Path(recipe).parent / "rows.npz"
    options = ["--data", data, "--compile", "off", "--set", "objective=map", "--set", "epochs=300"]
    done = command("train", recipe, *options, "--out", run, "--json")
    assert done.code == 0
    opened = Run.open(run, recipe=recipe)
    rows = opened.data.train["x"]
    with opened.trainer.evaluating():
        found = opened.trainer.guide.value("mean").detach()  # type: ignore[attr-defined]
    assert float(found) == pytest.approx(float(rows.sum() / (len(rows) + 0.25)), abs=1e-3)
    assert done.document["test"]["nll"]["value"] > 0
