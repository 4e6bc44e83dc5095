"""Comparing gradient estimators: what is unbiased is not flagged, what is biased is, and the figures are right."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cli_helpers import command
from torch import Tensor
from zoo import binary_rows, relative, small_vae, value_and_gradients

from ppgen import estimators, guides, models, nn, programs
from ppgen.compilation import preserved
from ppgen.errors import ConfigError
from ppgen.estimators import Bias, Comparison, Interval, Reference, State, compare, enumeration
from ppgen.estimators.contenders import Contender, Pair, objective_of
from ppgen.estimators.rows import rows_of
from ppgen.estimators.statistics import variance
from ppgen.gradients import ESTIMATORS, LeaveOneOut, Situation
from ppgen.nn.units import BernoulliUnits
from ppgen.objectives import ELBO

UNBIASED = ["score", "rao-blackwell", "moving-average", "nvil", "leave-one-out", "vimco", "muprop", "rebar", "relax"]
BIASED = ["gumbel-softmax", "straight-through"]
QUICK: dict[str, Any] = {"rounds": 0, "compile": "off", "burn_in": 100}


def belief_net(units: int = 4, *, pixels: int = 6) -> tuple[models.BeliefNet, guides.BottomUp]:
    torch.manual_seed(0)
    layers = [BernoulliUnits(units)]
    model = models.BeliefNet(layers, [nn.MLP(units, [], pixels)], nn.Bernoulli((pixels,)))
    guide = guides.BottomUp(layers, [nn.MLP(pixels, [], units)])
    for parameter in [*model.parameters(), *guide.parameters()]:
        torch.nn.init.normal_(parameter, std=0.7)
    return model, guide


class SelfIncluding(LeaveOneOut):
    """A baseline that has the sample's own signal in it: negative control."""

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        others = situation.left_out("arithmetic")
        assert others is not None
        return signal - (signal + others) / 2, None


ASKED = {name: name for name in [*UNBIASED, *BIASED]} | {"self-including": SelfIncluding()}
BATCH = {"x": binary_rows(3)}


def check_flags(state: State) -> None:
    assert {row.name for row in state.rows if row.bias.flagged} == {*BIASED, "self-including"}
    assert all(state.row(name).bias.z > 6 for name in [*BIASED, "self-including"])
    assert {row.name for row in state.rows if not row.claims} == set(BIASED)


@pytest.fixture(scope="module")
def small() -> Comparison:
    model, guide = belief_net()
    return compare(model, guide, BATCH, estimators=ASKED, draws=20_000, **QUICK)


def test_what_is_biased_is_flagged_and_nothing_else(small: Comparison) -> None:
    (state,) = small.states
    assert state.references == {"ELBO": ("exact", 0.0), "IWAE(5)": ("exact", 0.0)}
    check_flags(state)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_they_are_unbiased_over_many_draws(seed: int) -> None:
    model, guide = belief_net()
    found = compare(model, guide, BATCH, estimators=ASKED, draws=200_000, steps=100, seed=seed, **QUICK)
    assert [state.steps for state in found.states] == [0, 10, 100]
    for state in found.states:
        check_flags(state)


def test_a_baseline_lowers_the_variance_and_a_control_variate_more(small: Comparison) -> None:
    (state,) = small.states
    spread = {row.name: row.variance["guide"] for row in state.rows}
    assert spread["rebar"].high < spread["nvil"].low
    assert spread["nvil"].high < spread["score"].low
    assert spread["moving-average"].high < spread["score"].low
    for row in state.rows:
        parts = row.variance["model"].value + row.variance["guide"].value
        assert row.variance["all"].value == pytest.approx(parts, rel=1e-4)
        assert row.signal["all"] > 0


# ------------------------------------------------------------------------------------------------------------ exact


