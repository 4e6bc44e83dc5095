"""Objectives beyond the divergence from row to row: each discrepancy against closed forms, and what must be refused."""

import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import ot  # type: ignore[import-untyped]
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from zoo import binary_rows, small_vae, value_and_gradients, z_score

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives import ELBO
from ppgen.objectives.divergences import WAE, InfoVAE, SlicedWAE, sliced_wasserstein
from ppgen.objectives.kernels import KERNELS, Kernel, mmd, squared_distances
from ppgen.objectives.total_correlation import BetaTCVAE
from ppgen.objectives.transport import SinkhornAE, transport_cost
from ppgen.packing import pack, unpack
from ppgen.programs.priors import draw_prior
from ppgen.training import Trainer

MAKERS: dict[str, Callable[[], Any]] = {
    "info-vae": lambda: InfoVAE(alpha=0.5, scale=10.0),
    "wae-mmd": lambda: WAE(bandwidth="median"),
    "sliced-wae": SlicedWAE,
    "sinkhorn-ae": SinkhornAE,
    "beta-tcvae": lambda: BetaTCVAE(data_size=60),
}

# ---------------------------------------------------------------------------------------- kernels and their discrepancy


def expected_kernel(name: str, mean: float, variance: float, bandwidth: float) -> float:
    """E k(r) for a difference r ~ N(mean, variance) on the line, by quadrature."""
    width = variance**0.5
    r = mean + width * torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = torch.distributions.Normal(mean, width).log_prob(r).exp()
    return float(torch.trapezoid(density * KERNELS[name](r.square(), torch.tensor(bandwidth**2)), r))


def exact_mmd(name: str, *, mean: float, scale: float, bandwidth: float) -> float:
    """Of N(mean, scale^2) and N(0, 1) on the line."""
    terms = [(0.0, 2 * scale**2), (0.0, 2.0), (mean, 1 + scale**2)]
    one, other, cross = (expected_kernel(name, m, v, bandwidth) for m, v in terms)
    return one + other - 2 * cross


@pytest.mark.parametrize("name", KERNELS)
def test_the_discrepancy_is_unbiased(name: str) -> None:
    kernel, rows = Kernel(name, 0.8), 8
    exact = exact_mmd(name, mean=0.5, scale=1.3, bandwidth=0.8)
    found, biased = [], []
    for _ in range(1500):
        x = 0.5 + 1.3 * torch.randn(rows, 1, dtype=torch.float64)
        y = torch.randn(rows, 1, dtype=torch.float64)
        found.append(mmd(x, y, kernel))
        biased.append(kernel.matrix(x, x).mean() + kernel.matrix(y, y).mean() - 2 * kernel.matrix(x, y).mean())
    assert z_score(torch.stack(found), exact) < 4.5
    assert z_score(torch.stack(biased), exact) > 6, "negative control: with the terms of equal indices"
    assert z_score(-torch.stack(found), exact) > 6, "negative control: the wrong sign"


def test_the_discrepancy_of_gaussian_vectors_has_its_closed_form() -> None:
    dims, bandwidth, shift = 3, 1.5, torch.tensor([0.4, 0.0, -0.3], dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 1.4], dtype=torch.float64)

    def expected(mean: Tensor, variance: Tensor) -> float:
        return float(
            ((1 + variance / bandwidth**2).rsqrt() * (-0.5 * mean**2 / (variance + bandwidth**2)).exp()).prod()
        )

    zero, one = torch.zeros(dims, dtype=torch.float64), torch.ones(dims, dtype=torch.float64)
    exact = expected(zero, 2 * scale**2) + expected(zero, 2 * one) - 2 * expected(shift, one + scale**2)
    draws = [
        mmd(shift + scale * torch.randn(50, dims).double(), torch.randn(50, dims).double(), Kernel("rbf", bandwidth))
        for _ in range(1000)
    ]
    assert z_score(torch.stack(draws), exact) < 4.5
    wrong = expected(zero, 2 * scale**2) + expected(zero, 2 * one) - 2 * expected(zero, one + scale**2)
    assert z_score(torch.stack(draws), wrong) > 6, "negative control: without the shift"


