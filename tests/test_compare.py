"""Ways to fit one model side by side, and what tells a good guide from a bad one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cli_helpers import command
from torch import Tensor

from ppgen.comparison import Comparison, Fit, compare
from ppgen.errors import ConfigError, StorageError
from ppgen.evaluation.diagnostics import pareto_k, summarize, verdict
from ppgen.programs import Program
from ppgen.programs.points import joint_ratios, latents_of

OWN = '''
import pyro, pyro.distributions as dist, torch
from torch import nn
from ppgen import ELBO

def mean(data, *, spread: float = 2.0):
    """A mean with a normal prior."""
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, spread))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).expand([x.shape[-1]]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))

    return model, guide, ELBO()

def network(data):
    """A model with a parameter."""
    def model(x):
        pyro.param("scale", torch.tensor(1.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))
    return model, model, ELBO()
'''


class Regression:
    """Bayesian linear regression on two columns; its posterior in closed form, with a given correlation."""

    def __init__(self, correlation: float) -> None:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(60, 2, generator=generator)
        x[:, 1] = correlation * x[:, 0] + (1 - correlation**2) ** 0.5 * x[:, 1]
        self.columns = {"x": x, "target": x.sum(-1) + torch.randn(60, generator=generator)}
        precision = x.double().T @ x.double() + torch.eye(2, dtype=torch.float64)
        self.covariance = precision.inverse()
        self.mean = self.covariance @ x.double().T @ self.columns["target"].double()

    @staticmethod
    def model(x: Tensor, target: Tensor | None = None) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("target", dist.Normal((weights * x).sum(-1), 1.0), obs=target)

    def guide(self, factor: float = 1.0) -> Program:
        """The exact posterior, its standard deviations multiplied."""

        def guide(x: Tensor, target: Tensor | None = None) -> None:
            covariance = factor**2 * self.covariance.float()
            pyro.sample("weights", dist.MultivariateNormal(self.mean.float(), covariance))

        return guide

    def ratios(self, guide: Program, *, particles: int = 4000) -> Tensor:
        latents = latents_of(self.model, self.columns)
        with torch.no_grad():
            return joint_ratios(self.model, guide, self.columns, latents, particles=particles)[1]


# ------------------------------------------------------------------------------------------------------------- k


def test_k_tells_the_posterior_and_wider_guides_from_narrow_ones() -> None:
    regression = Regression(0.5)
    exact, wide, narrow = (pareto_k(regression.ratios(regression.guide(factor))) for factor in (1.0, 1.5, 0.4))
    assert exact <= 0.0
    assert wide < 0.5
    assert narrow > 0.7
    assert [verdict(k) for k in (exact, wide, narrow)] == ["good", "good", "unreliable"]


def test_ratios_of_the_exact_posterior_are_the_evidence() -> None:
    regression = Regression(0.5)
    ratios = regression.ratios(regression.guide(), particles=50)
    x, target = (regression.columns[name].double() for name in ("x", "target"))
    evidence = dist.MultivariateNormal(torch.zeros(60), (x @ x.T + torch.eye(60)).float()).log_prob(target.float())
    assert torch.allclose(ratios, evidence.double().expand(50), atol=1e-2)
    one = torch.stack([regression.ratios(regression.guide(), particles=1) for _ in range(3)])
    assert torch.allclose(one, evidence.double(), atol=1e-2)  # programs that bear no particles


def test_a_program_that_bears_no_particles_is_drawn_from_one_at_a_time() -> None:
    def model(x: Tensor, target: Tensor | None = None) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("target", dist.Normal(weights @ x.T, 1.0), obs=target)

    regression = Regression(0.5)
    latents = latents_of(model, regression.columns)
    with torch.no_grad(), pytest.raises(ConfigError, match=r"does not bear 7 particles|left of all its plates"):
        joint_ratios(model, regression.guide(), regression.columns, latents, particles=7)
    options: dict[str, Any] = {"objectives": ["svi"], "steps": 3, "guide_draws": 1000, "compile": "off"}
    one, other = (compare(which, regression.columns, **options)["svi normal"] for which in (model, regression.model))
    assert one.draws["weights"].shape == other.draws["weights"].shape == (1, 1000, 2)
    assert one.pareto_k is not None
    assert one.elbo == pytest.approx(other.elbo, rel=0.1)


def test_the_k_of_a_known_tail_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20_000, generator=generator, dtype=torch.float64)
    for k in (0.3, 0.9):  # ratios u ** -k have a Pareto tail of that shape
        assert pareto_k(-k * uniform.log()) == pytest.approx(k, abs=0.1)


def test_ratios_that_say_nothing_are_refused_or_worst() -> None:
    with pytest.raises(ConfigError, match="expected at least 1,000 log ratios"):
        pareto_k(torch.zeros(999))
    assert pareto_k(torch.cat([torch.zeros(999), torch.tensor([torch.inf])])) == float("inf")


def kinds(x: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(share))
        pyro.sample("x", dist.Normal(3 * kind - 1, 1.0), obs=x)


def test_discrete_latents_that_a_guide_leaves_out_are_summed() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("share", dist.Beta(3.0, 2.0))

    x = torch.tensor([2.0, -1.0, 0.3])
    drawn, ratios = joint_ratios(kinds, guide, {"x": x}, latents_of(kinds, {"x": x}), particles=5)
    share = drawn["share"][:, None].double()
    one, two = (dist.Normal(place, 1.0).log_prob(x.double()).exp() for place in (2.0, -1.0))
    exact = (share * one + (1 - share) * two).log().sum(-1)
    exact += dist.Beta(2.0, 2.0).log_prob(share[:, 0]) - dist.Beta(3.0, 2.0).log_prob(share[:, 0])
    assert torch.allclose(ratios, exact, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ compare


@pytest.fixture(scope="module")
def found() -> Comparison:
    regression = Regression(0.85)
    return compare(
        regression.model,
        regression.columns,
        guides=["normal", "multivariate-normal"],
        steps=1_000,
        compile="off",
        draws=100,
        warmup=60,
        chains=2,
    )


def test_every_way_finds_the_posterior_of_a_correlated_regression(found: Comparison) -> None:
    regression = Regression(0.85)
    sd = regression.covariance.diagonal().sqrt()
    assert [fit.name for fit in found.fits] == ["svi normal", "svi multivariate-normal", "map", "nuts"]
    for fit in found.fits:
        for index in range(2):
            line = fit.posterior[f"weights[{index}]"]
            assert line["mean"] == pytest.approx(float(regression.mean[index]), abs=0.35 * float(sd[index]))
    full, mean_field = (found[name].posterior["weights[0]"]["sd"] for name in ("svi multivariate-normal", "svi normal"))
    assert full == pytest.approx(float(sd[0]), rel=0.25)
    conditional = float(torch.linalg.inv(regression.covariance)[0, 0] ** -0.5)
    assert mean_field == pytest.approx(conditional, rel=0.25)  # which is what mean field is known to find
    assert conditional < 0.65 * float(sd[0])


def test_a_mean_field_guide_of_a_correlated_posterior_is_flagged(found: Comparison) -> None:
    mean_field, full = found["svi normal"], found["svi multivariate-normal"]
    assert mean_field.pareto_k is not None
    assert full.pareto_k is not None
    assert mean_field.pareto_k > 0.5 > full.pareto_k
    assert mean_field.pareto_k > full.pareto_k + 0.2
    assert full.verdict == "good"
    assert mean_field.elbo is not None
    assert full.elbo is not None
    assert full.elbo > mean_field.elbo


def test_what_belongs_to_one_way_only_is_absent_elsewhere(found: Comparison) -> None:
    document = found.as_dict()
    by_name = {fit["name"]: fit for fit in document["fits"]}
    assert by_name["map"]["pareto_k"] is by_name["nuts"]["pareto_k"] is None
    assert by_name["nuts"]["divergences"] == 0
    assert by_name["map"]["divergences"] is None
    assert by_name["map"]["posterior"]["weights[0]"]["sd"] is None
    assert by_name["nuts"]["posterior"]["weights[0]"]["ess_bulk"] > 5
    assert "ess_bulk" not in by_name["svi normal"]["posterior"]["weights[0]"]
    json.dumps(document, allow_nan=False)
    with pytest.raises(KeyError, match="there is no 'svi': there are svi normal"):
        found["svi"]


def test_a_comparison_is_written_as_picture_and_draws(found: Comparison, tmp_path: Path) -> None:
    paths = found.write(tmp_path)
    assert [path.name for path in paths] == [
        "comparison.png",
        "svi-normal.nc",
        "svi-multivariate-normal.nc",
        "map.nc",
        "nuts.nc",
    ]
    assert all(path.stat().st_size > 1000 for path in paths)
    assert found["nuts"].to_arviz()["posterior"]["weights"].shape == (2, 100, 2)
    with pytest.raises(StorageError, match="cannot write"):
        found.plot(tmp_path / "no" / "folder.png")


def test_many_numbers_and_none_can_be_drawn(tmp_path: Path) -> None:
    draws = {"w": torch.randn(1, 50, 40), "only": torch.ones(1, 50)}
    fit = Fit("one", 1.0, draws, summarize(draws))
    assert Comparison((fit,)).plot(tmp_path / "many.png").exists()
    assert Comparison((Fit("none", 1.0, {}, {}),)).plot(tmp_path / "none.png").exists()


def test_comparing_moves_no_random_stream_and_repeats_itself() -> None:
    regression = Regression(0.5)
    options: dict[str, Any] = {"objectives": ["svi"], "guides": ["normal"], "steps": 20, "compile": "off"}
    state = torch.get_rng_state()
    one = compare(regression.model, regression.columns, guide_draws=1000, **options)
    assert torch.equal(torch.get_rng_state(), state)
    two = compare(regression.model, regression.columns, guide_draws=1000, **options)
    assert one["svi normal"].pareto_k == two["svi normal"].pareto_k
    other = compare(regression.model, regression.columns, guide_draws=1000, seed=1, **options)
    assert one["svi normal"].pareto_k != other["svi normal"].pareto_k


def test_local_latents_are_compared_too() -> None:
    def model(x: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            own = pyro.sample("own", dist.Normal(centre, 1.0))
            pyro.sample("x", dist.Normal(own, 1.0), obs=x)

    columns = {"x": torch.tensor([1.0, 3.0, -2.0])}
    found = compare(model, columns, objectives=["svi", "map"], steps=30, guides=["normal"], compile="off")
    assert list(found["map"].posterior) == ["centre", "own[0]", "own[1]", "own[2]"]
    assert list(found["svi normal"].posterior) == list(found["map"].posterior)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ["svi", "hmc"]}, "expected objectives from svi, map, nuts; got 'hmc'"),
        ({"guides": ["lowrank"]}, "expected guides from own, normal, multivariate-normal; got 'lowrank'"),
        ({"guides": ["own"]}, "expected a guide of your own"),
        ({"objectives": []}, "expected at least one of the objectives"),
        ({"guide_draws": 999, "objectives": ["svi"]}, "expected at least 1,000 draws; got 999"),
        ({"drows": 3}, "there is no option 'drows'"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], message: str) -> None:
    regression = Regression(0.5)
    with pytest.raises(ConfigError, match=message):
        compare(regression.model, regression.columns, **options)


# -------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "own.py").write_text(OWN)
    rows = np.random.default_rng(0).normal(1.0, 1.0, size=(40, 1)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    return str(tmp_path / "own.py"), str(tmp_path / "rows.npz")


def test_the_command_line_compares_and_keeps_what_it_found(own: tuple[str, str], tmp_path: Path) -> None:
    file, data = own
    sizes = [part for text in ("draws=30", "warmup=30", "chains=2", "spread=3.0") for part in ("--set", text)]
    out = tmp_path / "found"
    place = ["--data", data, "--out", out]
    done = command("compare", f"{file}:mean", *place, *sizes, "--steps", 50, "-n", 1000, "--json")
    assert done.code == 0
    assert [fit["name"] for fit in done.document["fits"]] == ["svi own", "map", "nuts"]
    assert done.document["rows"] == 28
    assert json.loads((out / "comparison.json").read_text()) == done.document
    assert {path.name for path in out.iterdir()} == {
        "comparison.json",
        "comparison.png",
        "svi-own.nc",
        "map.nc",
        "nuts.nc",
    }
    again = command("compare", f"{file}:mean", *place)
    assert again.code == 2
    assert "choose another --out" in again.error


def test_the_tables_name_every_way_and_its_verdict(own: tuple[str, str], tmp_path: Path) -> None:
    file, data = own
    options = ["--data", data, "--out", tmp_path / "found", "--objectives", "svi,map", "--steps", 50]
    done = command("compare", f"{file}:mean", *options, "--guides", "own,normal")
    assert done.code == 0
    for text in ("svi own", "svi normal", "map", "PSIS k", "unreliable", "mean"):
        assert text in done.out


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("mean", ["--set", "objective=map"], "--objectives svi,map,nuts in the place of --set objective"),
        ("mean", ["--set", "drawss=3"], "no option 'drawss' under svi, map, nuts: did you mean 'draws'?"),
        ("mean", ["--objectives", "svi", "--set", "draws=3"], "no option 'draws' under svi"),
        ("mean", ["--objectives", "mcmc"], "expected objectives from svi, map, nuts; got 'mcmc'"),
        ("network", [], "expected one model for all; got one with the parameter 'store.scale'"),
    ],
)
def test_a_wrong_command_is_one_line(own: tuple[str, str], function: str, arguments: list[str], message: str) -> None:
    file, data = own
    done = command("compare", f"{file}:{function}", "--data", data, "--out", Path(data).parent / "out", *arguments)
    assert done.code == 2
    assert message in done.error
    assert not (Path(data).parent / "out").exists()
