"""Gradients of bounds: by scores against sums over all pairs of states, by paths against each other."""

import math
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
    estimated,
    gradients_of,
    listed,
    one_layer,
    two_layers,
    whole_site,
    with_gaussian,
)
from pyro.infer import RenyiELBO
from test_gradients import SelfIncluding, both_levels
from torch import Tensor
from zoo import Gradients, z_between, z_score

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.gradients import VIMCO, Spec
from ppgen.objectives import CIWAE, IWAE, MIWAE, Renyi, VRMax
from ppgen.objectives.bounds import Bound, Gradient

LIMIT = 4.5
FLAGGED = 6.0
NAMES = ["score", "moving-average", "nvil", "leave-one-out", "vimco"]


def bound_of(alpha: float) -> Callable[[Tensor], Tensor]:
    """The bound of two samples, in the first dimension."""

    def bound(log_w: Tensor) -> Tensor:
        if alpha == 1:
            return log_w.mean(0)
        return ((1 - alpha) * log_w).exp().mean(0).log() / (1 - alpha)

    return bound


def truth(case: Case, alpha: float) -> tuple[float, Gradients]:
    loss = -listed(case).of_pairs(bound_of(alpha)).mean()
    return loss.item(), gradients_of(loss, case.parameters())


def objective_of(alpha: float, spec: Spec, **options: Any) -> Bound:
    if alpha == 0:
        return IWAE(particles=2, estimator=spec, **options)
    return Renyi(alpha=alpha, particles=2, estimator=spec, **options)


def require_exact(found: Estimated, loss: float, gradients: Gradients) -> None:
    scores = found.against(gradients)
    assert max(scores.values()) < LIMIT, scores
    assert z_score(found.losses, loss) < LIMIT


# ------------------------------------------------------------------------------------------- by scores, discrete guides


GRID = [
    (case, name, alpha)
    for case in ("one layer", "two layers", "inner plate", "masked", "subsampled", "missing")
    for name in NAMES
    for alpha in (0.0, 0.5)
]
QUICK = {("one layer", name, 0.0) for name in NAMES} | {("one layer", "vimco", 0.5), ("two layers", "vimco", 0.0)}
QUICK |= {("inner plate", "vimco", 0.0), ("masked", "vimco", 0.5), ("subsampled", "leave-one-out", 0.0)}


@pytest.mark.parametrize(
    ("case", "name", "alpha"), [pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow) for row in GRID]
)
def test_scores_are_unbiased(case: str, name: str, alpha: float) -> None:
    made = CASES[case]()
    found = estimated(objective_of(alpha, name), made, repeats=1000, calls=50, train=20)
    require_exact(found, *truth(made, alpha))


@pytest.mark.parametrize("name", ["score", "leave-one-out", "vimco"])
def test_a_gaussian_beside_a_discrete_site(name: str) -> None:
    case = with_gaussian(first="y")
    found = estimated(objective_of(0.0, name), case, repeats=1000, calls=50)
    require_exact(found, *truth(case, 0.0))