def test_a_kernel_is_summed_over_its_scales() -> None:
    x, y = torch.randn(5, 2), torch.randn(6, 2)
    one, two = (Kernel("imq", 2**0.5 * scale**0.5).matrix(x, y) for scale in (0.1, 5.0))
    assert torch.allclose(Kernel("imq", "dimension", (0.1, 5.0)).matrix(x, y), one + two)
    assert not torch.allclose(Kernel("imq", "dimension", (0.1, 6.0)).matrix(x, y), one + two)


def test_bandwidths_by_name() -> None:
    x, y = torch.randn(40, 3, requires_grad=True), torch.randn(41, 3)
    median = torch.cdist(x, y).median()
    assert torch.allclose(Kernel("rbf", "median").variance(x, y), median**2, rtol=1e-4)
    assert not Kernel("rbf", "median").variance(x, y).requires_grad
    assert Kernel("rbf", "dimension").variance(x, y) == 3
    assert Kernel("rbf", "0.5").variance(x, y) == 0.25, "as typed on the command line"


@pytest.mark.parametrize("name", KERNELS)
def test_equal_rows_have_finite_gradients(name: str) -> None:
    x = torch.zeros(4, 2, requires_grad=True)
    mmd(x, torch.zeros(4, 2), Kernel(name)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    x, y = torch.randn(20, 5) + 1000, torch.randn(20, 5) + 1000
    exact = torch.cdist(x.double(), y.double()).square().float()
    assert torch.allclose(squared_distances(x, y), exact, rtol=1e-3, atol=1e-3)
    naive = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T
    assert not torch.allclose(naive, exact, rtol=1e-3, atol=1e-3), "negative control: around the origin"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WAE(kernel="gauss"), "expected kernel rbf, imq, laplace, energy; got 'gauss'"),
        (lambda: WAE(bandwidth="mean"), "expected bandwidth dimension, median or a positive number; got 'mean'"),
        (lambda: WAE(bandwidth=0.0), "expected bandwidth dimension, median or a positive number; got 0.0"),
        (lambda: WAE(scales=()), r"expected scales > 0, at least one; got \(\)"),
        (lambda: WAE(scale=-1.0), "expected scale >= 0; got -1.0"),
        (lambda: InfoVAE(alpha=1.5), "expected alpha <= 1 and alpha"),
        (lambda: InfoVAE(alpha=0.0, scale=0.5), "expected alpha <= 1 and alpha"),
        (lambda: SlicedWAE(projections=0), "expected projections >= 1; got 0"),
        (lambda: SinkhornAE(regularization=0.0), "expected regularization dimension or a positive number; got 0.0"),
        (lambda: SinkhornAE(iterations=0), "expected iterations >= 1; got 0"),
        (lambda: BetaTCVAE(beta=-1.0), "expected alpha, beta, gamma >= 0"),
        (lambda: BetaTCVAE(sampling="full"), "expected sampling stratified or weighted; got 'full'"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ------------------------------------------------------------------------------------------------ Wasserstein distances


def test_sliced_wasserstein_of_gaussians_has_its_closed_form() -> None:
    dims, rows, shift, scale = 3, 4000, 0.8, 1.5
    exact = shift**2 / dims + (scale - 1) ** 2
    draws, unsorted = [], []
    for _ in range(20):
        x = scale * torch.randn(rows, dims)
        x[:, 0] += shift
        y, directions = torch.randn(rows, dims), torch.randn(dims, 100)
        directions = directions / directions.norm(dim=0)
        draws.append(sliced_wasserstein(x, y, directions))
        unsorted.append((x @ directions - y @ directions).square().mean())
    assert z_score(torch.stack(draws), exact) < 4.5
    assert z_score(torch.stack(draws), exact + 0.05) > 6, "negative control: power"
    assert z_score(torch.stack(unsorted), exact) > 6, "negative control: draws paired as they come"


def test_sliced_wasserstein_is_exact_on_a_line() -> None:
    x, y = torch.randn(30, 1).double(), 2 * torch.randn(30, 1).double()
    exact = ot.emd2_1d(x.numpy(), y.numpy())
    assert float(sliced_wasserstein(x, y, torch.ones(1, 1).double())) == pytest.approx(exact)


def test_projections_have_length_one_and_differ_from_call_to_call() -> None:
    shift = torch.zeros(50, 4)
    shift[:, 0] = 2.0
    objective, y = SlicedWAE(projections=3), torch.randn(50, 4)
    found = torch.stack([objective.discrepancy(y + shift, y) for _ in range(2000)])
    assert z_score(found, 2.0**2 / 4) < 4.5
    assert found.std() > 0


def test_the_transport_plan_is_that_of_the_library() -> None:
    x, y = torch.randn(12, 3).double() + 1, 0.5 * torch.randn(9, 3).double()
    squared = torch.cdist(x, y).square()
    u, v = (torch.full((rows,), 1 / rows).double() for rows in (12, 9))
    for regularization in (0.5, 5.0):
        plan = ot.sinkhorn(u, v, squared, regularization, numItermax=10_000, stopThr=1e-12, warn=False)
        exact = (plan * squared).sum() + regularization * (plan * (plan * 12 * 9).log()).sum()
        assert torch.allclose(transport_cost(x, y, regularization=regularization, iterations=2000), exact, rtol=1e-6)
        assert (plan * squared).sum() < exact - 1e-3, "negative control: without the entropy"


def test_with_little_entropy_it_is_the_exact_transport_cost() -> None:
    x, y = torch.randn(10, 2).double(), torch.randn(10, 2).double() + 1
    uniform = torch.full((10,), 0.1).double()
    exact = ot.emd2(uniform, uniform, torch.cdist(x, y).square())
    costs = [float(transport_cost(x, y, regularization=r, iterations=20_000)) for r in (1.0, 0.1, 0.005)]
    assert costs[0] > costs[1] > costs[2]
    # entropy adds at most regularization * log(rows)
    assert float(exact) <= costs[2] + 1e-6 <= float(exact) + 0.005 * math.log(10) + 1e-3
    assert costs[0] > float(exact) + 0.1, "negative control: much entropy"


@pytest.mark.parametrize("debias", [True, False])
def test_the_gradient_of_the_transport_cost_is_that_of_its_value(debias: bool) -> None:
    objective = SinkhornAE(regularization=0.5, iterations=5000, debias=debias)
    x = torch.randn(6, 2).double().requires_grad_()
    y = torch.randn(6, 2).double() + 0.5
    (gradient,) = torch.autograd.grad(objective.discrepancy(x, y), x)
    step = 1e-4 * torch.randn(6, 2).double()
    with torch.no_grad():
        difference = objective.discrepancy(x + step, y) - objective.discrepancy(x - step, y)
    slope = (gradient * 2 * step).sum()
    assert float((difference - slope).abs() / difference.abs()) < 1e-3
    assert float((difference + slope).abs() / difference.abs()) > 1, "negative control: the wrong sign"


def test_equal_draws_cost_nothing_without_the_bias_of_entropy() -> None:
    x = torch.randn(20, 2)
    assert abs(float(SinkhornAE().discrepancy(x, x))) < 1e-5
    assert abs(float(SinkhornAE(debias=False).discrepancy(x, x))) > 0.1, "negative control: with it"


def test_the_regularization_is_the_number_of_dimensions_or_as_told() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 3) + 1
    named = SinkhornAE(debias=False).discrepancy(x, y)
    assert torch.allclose(named, SinkhornAE(debias=False, regularization="3").discrepancy(x, y))
    assert not torch.allclose(named, SinkhornAE(debias=False, regularization=1.0).discrepancy(x, y))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="SinkhornAE needs the library POT, which is not installed: pip install pot"):
        SinkhornAE()


