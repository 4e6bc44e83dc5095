"""Every bound against something exact: explicit sums, closed forms, Pyro's own estimators."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor
from torch.distributions import constraints, kl_divergence
from zoo import (
    binary_rows,
    relative,
    repeated,
    small_m2,
    small_vae,
    value_and_gradients,
    z_between,
    z_score,
)

from ppgen import guides, models, nn, programs
from ppgen.errors import ConfigError, DataError
from ppgen.objectives import ELBO, EnumeratedELBO, Objective, SemiSupervised, as_objective, elbo

# ------------------------------------------------------------------------ a linear Gaussian model: everything is known


class Linear:
    """Probabilistic PCA with its exact evidence and posterior."""

    def __init__(self, *, pixels: int = 6, z_dim: int = 2, rows: int = 20, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(1)
        self.weight = torch.randn(pixels, z_dim, dtype=dtype)
        self.weight += 1.5 * self.weight[:, :1]  # so that the posterior is correlated
        self.offset = torch.randn(pixels, dtype=dtype)
        self.noise = 0.7
        self.x = torch.randn(rows, z_dim, dtype=dtype) @ self.weight.T + self.offset
        self.x += self.noise * torch.randn(rows, pixels, dtype=dtype)
        decoder = torch.nn.Linear(z_dim, pixels, dtype=dtype)
        decoder.weight.data, decoder.bias.data = self.weight, self.offset
        likelihood = nn.Gaussian((pixels,), covariance="fixed", scale=self.noise)
        self.model = models.VAE(decoder, likelihood, z_dim).to(dtype)

    def evidence(self) -> Tensor:
        """log p(x) of every row."""
        identity = torch.eye(len(self.offset), dtype=torch.float64)
        covariance = self.weight.double() @ self.weight.double().T + self.noise**2 * identity
        log_p: Tensor = torch.distributions.MultivariateNormal(self.offset.double(), covariance).log_prob(
            self.x.double()
        )
        return log_p

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean (as a function of x: rows) and covariance of z given x, exact."""
        weight, identity = self.weight.double(), torch.eye(self.weight.shape[1], dtype=torch.float64)
        inner = torch.linalg.inv(weight.T @ weight + self.noise**2 * identity)
        return (self.x.double() - self.offset.double()) @ weight @ inner, self.noise**2 * inner

    def exact_guide(self, x: Tensor) -> None:
        mean, covariance = self.posterior()
        tril = torch.linalg.cholesky(covariance).to(x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean.to(x.dtype), scale_tril=tril))

    def diagonal_guide(self, x: Tensor) -> None:
        """The best factorised posterior."""
        mean, covariance = self.posterior()
        scale = torch.linalg.inv(covariance).diagonal().rsqrt().to(x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean.to(x.dtype), scale).to_event(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_with_the_exact_posterior_a_single_draw_gives_the_evidence(dtype: torch.dtype, tolerance: float) -> None:
    linear = Linear(dtype=dtype)
    exact = -linear.evidence().mean()
    objective = ELBO(analytic_kl=False)
    for _ in range(5):
        with torch.no_grad():
            loss = objective.loss(linear.model, linear.exact_guide, {"x": linear.x})
            factorised = objective.loss(linear.model, linear.diagonal_guide, {"x": linear.x})
        assert float((loss - exact).abs() / exact.abs()) < tolerance
        assert float((factorised - exact).abs() / exact.abs()) > 100 * tolerance, "negative control: another posterior"


def test_the_factorised_bound_is_the_evidence_less_the_divergence() -> None:
    linear = Linear()
    covariance = linear.posterior()[1]
    scale = torch.linalg.inv(covariance).diagonal().rsqrt()
    gap = kl_divergence(
        torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.diag(scale**2)),
        torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance),
    )
    assert gap > 0.01
    for analytic in (True, False):
        objective = ELBO(particles=16, analytic_kl=analytic)
        with torch.no_grad():
            draws = [objective.loss(linear.model, linear.diagonal_guide, {"x": linear.x}) for _ in range(400)]
        losses = torch.stack(draws)
        assert z_score(losses, float(gap - linear.evidence().mean())) < 4.5
        assert z_score(losses, float(-linear.evidence().mean())) > 6, "negative control"


# --------------------------------------------------------------------------------------- ELBO against Pyro's Trace_ELBO