def categorical_model(x: Tensor) -> None:
    means = pyro.param("means", torch.tensor([-1.0, 0.3, 2.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        flip = pyro.sample("flip", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(means[z] * (1 - 2 * flip), 1.0), obs=x)


def categorical_guide(x: Tensor) -> None:
    slopes = pyro.param("slopes", torch.tensor([-0.5, 0.1, 0.7]))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=slopes * x.unsqueeze(-1)))
        pyro.sample("flip", dist.Bernoulli(logits=0.4 * slopes[0] * x))


ROWS = {"x": torch.tensor([0.5, -1.0, 2.0])}


def by_states(particles: int) -> tuple[Tensor, dict[str, Tensor]]:
    with programs.Store().active(), programs.quiet():
        loss = enumeration(categorical_model, categorical_guide, ROWS).loss(particles)
        leaves = programs.leaves(categorical_model, categorical_guide)
        found = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, found, strict=True))


def test_the_exact_gradient_is_that_of_enumeration() -> None:
    value, gradients = by_states(1)
    loss, expected = value_and_gradients(ELBO(estimator="enumerate"), categorical_model, categorical_guide, ROWS)
    assert float((value - loss).abs()) < 1e-5
    assert relative(gradients, expected) < 1e-5
    assert relative(by_states(2)[1], expected) > 1e-2, "negative control: another bound"


def test_the_exact_bound_of_several_particles_is_the_sum_over_all_of_their_states() -> None:
    with programs.Store().active(), programs.quiet(), torch.no_grad():
        states = enumeration(categorical_model, categorical_guide, ROWS)
    log_w = states.log_p - states.log_q
    total = torch.zeros(())
    for chosen in itertools.product(range(len(log_w)), repeat=3):
        places = torch.tensor(chosen)
        total += (states.log_q[places].sum(0).exp() * (log_w[places].logsumexp(0) - math.log(3))).mean()
    assert float(states.loss(3)) == pytest.approx(-float(total), rel=1e-5)
    assert float(states.loss(2)) != pytest.approx(-float(total), rel=1e-3)


# ------------------------------------------------------------------------------------------------------- statistics


def coin_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def coin_guide(x: Tensor) -> None:
    logit = pyro.param("logit", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logit.expand(len(x))))


def test_the_variance_is_that_of_one_gradient() -> None:
    x, logit = 1.7, torch.tensor(0.5)
    p = logit.sigmoid()
    divergence = p * (p / 0.4).log() + (1 - p) * ((1 - p) / 0.6).log()
    signals = {b: divergence + 0.5 * (x - b) ** 2 + 0.5 * math.log(2 * math.pi) for b in (0, 1)}
    estimates = torch.stack([signals[b] * (b - p) for b in (0, 1)])
    chances = torch.stack([1 - p, p])
    exact = float((chances * estimates**2).sum() - (chances * estimates).sum() ** 2)
    found = compare(coin_model, coin_guide, {"x": torch.tensor([x])}, estimators=["score"], draws=100_000, **QUICK)
    spread = found.states[0].row("score").variance["all"]
    assert spread.low < exact < spread.high
    assert not spread.low < 1.5 * exact < spread.high, "negative control"


def test_an_interval_of_the_variance_holds_it_about_as_often_as_it_says() -> None:
    held = []
    for seed in range(200):
        groups = torch.randn(100, 3, generator=torch.Generator().manual_seed(seed)) / 2
        found = variance(groups, [slice(0, 1), slice(1, 3)], draws=4)
        held.append(found.low < 3.0 < found.high)
    assert 0.88 < sum(held) / len(held) < 0.99


def test_a_bias_of_many_parameters_is_found_and_noise_is_not_taken_for_one() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"few": slice(0, 5), "many": slice(5, 2000)}
    exact = Reference("exact", torch.ones(2000))
    estimated = torch.ones(2000) + 0.3 * torch.randn(90, 2000, generator=generator)
    long_run = Reference("leave-one-out", estimated.mean(0), estimated, 90)
    noise = torch.randn(90, 2000, generator=generator)
    shift = torch.zeros(2000)
    shift[5:] = 0.15
    for reference in (exact, long_run):
        honest = Bias.of(1 + noise, reference, tensors)
        assert not honest.flagged
        assert honest.relative.low < 0 < honest.relative.high
        biased = Bias.of(1 + noise + shift, reference, tensors)
        assert biased.flagged
        assert biased.tensor == "many"
        assert 0.05 < biased.relative.value < 0.17
    assert long_run.norm(slice(0, 2000)) == pytest.approx(math.sqrt(2000), rel=0.01)
    assert exact.error() == 0 < long_run.error() < 0.1