def whole_truth(case: Case, alpha: float) -> tuple[float, Gradients]:
    """One weight for all rows."""
    rows = len(case.x)
    found = listed(case)
    whole = type(found)(found.log_p * rows, found.log_q * rows, found.chance)
    loss = -whole.of_pairs(bound_of(alpha)).mean() / rows
    return loss.item(), gradients_of(loss, case.parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", ["score", "moving-average", "leave-one-out", "vimco"])
def test_a_site_for_all_rows_has_one_weight(name: str, alpha: float) -> None:
    case = whole_site()
    found = estimated(objective_of(alpha, name, outer=2000), case, repeats=1, calls=50, train=5)
    require_exact(found, *whole_truth(case, alpha))


def levels_truth(model: Any, guide: Any, x: Tensor, alpha: float) -> Tensor:
    """E_q(g)[log p(g) - log q(g) + sum of N / B times the bound of two local samples], over -N."""
    p, q, total = model.parts, guide.parts, torch.zeros(())
    states = torch.tensor([0.0, 1.0])
    for g in states:
        log_q = dist.Bernoulli(logits=q["c"][0]).log_prob(g)
        chances, log_w = [], []
        for z in states:
            log_q_z = dist.Bernoulli(logits=q["c"][1] + q["c"][2] * g + q["v"][0] * x).log_prob(z)
            log_p = dist.Bernoulli(logits=p["prior"][1] + g).log_prob(z)
            log_w.append(log_p + dist.Normal(p["w"][0] * g + p["w"][1] * z, 1.0).log_prob(x) - log_q_z)
            chances.append(log_q_z.exp())
        rows = sum(
            (chances[i] * chances[j] * bound_of(alpha)(torch.stack([log_w[i], log_w[j]]))).sum()
            for i in range(2)
            for j in range(2)
        )
        total = total + log_q.exp() * (dist.Bernoulli(logits=p["prior"][0]).log_prob(g) - log_q + 3 * rows)
    return -total / (3 * len(x))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", ["score", "moving-average", "leave-one-out", "vimco"])
def test_global_and_local_sites_have_signals_of_their_own(name: str, alpha: float) -> None:
    model, guide, x = both_levels()
    case = Case(model, guide, x, {}, whole=True)
    loss = levels_truth(model, guide, x, alpha)
    found = estimated(objective_of(alpha, name, outer=4000), case, repeats=1, calls=50, train=5)
    require_exact(found, loss.item(), gradients_of(loss, case.parameters()))


def test_an_enumerated_site_beside_a_scored_one() -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=p["prior"][0]))
            z = pyro.sample("z", dist.Bernoulli(logits=p["prior"][1] + p["w"][0] * y))
            pyro.sample("x", dist.Normal(p["w"][1] * z + p["w"][2] * y, 1.0), obs=x)

    def guide_of(*, coupled: bool) -> Callable[..., None]:
        def guide(p: Parameters, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(logits=p["v"][0] * x))
                pyro.sample("z", dist.Bernoulli(logits=p["v"][1] * x + (p["v"][2] * y if coupled else p["v"][2])))

        return guide

    x, states = torch.tensor([0.7, -1.2]), torch.tensor([0.0, 1.0])
    made = Parts(model, seed=1, prior=(2,), w=(3,)), Parts(guide_of(coupled=False), seed=2, v=(3,))
    case = Case(*made, x, {"y": states.repeat_interleave(2), "z": states.repeat(2)})
    log_w = listed(case)
    # sum over y of q(y) inside the bound, all pairs of z outside of it
    inside = log_w.log_p.view(2, 2, 2) - log_w.log_q.view(2, 2, 2)
    log_q_y = dist.Bernoulli(logits=made[1].parts["v"][0] * x).log_prob(states.unsqueeze(-1))
    log_q_z = dist.Bernoulli(logits=made[1].parts["v"][1] * x + made[1].parts["v"][2]).log_prob(states.unsqueeze(-1))
    loss = torch.zeros(())
    for one in range(2):
        for two in range(2):
            pair = torch.stack([inside[:, one], inside[:, two]])  # (samples, y, rows)
            bound = (log_q_y.exp() * pair.exp()).sum(1).mean(0).log()
            loss = loss - (log_q_z[one].exp() * log_q_z[two].exp() * bound).mean()
    gradients = gradients_of(loss, case.parameters())
    for name in ("score", "leave-one-out", "vimco"):
        found = estimated(objective_of(0.0, {"y": "enumerate", "z": name}), case, repeats=1000, calls=50)
        require_exact(found, loss.item(), gradients)
    coupled = Case(made[0], Parts(guide_of(coupled=True), seed=2, v=(3,)), x, {})
    with pytest.raises(ConfigError, match="site 'z' depends on an enumerated site: take pathwise, or enumerate it too"):
        estimated(objective_of(0.0, {"y": "enumerate", "z": "vimco"}), coupled, calls=1)


class HalfItself(VIMCO):
    """Half the bound is its baseline: it includes the draw."""

    def advantage(self, signal: Tensor, situation: Any) -> tuple[Tensor, Tensor | None]:
        return 0.5 * signal, None


class Largest(VIMCO):
    """Weights that include the draw, in place of those of the others."""

    def advantage(self, signal: Tensor, situation: Any) -> tuple[Tensor, Tensor | None]:
        return signal - 0.5 * (signal + situation.left_out("geometric")), None


@pytest.mark.parametrize("broken", [HalfItself(), Largest(), SelfIncluding()])
def test_a_broken_baseline_is_found_out(broken: Any) -> None:
    case = one_layer()
    found = estimated(objective_of(0.0, broken, outer=2), case, repeats=300, calls=100)
    assert max(found.against(truth(case, 0.0)[1]).values()) > FLAGGED


