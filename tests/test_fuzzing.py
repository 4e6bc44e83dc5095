"""Random programs: every number is right, or the program is refused with a reason that names a site or plate.

`python -m tests.fuzzing` checks many more of them, and prints what a person needs to repeat one.
"""

import pytest
from fuzzing.constrained import values_of
from fuzzing.description import Description, Site
from fuzzing.generator import describe
from fuzzing.known import KNOWN
from fuzzing.shrinking import shrunk
from fuzzing.source import program
from fuzzing.table import markdown, summary
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