def test_an_interval_as_json_has_no_number_that_is_not_finite() -> None:
    assert Interval(1.0, -math.inf, math.nan).as_dict() == {"value": 1.0, "low": None, "high": None}


# ----------------------------------------------------------------------------------------- other pairs of programs


def test_a_pair_too_large_to_enumerate_gets_a_long_run_with_its_error() -> None:
    model, guide = belief_net(20)
    names = ["score", "nvil", "rebar", "straight-through"]
    (state,) = compare(model, guide, BATCH, estimators=names, draws=5_000, **QUICK).states
    by, error = state.references["ELBO"]
    assert by == "leave-one-out"
    assert 0 < error < 0.3
    assert {row.name for row in state.rows if row.bias.flagged} == {"straight-through"}
    assert state.row("straight-through").bias.z > 6


def test_latents_with_derivatives_are_set_against_pathwise_ones() -> None:
    model, guide = small_vae()
    names = ["pathwise", "score", "leave-one-out", "straight-through"]
    found = compare(model, guide, BATCH, estimators=names, draws=5_000, **QUICK)
    (state,) = found.states
    assert state.references["ELBO"][0] == "pathwise"
    assert not any(row.bias.flagged for row in state.rows)
    assert state.row("pathwise").variance["guide"].high < state.row("score").variance["guide"].low
    assert found.refused == {"straight-through": "it takes Bernoulli and OneHotCategorical sites; got Normal"}


def global_model(x: Tensor) -> None:
    flip = pyro.sample("flip", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(1 - 2 * flip, 1.0), obs=x)


def global_guide(x: Tensor) -> None:
    pyro.sample("flip", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))))


def test_a_latent_that_all_rows_share_is_drawn_once_for_all() -> None:
    names = ["score", "straight-through"]
    (state,) = compare(global_model, global_guide, ROWS, estimators=names, draws=1_000, **QUICK).states
    assert state.references["ELBO"] == ("exact", 0.0)
    assert not state.row("score").bias.flagged
    assert state.row("straight-through").bias.relative.low > 0
    assert state.row("score").draws >= 1_000


def test_rounding_is_not_taken_for_bias_where_terms_cancel() -> None:
    coins = models.Coins(5)
    batch = {"x": torch.full((5, 1), 0.499)}
    found = compare(coins, guides.SameCoins(coins), batch, estimators=["enumerate"], draws=1_000, **QUICK)
    (state,) = found.states
    assert state.row("enumerate").variance["all"].value < 1e-12
    assert not state.row("enumerate").bias.flagged
    exact = Reference("exact", torch.tensor([1e-4]), rounding=1e-7)
    off = torch.full((60, 1), 1.1e-4)
    assert Bias.of(off, exact, {"logits": slice(0, 1)}).flagged, "negative control"


def contender(name: str) -> Contender:
    model, guide = belief_net()
    rows, repeatable = rows_of(model, guide, BATCH)
    assert (rows, repeatable) == (3, True)
    pair = Pair(model, guide, BATCH, programs.leaves(model, guide), ("z1",), rows, repeatable)
    return Contender(name, objective_of(name, ["z1"], particles=5), pair)


@pytest.mark.parametrize("name", ["nvil", "relax"])
def test_what_adapts_is_burnt_in_and_then_held(name: str) -> None:
    with programs.quiet():
        one = contender(name)
        kept = [*one.buffers, *one.estimators.values()]
        before = [tensor.detach().clone() for tensor in kept]
        pair_before = [leaf.detach().clone() for leaf in one.pair.leaves.values()]
        one.burn_in(5, itertools.repeat(BATCH))
        after = [tensor.detach().clone() for tensor in kept]
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        one.draw(1_000)
        assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.pair.leaves.values(), pair_before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*UNBIASED, *BIASED])