@pytest.mark.filterwarnings("ignore:.*RenyiELBO.*:UserWarning")
def test_stock_renyi_is_wrong_for_a_discrete_guide() -> None:
    """What this project's bound cures; and the negative control of these tests."""
    case = one_layer()
    stock = RenyiELBO(alpha=0.5, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    parameters = case.parameters()
    kept: dict[str, list[Tensor]] = {name: [] for name in parameters}
    x = case.x.repeat(500, 1)
    with programs.Store().active(), programs.quiet():
        for _ in range(100):
            for parameter in parameters.values():
                parameter.grad = None
            stock.loss_and_grads(case.model, case.guide, x)
            for name, parameter in parameters.items():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                kept[name].append(gradient / len(x))
    found = Estimated(torch.zeros(1), {name: torch.stack(parts) for name, parts in kept.items()})
    scores = found.against(truth(case, 0.5)[1])
    assert max(scores[name] for name in scores if name.startswith("guide")) > FLAGGED


def test_variances_fall_as_they_should() -> None:
    case = two_layers()
    found = {}
    for name in NAMES:
        found[name] = estimated(objective_of(0.0, name), case, repeats=500, calls=60, train=50).variance()
    assert found["score"] > 2 * found["vimco"]
    assert found["score"] > 2 * found["leave-one-out"]
    assert found["score"] > found["nvil"]


def test_what_expands_an_objective_of_one_sample_is_refused() -> None:
    case = one_layer()
    for name in ("muprop", "rebar", "relax"):
        with pytest.raises(ConfigError) as error:
            IWAE(estimator=name).setup(case.model, case.guide, {"x": case.x})
        assert str(error.value) == (
            f"estimator '{name}' cannot treat guide site 'z': it expands an objective of one sample: use it with ELBO,"
            " or take vimco"
        )
    with pytest.raises(ConfigError, match="of a bound of several samples do not add up: take score, nvil or vimco"):
        IWAE(estimator="rao-blackwell").setup(case.model, case.guide, {"x": case.x})
    for name in ("vimco", "leave-one-out"):
        with pytest.raises(ConfigError, match="it compares particles: give at least 2"):
            IWAE(particles=1, estimator=name).setup(case.model, case.guide, {"x": case.x})
    with pytest.raises(ConfigError, match=r"guide site 'z' \(Bernoulli\) has no pathwise derivative"):
        IWAE().setup(case.model, case.guide, {"x": case.x})


# -------------------------------------------------------------------------------------------- by paths, Gaussian guides


def one_level() -> Case:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ p["w"], 0.7).to_event(1), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x @ p["v"] + 0.3 * p["a"], (0.3 * p["s"]).exp()).to_event(1))

    x = torch.tensor([[0.4, -0.3, 0.9], [-0.8, 0.1, 0.2]])
    return Case(Parts(model, seed=1, w=(2, 3)), Parts(guide, seed=2, v=(3, 2), a=(2,), s=(2,)), x, {})


def two_levels() -> Case:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(p["w"][0] * z2, 0.8))
            pyro.sample("x", dist.Normal(p["w"][1] * z1, 0.7), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(p["v"][0] * x + p["a"][0], (0.3 * p["s"][0]).exp()))
            scale = (0.3 * p["s"][1] + 0.3 * p["v"][2] * torch.tanh(z1)).exp()
            pyro.sample("z2", dist.Normal(p["v"][1] * z1 + p["a"][1], scale))

    x = torch.tensor([0.4, -1.2])
    return Case(Parts(model, seed=1, w=(2,)), Parts(guide, seed=2, v=(3,), a=(2,), s=(2,)), x, {})


def after_a_label() -> Case:
    return with_gaussian(first="y")


BOUNDS: dict[str, Callable[..., Bound]] = {
    "IWAE": lambda **o: IWAE(particles=5, **o),
    "Renyi 0.5": lambda **o: Renyi(alpha=0.5, particles=5, **o),
    "Renyi 2": lambda **o: Renyi(alpha=2.0, particles=5, **o),
    "Renyi -1": lambda **o: Renyi(alpha=-1.0, particles=5, **o),
    "Renyi 1": lambda **o: Renyi(alpha=1.0, particles=5, **o),
    "MIWAE": lambda **o: MIWAE(particles=3, outer=2, **o),
    "CIWAE": lambda **o: CIWAE(beta=0.3, particles=5, **o),
}
PAIRS = {"one level": one_level, "two levels": two_levels, "after a label": after_a_label}


def by(gradient: str, bound: Callable[..., Bound], case: Case, *, seed: int) -> Estimated:
    torch.manual_seed(seed)
    options = {"estimator": "enumerate"} if case.states else {}
    return estimated(bound(gradient=gradient, **options), case, repeats=1000, calls=40)


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        pytest.param(
            pair, name, marks=() if pair == "two levels" or name in ("IWAE", "Renyi 0.5") else pytest.mark.slow
        )
        for pair in PAIRS
        for name in BOUNDS
    ],
)
def test_doubly_reparameterised_gradients_have_the_same_mean(pair: str, name: str) -> None:
    case = PAIRS[pair]()
    total = by("total", BOUNDS[name], case, seed=1)
    doubly = by("doubly-reparameterized", BOUNDS[name], case, seed=2)
    for leaf, draws in total.gradients.items():
        assert z_between(draws, doubly.gradients[leaf]) < LIMIT, leaf
    assert z_between(total.losses, doubly.losses) < LIMIT


def test_a_largest_weight_has_doubly_reparameterised_gradients_too() -> None:
    """Only in the limit: the score of which weight is the largest is left out by total gradients as well."""
    case = one_level()
    found = by("doubly-reparameterized", lambda **o: VRMax(particles=5, **o), case, seed=1)
    assert all(bool(draws.isfinite().all()) for draws in found.gradients.values())


