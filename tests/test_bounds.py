"""Bounds of several samples against closed forms, explicit formulas and sums over all states."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute_force import Parameters, Parts
from pyro import poutine
from test_objectives import Linear
from torch import Tensor
from zoo import repeated, value_and_gradients, z_between, z_score

from ppgen import ELBO, programs
from ppgen.errors import ConfigError
from ppgen.objectives import CIWAE, IWAE, MIWAE, PIWAE, Renyi, VRMax
from ppgen.objectives.bounds import Bound

LIMIT = 4.5
FLAGGED = 6.0
Weights = Tensor
"""Log weights ``(outer, samples, rows)``."""

# ---------------------------------------------------------------------------- a linear Gaussian model, a guide too wide


def wide_guide(linear: Linear) -> Callable[[Tensor], None]:
    mean, covariance = linear.posterior()
    scale = 1.5 * covariance.diagonal().sqrt()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    return guide


def losses(objective: Bound, model: Any, guide: Any, x: Tensor, *, calls: int = 200) -> Tensor:
    with programs.Store().active(), torch.no_grad():
        objective.setup(model, guide, {"x": x})
        with programs.quiet():
            return torch.stack([objective.loss(model, guide, {"x": x}) for _ in range(calls)])


def drawn_weights(objective: Bound, linear: Linear, guide: Any) -> Weights:
    """The log weights of the next call, written out."""
    joint = objective._drawn(linear.model, guide, {"x": linear.x})
    site = joint.guide.nodes["z"]
    z, rows = site["value"], len(linear.x)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    weight, offset = linear.model.decoder.weight, linear.model.decoder.bias
    log_x = torch.distributions.Normal(z @ weight.T + offset, linear.noise).log_prob(linear.x).sum(-1)
    log_w: Tensor = log_p + log_x - site["fn"].log_prob(z)
    return log_w.reshape(objective.outer, objective.particles, rows)


def power_mean(log_w: Weights, alpha: float) -> Tensor:
    return ((1 - alpha) * log_w).exp().mean(1).log() / (1 - alpha)


FORMULAS: dict[str, tuple[Callable[[], Bound], Callable[[Weights], Tensor]]] = {
    "IWAE": (lambda: IWAE(particles=5), lambda w: w.exp().mean(1).log()),
    "IWAE, 3 times": (lambda: IWAE(particles=5, outer=3), lambda w: w.exp().mean(1).log()),
    "Renyi 2": (lambda: Renyi(alpha=2.0, particles=5), lambda w: -((-w).exp().mean(1).log())),
    "Renyi 1": (lambda: Renyi(alpha=1.0, particles=5), lambda w: w.mean(1)),
    "Renyi 0.5": (lambda: Renyi(alpha=0.5, particles=5), lambda w: 2 * (w / 2).exp().mean(1).log()),
    "Renyi 0": (lambda: Renyi(alpha=0.0, particles=5), lambda w: power_mean(w, 0.0)),
    "Renyi -1": (lambda: Renyi(alpha=-1.0, particles=5), lambda w: (2 * w).exp().mean(1).log() / 2),
    "VR-max": (lambda: VRMax(particles=5), lambda w: w.amax(1)),
    "MIWAE": (lambda: MIWAE(particles=4, outer=3), lambda w: w.exp().mean(1).log()),
    "CIWAE": (lambda: CIWAE(beta=0.3, particles=5), lambda w: 0.3 * w.mean(1) + 0.7 * w.exp().mean(1).log()),
    "PIWAE": (lambda: PIWAE(particles=4, outer=3), lambda w: w.exp().mean(1).log()),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_its_formula(name: str) -> None:
    linear, (make, formula) = Linear(), FORMULAS[name]
    guide, objective = wide_guide(linear), make()
    with torch.no_grad():
        objective.setup(linear.model, guide, {"x": linear.x})
        torch.manual_seed(4)
        loss = float(objective.loss(linear.model, guide, {"x": linear.x}))
        torch.manual_seed(4)
        log_w = drawn_weights(objective, linear, guide)
    assert loss == pytest.approx(-float(formula(log_w).mean()), rel=1e-9)
    assert loss != pytest.approx(-float(power_mean(log_w, 0.7).mean()), rel=1e-5), "negative control: another bound"


def test_partially_weighted_bounds_have_a_loss_for_each_player() -> None:
    linear, objective = Linear(), PIWAE(particles=4, outer=3)
    slope = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    mean, covariance = linear.posterior()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * mean, 1.5 * covariance.diagonal().sqrt()).to_event(1))

    objective.setup(linear.model, guide, {"x": linear.x})
    (phase,) = objective.phases()
    torch.manual_seed(4)
    found = phase(linear.model, guide, {"x": linear.x})[0]
    torch.manual_seed(4)
    log_w = drawn_weights(objective, linear, guide)
    expected = {
        "model": -log_w.reshape(1, 12, -1).exp().mean(1).log().mean(),
        "guide": -log_w.exp().mean(1).log().mean(),
    }
    assert expected["model"].item() < expected["guide"].item() - 1e-3
    leaves = {"model": next(linear.model.parameters()), "guide": slope}
    for player, leaf in leaves.items():
        assert found[player].item() == pytest.approx(expected[player].item(), rel=1e-9)
        (ours,) = torch.autograd.grad(found[player], leaf, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected[player], leaf, retain_graph=True)
        (other,) = torch.autograd.grad(expected["guide" if player == "model" else "model"], leaf, retain_graph=True)
        assert torch.allclose(ours, theirs)
        assert not torch.allclose(ours, other, rtol=1e-3), "negative control: the other player's bound"


def test_bounds_of_more_samples_rise_and_stay_below_the_evidence() -> None:
    linear = Linear()
    guide, evidence = wide_guide(linear), float(linear.evidence().mean())
    found = {}
    for samples, calls in ((1, 400), (5, 200), (50, 100), (500, 50)):
        found[samples] = -losses(IWAE(particles=samples), linear.model, guide, linear.x, calls=calls)
    means = [float(draws.mean()) for draws in found.values()]
    errors = [float(draws.std()) / len(draws) ** 0.5 for draws in found.values()]
    for (low, low_error), (high, high_error) in itertools.pairwise(zip(means, errors, strict=True)):
        assert high - low > LIMIT * math.hypot(low_error, high_error)
    assert all(mean < evidence + 3 * error for mean, error in zip(means, errors, strict=True))
    assert evidence - means[-1] < 0.02
    assert z_score(found[1], evidence) > FLAGGED, "negative control"


def test_with_the_exact_posterior_every_draw_is_the_evidence() -> None:
    linear = Linear()
    evidence = -float(linear.evidence().mean())
    bounds = [IWAE(particles=3), VRMax(particles=3), MIWAE(particles=2, outer=2), CIWAE(particles=3), PIWAE()]
    for objective in [*bounds, *(Renyi(alpha=alpha, particles=3) for alpha in (2.0, 1.0, 0.5, 0.0, -1.0))]:
        for loss in losses(objective, linear.model, linear.exact_guide, linear.x, calls=5):
            assert float(loss) == pytest.approx(evidence, rel=1e-5)
        (loss,) = losses(objective, linear.model, wide_guide(linear), linear.x, calls=1)
        assert float(loss) != pytest.approx(evidence, rel=1e-3), "negative control"


def test_renyi_bounds_fall_with_alpha() -> None:
    linear = Linear()
    guide = wide_guide(linear)
    means = []
    for alpha in (2.0, 1.0, 0.5, 0.0, -1.0, float("-inf")):
        torch.manual_seed(2)
        means.append(-float(losses(Renyi(alpha=alpha, particles=10), linear.model, guide, linear.x).mean()))
    assert all(low < high - 1e-3 for low, high in itertools.pairwise(means))
    torch.manual_seed(2)
    assert -float(losses(VRMax(particles=10), linear.model, guide, linear.x).mean()) == means[-1]
    torch.manual_seed(2)
    assert -float(losses(IWAE(particles=10), linear.model, guide, linear.x).mean()) == means[3]
    one = losses(Renyi(alpha=1.0, particles=10), linear.model, guide, linear.x)
    elbo = torch.stack([ELBO(particles=10).loss(linear.model, guide, {"x": linear.x}).detach() for _ in range(200)])
    assert z_between(one, elbo) < LIMIT


# --------------------------------------------------------------------------------------------- subsampled, two levels


def chain(size: int | None = None) -> tuple[Any, Any]:
    """A global latent above local ones, both Gaussian."""

    def model(p: Parameters, x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample_size=size):
            z = pyro.sample("z", dist.Normal(g, 1.0))
            pyro.sample("x", dist.Normal(p["w"][0] * z, 0.7), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(p["a"][0], 0.5))
        with pyro.plate("data", 6, subsample_size=size):
            pyro.sample("z", dist.Normal(0.4 * x + p["a"][1] * g, 1.2))

    return Parts(model, seed=1, w=(1,)), Parts(guide, seed=4, a=(2,))


def of_rows(size: int | None = None) -> tuple[Any, Any]:
    """Local latents only."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", 6, subsample_size=size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(p["w"][0] * z, 0.7), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", 6, subsample_size=size):
            pyro.sample("z", dist.Normal(0.4 * x + p["a"][0], 1.2))

    return Parts(model, seed=1, w=(1,)), Parts(guide, seed=4, a=(1,))


