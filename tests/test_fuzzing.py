"""Random programs: every number is right, or the program is refused with a reason that names a site or plate.

`python -m tests.fuzzing` checks many more of them, and prints what a person needs to repeat one.
"""

import pytest
import torch
from fuzzing.checks import Prepared, checks
from fuzzing.constrained import values_of
from fuzzing.description import Description, Site
from fuzzing.generator import describe
from fuzzing.known import KNOWN
from fuzzing.shrinking import shrunk
from fuzzing.source import program
from fuzzing.table import markdown, summary
from fuzzing.truth import Truth
from fuzzing.verdicts import Verdict, template, verdict

SEED = 20
PROGRAMS = 300
CHUNK = 20


@pytest.mark.parametrize("name", KNOWN)
def test_programs_that_were_wrong_once(name: str) -> None:
    _require_right(KNOWN[name])


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs(first: int) -> None:
    for number in range(first, first + CHUNK):
        _require_right(describe(SEED, number), f"python -m tests.fuzzing --seed {SEED} --only {number}")


def _require_right(described: Description, command: str = "") -> None:
    found = verdict(described)
    text = f"{found.check}: {found.reason}\n{command}\n{program(described)}"
    assert found.kind in ("right", "refused"), text


def test_a_program_is_a_function_of_seed_and_number() -> None:
    assert describe(3, 14) == describe(3, 14)
    assert len({describe(3, number) for number in range(50)}) == 50
    assert describe(3, 14) != describe(4, 14)


def test_every_feature_comes_up() -> None:
    made = [describe(SEED, number) for number in range(PROGRAMS)]
    sites = [site for one in made for site in (*one.model, *one.guide)]
    assert {one.plates for one in made} == {"one", "two", "unsized", "sequential", "inside"}
    assert {one.features for one in made} == {"plate", "sequential", "event"}
    assert {one.mask for one in made} == {"", "data", "all", "model", "obs_mask"}
    assert {"AutoNormal", "AutoDelta", "AutoMultivariateNormal"} <= {one.auto for one in made}
    for feature in ("flipped", "markov", "positional", "modular", "deterministic", "factor", "branch"):
        assert any(getattr(one, feature) for one in made), feature
    for feature in ("forbidden", "only_model", "auxiliary", "point", "simplex", "only_if"):
        assert any(getattr(site, feature) for site in sites), feature


def test_a_wrong_number_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    described = KNOWN["a plate without a size"]
    wrong = Description(
        6,
        (*described.model, Site("x1", "normal", "r", ("z0",), observed=True)),
        described.guide,
        deterministic=True,
        positional=True,
    )

    def twice(given: Description, free: dict[str, object]) -> dict[str, object]:
        found = values_of(given, free)  # type: ignore[arg-type]
        return {**found, "m_z0": found["m_z0"] + 1}

    monkeypatch.setattr("fuzzing.checks.values_of", twice)
    found = verdict(wrong)
    assert (found.kind, found.check) == ("wrong", "bound")
    small, _ = shrunk(wrong, found)
    assert not small.deterministic
    assert not small.positional
    assert len(small.model) == 2


@pytest.mark.parametrize("number", range(0, 40, 2))
def test_moments_of_weights_are_those_of_draws(number: int) -> None:
    described = describe(SEED, number)
    if "weights" not in dict(checks(described)):
        pytest.skip("such a program has no weights of rows")
    made = Prepared(described)
    with made.store.active(), torch.no_grad():
        truth = made.truth()[0]
        assert torch.allclose(truth.moment_of_weights(1.0).exp(), torch.ones(described.rows, dtype=torch.float64))
        bound = truth.moment_of_weights(2.0)
        drawn = made.ratios(20_000, truth.evidence()).square().mean(0).log()
    assert (drawn[bound < 1] < bound[bound < 1] + 0.1).all()
    if not any(site.is_discrete for site in described.model):
        assert torch.allclose(drawn[bound < 1], bound[bound < 1], atol=0.1)


def test_a_guide_that_is_too_narrow_leaves_no_moment() -> None:
    described = KNOWN["latents in a plate of their own"]
    model = {"m_z0": 0.0, "m_z0_scale": 1.0, "m_x0": 0.0, "m_x0_z0": 1.0, "m_x0_scale": 1.0}
    exact = 0.5**0.5
    for scale, finite in ((0.7 * exact, False), (0.8 * exact, True)):  # half the variance is the limit
        values = {**model, "g_z0": 0.0, "g_z0_x0": 0.5, "g_z0_scale": scale}
        truth = Truth(described, {name: torch.tensor(value).double() for name, value in values.items()})
        assert bool(truth.moment_of_weights(2.0).isfinite().all()) == finite


def test_the_table_counts_reasons_without_names() -> None:
    reason = template("site 'z0' has 3 rows: put it into a plate")
    assert reason == template("site 'z1' has 14 rows: put it into a plate")
    found = {0: Verdict("right"), 1: Verdict("refused", "bound", reason, True), 2: Verdict("refused", "bound", reason)}
    counted = summary(
        {**found, 3: Verdict("refused", "bound", "a", expected=True), 4: Verdict("wrong", "bound", "nan")}
    )
    assert (counted["right"], counted["refused"], counted["wrong"]) == (1, 3, 1)
    assert counted["refused, as they must be"] == 1
    assert counted["reasons"] == [{"reason": reason, "programs": 2, "right in stock Pyro": 1}]
    assert "| 5 | 1 | 1 | 2 | 1 | 1 |" in markdown(counted)