def hierarchical_model(x: Tensor) -> None:
    """A global latent, local latents in a chain, and a plate inside the data plate."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Normal(shift, 1.0))
        z = pyro.sample("z", dist.LogNormal(0.3 * top, 0.5))
        with pyro.plate("inner", x.shape[1], dim=-2):
            pyro.sample("x", dist.Normal(z, 0.8), obs=x.T)


def hierarchical_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.4))
    scale = pyro.param("scale", torch.tensor(0.6), constraint=constraints.positive)
    slope = pyro.param("slope", torch.tensor(0.3))
    shift = pyro.sample("shift", dist.Normal(loc, scale))
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Normal(slope * x.mean(1) + 0.2 * shift, 0.5 * scale))
        pyro.sample("z", dist.LogNormal(slope * top, 0.3))


HIERARCHICAL = {"x": torch.tensor([[0.5, 1.2, 0.8], [1.5, 1.1, 2.0], [0.1, 0.7, 0.4], [2.2, 1.9, 2.5]])}


@pytest.mark.parametrize("analytic", [True, False])
def test_it_is_trace_elbo_in_the_mean(analytic: bool) -> None:
    ours = repeated(
        ELBO(particles=32, analytic_kl=analytic), hierarchical_model, hierarchical_guide, HIERARCHICAL, draws=150
    )
    stock = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=2)
    theirs = repeated(stock, hierarchical_model, hierarchical_guide, HIERARCHICAL, draws=150, seed=1)
    assert z_between(ours[0], theirs[0]) < 4.5
    for name, gradients in ours[1].items():
        assert z_between(gradients, theirs[1][name]) < 4.5, name
    double = repeated(ELBO(beta=1.3, particles=32), hierarchical_model, hierarchical_guide, HIERARCHICAL, draws=150)
    assert z_between(double[0], theirs[0]) > 6, "negative control"


def test_a_single_draw_without_a_particle_dimension_is_the_same_bound() -> None:
    one = repeated(ELBO(), hierarchical_model, hierarchical_guide, HIERARCHICAL, draws=1500)
    many = repeated(ELBO(particles=32), hierarchical_model, hierarchical_guide, HIERARCHICAL, draws=150, seed=1)
    assert z_between(one[0], many[0]) < 4.5
    assert one[0].var() > 10 * many[0].var(), "32 draws vary less than one"


def backwards_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        two = pyro.sample("two", dist.Normal(0.0, 1.0))
        one = pyro.sample("one", dist.Normal(two, 0.5))
        pyro.sample("x", dist.Normal(one, 1.0), obs=x)


def backwards_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.2))
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Normal(loc * x, 0.8))
        pyro.sample("two", dist.Normal(0.9 * one, 0.3))


def test_a_closed_form_is_taken_only_where_the_order_of_sites_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"x": torch.tensor([0.5, -1.0, 2.0])}
    joint = programs.run(backwards_model, backwards_guide, batch)
    assert elbo.analytic_kl(joint, "one") is None
    assert elbo.analytic_kl(joint, "two") is not None
    pyro.clear_param_store()
    stock = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    theirs = repeated(stock, backwards_model, backwards_guide, batch, draws=150)
    ours = repeated(ELBO(particles=64), backwards_model, backwards_guide, batch, draws=150, seed=1)
    assert z_between(ours[0], theirs[0]) < 4.5
    assert z_between(ours[1]["store.loc"], theirs[1]["store.loc"]) < 4.5

    def forced(joint: programs.Joint, name: str) -> Tensor:
        terms: Tensor = kl_divergence(joint.guide.nodes[name]["fn"], joint.model.nodes[name]["fn"]).unsqueeze(-1)
        return terms

    monkeypatch.setattr(elbo, "analytic_kl", forced)
    monkeypatch.setattr(programs, "late_priors", lambda *_: frozenset())
    biased = repeated(ELBO(particles=64), backwards_model, backwards_guide, batch, draws=150, seed=1)
    assert z_between(biased[0], theirs[0]) > 6, "negative control"


@pytest.mark.parametrize("where", ["scale", "mask"])
def test_a_closed_form_needs_one_scale_and_one_mask(where: str) -> None:
    x = torch.tensor([0.5, -1.0, 2.0])
    handler = poutine.scale(scale=0.3) if where == "scale" else poutine.mask(mask=torch.tensor([True, False, True]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with handler:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)) * x, 0.8))

    def weighted_guide(x: Tensor) -> None:
        with handler:
            guide(x)

    stock = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    # what the model leaves out has no place in log q either, which stock ELBOs keep: no bound (it falls without end)
    theirs = repeated(stock, model, weighted_guide if where == "mask" else guide, {"x": x}, draws=100)
    ours = repeated(ELBO(particles=64), model, guide, {"x": x}, draws=100, seed=1)
    assert z_between(ours[0], theirs[0]) < 4.5
    one, other = (ELBO(particles=64), weighted_guide) if where == "scale" else (stock, guide)
    another = repeated(one, model, other, {"x": x}, draws=100)
    assert z_between(another[0], theirs[0]) > 6, "negative control: with one handler more or less"


def regression(x: Tensor, y: Tensor | None = None) -> None:
    weight = pyro.sample("weight", dist.Normal(0.0, 2.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(weight * x, noise + 0.1), obs=y)


REGRESSION = {"x": torch.linspace(-1, 1, 8), "y": torch.tensor([-1.9, -1.6, -0.7, -0.4, 0.3, 1.1, 1.2, 2.2])}


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta])
def test_autoguides_equal_trace_elbo(kind: Any) -> None:
    guide = kind(regression)
    stock = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    theirs = repeated(stock, regression, guide, REGRESSION, draws=150)
    ours = repeated(ELBO(particles=16), regression, guide, REGRESSION, draws=150, seed=1)
    assert z_between(ours[0], theirs[0]) < 4.5
    assert ours[1].keys() == theirs[1].keys()
    for name, gradients in ours[1].items():
        assert z_between(gradients, theirs[1][name]) < 4.5, name
        assert gradients.abs().max() > 0
    if kind is AutoDelta:
        assert ours[0].std() < 1e-5


def test_a_factor_in_the_guide_belongs_to_log_q() -> None:
    def guide(x: Tensor) -> None:
        hierarchical_guide(x)
        pyro.factor("extra", pyro.param("extra_size", torch.tensor(0.7)), has_rsample=True)

    plain = value_and_gradients(ELBO(), hierarchical_model, hierarchical_guide, HIERARCHICAL)
    ours = value_and_gradients(ELBO(), hierarchical_model, guide, HIERARCHICAL)
    assert float(ours[0] - plain[0]) == pytest.approx(0.7 / 4, abs=1e-5)
    assert float(ours[1]["store.extra_size"]) == pytest.approx(1 / 4)
    weights = programs.log_weights(hierarchical_model, guide, HIERARCHICAL)
    pyro.clear_param_store()
    assert weights.global_.shape == (1,)


def test_a_subsampled_plate_gives_the_full_data_bound_in_the_mean() -> None:
    x = torch.linspace(-2, 3, 12)

    def model(x: Tensor, subsample: int | None = None) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample_size=subsample) as rows:
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])

    def guide(x: Tensor, subsample: int | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        pyro.sample("shift", dist.Normal(loc, 0.4))
        with pyro.plate("data", 12, subsample_size=subsample) as rows:
            pyro.sample("z", dist.Normal(0.7 * x[rows] + loc, 0.5))

    whole = repeated(ELBO(particles=16), model, guide, {"x": x}, draws=150)
    part = repeated(ELBO(particles=16), model, guide, {"x": x, "subsample": 4}, draws=600, seed=1)
    assert z_between(whole[0], part[0]) < 4.5
    assert z_between(whole[1]["store.loc"], part[1]["store.loc"]) < 4.5
    assert (part[0] / 3 - whole[0].mean()).mean().abs() > 0.1, "negative control: without the factor 12 / 4"


# ------------------------------------------------------------------------------------------- weights of the divergence


def fixed_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def fixed_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([0.1, 1.0, 2.0]))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


FIXED = {"x": torch.tensor([0.0, 1.0, 2.0, 3.0])}
DIVERGENCES = torch.tensor([0.005, 0.5, 2.0])


def loss_at(objective: ELBO, step: int) -> float:
    objective.step.fill_(step)
    torch.manual_seed(0)
    with programs.Store().active():
        return float(objective.loss(fixed_model, fixed_guide, FIXED).detach())


def test_warm_up_weighs_the_divergence_from_none_to_beta() -> None:
    reconstruction = loss_at(ELBO(beta=0.0), 0)
    assert loss_at(ELBO(), 0) == pytest.approx(reconstruction + 2.505, abs=1e-5)
    assert loss_at(ELBO(beta=4.0), 0) == pytest.approx(reconstruction + 4 * 2.505, abs=1e-5)
    warming = ELBO(beta=2.0, warmup=10)
    for step, weight in [(0, 0.0), (5, 1.0), (10, 2.0), (1000, 2.0)]:
        assert loss_at(warming, step) == pytest.approx(reconstruction + weight * 2.505, abs=1e-5)


def test_below_the_free_bits_a_divergence_has_no_gradient() -> None:
    reconstruction = value_and_gradients(ELBO(beta=0.0), fixed_model, fixed_guide, FIXED)
    plain = value_and_gradients(ELBO(), fixed_model, fixed_guide, FIXED)
    free = value_and_gradients(ELBO(free_bits=0.3), fixed_model, fixed_guide, FIXED)
    assert float(free[0] - reconstruction[0]) == pytest.approx(0.3 + 0.5 + 2.0, abs=1e-5)
    gradient = free[1]["store.loc"] - reconstruction[1]["store.loc"]
    assert torch.allclose(gradient, torch.tensor([0.0, 1.0, 2.0]), atol=1e-5)
    full = plain[1]["store.loc"] - reconstruction[1]["store.loc"]
    assert torch.allclose(full, torch.tensor([0.1, 1.0, 2.0]), atol=1e-5), "negative control"


def test_free_bits_of_a_sampled_divergence_count_a_site_as_one() -> None:
    objective = ELBO(free_bits=50.0, analytic_kl=False)
    reconstruction = value_and_gradients(ELBO(beta=0.0, analytic_kl=False), fixed_model, fixed_guide, FIXED)
    free = value_and_gradients(objective, fixed_model, fixed_guide, FIXED)
    assert float(free[0] - reconstruction[0]) == pytest.approx(50.0, abs=1e-4)
    assert torch.equal(free[1]["store.loc"], reconstruction[1]["store.loc"])


@pytest.mark.parametrize("options", [{"particles": 0}, {"beta": -1.0}, {"warmup": -1}, {"free_bits": -0.1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected .*got"):
        ELBO(**options)


# ----------------------------------------------------------------------------------------------------- discrete latents


def bernoulli_model(x: Tensor) -> None:
    bias = pyro.param("bias", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2.0 * b + bias, 1.0), obs=x)


def bernoulli_guide(x: Tensor) -> None:
    logit = pyro.param("logit", torch.tensor(0.2))
    with pyro.plate("data", len(x)):
        pyro.sample("b", dist.Bernoulli(logits=logit * x))


def exact_bernoulli_gradient(x: Tensor) -> Tensor:
    logit = torch.tensor(0.2, requires_grad=True)
    q = torch.sigmoid(logit * x)
    total = torch.zeros(())
    for b, weight in ((1.0, q), (0.0, 1 - q)):
        log_p = math.log(0.3 if b else 0.7) + dist.Normal(2.0 * b + 0.4, 1.0).log_prob(x)
        total = total - (weight * (log_p - weight.log())).sum() / len(x)
    return torch.autograd.grad(total, logit)[0]


def test_a_discrete_latent_is_refused_and_its_pathwise_gradient_would_be_wrong() -> None:
    batch = {"x": torch.tensor([2.0, 0.1, 3.0, -0.5])}
    with pytest.raises(ConfigError, match=r"site 'b' \(Bernoulli\).*estimator='enumerate'") as caught:
        value_and_gradients(ELBO(), bernoulli_model, bernoulli_guide, batch)
    assert "\n" not in str(caught.value)
    exact = exact_bernoulli_gradient(batch["x"])
    right = value_and_gradients(EnumeratedELBO(), bernoulli_model, bernoulli_guide, batch)[1]["store.logit"]
    assert torch.allclose(right, exact, atol=1e-6)

    class Pathwise(Objective):
        def loss(self, model: Any, guide: Any, batch: Any) -> Tensor:
            joint = self.joint(model, guide, batch)
            return -(joint.log_p("x") + joint.log_p("b") - joint.log_q("b")).mean()

    wrong = repeated(Pathwise(), bernoulli_model, bernoulli_guide, batch, draws=400)[1]["store.logit"]
    assert z_score(wrong, exact) > 6, "negative control: the gradient that was refused"


def test_a_latent_that_cannot_be_enumerated_is_refused_with_another_remedy() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("n", dist.Poisson(2.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("n", dist.Poisson(pyro.param("rate", torch.tensor(1.0))))

    for objective, reason in ((ELBO(), r"'n' \(Poisson\).*leave-one-out"), (EnumeratedELBO(), "'n': a Poisson has no")):
        with pytest.raises(ConfigError, match=reason):
            value_and_gradients(objective, model, guide, {"x": torch.tensor(3.0)})


def explicit_m2(model: models.M2, guide: guides.Label, x: Tensor, noise: Tensor, *, drop: str = "") -> Tensor:
    """Equation 7 of Kingma et al. 2014 by a loop over the labels."""
    log_q = guide.classifier(x).log_softmax(-1)
    total = torch.zeros((), dtype=x.dtype)
    for y in range(model.classes):
        label = torch.nn.functional.one_hot(torch.full((len(x),), y), model.classes).to(x.dtype)
        loc, raw = guide.encoder(x, label).chunk(2, -1)
        scale = torch.nn.functional.softplus(raw) + 1e-3
        z = loc + scale * noise[y]
        logits = model.decoder(z, label)
        log_p = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        log_p = log_p - math.log(model.classes) + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        log_p = log_p - torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
        entropy = torch.zeros(()) if drop == "log q" else log_q[:, y]
        weight = torch.full_like(log_q[:, y], 1 / model.classes) if drop == "weights" else log_q[:, y].exp()
        total = total + (weight * (log_p - entropy)).sum()
    return -total / len(x)


@pytest.mark.parametrize(
    ("dtype", "value", "gradient"), [(torch.float32, 1e-6, 1e-4), (torch.float64, 1e-12, 1e-10)], ids=["f32", "f64"]
)
def test_m2_equals_an_explicit_sum_and_trace_enum(dtype: torch.dtype, value: float, gradient: float) -> None:
    model, guide = small_m2(dtype=dtype)
    x = binary_rows(7, dtype=dtype)
    batch = {"x": x}
    ours = value_and_gradients(EnumeratedELBO(analytic_kl=False), model, guide, batch)
    torch.manual_seed(0)
    noise = torch.normal(torch.zeros(10, 7, 3, dtype=dtype), torch.ones(10, 7, 3, dtype=dtype))
    leaves = programs.leaves(model, guide)

    def explicit(drop: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        loss = explicit_m2(model, guide, x, noise, drop=drop)
        return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    stock = TraceEnum_ELBO(max_plate_nesting=1)
    theirs = value_and_gradients(stock, model, config_enumerate(guide), batch)
    for other in (explicit(), theirs):
        assert float((ours[0] - other[0]).abs() / other[0].abs()) < value
        assert relative(ours[1], other[1]) < gradient
    for drop in ("log q", "weights"):
        wrong = explicit(drop)
        assert float((ours[0] - wrong[0]).abs() / wrong[0].abs()) > 1e-3, f"negative control: {drop}"
        assert relative(ours[1], wrong[1]) > 1e-2, f"negative control: {drop}"


X = torch.tensor([0.5, 2.0, -1.0, 3.0, 1.0])
LOGITS = torch.tensor([0.3, -0.2, 0.8])


def probabilities(name: str, *shape: int) -> Tensor:
    torch.manual_seed(sum(map(ord, name)))
    logits: Tensor = pyro.param(name, torch.randn(*shape))
    return logits.softmax(-1)


def two_sites_model(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [0.5, -1.0], [2.0, 3.0]]))
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Categorical(logits=LOGITS))
        two = pyro.sample("two", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(table[one, two.long()], 1.0), obs=x)


def two_sites_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("one", dist.Categorical(probabilities("q1", 3)))
        pyro.sample("two", dist.Bernoulli(torch.sigmoid(pyro.param("q2", torch.tensor(0.3)) * x)))


def chain_model(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([0.0, 1.0, 2.5]))
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Categorical(logits=LOGITS))
        two = pyro.sample("two", dist.Categorical(torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])[one]))
        pyro.sample("x", dist.Normal(table[one] + two, 1.0), obs=x)


def chain_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Categorical(probabilities("q1", 3)))
        pyro.sample("two", dist.Categorical(probabilities("q2", 3, 2)[one]))


def nested_model(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([0.0, 1.0, 2.5]))
    with pyro.plate("data", len(x), dim=-1):
        one = pyro.sample("one", dist.Categorical(logits=LOGITS))
        with pyro.plate("inner", 2, dim=-2):
            two = pyro.sample("two", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9])[one]))
            pyro.sample("x", dist.Normal(table[one] + two, 1.0), obs=torch.stack([x, 0.5 * x]))


def nested_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        one = pyro.sample("one", dist.Categorical(probabilities("q1", 3)))
        with pyro.plate("inner", 2, dim=-2):
            pyro.sample("two", dist.Bernoulli(probabilities("q2", 3)[one]))


def global_model(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([0.0, 1.0, 2.5]))
    regime = pyro.sample("regime", dist.Categorical(logits=LOGITS))
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9])[regime]))
        pyro.sample("x", dist.Normal(table[regime] + one, 1.0), obs=x)


def global_guide(x: Tensor) -> None:
    regime = pyro.sample("regime", dist.Categorical(probabilities("q1", 3)))
    with pyro.plate("data", len(x)):
        pyro.sample("one", dist.Bernoulli(probabilities("q2", 3)[regime]))


def weighted_model(x: Tensor) -> None:
    with poutine.scale(scale=0.4), poutine.mask(mask=torch.tensor([True, True, False, True, False])):
        chain_model(x)


def weighted_guide(x: Tensor) -> None:
    with poutine.scale(scale=0.4), poutine.mask(mask=torch.tensor([True, True, False, True, False])):
        chain_guide(x)


def part_model(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([0.0, 1.0, 2.5]))
    regime = pyro.sample("regime", dist.Bernoulli(0.3))
    with pyro.plate("data", 50, subsample=torch.arange(5)):
        one = pyro.sample("one", dist.Categorical(logits=LOGITS))
        pyro.sample("x", dist.Normal(table[one] + regime, 1.0), obs=x)


def part_guide(x: Tensor) -> None:
    pyro.sample("regime", dist.Bernoulli(torch.sigmoid(pyro.param("q2", torch.tensor(0.3)))))
    with pyro.plate("data", 50, subsample=torch.arange(5)):
        pyro.sample("one", dist.Categorical(probabilities("q1", 3)))


PAIRS: dict[str, tuple[Any, Any]] = {
    "two sites": (two_sites_model, two_sites_guide),
    "chain": (chain_model, chain_guide),
    "nested plate": (nested_model, nested_guide),
    "global site": (global_model, global_guide),
    "scale and mask": (weighted_model, weighted_guide),
    "subsampled plate": (part_model, part_guide),
}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_discrete_sites_are_summed_as_trace_enum_sums_them(pair: str, analytic: bool, particles: int) -> None:
    model, guide = PAIRS[pair]
    ours = value_and_gradients(EnumeratedELBO(particles=particles, analytic_kl=analytic), model, guide, {"x": X})
    stock = TraceEnum_ELBO(max_plate_nesting=2)
    theirs = value_and_gradients(stock, model, config_enumerate(guide), {"x": X})
    assert float((ours[0] - theirs[0]).abs() / theirs[0].abs()) < 1e-6
    assert relative(ours[1], theirs[1]) < 1e-4


def test_a_chain_of_discrete_sites_equals_an_explicit_sum() -> None:
    """Not only as Pyro sums: by two nested loops."""
    store = programs.Store()
    with store.active(), torch.no_grad():
        loss = EnumeratedELBO().loss(chain_model, chain_guide, {"x": X})
        q1, q2 = probabilities("q1", 3), probabilities("q2", 3, 2)
    p1, p2 = LOGITS.softmax(-1), torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    totals = {"right": torch.zeros(()), "wrong": torch.zeros(())}
    for one, two in itertools.product(range(3), range(2)):
        log_p = p1[one].log() + p2[one, two].log()
        log_p = log_p + dist.Normal([0.0, 1.0, 2.5][one] + two, 1.0).log_prob(X).mean()
        weight = q1[one] * q2[one, two]
        totals["right"] -= weight * (log_p - weight.log())
        totals["wrong"] -= q1[one] * q2.mean(0)[two] * (log_p - weight.log())
    assert float((loss - totals["right"]).abs() / totals["right"].abs()) < 1e-6
    assert float((loss - totals["wrong"]).abs() / totals["wrong"].abs()) > 1e-3, "negative control"


def test_discrete_and_continuous_sites_with_particles_are_trace_enum_in_the_mean() -> None:
    model, guide = small_m2(classes=3)
    batch = {"x": binary_rows(5)}
    ours = repeated(EnumeratedELBO(particles=8), model, guide, batch, draws=150)
    theirs = repeated(TraceEnum_ELBO(max_plate_nesting=1), model, config_enumerate(guide), batch, draws=600, seed=1)
    assert z_between(ours[0], theirs[0]) < 4.5
    for name, gradients in ours[1].items():
        assert z_between(gradients, theirs[1][name]) < 4.5, name


def test_a_site_that_depends_on_a_label_from_outside_its_plate_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.sigmoid(pyro.param("logit", torch.tensor(0.1)) * x)))

    def model_of(total: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("total", dist.Normal(total(y), 1.0), obs=torch.tensor(2.0))

        return model

    value_and_gradients(EnumeratedELBO(), model_of(lambda y: torch.zeros(())), guide, {"x": X})
    # the states of single rows cannot be told apart any more
    with pytest.raises(ConfigError, match="site 'total' has 2 log probabilities along dimension -1"):
        value_and_gradients(EnumeratedELBO(), model_of(lambda y: y.sum(-1)), guide, {"x": X})
    with pytest.raises(ConfigError, match="'total' depends on the enumerated site 'y' from outside its plate 'data'"):
        value_and_gradients(EnumeratedELBO(), model_of(lambda y: y.sum(-1, keepdim=True)[..., :1]), guide, {"x": X})


def test_rows_outside_a_plate_are_refused() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ConfigError, match=r"site 'x' has 5 log probabilities along dimension -1.*\.to_event"):
        value_and_gradients(ELBO(), model, guide, {"x": X})
    value_and_gradients(ELBO(), model, guide, {"x": X[0]})


# --------------------------------------------------------------------------------------------------- semi-supervised


def explicit_semi_supervised(
    model: models.M2,
    guide: guides.Label,
    batch: dict[str, dict[str, Tensor]],
    noise: tuple[Tensor, Tensor],
    alpha: float,
) -> Tensor:
    """Equation 9 of Kingma et al. 2014 in plain PyTorch, the divergences of z and y in closed form."""
    classes = model.classes

    def bound(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        label = torch.nn.functional.one_hot(y, classes).float()
        loc, raw = guide.encoder(x, label).chunk(2, -1)
        scale = torch.nn.functional.softplus(raw) + 1e-3
        divergence = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(-1)
        logits = model.decoder(loc + scale * epsilon, label)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        total: Tensor = entropy + divergence + math.log(classes)
        return total

    x, y = batch["labelled"]["x"], batch["labelled"]["y"]
    labelled = bound(x, y, noise[0]).mean()
    classifier = torch.nn.functional.cross_entropy(guide.classifier(x), y)
    x = batch["unlabelled"]["x"]
    log_q = guide.classifier(x).log_softmax(-1)
    losses = torch.stack([bound(x, torch.full((len(x),), c), noise[1][c]) for c in range(classes)], -1)
    unlabelled = (log_q.exp() * (losses + log_q)).sum(-1).mean()
    total: Tensor = 0.25 * labelled + 0.75 * unlabelled + alpha * classifier
    return total


def test_it_is_equation_nine() -> None:
    model, guide = small_m2(classes=4)
    batch = {
        "labelled": {"x": binary_rows(5, seed=1), "y": torch.tensor([0, 3, 1, 1, 2])},
        "unlabelled": {"x": binary_rows(7, seed=2)},
    }
    ours = value_and_gradients(SemiSupervised(alpha=2.0, labelled_share=0.25), model, guide, batch)
    torch.manual_seed(0)
    noise = tuple(torch.normal(torch.zeros(*shape), torch.ones(*shape)) for shape in ((5, 3), (4, 7, 3)))
    leaves = programs.leaves(model, guide)

    def explicit(alpha: float, given: dict[str, dict[str, Tensor]] = batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = explicit_semi_supervised(model, guide, given, (noise[0], noise[1]), alpha)
        return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    right = explicit(2.0)
    assert float((ours[0] - right[0]).abs() / right[0].abs()) < 1e-5
    assert relative(ours[1], right[1]) < 1e-4
    flipped = {**batch, "labelled": {**batch["labelled"], "y": torch.tensor([1, 0, 2, 0, 1])}}
    for wrong in (explicit(0.0), explicit(2.0, flipped)):
        assert float((ours[0] - wrong[0]).abs() / wrong[0].abs()) > 1e-3, "negative control"


def test_the_classifiers_loss_sees_labelled_rows_only() -> None:
    model, guide = small_m2(classes=4)
    labelled = {"x": binary_rows(5, seed=1), "y": torch.tensor([0, 3, 1, 1, 2])}
    found = []
    for seed in (2, 7):
        objective = SemiSupervised(labelled_share=1.0)
        batch = {"labelled": labelled, "unlabelled": {"x": binary_rows(6, seed=seed)}}
        ((_, metrics),) = [phase(model, guide, batch) for phase in objective.phases()]
        found.append(metrics)
    exact = torch.nn.functional.cross_entropy(guide.classifier(labelled["x"]), labelled["y"]).detach()
    assert float(found[0]["cross_entropy"]) == pytest.approx(float(exact), abs=1e-5)
    assert torch.equal(found[0]["cross_entropy"], found[1]["cross_entropy"])
    assert not torch.equal(found[0]["unlabelled"], found[1]["unlabelled"]), "negative control"


def test_the_classifiers_loss_is_per_datum_under_a_subsampled_plate() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), obs=y)
            pyro.sample("x", dist.Normal(y.float(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        table = pyro.param("table", torch.tensor([0.2, 0.5, -0.4]))
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Categorical(logits=table * x.unsqueeze(-1)))

    labels = torch.tensor([0, 2, 1, 1, 2])
    batch = {"labelled": {"x": X, "y": labels}, "unlabelled": {"x": X}}
    with programs.Store().active():
        ((_, metrics),) = [phase(model, guide, batch) for phase in SemiSupervised().phases()]
    exact = torch.nn.functional.cross_entropy(torch.tensor([0.2, 0.5, -0.4]) * X.unsqueeze(-1), labels)
    assert float(metrics["cross_entropy"]) == pytest.approx(float(exact), abs=1e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": binary_rows(3)}, "expected batches"),
        ({"labelled": {"x": binary_rows(3)}, "unlabelled": {"x": binary_rows(3)}}, "expected a column, the label"),
        (
            {"labelled": {"x": binary_rows(3), "t": torch.zeros(3)}, "unlabelled": {"x": binary_rows(3)}},
            "no site 't' for the label",
        ),
    ],
)
def test_batches_that_are_not_semi_supervised_are_refused(batch: Any, message: str) -> None:
    model, guide = small_m2()
    with pytest.raises(ConfigError, match=message):
        value_and_gradients(SemiSupervised(), model, guide, batch)


def test_a_label_out_of_range_is_named_before_training() -> None:
    model, guide = small_m2(classes=4)
    batch = {"labelled": {"x": binary_rows(2), "y": torch.tensor([0, 4])}, "unlabelled": {"x": binary_rows(3)}}
    with pytest.raises(DataError, match="site 'y'"):
        value_and_gradients(SemiSupervised(), model, guide, batch)


# ---------------------------------------------------------------------------------------------- Pyro's own estimators


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_stock_estimators_are_taken_as_they_are_in_nats_per_datum(kind: Any) -> None:
    model, guide = small_vae()
    batch = {"x": binary_rows(9)}
    ours = value_and_gradients(kind(), model, guide, batch)
    torch.manual_seed(0)
    loss = kind().differentiable_loss(model, guide, batch["x"]) / 9
    leaves = programs.leaves(model, guide)
    theirs = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert float(ours[0]) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert relative(ours[1], theirs) < 1e-6


def test_the_size_of_a_stock_loss_follows_the_batch() -> None:
    model, guide = small_vae()
    stock = as_objective(TraceMeanField_ELBO())
    stock.setup(model, guide, {"x": binary_rows(9)})
    row = binary_rows(1)
    few = torch.stack([stock.loss(model, guide, {"x": row}).detach() for _ in range(300)])
    many = torch.stack([stock.loss(model, guide, {"x": row.expand(9, -1)}).detach() for _ in range(300)])
    assert z_between(few, many) < 4.5
    assert z_between(few / 9, many) > 6, "negative control: divided by the size of the first batch"


def mixture_model(x: Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([-1.0, 2.0]))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(locs[kind] + shift, 1.0), obs=x)


def mixture_guide(x: Tensor) -> None:
    pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.2))


def test_a_mixture_summed_out_in_the_model_by_trace_enum() -> None:
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    ours = value_and_gradients(stock, config_enumerate(mixture_model), mixture_guide, {"x": X})
    torch.manual_seed(0)
    locs, loc = torch.tensor([-1.0, 2.0], requires_grad=True), torch.tensor(0.1, requires_grad=True)
    shift = dist.Normal(loc, 0.2).rsample()
    components = dist.Normal(locs + shift, 1.0).log_prob(X.unsqueeze(-1)) + torch.tensor([0.3, 0.7]).log()
    evidence = components.logsumexp(-1).sum()
    loss = -(evidence + dist.Normal(0.0, 1.0).log_prob(shift) - dist.Normal(loc, 0.2).log_prob(shift)) / len(X)
    assert float((ours[0] - loss.detach()).abs() / loss.detach().abs()) < 1e-6
    found = torch.autograd.grad(loss, [locs, loc])
    assert torch.allclose(ours[1]["store.locs"], found[0], rtol=1e-4)
    assert torch.allclose(ours[1]["store.loc"], found[1], rtol=1e-4)
    with pytest.raises(ConfigError, match="model site 'kind' is neither observed nor sampled by the guide"):
        value_and_gradients(ELBO(), mixture_model, mixture_guide, {"x": X})


@pytest.mark.filterwarnings("ignore:.*RenyiELBO.*:UserWarning")
def test_estimators_that_only_leave_gradients_behind_train_the_same() -> None:
    pairs: list[tuple[Any, Any, Any]] = [
        (TraceGraph_ELBO(), bernoulli_model, bernoulli_guide),
        (pyro.infer.RenyiELBO(alpha=0.5, num_particles=4), hierarchical_model, hierarchical_guide),
    ]
    for stock, model, guide in pairs:
        assert not hasattr(stock, "differentiable_loss")
        batch = {"x": X} if model is bernoulli_model else HIERARCHICAL
        ours = value_and_gradients(stock, model, guide, batch)
        with programs.Store().active():
            torch.manual_seed(0)
            with torch.no_grad():
                model(**batch)
                guide(**batch)
            torch.manual_seed(0)
            value = stock.loss_and_grads(model, guide, **batch)
            size = len(batch["x"])
            assert float(ours[0]) == pytest.approx(value / size, rel=1e-5)
            for name, leaf in programs.leaves(model, guide).items():
                gradient = torch.as_tensor(leaf.grad)
                assert torch.allclose(ours[1][name], gradient / size, rtol=1e-5, atol=1e-7)
                assert not torch.allclose(ours[1][name], gradient, rtol=1e-2), "negative control"


def test_gradients_left_behind_by_others_are_not_taken_over() -> None:
    model, guide = small_vae()
    stock = pyro.infer.RenyiELBO(num_particles=2)
    clean = value_and_gradients(stock, model, guide, {"x": binary_rows(4)})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert relative(value_and_gradients(stock, model, guide, {"x": binary_rows(4)})[1], clean[1]) == 0


def test_only_objectives_and_elbos_are_objectives() -> None:
    with pytest.raises(TypeError, match="expected an Objective or one of Pyro's ELBOs; got dict"):
        as_objective({})
    with pytest.raises(TypeError, match="defines neither loss nor phases"):
        Objective().loss(regression, regression, {})


# ------------------------------------------------------------------------------------------------ inside pyro.infer.SVI


@pytest.mark.global_store
def test_an_objective_is_a_loss_of_stock_svi() -> None:
    x = REGRESSION["x"]

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("weight", dist.Normal(loc, scale))
        pyro.sample("noise", dist.LogNormal(pyro.param("log_noise", torch.tensor(0.0)), 0.1))

    objective = ELBO(particles=4, warmup=50)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.05}), loss=objective)
    losses = [svi.step(x=x, y=REGRESSION["y"]) for _ in range(300)]
    assert int(objective.step) == 300
    svi.evaluate_loss(x=x, y=REGRESSION["y"])
    assert int(objective.step) == 300, "looking is no step"
    assert sum(losses[-50:]) < sum(losses[50:100])
    assert float(pyro.param("loc").detach()) == pytest.approx(1.95, abs=0.2)
    positional = SVI(regression, guide, pyro.optim.Adam({"lr": 0.05}), loss=ELBO())
    assert math.isfinite(positional.step(x, REGRESSION["y"]))


def test_programs_that_do_not_match_are_refused_by_name() -> None:
    def stranger(x: Tensor, y: Tensor | None = None) -> None:
        regression_guide(x, y)
        pyro.sample("other", dist.Normal(0.0, 1.0))

    def regression_guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("noise", dist.LogNormal(0.0, 1.0))

    def without(x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("weight", dist.Normal(0.0, 1.0))

    checks: list[tuple[Callable[..., None], str]] = [
        (stranger, "guide site 'other' is not in the model"),
        (without, "model site 'noise' is neither observed nor sampled by the guide"),
    ]
    for guide, message in checks:
        with pytest.raises(ConfigError, match=message):
            ELBO().loss(regression, guide, REGRESSION)