# ------------------------------------------------------------------------------------------------- draws from the prior


class LearnedPrior(torch.nn.Module):
    """A prior with parameters and a decoder with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.BatchNorm1d(6))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def test_draws_from_the_prior_have_gradients_and_leave_the_decoder_alone() -> None:
    model = LearnedPrior()
    site = draw_prior(model, {"x": binary_rows(5000)}, ["z"])["z"]
    assert site["value"].shape == (5000, 2)
    assert z_score(site["value"].detach(), model.mean.detach()) < 4.5
    (gradient,) = torch.autograd.grad(site["value"].sum(), model.mean)
    assert torch.equal(gradient, torch.full((2,), 5000.0))
    norm = model.decoder[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert int(norm.num_batches_tracked or 0) == 0, "the decoder did not run"
    programs.generate(model, {"x": binary_rows(4)})
    assert int(norm.num_batches_tracked or 0) == 1, "negative control: generating runs it"


def test_nothing_stays_behind_of_an_ended_run() -> None:
    model = LearnedPrior()
    draw_prior(model, {"x": binary_rows(4)}, ["z"])
    # a plate or a handler that had not been left would be in the way of these
    draw_prior(model, {"x": binary_rows(4)}, ["z"])
    assert set(programs.generate(model, {"x": binary_rows(4)})) == {"z", "x"}


def test_an_observed_parent_of_the_code_is_drawn_from_the_model_too() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            y = pyro.sample("y", dist.Bernoulli(0.25), obs=y)
            pyro.sample("z", dist.Normal(10 * y, 0.1))

    values = draw_prior(model, {"y": torch.ones(4000)}, ["z"])["z"]["value"]
    assert z_score((values > 5).float(), 0.25) < 4.5


# --------------------------------------------------------------------------------------------- the losses of objectives


def test_info_vae_without_extra_weight_is_the_bound() -> None:
    model, guide = small_vae()
    batch = {"x": binary_rows(20)}
    for alpha, scale, beta in [(0.0, 1.0, 1.0), (-1.0, 2.0, 2.0), (0.5, 0.5, 0.5)]:
        loss, gradients = value_and_gradients(InfoVAE(alpha=alpha, scale=scale), model, guide, batch)
        exact, expected = value_and_gradients(ELBO(beta=beta), model, guide, batch)
        assert torch.allclose(loss, exact)
        assert all(torch.allclose(gradients[name], expected[name], atol=1e-6) for name in expected)
    other, _ = value_and_gradients(InfoVAE(alpha=0.0, scale=3.0), model, guide, batch)
    assert not torch.allclose(other, value_and_gradients(ELBO(), model, guide, batch)[0]), "negative control"


@pytest.mark.parametrize("name", ["info-vae", "wae-mmd", "sliced-wae", "sinkhorn-ae"])
def test_the_loss_is_the_bound_and_the_weighted_discrepancy_of_fresh_prior_draws(name: str) -> None:
    model, guide = small_vae()
    batch = {"x": binary_rows(20)}
    objective = MAKERS[name]()
    torch.manual_seed(7)
    with torch.no_grad():
        losses, metrics = objective.phases()[0](model, guide, batch)
    torch.manual_seed(7)
    with torch.no_grad():
        joint = programs.run(model, guide, batch)
        z, prior = joint.guide.nodes["z"]["value"], torch.randn(20, 2)
        error = -joint.log_p("x").mean()
        divergence = (joint.guide.nodes["z"]["fn"].log_prob(z) * 0).mean()
        if name == "info-vae":
            q, p = joint.guide.nodes["z"]["fn"], joint.model.nodes["z"]["fn"]
            divergence = 0.5 * torch.distributions.kl_divergence(q, p).mean()
        discrepancy = objective.discrepancy(z, prior)
        weight = {"info-vae": 9.5}.get(name, 10.0)
    assert torch.allclose(losses["all"], error + divergence + weight * discrepancy)
    assert torch.allclose(metrics["reconstruction"], error)
    assert torch.allclose(metrics["discrepancy"], discrepancy)
    assert not torch.allclose(losses["all"], error + divergence - weight * discrepancy), "negative control: wrong sign"


def shifted(x: Tensor) -> None:
    """A prior N(0, I) and data that say nothing of the code."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)