X = torch.tensor([0.3, -1.2, 0.8, 2.0, -0.4, 1.1])


def bound_of(alpha: float, log_w: Tensor) -> Tensor:
    """Over the first dimension."""
    if math.isinf(alpha):
        return log_w.amax(0)
    return ((1 - alpha) * log_w).exp().mean(0).log() / (1 - alpha)


def chain_by_hand(model: Any, guide: Any, alpha: float, samples: int, *, whole: bool, draws: int = 4000) -> Tensor:
    """Losses of the formula in DESIGN.md, differentiable: ``(draws,)``."""
    normal, a, w = torch.distributions.Normal, guide.parts["a"], model.parts["w"][0]
    ratio = torch.zeros(draws)
    prior, shift = torch.zeros(()), a[0]
    if whole:
        q = normal(a[0], 0.5)
        g = q.rsample((draws,))
        ratio = normal(0.0, 1.0).log_prob(g) - q.log_prob(g)
        prior, shift = g.unsqueeze(-1), a[1] * g.unsqueeze(-1)
    local = normal((0.4 * X + shift).expand(draws, 6), 1.2)
    z = local.rsample((samples,))
    log_w = normal(prior, 1.0).log_prob(z) + normal(w * z, 0.7).log_prob(X) - local.log_prob(z)
    return -(ratio + bound_of(alpha, log_w).sum(-1)) / 6