def test_doubly_reparameterised_gradients_vary_less() -> None:
    for name in ("IWAE", "Renyi 0.5"):
        for case in (one_level(), two_levels()):
            total = by("total", BOUNDS[name], case, seed=1)
            doubly = by("doubly-reparameterized", BOUNDS[name], case, seed=2)
            assert doubly.variance() < 0.8 * total.variance()
            assert z_between(total.gradients["model.parts.w"], 1.2 * doubly.gradients["model.parts.w"]) > FLAGGED


def test_sticking_the_landing_is_unbiased_with_one_sample_only() -> None:
    case = one_level()

    def z(samples: int, gradient: str) -> float:
        one = by("total", lambda **o: IWAE(particles=samples, **o), case, seed=1)
        two = by(gradient, lambda **o: IWAE(particles=samples, **o), case, seed=2)
        return max(z_between(draws, two.gradients[leaf]) for leaf, draws in one.gradients.items())

    assert z(1, "sticking-the-landing") < LIMIT
    assert z(5, "sticking-the-landing") > FLAGGED, "negative control"
    assert z(5, "doubly-reparameterized") < LIMIT
    several = by("sticking-the-landing", BOUNDS["Renyi 1"], case, seed=2)
    total = by("total", BOUNDS["Renyi 1"], case, seed=1)
    assert max(z_between(draws, several.gradients[leaf]) for leaf, draws in total.gradients.items()) < LIMIT


def test_at_the_posterior_both_have_no_variance() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Guide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.5))
            self.s = torch.nn.Parameter(torch.tensor(-0.5 * math.log(2)))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.a * x, self.s.exp()))

    x, guide = torch.tensor([0.4, -1.2, 2.0]), Guide()
    largest = {}
    every: tuple[Gradient, ...] = ("total", "sticking-the-landing", "doubly-reparameterized")
    for gradient in every:
        objective = IWAE(particles=5, gradient=gradient)
        objective.setup(model, guide, {"x": x})
        found = objective.phases()[0](model, guide, {"x": x})[0]
        gradients = torch.autograd.grad(found["guide" if "guide" in found else "all"], [*guide.parameters()])
        largest[gradient] = max(float(g.abs()) for g in gradients)
    assert largest["sticking-the-landing"] < 1e-5
    assert largest["doubly-reparameterized"] < 1e-5
    assert largest["total"] > 1e-2, "negative control"


def two_levels_with_a_global_one() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(g, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("g", dist.Normal(0.1, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    return model, guide


def test_what_these_gradients_cannot_do_is_refused() -> None:
    case = one_level()

    def prepared(objective: Bound, model: Any, guide: Any, x: Tensor) -> None:
        objective.setup(model, guide, {"x": x})
        objective.players(model, guide, {"x": x})

    def refusal(objective: Bound, model: Any, guide: Any, x: Tensor) -> str:
        with programs.Store().active(), pytest.raises(ConfigError) as error:
            prepared(objective, model, guide, x)
        return str(error.value)

    doubly: Gradient = "doubly-reparameterized"
    sticking: Gradient = "sticking-the-landing"
    both: tuple[Gradient, Gradient] = (doubly, sticking)

    def shared(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ p["w"].T, 1.0).to_event(1))

    tied = Parts(shared, seed=1)
    tied.parts = case.model.parts
    message = refusal(IWAE(gradient=doubly), case.model, tied, case.x)
    assert "is used by the model and by the guide, which are trained by different losses" in message

    def dropping(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            hidden = torch.nn.functional.dropout(x @ p["v"], 0.5)
            pyro.sample("z", dist.Normal(hidden, 1.0).to_event(1))

    random = Parts(dropping, seed=2, v=(3, 2))
    for gradient in both:
        assert "differs when it is run again (dropout?): take gradient=total" in refusal(
            IWAE(gradient=gradient),
            case.model,
            random,
            case.x,
        )
        discrete = one_layer()
        assert "is of pathwise derivatives: take gradient=total" in refusal(
            IWAE(gradient=gradient, estimator="vimco"),
            discrete.model,
            discrete.guide,
            discrete.x,
        )
    late = with_gaussian(first="z")
    assert "expect enumerated sites before all others of the guide" in refusal(
        IWAE(gradient=doubly, estimator="enumerate"),
        late.model,
        late.guide,
        late.x,
    )
    model, guide, x = both_levels()
    assert "no pathwise derivative" in refusal(IWAE(gradient=doubly), model, guide, x)
    gaussian, beside = two_levels_with_a_global_one()
    assert "are of one level of latents, and there are global and local ones" in refusal(
        IWAE(gradient=doubly),
        gaussian,
        beside,
        x,
    )
