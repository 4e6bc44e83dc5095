"""Every estimator against the exact gradient: sums over all states of small belief nets."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute_force import (
    CASES,
    Case,
    Estimated,
    Parameters,
    Parts,
    bernoulli,
    estimated,
    gradients_of,
    inner_plate,
    listed,
    one_hot,
    one_layer,
    phase,
    subsampled,
    two_layers,
    whole_site,
    with_gaussian,
    with_label,
)
from torch import Tensor
from zoo import Gradients, z_score

from ppgen import ELBO, Trainer, programs
from ppgen.errors import ConfigError
from ppgen.gradients import (
    ESTIMATORS,
    REBAR,
    RELAX,
    GumbelSoftmax,
    LeaveOneOut,
    SignalEstimator,
    Situation,
    Spec,
    estimator,
)
from ppgen.gradients.control import Drawn

LIMIT = 4.5
FLAGGED = 6.0
PARTICLES = 2
SCORE = ["score", "moving-average", "nvil", "leave-one-out"]
CONTROL = ["muprop", "rebar", "relax"]
WHOLE = 4000
"""Particles where everything is drawn once for all rows."""


def exact(case: Case) -> tuple[float, Gradients]:
    """Loss and gradients, summed over all states."""
    loss = -listed(case).elbo().mean()
    return float(loss.detach()), gradients_of(loss, case.parameters())


def sampled(case: Case, spec: Spec, *, train: int = 20, analytic_kl: bool = True, calls: int = 50) -> Estimated:
    """At least 200,000 draws of a row."""
    objective = ELBO(estimator=spec, particles=WHOLE if case.whole else PARTICLES, analytic_kl=analytic_kl)
    return estimated(objective, case, repeats=1 if case.whole else 1000, calls=calls, train=train)


def require_unbiased(case: Case, spec: Spec, **options: Any) -> Estimated:
    loss, gradients = exact(case)
    found = sampled(case, spec, **options)
    scores = found.against(gradients)
    assert max(scores.values()) < LIMIT, scores
    assert abs(float(found.losses.mean()) - loss) < LIMIT * float(found.losses.std()) / len(found.losses) ** 0.5 + 1e-5
    return found


def largest_z(case: Case, spec: Spec, **options: Any) -> float:
    return max(sampled(case, spec, **options).against(exact(case)[1]).values())


# -------------------------------------------------------------------------------------------------- unbiased estimators

GRID = [(name, one) for name in CASES for one in (*SCORE, *CONTROL) if (name, one) != ("global", "nvil")]
GRID += [(name, "rao-blackwell") for name in ("two layers", "inner plate", "Gaussian before", "missing")]
GRID += [(name, "enumerate") for name in ("one-hot", "global", "Gaussian after", "Gaussian before")]


# the plain baselines and each kind of site once; all of the others with --slow
QUICK = {(name, "leave-one-out") for name in CASES} | {("two layers", one) for one in ESTIMATORS}
QUICK |= {("one-hot", "relax"), ("one-hot", "enumerate"), ("global", "relax"), ("inner plate", "rebar")}
QUICK |= {("masked", "muprop"), ("subsampled", "relax"), ("missing", "rao-blackwell"), ("Gaussian after", "enumerate")}


@pytest.mark.parametrize(
    ("case", "name"), [pytest.param(*both, marks=() if both in QUICK else pytest.mark.slow) for both in GRID]
)
def test_it_is_unbiased(case: str, name: str) -> None:
    assert ESTIMATORS[name].unbiased
    require_unbiased(CASES[case](), name)


@pytest.mark.parametrize("name", ["leave-one-out", "muprop", pytest.param("relax", marks=pytest.mark.slow)])
def test_it_is_unbiased_where_the_divergence_is_sampled_too(name: str) -> None:
    require_unbiased(two_layers(), name, analytic_kl=False)


def test_an_untrained_estimator_is_unbiased_as_well() -> None:
    for name in ("nvil", "relax"):
        require_unbiased(one_layer(), name, train=0)


def test_units_in_an_inner_plate_are_summed_one_by_one() -> None:
    case = inner_plate(coupled=False)
    require_unbiased(case, "rao-blackwell")
    enumerated = sampled(case, "enumerate", calls=2)
    assert max(enumerated.against(exact(case)[1]).values()) < LIMIT
    assert float(enumerated.losses.std()) < 1e-5, "nothing is drawn"


def test_a_site_that_depends_on_units_of_an_inner_plate_from_outside_cannot_be_summed_one_by_one() -> None:
    with pytest.raises(ConfigError, match="'y' depends on the enumerated site 'z' from outside its plate 'parts'"):
        sampled(inner_plate(), "enumerate", calls=1)


MIXTURES: list[tuple[Callable[[], Case], dict[str, str]]] = [
    (lambda: with_label(first="y"), {"z1": "relax", "y": "enumerate"}),
    (lambda: with_label(first="z1"), {"z1": "relax", "y": "enumerate"}),
    (lambda: with_label(first="y"), {"z1": "rebar", "y": "muprop"}),
    (lambda: with_label(first="z1"), {"z1": "rebar", "y": "muprop"}),
    (lambda: with_label(first="y"), {"z1": "relax", "y": "leave-one-out"}),
    (lambda: with_label(first="z1"), {"z1": "muprop", "y": "leave-one-out"}),
    (lambda: with_label(first="z1"), {"z1": "nvil", "y": "enumerate"}),
    (lambda: with_label(first="y"), {"z1": "nvil", "y": "enumerate"}),
    (two_layers, {"z1": "rebar", "z2": "muprop"}),
    (two_layers, {"z1": "muprop", "z2": "relax"}),
    (lambda: with_gaussian(first="y"), {"z": "leave-one-out", "y": "enumerate"}),
    (lambda: with_gaussian(first="z"), {"z": "leave-one-out", "y": "relax"}),
    (lambda: with_gaussian(first="y"), {"z": "leave-one-out", "y": "muprop"}),
]


@pytest.mark.parametrize(
    ("make", "spec"), [*MIXTURES[:2], *(pytest.param(*both, marks=pytest.mark.slow) for both in MIXTURES[2:])]
)
def test_estimators_mix(make: Callable[[], Case], spec: dict[str, str]) -> None:
    require_unbiased(make(), spec)


class Pathwise(LeaveOneOut):
    """Leaves the derivative through the draw where the score stands for it."""

    def draw(self, site: Any) -> Tensor | None:
        return None


def test_a_score_beside_a_pathwise_derivative_is_found_out() -> None:
    case = with_gaussian(first="z")
    assert largest_z(case, {"z": Pathwise(), "y": "enumerate"}) > FLAGGED


def test_text_is_a_mixture_too() -> None:
    case = with_label(first="y")
    one = sampled(case, {"z1": "relax", "y": "enumerate"}, calls=2)
    torch.manual_seed(0)
    two = estimated(ELBO(estimator="z1:relax, y:enumerate", particles=PARTICLES), case, calls=2)
    assert one.gradients.keys() == two.gradients.keys()
    assert max(two.against(exact(case)[1]).values()) < 50, "two calls are few"


def test_a_relaxed_site_before_one_that_is_drawn_without_a_derivative_is_refused() -> None:
    for late in ("score", "leave-one-out", "nvil"):
        with pytest.raises(ConfigError) as error:
            sampled(two_layers(), {"z1": "relax", "z2": late}, calls=1, train=0)
        assert str(error.value) == (
            "guide site 'z2' is drawn after 'z1' and depends on it: estimator 'relax' cannot differentiate through a"
            f" draw by '{late}'; take 'muprop' for 'z1', or 'relax' for both"
        )
    with pytest.raises(ConfigError, match="guide site 'z' is drawn after 'y' and depends on it"):
        sampled(with_gaussian(first="y"), {"y": "rebar", "z": "score"}, calls=1, train=0)


def both_levels() -> tuple[Any, Any, Tensor]:
    """A unit for all rows, and one for each."""

    def model(p: Parameters, x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=p["prior"][0]))
        with pyro.plate("data", 3 * len(x), subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Bernoulli(logits=p["prior"][1] + g))
            pyro.sample("x", dist.Normal(p["w"][0] * g + p["w"][1] * z, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=p["c"][0]))
        with pyro.plate("data", 3 * len(x), subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Bernoulli(logits=p["c"][1] + p["c"][2] * g + p["v"][0] * x))

    made = Parts(model, seed=1, prior=(2,), w=(2,)), Parts(guide, seed=2, c=(3,), v=(1,))
    return *made, torch.tensor([0.7, -0.4])


def exact_of_both_levels(model: Any, guide: Any, x: Tensor) -> Tensor:
    p, q, total = model.parts, guide.parts, torch.zeros(())
    states = torch.tensor([0.0, 1.0])
    for g in states:
        log_q = dist.Bernoulli(logits=q["c"][0]).log_prob(g)
        rows = torch.zeros(())
        for z in states:
            log_q_z = dist.Bernoulli(logits=q["c"][1] + q["c"][2] * g + q["v"][0] * x).log_prob(z)
            log_p = dist.Bernoulli(logits=p["prior"][1] + g).log_prob(z)
            log_p = log_p + dist.Normal(p["w"][0] * g + p["w"][1] * z, 1.0).log_prob(x)
            rows = rows + (log_q_z.exp() * (log_p - log_q_z)).sum()
        total = total + log_q.exp() * (dist.Bernoulli(logits=p["prior"][0]).log_prob(g) - log_q + 3 * rows)
    return -total / (3 * len(x))


@pytest.mark.parametrize(
    "spec",
    [
        "rao-blackwell",
        "leave-one-out",
        {"g": "relax", "z": "enumerate"},
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("score", "moving-average", "muprop", "relax")),
    ],
)
def test_global_and_local_sites_have_signals_of_their_own(spec: Spec) -> None:
    model, guide, x = both_levels()
    case = Case(model, guide, x, {}, whole=True)
    truth = gradients_of(exact_of_both_levels(model, guide, x), case.parameters())
    found = estimated(ELBO(estimator=spec, particles=WHOLE), case, repeats=1, calls=50, train=20).against(truth)
    assert max(found.values()) < LIMIT, found


def test_one_particle_will_do() -> None:
    for name in ("score", "nvil", "relax"):
        case = one_layer()
        found = estimated(ELBO(estimator=name), case, repeats=2000, calls=50, train=20)
        assert max(found.against(exact(case)[1]).values()) < LIMIT


# ------------------------------------------------------------------------------------------ what has to be found biased


@pytest.mark.parametrize("name", ["gumbel-softmax", "straight-through", "gumbel-straight-through", "concrete"])
def test_a_biased_estimator_says_so_and_is_found_out(name: str) -> None:
    assert not ESTIMATORS[name].unbiased
    for case in (one_layer(), one_hot()):
        assert largest_z(case, name) > FLAGGED


def test_all_others_claim_to_be_unbiased() -> None:
    biased = {name for name, kind in ESTIMATORS.items() if not kind.unbiased}
    assert biased == {"gumbel-softmax", "concrete", "straight-through", "gumbel-straight-through"}


class SelfIncluding(SignalEstimator):
    """A baseline of all draws, the one that it is taken from among them."""

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        return signal - signal.mean(0, keepdim=True), None


class Unconditional(REBAR):
    """The conditional draw is the draw itself."""

    def nodes(self, fn: Any, logits: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return z, z + 0 * logits


class Hard(RELAX):
    """Sites after the first are drawn without a derivative in its versions."""

    def followed(self, fn: Any, logits: Tensor, random: Tensor) -> Tensor:
        return ((logits + random) > 0).to(logits.dtype)


class Uneven(RELAX):
    """What is added at the one draw is not added at the other."""

    def free(self, drawn: Drawn, node: Tensor) -> Tensor:
        return super().free(drawn, node) + (node.sum(-1) if node is drawn.nodes[0] else 0.0)


@pytest.mark.parametrize(
    ("make", "broken"),
    [(one_layer, SelfIncluding()), (one_layer, Unconditional()), (two_layers, Hard()), (one_layer, Uneven())],
)
def test_a_broken_estimator_is_found_out(make: Callable[[], Case], broken: Any) -> None:
    assert largest_z(make(), broken, train=0) > FLAGGED


def test_the_bias_of_a_relaxation_falls_with_its_temperature() -> None:
    case = one_layer()
    truth = exact(case)[1]

    def bias(one: GumbelSoftmax) -> float:
        found = sampled(case, one).gradients
        return float(sum((found[n].mean(0) - truth[n]).square().sum() for n in truth if n.startswith("guide")))

    warm, cold = bias(GumbelSoftmax(temperature=1.0)), bias(GumbelSoftmax(temperature=0.3))
    assert cold < warm / 4
    annealed = ELBO(estimator=GumbelSoftmax(temperature=1.0, final=0.25, anneal=10))
    annealed.setup(case.model, case.guide, {"x": case.x})
    (one,) = annealed.plan.estimators().values()
    assert isinstance(one, GumbelSoftmax)
    found = []
    for step in (0, 5, 10, 1000):
        annealed.step.fill_(step)
        annealed.share_clock()
        found.append(float(one.temperature()))
    assert found == pytest.approx([1.0, 0.5, 0.25, 0.25])


# ------------------------------------------------------------------------------------------------------------ variances


def test_baselines_and_control_variates_lower_the_variance() -> None:
    case = one_layer()
    variance = {name: sampled(case, name, train=60).variance() for name in (*SCORE, *CONTROL)}
    assert variance["score"] > 3 * variance["leave-one-out"]
    assert variance["score"] > 3 * variance["moving-average"]
    assert variance["moving-average"] > variance["nvil"]
    for name in CONTROL:
        assert variance["nvil"] > 1.5 * variance[name], name


def test_leaving_out_terms_that_do_not_depend_on_a_draw_lowers_the_variance() -> None:
    case = two_layers()
    assert sampled(case, "score").variance() > 1.3 * sampled(case, "rao-blackwell").variance()
    one, two = (sampled(one_layer(), name, calls=3).gradients for name in ("score", "rao-blackwell"))
    assert one.keys() == two.keys()


def test_training_a_control_variate_lowers_the_variance() -> None:
    case = one_layer()
    for name in ("nvil", "relax"):
        before, after = (sampled(case, name, train=train, calls=30).variance() for train in (0, 100))
        assert after < before, name


def test_vimco_of_a_single_sample_bound_is_leave_one_out() -> None:
    found = []
    for name in ("vimco", "leave-one-out", "score"):
        torch.manual_seed(3)
        found.append(sampled(one_layer(), name, calls=3).gradients["guide.parts.v"])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2]), "negative control"


# ------------------------------------------------------------------------------------------------------------- refusals


def pair_of(fn: Callable[[], Any]) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", fn())
            total = z.sum(-1) if fn().event_shape else z
            pyro.sample("x", dist.Normal(total * 1.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn())

    return model, guide


def refused(name: Spec, fn: Callable[[], Any], *, particles: int = 1) -> str:
    model, guide = pair_of(fn)
    with pytest.raises(ConfigError) as error:
        ELBO(estimator=name, particles=particles).setup(model, guide, {"x": torch.tensor([0.3, 0.5])})
    return str(error.value)


def normal() -> Any:
    return dist.Normal(0.0, 1.0)


def poisson() -> Any:
    return dist.Poisson(torch.tensor(2.0))


def categorical() -> Any:
    return dist.Categorical(torch.ones(3) / 3)


def units() -> Any:
    return bernoulli(torch.zeros(2))


RELAXED = ["gumbel-softmax", "concrete", "straight-through", "gumbel-straight-through", *CONTROL]


@pytest.mark.parametrize("name", RELAXED)
def test_what_relaxes_takes_units_and_one_hot_vectors_only(name: str) -> None:
    start = f"estimator '{name}' cannot treat guide site 'z': it takes Bernoulli and OneHotCategorical sites"
    assert refused(name, categorical) == f"{start}; make the Categorical a OneHotCategorical"
    assert refused(name, poisson) == f"{start}; got Poisson"
    assert refused({"z": name}, normal) == f"{start}; got Normal"


def test_only_what_has_few_states_is_enumerated() -> None:
    start = "estimator 'enumerate' cannot treat guide site 'z': "
    assert refused("enumerate", poisson) == start + "a Poisson has no finite list of states"
    assert refused({"z": "enumerate"}, normal) == start + "a Normal has no finite list of states"
    assert refused("enumerate", units) == start + "it has too many joint states (event shape (2,))"


def test_a_path_needs_a_derivative() -> None:
    assert "estimator 'pathwise' cannot treat guide site 'z'" in refused("pathwise", units)
    assert "estimator 'pathwise' cannot treat guide site 'z'" in refused("pathwise", poisson)


@pytest.mark.parametrize("name", ["leave-one-out", "vimco"])
def test_comparing_particles_takes_two(name: str) -> None:
    expected = f"estimator '{name}' cannot treat guide site 'z': it compares particles: give at least 2"
    assert refused(name, units) == expected


@pytest.mark.parametrize("name", ["score", "moving-average", "nvil", "rao-blackwell"])
def test_a_point_has_no_score(name: str) -> None:
    where = torch.tensor(0.5)
    expected = f"estimator '{name}' cannot treat guide site 'z': a Delta has no density"
    assert refused({"z": name}, lambda: dist.Delta(where)) == expected


def test_nvil_is_a_moving_average_where_a_row_shows_nothing() -> None:
    losses = []
    for name in ("nvil", "moving-average"):
        case = whole_site()
        torch.manual_seed(0)
        trainer = Trainer(case.model, case.guide, ELBO(estimator=name), device="cpu", compile="off")
        losses.append([float(trainer.step(iter([{"x": case.x}]))["gradient_norm"]) for _ in range(5)])
    assert losses[0] == losses[1]


def test_a_site_without_a_pathwise_derivative_needs_an_estimator() -> None:
    message = refused(None, units)
    assert "guide site 'z' (Bernoulli) has no pathwise derivative, so its gradient would be biased" in message
    assert "enumerate" not in message, "a vector of units is not summed out"
    assert "estimator='enumerate' sums it out" in refused(None, categorical)


def test_a_wrong_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match="there is no estimator 'relaxx': did you mean 'relax'"):
        ELBO(estimator="relaxx")
    with pytest.raises(ConfigError, match="there is no guide site 'q' to estimate; there are z"):
        ELBO(estimator="q:relax").setup(one_layer().model, one_layer().guide, {"x": one_layer().x})
    with pytest.raises(ConfigError, match="estimator 'nvil' has no option temperature: it has decay, hidden"):
        estimator("nvil", temperature=1.0)
    case = one_layer()
    with pytest.raises(ConfigError, match="free_bits need pathwise derivatives"):
        ELBO(estimator="score", free_bits=0.5).setup(case.model, case.guide, {"x": case.x})


# --------------------------------------------------------------------------------------------------------- other things


def test_a_site_keeps_its_estimator_whatever_else_is_drawn() -> None:
    """A Gaussian site keeps its pathwise derivative beside a discrete one that is estimated."""
    case = with_gaussian(first="y")
    objective = ELBO(estimator="relax")
    objective.setup(case.model, case.guide, {"x": case.x})
    assert list(objective.plan.estimators()) == ["y"]
    scored = ELBO(estimator={"y": "relax", "z": "score"})
    scored.setup(case.model, case.guide, {"x": case.x})
    assert list(scored.plan.estimators()) == ["y", "z"]


def test_the_loss_of_control_variates_is_the_variance_of_the_gradient() -> None:
    """Its gradient with respect to the scale of REBAR is that of the squared norm of the gradient of the logits."""
    case = one_layer()
    objective = ELBO(estimator="rebar")
    with programs.Store().active():
        objective.setup(case.model, case.guide, {"x": case.x})
        (rebar,) = objective.plan.estimators().values()
        assert isinstance(rebar, REBAR)

        def variance(scale: float) -> Tensor:
            torch.manual_seed(1)
            rebar.scale.data.fill_(scale)
            with programs.quiet():
                return phase(objective, case, case.x.repeat(2000, 1))["estimator"]

        (slope,) = torch.autograd.grad(variance(0.7), [rebar.scale])
        numeric = (variance(0.71).item() - variance(0.69).item()) / 0.02
        assert float(slope) == pytest.approx(numeric, rel=1e-2)
        assert variance(0.7).item() < variance(3.0).item(), "a control variate that is too large adds variance"


def test_a_mask_that_is_left_out_is_found_out() -> None:
    """Negative control of the masked case: the exact gradient of the rows that count is another."""
    case = CASES["masked"]()
    found = sampled(case, "leave-one-out")
    without = Case(case.model, case.guide, case.x.clone(), case.states)
    without.x[:, 2:] = 1.0
    assert max(found.against(exact(without)[1]).values()) > FLAGGED


def test_a_scale_that_is_left_out_is_found_out() -> None:
    """Negative control of the subsampled case."""
    case = subsampled()
    found = sampled(case, "leave-one-out", calls=20)
    half = {name: 0.5 * gradient for name, gradient in exact(case)[1].items()}
    assert max(found.against(half).values()) > FLAGGED
    assert z_score(found.losses, 0.5 * exact(case)[0]) > FLAGGED