@pytest.mark.parametrize("alpha", [0.0, 0.5, -math.inf])
@pytest.mark.parametrize("make", [of_rows, chain])
def test_of_some_rows_it_is_in_the_mean_that_of_all(make: Callable[..., Any], alpha: float) -> None:
    model, guide = make()
    names = {"w": model.parts["w"], "a": guide.parts["a"]}
    hand = [chain_by_hand(model, guide, alpha, 3, whole=make is chain).mean() for _ in range(60)]
    expected = torch.stack(hand).detach()
    slopes = {
        name: torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in hand])
        for name, leaf in names.items()
    }
    subsets = [torch.tensor(rows) for rows in itertools.combinations(range(6), 2)]
    for size, batches in ((None, [X] * 60), (2, [X[rows] for rows in subsets] * 30)):
        first, second = make(size)
        objective = Renyi(alpha=alpha, particles=3, outer=150)
        found, gradients = [], []
        with programs.Store().active():
            objective.setup(first, second, {"x": batches[0]})
            with programs.quiet():
                for x in batches:
                    loss = objective.loss(first, second, {"x": x})
                    found.append(loss.detach())
                    gradients.append(torch.autograd.grad(loss, [first.parts["w"], second.parts["a"]]))
        several = torch.stack(found)
        if size is not None:  # of every subset, the mean of its repeats: what varies is the noise alone
            several = several.reshape(30, len(subsets)).mean(1)
        assert z_between(several, expected) < LIMIT
        assert z_between(several / 3, expected) > FLAGGED, "negative control: without N / B"
        for place, name in enumerate(("w", "a")):
            parts = torch.stack([g[place] for g in gradients])
            assert z_between(parts, slopes[name]) < LIMIT, name