def moved_guide(x: Tensor) -> None:
    mean = pyro.param("mean", torch.tensor([1.5, -1.0]))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))


def distance_after_training(objective: Any) -> float:
    trainer = Trainer(shifted, moved_guide, objective, functools.partial(torch.optim.Adam, lr=0.05), compile="off")
    batches = itertools.repeat({"x": torch.zeros(40, 1)})
    for _ in range(60):
        trainer.step(batches)
    return float(trainer.param_store["mean"].detach().norm())


@pytest.mark.parametrize("name", MAKERS)
def test_training_moves_the_guide_to_the_prior(name: str) -> None:
    assert distance_after_training(MAKERS[name]()) < 0.6


@pytest.mark.parametrize("kind", [WAE, SlicedWAE, SinkhornAE])
def test_a_wrong_sign_is_caught(kind: Callable[[], Any]) -> None:
    objective = kind()
    objective.weight = -objective.weight
    assert distance_after_training(objective) > 1.8


# ---------------------------------------------------------------------------------------------------- total correlation


class Mixture:
    """A guide of fixed Gaussians for few data, whose aggregate posterior is known: their mixture."""

    def __init__(self, *, full: bool = False) -> None:
        torch.manual_seed(2)
        self.means = torch.tensor([[-1.5, -1.0], [-0.5, 0.2], [0.3, 0.1], [0.9, 1.4], [1.8, 1.0]]).double()
        self.scales = torch.tensor([[0.6, 0.5], [0.8, 0.4], [0.5, 0.9], [0.7, 0.6], [0.4, 0.5]]).double()
        self.full = full
        self.correlation = 0.6 if full else 0.0

    @property
    def x(self) -> Tensor:
        return torch.arange(5.0).double().unsqueeze(1)

    def tril(self) -> Tensor:
        corner = torch.tensor([[1.0, 0.0], [self.correlation, (1 - self.correlation**2) ** 0.5]]).double()
        return self.scales.unsqueeze(-1) * corner

    def guide(self, x: Tensor) -> None:
        rows = x[:, 0].long()
        with pyro.plate("data", 5, subsample_size=len(x)) if len(x) < 5 else pyro.plate("data", len(x)):
            if self.full:
                pyro.sample("z", dist.MultivariateNormal(self.means[rows], scale_tril=self.tril()[rows]))
            else:
                pyro.sample("z", dist.Normal(self.means[rows], self.scales[rows]).to_event(1))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", 5, subsample_size=len(x)) if len(x) < 5 else pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.2).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1), obs=x)

    def exact(self) -> dict[str, float]:
        """The parts of the divergence by quadrature on a grid."""
        line = torch.linspace(-8, 8, 401, dtype=torch.float64)
        area = float(line[1] - line[0]) ** 2
        grid = torch.cartesian_prod(line, line)
        rows = dist.MultivariateNormal(self.means, scale_tril=self.tril())
        each = rows.log_prob(grid.unsqueeze(1))
        by_dimension = dist.Normal(self.means, self.scales).log_prob(grid.unsqueeze(1))
        log_q = each.logsumexp(1) - math.log(5)
        marginals = (by_dimension.logsumexp(1) - math.log(5)).sum(-1)
        prior = dist.Normal(0.0, 1.2).log_prob(grid).sum(-1)
        q = log_q.exp() * area
        return {
            "mutual_information": float((each.exp() * (each - log_q.unsqueeze(1))).sum() * area / 5),
            "total_correlation": float((q * (log_q - marginals)).sum()),
            "dimension_wise_kl": float((q * (marginals - prior)).sum()),
        }