def test_what_is_timed_compiled_computes_the_same(name: str) -> None:
    with programs.quiet():
        one = contender(name)
        eager, _ = one.function("off")
        compiled, is_compiled = one.function("on")
        assert is_compiled
        found = []
        for function in (eager, compiled):
            with preserved(one.buffers), torch.random.fork_rng():
                torch.manual_seed(3)
                found.append([tensor.detach().clone() for tensor in function(BATCH["x"])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_wrong_wishes_are_named() -> None:
    model, guide = belief_net()
    with pytest.raises(ConfigError, match="did you mean 'rebar'"):
        compare(model, guide, BATCH, estimators=["rebra"])
    with pytest.raises(ConfigError, match="draws >= 1000"):
        compare(model, guide, BATCH, draws=10)
    with pytest.raises(ConfigError, match=r"an ELBO .* or an IWAE"):
        compare(model, guide, BATCH, estimators={"mine": ELBO(beta=2.0, estimator="score")}, draws=1_000, **QUICK)
    with pytest.raises(ConfigError, match="none of the estimators"):
        compare(model, guide, BATCH, estimators=["pathwise"], draws=1_000, **QUICK)


def test_times_are_relative_to_the_score_function_and_other_random_streams_stay() -> None:
    model, guide = belief_net()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    options = QUICK | {"rounds": 3}
    (found,) = compare(model, guide, BATCH, estimators=["rebar", "score"], draws=1_000, **options).states
    assert torch.equal(torch.get_rng_state(), state)
    assert found.row("score").cost == 1.0
    rebar = found.row("rebar")
    assert rebar.seconds is not None
    assert rebar.cost is not None
    assert rebar.work["all"].value == pytest.approx(rebar.cost * rebar.variance["all"].value)


# -------------------------------------------------------------------------------------------------- command line

SMALL = ("--set", "layers=4", "--rows", 6, "--draws", 2000, "--burn-in", 5, "--compile", "off")


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    out = tmp_path / "found"
    asked = ("--estimators", "score,straight-through,rebar,pathwise,enumerate", "--steps", 10)
    done = command("estimators", "sbn", *SMALL, *asked, "--json", "--out", out)
    assert done.code == 0, done.err
    document = done.document
    assert json.loads((out / "estimators.json").read_text()) == document
    assert (out / "estimators.png").read_bytes().startswith(b"\x89PNG")
    assert [state["steps"] for state in document["states"]] == [0, 1, 10]
    assert document["refused"].keys() == {"pathwise", "enumerate"}
    assert document["rows"] == 6
    for state in document["states"]:
        assert state["references"]["ELBO"] == {"by": "exact", "relative_error": 0.0}
        assert [one["estimator"] for one in state["estimators"]] == ["score", "straight-through", "rebar"]
        for one in state["estimators"]:
            assert one["variance"]["all"]["low"] <= one["variance"]["all"]["value"] <= one["variance"]["all"]["high"]
            assert one["variance_times_cost"].keys() == one["variance"].keys() == {"all", "model", "guide"}
    first = {one["estimator"]: one for one in document["states"][0]["estimators"]}
    assert first["straight-through"]["flagged"]
    assert not first["score"]["flagged"]


def test_the_command_prints_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # in a narrow terminal names go on in the next line
    asked = ("--estimators", "score,straight-through,pathwise", "--out", tmp_path / "found")
    done = command("estimators", "sbn", *SMALL, *asked)
    assert done.code == 0, done.err
    assert "Reference: ELBO exact" in done.out
    assert "its draws jump" in done.out
    (line,) = [line for line in done.out.splitlines() if line.strip().startswith("straight-through")]
    assert "BIASED" in line


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("estimators", "sbn", "--out", tmp_path)
    assert done.code == 2
    assert "new or empty folder" in done.error
    done = command("estimators", "sbn", "--estimators", "rebra", "--out", tmp_path / "new")
    assert done.code == 2
    assert "there is no estimator 'rebra'" in done.error


def test_every_name_is_known() -> None:
    assert estimators.known() == list(ESTIMATORS)