def test_a_weight_of_a_global_latent_takes_all_rows() -> None:
    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(g, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("g", dist.Normal(X.sum() / 7, 7**-0.5))

    evidence = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1.0).log_prob(X)
    for objective in (IWAE(particles=3), Renyi(particles=3), VRMax(particles=3)):
        assert float(objective.loss(model, guide, {"x": X})) == pytest.approx(-float(evidence) / 6, rel=1e-4)
    for kind in (IWAE, Renyi, VRMax, MIWAE, CIWAE):
        with pytest.raises(ConfigError) as error:
            kind(particles=3).setup(model, guide, {"x": X[:2]})
        assert str(error.value) == (
            "the weight of a draw of 'g' needs all 6 rows, and a batch has 2: no scale makes that a bound. Take all"
            " rows in every batch, or ELBO"
        )
    pair = chain(2)
    with pytest.raises(ConfigError, match="needs all 6 rows, and a batch has 2"):
        IWAE(particles=3, weights="joint").setup(*pair, {"x": X[:2]})
    with pytest.raises(ConfigError, match="PIWAE is of local latents: take IWAE"):
        PIWAE().setup(*chain(), {"x": X})


def test_a_joint_weight_is_below_one_for_each_datum() -> None:
    """With global and local latents, both are bounds; the joint one is the plain importance-weighted one."""
    model, guide = chain()
    draws = 4000
    with torch.no_grad():
        ours = losses(IWAE(particles=3, weights="joint", outer=50), model, guide, X)
    normal, a, w = torch.distributions.Normal, guide.parts["a"].detach(), model.parts["w"].detach()[0]
    hand = []
    for _ in range(40):
        g = normal(a[0], 0.5).sample((3, draws, 1))
        local = normal(0.4 * X + a[1] * g, 1.2)
        z = local.sample()
        log_w = normal(0.0, 1.0).log_prob(g).sum(-1) - normal(a[0], 0.5).log_prob(g).sum(-1)
        log_w = log_w + (normal(g, 1.0).log_prob(z) + normal(w * z, 0.7).log_prob(X) - local.log_prob(z)).sum(-1)
        hand.append(-log_w.exp().mean(0).log().mean() / 6)
    assert z_between(ours, torch.stack(hand)) < LIMIT
    assert z_between(losses(IWAE(particles=3, outer=50), model, guide, X), torch.stack(hand)) > FLAGGED


# -------------------------------------------------------------------------------------------------- enumerated guides


def labelled(p: Parameters, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
        z = pyro.sample("z", dist.Normal(p["shift"][y], 1.0))
        pyro.sample("x", dist.Normal(z + p["w"][y], 0.7), obs=x)


def labelling(p: Parameters, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=x.unsqueeze(-1) * p["v"]))
        pyro.sample("z", dist.Normal(p["a"][0] * x + p["c"][y], 1.3))


def label_pair() -> tuple[Parts, Parts]:
    return Parts(labelled, seed=1, prior=(3,), shift=(3,), w=(3,)), Parts(labelling, seed=2, v=(3,), a=(1,), c=(3,))