@pytest.mark.parametrize("full", [False, True])
def test_the_parts_of_the_divergence_are_exact_over_all_data(full: bool) -> None:
    mixture = Mixture(full=full)
    exact, objective, draws = mixture.exact(), BetaTCVAE(), []
    with torch.no_grad():
        for _ in range(800):
            joint = objective.joint(mixture.model, mixture.guide, {"x": mixture.x})
            draws.append(torch.stack(list(vars(objective.decompose(joint)).values())))
    found = torch.stack(draws)
    values = torch.tensor(list(exact.values())).double()
    assert min(exact.values()) > 0.05
    assert z_score(found, values) < 4.5
    for part in range(3):
        wrong = values.clone()
        wrong[part] = -wrong[part]
        assert z_score(found, wrong) > 6, "negative control: the wrong sign"


def densities(mixture: Mixture, z: Tensor, batch: list[int], sampling: str) -> Tensor:
    """The estimate of q(z), at the draw ``z`` of the first row of a batch."""
    objective = BetaTCVAE(sampling=sampling, data_size=5)
    rows = dist.Normal(mixture.means[batch], mixture.scales[batch]).to_event(1)
    pairs = rows.log_prob(z.expand(len(batch), 1, 2))
    joint = objective.joint(mixture.model, mixture.guide, {"x": mixture.x})
    estimate: Tensor = (objective._log_weights(joint, pairs) + pairs).logsumexp(1)[0].exp()
    return estimate


