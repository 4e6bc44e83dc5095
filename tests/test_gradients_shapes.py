"""Estimators on programs whose runs differ, and on plates that take turns: against sums over all runs."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from every_run import drawn, exact_loss, gradients, largest_z, leaves_of, z_scores
from torch import Tensor

from ppgen import ELBO, IWAE, Trainer, programs
from ppgen.errors import ConfigError
from ppgen.gradients import Plan
from ppgen.programs import Dependencies

LIMIT = 4.5
FLAGGED = 6.0


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    with programs.Store().active():
        yield


def unit(name: str, logits: Any) -> Tensor:
    value: Tensor = pyro.sample(name, dist.Bernoulli(logits=logits))
    return value


def number(name: str, value: float) -> Tensor:
    made: Tensor = pyro.param(name, torch.tensor(value))
    return made


# ------------------------------------------------------------------------------------------ what a run chooses to run

READS: dict[str, Callable[[Tensor], bool]] = {
    "comparison": lambda a: bool(a == 1),
    "item": lambda a: a.item() > 0.5,
    "int": lambda a: int(a) == 1,
    "index": lambda a: [False, True][a.long()],
    "list": lambda a: a.reshape(1).tolist() == [1.0],
    "NumPy": lambda a: bool(a.numpy() > 0.5),
    "in": lambda a: a in torch.ones(1),
    "shape": lambda a: len(a.reshape(1).nonzero()) == 1,
    "mask": lambda a: len(torch.ones(1)[a.reshape(1) > 0]) == 1,
}


def same_sites(read: Callable[[Tensor], bool]) -> tuple[Any, Any]:
    """A draw decides of what the other sites are."""

    def model() -> None:
        a = unit("a", 0.2)
        b = unit("b", 1.0 if read(a) else -1.0)
        pyro.sample("x", dist.Normal(2.0 * b if read(a) else -1.0, 1.0), obs=torch.tensor(1.5))

    def guide() -> None:
        a = unit("a", number("a_logit", -0.3))
        unit("b", number("b_one", 0.4) if read(a) else number("b_two", -0.6))

    return model, guide


@pytest.mark.parametrize("read", READS)
def test_what_a_program_chooses_by_a_draw_depends_on_it(read: str) -> None:
    found = programs.dependencies(*same_sites(READS[read]), ())
    assert found.of_term("b", "a")
    assert found.of_term("x", "a")
    assert found.read == {"a"}


def test_its_gradient_is_unbiased() -> None:
    assert largest_z(ELBO(estimator="rao-blackwell"), *same_sites(READS["item"]), calls=400) < LIMIT


def test_following_values_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Plan.prepare

    def values_only(self: Plan, joint: Any, pair: Any, **options: Any) -> None:
        by_value = Dependencies(
            {"a": frozenset({"a"}), "b": frozenset({"b"}), "x": frozenset({"b"})}, {}, {"a", "b"}, frozenset({"a"})
        )
        whole(self, joint, pair, **(options | {"dependents": lambda: by_value}))

    monkeypatch.setattr(Plan, "prepare", values_only)
    pair = same_sites(READS["item"])
    assert largest_z(ELBO(estimator="rao-blackwell"), *pair, calls=800) > FLAGGED


def other_sites() -> tuple[Any, Any]:
    """A draw decides which sites there are."""

    def model() -> None:
        a = unit("a", 0.2)
        mean = unit("b", 1.0) - 0.5 if a == 1 else unit("c", -0.5) * unit("d", 0.7)
        pyro.sample("x", dist.Normal(2 * mean, 1.0), obs=torch.tensor(1.5))

    def guide() -> None:
        if unit("a", number("a_logit", -0.3)) == 1:
            unit("b", number("b_logit", 0.4))
        else:
            unit("d", number("d_logit", 0.1) + unit("c", number("c_logit", -0.6)))

    return model, guide


@pytest.mark.parametrize("estimator", ["score", "rao-blackwell", {"a": "rao-blackwell", "b": "score", "": "score"}])
@pytest.mark.parametrize("seed", [0, 3])
def test_sites_of_other_branches_are_treated_as_well(estimator: Any, seed: int) -> None:
    assert largest_z(ELBO(estimator=estimator), *other_sites(), calls=500, seed=seed) < LIMIT


@pytest.mark.parametrize("estimator", ["moving-average", "nvil"])
def test_what_cannot_be_made_on_the_spot_is_refused_by_name(estimator: str) -> None:
    with pytest.raises(ConfigError, match=r"guide site '[bc]' is not drawn in every run"):
        largest_z(ELBO(estimator=estimator), *other_sites(), calls=50)


@pytest.mark.parametrize("options", [{"estimator": "muprop"}, {"estimator": "relax"}, {"estimator": "leave-one-out"}])
def test_a_draw_that_a_program_reads_is_not_one_of_several(options: Any) -> None:
    for particles in (1, 2):
        with pytest.raises(ConfigError, match=r"'a'.*several at once|compares particles|is not drawn in every run"):
            ELBO(**options, particles=particles)(*other_sites())


def test_a_site_of_another_branch_that_nobody_treats_is_refused() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.3))
        if model.more:  # type: ignore[attr-defined]
            unit("b", 0.0)

    def guide() -> None:
        pyro.sample("z", dist.Normal(number("loc", 0.0), 1.0))
        if model.more:  # type: ignore[attr-defined]
            unit("b", number("logit", 0.0))

    model.more = False  # type: ignore[attr-defined]
    objective = ELBO()
    objective(model, guide)
    model.more = True  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"guide site 'b' \(Bernoulli\) has no pathwise derivative"):
        objective(model, guide)


def test_a_site_of_another_batch_is_summed_like_the_others() -> None:
    def model(x: Tensor, more: Tensor) -> None:
        mean = unit("b", 0.0) + (unit("c", 0.5) if more.numel() else 0.0)
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor, more: Tensor) -> None:
        unit("b", number("b_logit", 0.3))
        if more.numel():
            unit("c", number("c_logit", -0.3))

    x, no, yes = torch.tensor(1.2), torch.ones(0), torch.ones(1)
    objective = ELBO(estimator="enumerate")
    with programs.Store().active():
        objective(model, guide, x, no)
        found = objective(model, guide, x, yes)
        assert abs(found - exact_loss(model, guide, x, yes)) < 1e-5


def test_a_site_that_takes_turns_at_being_different_things_is_refused() -> None:
    def model(normal: bool) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0) if normal else dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide(normal: bool) -> None:
        p = number("p", 0.1)
        pyro.sample("z", dist.Normal(p, 1.0) if normal else dist.Bernoulli(logits=p))

    objective = ELBO(estimator={"": "score"})
    with pytest.raises(ConfigError, match="finds no site"):
        objective(model, guide, True)
    objective(model, guide, False)
    with pytest.raises(ConfigError, match="'z' takes turns at being Bernoulli and Normal"):
        objective(model, guide, True)


def test_a_name_that_only_some_runs_have_is_a_name() -> None:
    for seed in range(4):
        assert largest_z(ELBO(estimator={"b": "score", "": "score"}), *other_sites(), calls=200, seed=seed) < LIMIT
    with pytest.raises(ConfigError, match="there is no guide site 'q' to estimate"):
        largest_z(ELBO(estimator={"q": "score", "": "score"}), *other_sites(), calls=1)


def test_rows_that_are_chosen_by_chance_are_treated_one_by_one() -> None:
    x = torch.tensor([0.5, -1.0, 1.5, 0.1])

    def model() -> None:
        for i in pyro.plate("rows", 4, subsample_size=2):
            z = unit(f"z_{i}", 0.3)
            pyro.sample(f"x_{i}", dist.Normal(2 * z, 1.0), obs=x[i])

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, -0.2, 0.6, 0.0]))
        for i in pyro.plate("rows", 4, subsample_size=2):
            unit(f"z_{i}", logits[i])

    def whole_model() -> None:
        for i in range(4):
            z = unit(f"z_{i}", 0.3)
            pyro.sample(f"x_{i}", dist.Normal(2 * z, 1.0), obs=x[i])

    def whole_guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, -0.2, 0.6, 0.0]))
        for i in range(4):
            unit(f"z_{i}", logits[i])

    torch.manual_seed(0)
    for estimator in ("score", "rao-blackwell"):
        with programs.Store().active(), programs.quiet():
            leaves = leaves_of(whole_model, whole_guide)
            exact = gradients(exact_loss(whole_model, whole_guide), leaves)
            found = drawn(ELBO(estimator=estimator), model, guide, calls=200, leaves=leaves)
            assert z_scores(found, exact).max() < LIMIT, estimator


# ---------------------------------------------------------------------------------------------- plates that take turns


def turns(one: int, other: int, *, inside: bool, chained: bool) -> tuple[Any, Any, Tensor, int]:
    """Plates of one and other many units at the same dimension; ``inside`` a data plate, or without one."""
    x = torch.tensor([0.8, -0.6])
    rows = len(x) if inside else 1

    def nested(place: int) -> Any:
        return pyro.plate("data", rows, dim=-1) if inside else pyro.plate(f"none_{place}", 1, dim=-1)

    def total(value: Tensor) -> Tensor:
        return value.sum(-2, keepdim=True)

    def model(x: Tensor) -> None:
        with nested(0):
            with pyro.plate("a", one, dim=-2):
                a = unit("a_units", pyro.param("pa", torch.full((one, 1), 0.2)))
            with pyro.plate("b", other, dim=-2):
                b = unit("b_units", pyro.param("pb", torch.linspace(-1, 1, other).unsqueeze(-1)) + 0.7 * total(a))
            weight = pyro.param("w", torch.tensor(1.0))
            pyro.sample("x", dist.Normal(weight * total(a) * total(b), 1.0), obs=x[:rows])

    def guide(x: Tensor) -> None:
        with nested(0):
            with pyro.plate("a", one, dim=-2):
                a = unit("a_units", pyro.param("qa", torch.linspace(-0.5, 0.5, one).unsqueeze(-1)) + 0.3 * x[:rows])
            with pyro.plate("b", other, dim=-2):
                lead = total(a) if chained else 0.0
                unit("b_units", pyro.param("qb", torch.linspace(-0.8, 0.3, other).unsqueeze(-1)) + lead)

    return model, guide, x, rows


PER_SITE = ["score", "rao-blackwell", "leave-one-out", "nvil", "moving-average", "muprop", "rebar", "relax"]
QUICK = {("score", 2, 2), ("rao-blackwell", 2, 3), ("leave-one-out", 2, 2), ("nvil", 2, 3), ("rebar", 2, 2)}
SIZES = [(2, 2), (2, 3)]


@pytest.mark.parametrize(
    ("estimator", "one", "other"),
    [pytest.param(e, *s, marks=() if (e, *s) in QUICK else pytest.mark.slow) for e in PER_SITE for s in SIZES],
)
@pytest.mark.parametrize("inside", [True, False])
def test_plates_at_one_dimension_are_told_apart(estimator: str, one: int, other: int, inside: bool) -> None:
    model, guide, x, rows = turns(one, other, inside=inside, chained=True)
    objective = ELBO(estimator=estimator, particles=1000)
    if estimator == "nvil" and not inside:
        pytest.skip("no row shows anything to units outside of the data plate")
    assert largest_z(objective, model, guide, x, calls=40, size=rows) < LIMIT


def test_comparing_dimensions_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_dimension(self: Any, name: str, cost: Any) -> frozenset[int]:
        return frozenset(frame.dim for frame in self.joint.guide.nodes[name]["cond_indep_stack"])

    monkeypatch.setattr("ppgen.gradients.sites.Plates.shared", by_dimension)
    model, guide, x, rows = turns(2, 2, inside=True, chained=True)
    objective = ELBO(estimator="leave-one-out", particles=8000)
    assert largest_z(objective, model, guide, x, calls=40, size=rows) > FLAGGED


def test_global_and_data_plates_take_turns() -> None:
    x = torch.tensor([0.8, -0.6, 0.3])

    def model(x: Tensor) -> None:
        with pyro.plate("topics", 3):
            topics = unit("topics_on", pyro.param("pt", torch.tensor([0.1, -0.4, 0.3])))
        with pyro.plate("data", len(x)):
            z = unit("z", topics.sum(-1, keepdim=True) - 1)
            pyro.sample("x", dist.Normal(2 * z + topics[..., :1], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = unit("z", pyro.param("qz", torch.tensor(0.2)) * x)
        with pyro.plate("topics", 3):
            unit("topics_on", pyro.param("qt", torch.tensor([0.0, 0.5, -0.5])) + z.sum(-1, keepdim=True))

    for estimator in ("score", "rao-blackwell", "leave-one-out", "relax"):
        assert largest_z(ELBO(estimator=estimator, particles=1000), model, guide, x, calls=40, size=3) < LIMIT


# -------------------------------------------------------------------------------------------------- one plan of a pair


def gaussian_pair() -> tuple[Any, Any]:
    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Normal(number("loc", 0.0), 1.0))

    return model, guide


def unit_pair() -> tuple[Any, Any]:
    def model() -> None:
        pyro.sample("x", dist.Normal(unit("z", 0.0), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        unit("z", number("logit", 0.0))

    return model, guide


@pytest.mark.parametrize("make", [ELBO, lambda: IWAE(particles=3)])
def test_what_is_refused_alone_is_refused_second(make: Any) -> None:
    objective = make()
    objective(*gaussian_pair())
    with pytest.raises(ConfigError, match=r"guide site 'z' \(Bernoulli\) has no pathwise derivative"):
        objective(*unit_pair())
    objective(*gaussian_pair())


def test_one_objective_is_right_for_two_pairs_in_turns() -> None:
    objective = ELBO(estimator="rao-blackwell")
    one, two = same_sites(READS["item"]), other_sites()
    for pair in (one, two, one):
        assert largest_z(objective, *pair, calls=400) < LIMIT


def test_a_bound_keeps_the_weights_of_each_pair() -> None:
    def whole(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def whole_guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.2, 0.7))

    def local_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.2, 0.7))

    x, pairs = torch.tensor([0.3, -0.5, 1.0]), ((whole, whole_guide), (local, local_guide))
    shared = IWAE(particles=4)
    for pair in pairs:
        shared(*pair, x)
    for pair in pairs:
        torch.manual_seed(0)
        found = shared(*pair, x)
        torch.manual_seed(0)
        alone = IWAE(particles=4)
        alone.check(*pair, (x,))
        torch.manual_seed(0)
        assert found == alone(*pair, x)


def test_what_learns_along_is_of_one_pair() -> None:
    objective = ELBO(estimator="moving-average")
    objective(*unit_pair())
    with pytest.raises(ConfigError, match=r"'z' learns along with one pair.*make an objective for each"):
        objective(*unit_pair())


def test_two_trainers_do_not_share_baselines() -> None:
    def trainer(objective: Any) -> Trainer:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(unit("z", 0.0), 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                unit("z", number("logit", 0.0) * x)

        return Trainer(model, guide, objective, torch.optim.Adam, compile="off")

    objective, batch = ELBO(estimator="nvil"), {"x": torch.tensor([0.1, 0.5])}
    trainer(objective).step(itertools.repeat(batch))
    with pytest.raises(ConfigError, match="make an objective for each"):
        trainer(objective).step(itertools.repeat(batch))


# ------------------------------------------------------------------------------------- a way around, outside of a plate


def test_a_draw_that_all_rows_feel_is_felt_by_all_rows() -> None:
    def model(x: Tensor) -> None:
        data = pyro.plate("data", len(x))
        whole = unit("whole", number("prior", 0.1))
        with data:
            z = unit("z", 0.2)
            pyro.sample("x", dist.Normal(z + 3 * whole, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = unit("z", pyro.param("q", torch.tensor([0.3, -0.3, 0.1])))
        unit("whole", 2 * z.sum(-1, keepdim=True).squeeze(-1) - 3)

    x = torch.tensor([0.8, -0.6, 1.3])
    for estimator in ("score", "rao-blackwell"):
        assert largest_z(ELBO(estimator=estimator), model, guide, x, calls=250, size=3) < LIMIT


def test_a_parameter_of_another_branch_is_not_left_untrained() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x[0])

    def guide(x: Tensor) -> None:
        first = number("first", 0.1)
        pyro.sample("z", dist.Normal(first + (number("late", 0.3) if further else 0.0), 1.0))

    further: list[int] = []
    trainer = Trainer(model, guide, ELBO(), torch.optim.Adam, compile="off")
    for _ in range(3):
        trainer.step(itertools.repeat({"x": torch.tensor([0.5])}))
    further.append(1)
    with pytest.raises(ConfigError, match="parameter 'late' is made in some runs only"):
        trainer.step(itertools.repeat({"x": torch.tensor([0.5])}))


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_trainers_take_sites_as_they_come(compile: Any) -> None:
    model, plain = other_sites()

    def guide() -> None:
        for name in ("b_logit", "c_logit", "d_logit"):
            number(name, 0.1)
        plain()

    objective = ELBO(estimator="rao-blackwell")
    trainer = Trainer(lambda x: model(), lambda x: guide(), objective, torch.optim.Adam, compile=compile)
    for _ in range(12):
        trainer.step(itertools.repeat({"x": torch.ones(1)}))
    assert set(objective.plan.estimators()) == {"a", "b", "c", "d"}
    assert list(objective.state_dict()) == ["step"]