def label_weights(model: Parts, guide: Parts, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights ``(3, samples, rows)`` of draws of that shape, and log q(y) ``(3, 1, rows)``."""
    p, q, normal = model.parts, guide.parts, torch.distributions.Normal
    log_q = (X.unsqueeze(-1) * q["v"]).log_softmax(-1).T.unsqueeze(1)
    every = []
    for y in range(3):
        log_p = p["prior"].log_softmax(-1)[y] + normal(p["shift"][y], 1.0).log_prob(z[y])
        log_p = log_p + normal(z[y] + p["w"][y], 0.7).log_prob(X)
        every.append(log_p - log_q[y] - normal(q["a"][0] * X + q["c"][y], 1.3).log_prob(z[y]))
    return torch.stack(every), log_q


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_an_enumerated_guide_is_the_sum_over_its_states(alpha: float) -> None:
    model, guide = label_pair()
    objective = Renyi(alpha=alpha, particles=4, estimator="enumerate")
    leaves = [*model.parameters(), *guide.parameters()]
    with programs.Store().active():
        objective.setup(model, guide, {"x": X})
        with programs.quiet():
            torch.manual_seed(3)
            loss = objective.loss(model, guide, {"x": X})
            torch.manual_seed(3)
            site = objective._drawn(model, guide, {"x": X}).guide.nodes["z"]
    z = site["value"].expand(3, 4, 6)
    log_w, log_q = label_weights(model, guide, z)
    if alpha == 1:
        bound = (log_q.exp() * log_w).sum(0).mean(0)
    else:
        bound = (log_q.exp() * ((1 - alpha) * log_w).exp()).sum(0).mean(0).log() / (1 - alpha)
    expected = -bound.mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = torch.autograd.grad(expected, leaves, retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    alike = log_w.mean((0, 1)) if alpha == 1 else power_mean(log_w.reshape(1, 12, 6), alpha)
    assert loss.item() != pytest.approx(-alike.mean().item(), rel=1e-3), "negative control: states weigh the same"


def test_all_states_of_a_purely_discrete_guide_are_the_evidence() -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            pyro.sample("x", dist.Normal(p["w"][y], 0.7), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x.unsqueeze(-1) * p["v"]))

    made, inferred = Parts(model, seed=1, prior=(3,), w=(3,)), Parts(guide, seed=2, v=(3,))
    p = made.parts
    log_joint = p["prior"].log_softmax(-1) + dist.Normal(p["w"], 0.7).log_prob(X.unsqueeze(-1))
    evidence = -log_joint.logsumexp(-1).mean()
    log_q = (X.unsqueeze(-1) * inferred.parts["v"]).log_softmax(-1)
    for samples in (1, 2, 7):
        objective = IWAE(particles=samples, estimator="enumerate")
        loss, gradients = value_and_gradients(objective, made, inferred, {"x": X})
        assert float(loss) == pytest.approx(evidence.item(), rel=1e-5)
        expected = torch.autograd.grad(evidence, [p["prior"], p["w"]], retain_graph=True)
        assert torch.allclose(gradients["model.parts.prior"], expected[0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(gradients["model.parts.w"], expected[1], rtol=1e-4, atol=1e-5)
        assert float(gradients["guide.parts.v"].abs().max()) < 1e-5, "the evidence does not depend on the guide"
    half = value_and_gradients(Renyi(alpha=0.5, particles=2, estimator="enumerate"), made, inferred, {"x": X})[0]
    assert float(half) > evidence.item() + 1e-3, "negative control"
    brute = -2 * (log_q.exp() * ((log_joint - log_q) / 2).exp()).sum(-1).log().mean()
    assert float(half) == pytest.approx(brute.item(), rel=1e-5)


def test_a_plate_inside_the_data_plate_is_a_part_of_the_weight() -> None:
    """Three measurements of each row: the evidence is that of a correlated Gaussian vector."""
    x = torch.tensor([[0.5, 1.2, 0.8], [1.5, 1.1, 2.0], [0.1, 0.7, 0.4], [2.2, 1.9, 2.5]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide_of(width: float) -> Callable[[Tensor], None]:
        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.sum(-1) / 4, width))

        return guide

    evidence = -float(dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1.0).log_prob(x).mean())
    for objective in (IWAE(particles=3), IWAE(particles=3, outer=2), Renyi(alpha=0.5, particles=3), IWAE(particles=1)):
        assert losses(objective, model, guide_of(0.5), x, calls=3).tolist() == pytest.approx([evidence] * 3, rel=1e-4)
        assert float(losses(objective, model, guide_of(0.9), x, calls=50).mean()) > evidence + 1e-3
    weights = programs.log_weights(model, guide_of(0.5), {"x": x}, particles=5)
    assert weights.local.shape == (5, 4)
    assert float(weights.local.mean()) == pytest.approx(-evidence, rel=1e-4)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="expected particles, outer >= 1; got 0, 1"):
        IWAE(particles=0)
    with pytest.raises(ConfigError, match="expected gradient total, sticking-the-landing or doubly-reparameterized"):
        IWAE(gradient="stl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected weights auto, datum or joint; got 'row'"):
        IWAE(weights="row")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected alpha below infinity; got nan"):
        Renyi(alpha=math.nan)
    with pytest.raises(ConfigError, match="expected 0 <= beta <= 1; got 2"):
        CIWAE(beta=2.0)


def test_a_row_of_a_bound_is_a_row_of_the_weights() -> None:
    """With one sample all bounds are one and the same draw."""
    linear = Linear()
    found = []
    for objective in (IWAE(particles=1), VRMax(particles=1), CIWAE(particles=1), Renyi(alpha=2.0, particles=1)):
        torch.manual_seed(6)
        found.append(float(losses(objective, linear.model, wide_guide(linear), linear.x, calls=1)[0]))
    assert found == pytest.approx([found[0]] * 4, rel=1e-9)
    ours = repeated(ELBO(analytic_kl=False), linear.model, wide_guide(linear), {"x": linear.x}, draws=200)[0]
    assert z_between(ours, losses(IWAE(particles=1), linear.model, wide_guide(linear), linear.x)) < LIMIT


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gradient", ["total", "doubly-reparameterized"])
def test_rows_that_do_not_count_weigh_nothing_with_an_enumerated_guide(alpha: float, gradient: Any) -> None:
    """The same as without these rows."""
    counts = torch.tensor([True, False, True, True, False, True])

    def masked(body: Callable[..., None], p: Parameters, x: Tensor) -> None:
        with poutine.mask(mask=x > -1e9 if len(x) == 4 else counts):
            body(p, x)

    model, guide = label_pair()
    options: dict[str, Any] = {"alpha": alpha, "particles": 4, "estimator": "enumerate", "gradient": gradient}
    found = []
    for x in (X, X[counts]):
        model.body, guide.body = functools.partial(masked, labelled), functools.partial(masked, labelling)
        leaves = {"model": [*model.parameters()], "guide": [*guide.parameters()]}
        draws: list[list[Tensor]] = []
        with programs.Store().active():
            objective = Renyi(outer=100, **options)
            objective.setup(model, guide, {"x": x})
            torch.manual_seed(1)
            with programs.quiet():
                for _ in range(60):
                    parts = objective.phases()[0](model, guide, {"x": x})[0]
                    row: list[Tensor] = []
                    for player, loss in parts.items():
                        own = leaves["model"] + leaves["guide"] if player == "all" else leaves[player]
                        row += [loss.detach(), *torch.autograd.grad(loss, own)]
                    draws.append([part * len(x) for part in row])
        found.append([torch.stack(parts) for parts in zip(*draws, strict=True)])
    for one, two in zip(*found, strict=True):
        assert z_between(one, two) < LIMIT
    counted = found[1][0] - 2 * math.log(3)
    assert z_between(found[0][0], counted) > FLAGGED, "negative control: a row that does not count has three states"