@pytest.mark.parametrize(("sampling", "unbiased"), [("stratified", True), ("weighted", False)])
def test_stratified_sampling_estimates_the_density_without_bias(sampling: str, unbiased: bool) -> None:
    mixture, z = Mixture(), torch.tensor([0.2, -0.4]).double()
    exact = dist.Normal(mixture.means, mixture.scales).to_event(1).log_prob(z).exp().mean()
    for own in range(5):
        others = [row for row in range(5) if row != own]
        batches = [[own, *rest] for rest in itertools.combinations(others, 2)]
        mean = torch.stack([densities(mixture, z, batch, sampling) for batch in batches]).mean()
        assert torch.allclose(mean, exact, rtol=1e-12) == unbiased


def test_weights_of_one_give_the_sampled_bound_draw_by_draw() -> None:
    model, guide = small_vae()
    batch = {"x": binary_rows(20)}
    for sampling in ("stratified", "weighted"):
        objective = BetaTCVAE(beta=1.0, data_size=100, sampling=sampling)
        loss, gradients = value_and_gradients(objective, model, guide, batch)
        exact, expected = value_and_gradients(ELBO(analytic_kl=False), model, guide, batch)
        assert torch.allclose(loss, exact, rtol=1e-5)
        assert all(torch.allclose(gradients[name], expected[name], atol=1e-5) for name in expected)
    other, _ = value_and_gradients(BetaTCVAE(beta=2.0, data_size=100), model, guide, batch)
    assert not torch.allclose(other, exact, rtol=1e-5), "negative control: another weight"


def test_weights_belong_to_their_parts() -> None:
    mixture, batch = Mixture(), {"x": Mixture().x}
    objective = BetaTCVAE(alpha=2.0, beta=3.0, gamma=5.0)
    torch.manual_seed(3)
    losses, metrics = objective.phases()[0](mixture.model, mixture.guide, batch)
    parts = [metrics[name] for name in ("mutual_information", "total_correlation", "dimension_wise_kl")]
    expected = metrics["reconstruction"] + sum(w * part for w, part in zip((2, 3, 5), parts, strict=True))
    assert torch.allclose(losses["all"], expected)


def test_parts_of_a_linear_gaussian_aggregate_posterior() -> None:
    torch.manual_seed(4)
    rows, scale = 800, torch.tensor([0.7, 0.9]).double()
    root = torch.tensor([[1.0, 0.0], [0.8, 0.6]]).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ root.T, scale).to_event(1))

    covariance = root @ root.T + torch.diag(scale**2)
    variances = covariance.diagonal()
    exact = {
        "mutual_information": 0.5 * (covariance.logdet() - 2 * scale.log().sum()),
        "total_correlation": 0.5 * (variances.log().sum() - covariance.logdet()),
        "dimension_wise_kl": 0.5 * (variances - 1 - variances.log()).sum(),
    }
    objective = BetaTCVAE()
    with torch.no_grad():
        found = []
        for _ in range(6):  # fresh data and fresh codes
            x = torch.randn(rows, 2).double()
            found.append(torch.stack(list(vars(objective.decompose(objective.joint(model, guide, {"x": x}))).values())))
    values = torch.stack(list(exact.values()))
    assert z_score(torch.stack(found), values) < 4.5
    assert z_score(torch.stack(found), values + 0.2) > 6, "negative control: power"


def test_the_size_of_the_data_is_that_of_the_plate_or_as_told() -> None:
    pairs = torch.zeros(3, 3).double()
    mixture = Mixture()
    joint = BetaTCVAE().joint(mixture.model, mixture.guide, {"x": mixture.x[:3]})
    assert joint.plate is not None
    assert joint.plate.size == 5
    for objective, size in [(BetaTCVAE(), 5), (BetaTCVAE(data_size=9), 9)]:
        weights = objective._log_weights(joint, pairs).exp()
        assert torch.allclose(weights.sum(1), torch.ones(3).double())
        assert torch.allclose(weights.diagonal(), torch.full((3,), 1 / size).double())
    with pytest.raises(ConfigError, match="expected data_size of at least the 3 rows of a batch; got 2"):
        BetaTCVAE(data_size=2)._log_weights(joint, pairs)


# ------------------------------------------------------------------------------------------------ programs of all kinds


class Deep(torch.nn.Module):
    """Two latent sites, one of them in a plate inside the data plate."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("words", 3):
                w = pyro.sample("w", dist.Normal(z.sum(-1), 2.0))
            pyro.sample("x", dist.Normal(w.sum(0).unsqueeze(-1) * torch.ones(6), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean + x[:, :2], 1.0).to_event(1))
            with pyro.plate("words", 3):
                pyro.sample("w", dist.Normal(z.sum(-1), 1.0))


@pytest.mark.parametrize(("site", "dims"), [(None, 5), ("z", 2), ("w", 3)])
def test_all_sites_are_compared_as_one_vector_or_the_one_named(site: str | None, dims: int) -> None:
    deep, batch = Deep(), {"x": binary_rows(10)}
    objective = WAE(site=site)
    posterior, prior = objective._draws(objective.joint(deep.model, deep.guide, batch), deep.model, batch)
    assert posterior.shape == prior.shape == (10, dims)


def test_the_rows_of_a_vector_belong_together() -> None:
    deep, batch = Deep(), {"x": binary_rows(10)}
    objective = WAE()
    joint = objective.joint(deep.model, deep.guide, batch)
    posterior, _ = objective._draws(joint, deep.model, batch)
    z, w = (joint.guide.nodes[name]["value"] for name in ("z", "w"))
    assert torch.equal(posterior, torch.cat([z, w.T], 1))


def test_further_sites_keep_the_weight_one_beside_a_total_correlation() -> None:
    deep, batch = Deep(), {"x": binary_rows(10)}
    objective = BetaTCVAE(beta=1.0, site="z", data_size=40)
    loss, _ = value_and_gradients(objective, deep.model, deep.guide, batch)
    exact, _ = value_and_gradients(ELBO(analytic_kl=False), deep.model, deep.guide, batch)
    assert torch.allclose(loss, exact, rtol=1e-5)


def test_a_deterministic_guide_will_do_without_its_density() -> None:
    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(scale * x[:, :2]).to_event(1))

    model, _ = small_vae()
    for objective in (WAE(), InfoVAE(alpha=1.0), SlicedWAE(), SinkhornAE()):
        loss, gradients = value_and_gradients(objective, model, guide, {"x": binary_rows(12)})
        assert loss.isfinite()
        assert float(gradients["store.scale"].abs()) > 0
    with pytest.raises(
        ConfigError, match="expected site 'z' of the guide to have a density with independent dimensions"
    ):
        value_and_gradients(BetaTCVAE(), model, guide, {"x": binary_rows(12)})


def test_the_loss_is_per_datum_whatever_the_rows_of_the_batch_stand_for() -> None:
    mixture = Mixture()
    found = [
        float(WAE(scale=0.0).loss(mixture.model, mixture.guide, {"x": mixture.x[:rows] * 0 + 1})) for rows in (5, 3)
    ]
    assert found[0] == pytest.approx(found[1])


def latent(z: Callable[[Tensor], Any], *, plate: bool = True) -> Callable[[Tensor], None]:
    """A program with a latent site "z" of the given kind, in the data plate or outside of it."""

    def program(x: Tensor) -> None:
        outside = None if plate else pyro.sample("z", z(x))
        with pyro.plate("data", len(x)):
            code = pyro.sample("z", z(x)) if outside is None else outside
            pyro.sample("x", dist.Normal(code.float().sum() * torch.zeros(6), 1.0).to_event(1), obs=x)

    return program


def guide_of(z: Callable[[Tensor], Any], *, plate: bool = True) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)) if plate else pyro.poutine.scale(scale=1.0):
            pyro.sample("z", z(x))

    return program


def no_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z.sum() + torch.zeros(12, 6), 1.0).to_event(2), obs=x)


def normal(x: Tensor) -> Any:
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def masked(x: Tensor) -> Any:
    return normal(x).mask(x[:, 0] > 0)


REFUSED: dict[str, tuple[Any, Any, int, str]] = {
    "discrete": (
        latent(lambda x: dist.Bernoulli(0.5)),
        guide_of(lambda x: dist.Bernoulli(0.5)),
        12,
        "expected continuous latents for WAE; got site 'z', which is discrete: use ELBO",
    ),
    "global": (
        latent(normal, plate=False),
        guide_of(normal, plate=False),
        12,
        "expected latents in the data plate, a draw for each row, for WAE; got the global site 'z': use ELBO",
    ),
    "one row": (
        latent(normal),
        guide_of(normal),
        1,
        "expected a data plate at dim -1 with at least two rows, which WAE compares; got one row",
    ),
    "no plate": (no_plate, guide_of(normal, plate=False), 12, "which WAE compares; got no such plate"),
    "improper prior": (
        latent(lambda x: dist.ImproperUniform(dist.constraints.real_vector, (), (2,))),
        guide_of(normal),
        12,
        "expected a prior that can be drawn from; got",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_latents_that_cannot_be_compared_are_refused(case: str) -> None:
    model, guide, rows, message = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        WAE().setup(model, guide, {"x": binary_rows(rows)})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_masked_latents_are_refused() -> None:
    model, guide = small_vae()
    mask = torch.tensor([True] * 6 + [False] * 6)
    batch = {"x": binary_rows(12)}
    with pytest.raises(ConfigError, match="expected latents of all rows for WAE; got site 'z', which is masked"):
        WAE().loss(pyro.poutine.mask(model, mask=mask), pyro.poutine.mask(guide, mask=mask), batch)


def test_a_site_that_is_not_there_is_named_with_those_that_are() -> None:
    model, guide = small_vae()
    with pytest.raises(ConfigError, match=r"expected a latent site of the model for site; got 'y' \(sites: z\)"):
        WAE(site="y").setup(model, guide, {"x": binary_rows(12)})


def test_a_code_that_cannot_be_taken_apart_is_refused() -> None:
    deep, batch = Deep(), {"x": binary_rows(12)}
    with pytest.raises(ConfigError, match=r"expected one latent site for BetaTCVAE; got z, w: name the code"):
        BetaTCVAE().setup(deep.model, deep.guide, batch)
    with pytest.raises(ConfigError, match=r"got site 'w', before which 'z' is drawn"):
        BetaTCVAE(site="w").setup(deep.model, deep.guide, batch)
    full = latent(lambda x: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ConfigError, match="expected site 'z' of the model to have a density with independent dimens"):
        BetaTCVAE().setup(full, guide_of(normal), batch)


# ------------------------------------------------------------------------------------------------- compiled and resumed


compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def batches(rows: int = 24) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from ({"x": binary_rows(rows, seed=seed)} for seed in range(5))


def trainer_of(name: str, *, compile: Any) -> Trainer:
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.Adam, lr=0.01)
    return Trainer(*small_vae(), MAKERS[name](), optimizer, device="cpu", compile=compile)


def losses_of(trainer: Trainer, stream: Iterator[Any], steps: int) -> list[float]:
    return [float(trainer.step(stream)["loss"]) for _ in range(steps)]


@pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "sinkhorn-ae" else pytest.mark.slow) for name in MAKERS]
)
def test_compiled_equals_eager(name: str) -> None:
    found = []
    for mode in ("on", "off"):
        trainer = trainer_of(name, compile=mode)
        torch.manual_seed(1)
        found.append(losses_of(trainer, batches(), 20))
        assert trainer.compiled == (mode == "on")
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-4)
    assert found[0][-1] != pytest.approx(found[1][0], rel=1e-4), "negative control: another step"


@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_training_goes_on_exactly(name: str) -> None:
    straight, stream = trainer_of(name, compile="off"), batches()
    torch.manual_seed(1)
    losses_of(straight, stream, 3)
    tensors, rest = pack(straight.state_dict())
    expected = losses_of(straight, stream, 4)
    resumed, stream = trainer_of(name, compile="off"), batches()
    for _ in range(3):
        next(stream)
    resumed.load_state_dict(unpack({name: tensor.clone() for name, tensor in tensors.items()}, rest))
    assert losses_of(resumed, stream, 4) == expected
