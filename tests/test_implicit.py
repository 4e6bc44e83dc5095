"""Implicit reparameterisation against numerical integration, scipy and finite differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.distributions.transforms import ExpTransform, SigmoidTransform
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.compilation import compile_function
from ppgen.errors import ConfigError
from ppgen.gradients import implicit
from ppgen.gradients.implicit import can_be_implicit, implicit_rsample, von_mises_cdf

Parameters = dict[str, Tensor]
Make = Callable[..., Any]
Function = Callable[[Tensor], Tensor]

DRAWS = 100_000
MISSED, FLAGGED = 4.5, 6.0


def von_mises(loc: Tensor, concentration: Tensor) -> Any:
    return dist.VonMises(loc, concentration)


def mixture(family: Make) -> Make:
    def make(logits: Tensor, **options: Tensor) -> Any:
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), family(**options))

    return make


def logit_normal(loc: Tensor, scale: Tensor) -> Any:
    return dist.TransformedDistribution(dist.Normal(loc, scale), [SigmoidTransform()])


def diagonal(loc: Tensor, scale: Tensor) -> Any:
    return dist.Normal(loc, scale).to_event(1)


def gradients(make: Make, parameters: Parameters, f: Function, draws: int = DRAWS) -> Parameters:
    """The pathwise gradient of each draw of f, of shape (draws, *parameter), in single precision."""
    own = {k: v.float().expand(draws, *v.shape).clone().requires_grad_() for k, v in parameters.items()}
    found = torch.autograd.grad(f(implicit_rsample(make(**own))).sum(), list(own.values()))
    return dict(zip(own, found, strict=True))


def z_score(sample: Tensor, exact: Tensor) -> float:
    """The largest |mean - exact| / standard error over the elements of a parameter."""
    mean, error = sample.double().mean(0), sample.double().std(0) / len(sample) ** 0.5
    return float(((mean - exact).abs() / error.clamp(min=1e-12)).max())


def exact_gradients(make: Make, parameters: Parameters, f: Function, grid: Tensor) -> Parameters:
    """The gradient of the integral of f(z) q(z) over an even grid, by the trapezoidal rule in double precision."""
    leaves = {k: v.double().requires_grad_() for k, v in parameters.items()}
    density = make(**leaves).log_prob(grid).exp()
    expectation = torch.trapezoid(f(grid) * density, grid)
    return dict(zip(leaves, torch.autograd.grad(expectation, list(leaves.values())), strict=True))


def exact_von_mises(parameters: Parameters, f: Function) -> Parameters:
    """As `exact_gradients`, around the location: with angle = z - loc, E[f] = integral of f(loc + angle) q(angle)."""
    loc, k = (parameters[name].double().requires_grad_() for name in ("loc", "concentration"))
    angle = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    density = (k * (angle.cos() - 1)).exp() / (2 * math.pi * torch.special.i0e(k))
    found = torch.autograd.grad(torch.trapezoid(f(loc + angle) * density, angle), [loc, k])
    return dict(zip(("loc", "concentration"), found, strict=True))


def tensors(**values: Any) -> Parameters:
    return {name: torch.tensor(value) for name, value in values.items()}


# --- gradients of expectations ---


FUNCTIONS: dict[str, Function] = {"cos": torch.cos, "sin": torch.sin, "square": torch.square}


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("concentration", [0.05, 1.0, 8.0, 150.0])
def test_von_mises_gradients_are_unbiased(concentration: float, f: Function) -> None:
    parameters = tensors(loc=0.7, concentration=concentration)
    exact = exact_von_mises(parameters, f)
    for name, sample in gradients(von_mises, parameters, f).items():
        assert z_score(sample, exact[name]) < MISSED, name


@pytest.mark.parametrize("factor", [0.0, 0.9])
def test_a_missing_or_smaller_derivative_in_the_concentration_is_flagged(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = implicit._von_mises_integrals

    def wrong(angle: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cdf, density, slope = right(angle, concentration)
        return cdf, density, factor * slope

    monkeypatch.setattr(implicit, "_von_mises_integrals", wrong)
    parameters = tensors(loc=0.7, concentration=1.0)
    sample = gradients(von_mises, parameters, torch.cos)["concentration"]
    assert z_score(sample, exact_von_mises(parameters, torch.cos)["concentration"]) > FLAGGED


LOGITS = [0.3, -0.5, 0.4]
REAL_LINE = {"loc": [-1.0, 0.2, 1.5], "scale": [0.6, 1.0, 0.8]}
MIXTURES: dict[str, tuple[Make, dict[str, list[float]], tuple[float, float], list[Function]]] = {
    "Normal": (dist.Normal, REAL_LINE, (-9, 10), list(FUNCTIONS.values())),
    "LogNormal": (dist.LogNormal, {"loc": [-0.5, 0.2, 0.6], "scale": [0.4, 0.3, 0.5]}, (1e-6, 40), [torch.log]),
    "Gamma": (dist.Gamma, {"concentration": [0.8, 2.0, 9.0], "rate": [1.0, 0.7, 3.0]}, (1e-9, 40), [torch.tanh]),
    "LogitNormal": (logit_normal, REAL_LINE, (1e-6, 1 - 1e-6), [torch.square]),
    "VonMises": (
        dist.VonMises,
        {"loc": [-1.0, 0.2, 2.5], "concentration": [2.0, 5.0, 1.0]},
        (-math.pi, math.pi),
        [torch.sin, torch.square],
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_gradients_are_unbiased(name: str) -> None:
    family, options, ends, functions = MIXTURES[name]
    parameters = tensors(logits=LOGITS, **options)
    grid = torch.linspace(*ends, 400_001, dtype=torch.float64)
    for f in functions:
        exact = exact_gradients(mixture(family), parameters, f, grid)
        for parameter, sample in gradients(mixture(family), parameters, f).items():
            assert z_score(sample, exact[parameter]) < MISSED, parameter


DIAGONAL = {
    "logits": LOGITS,
    "loc": [[-0.8, 0.3, 0.5], [0.4, -0.6, 0.2], [0.9, 0.8, -0.7]],
    "scale": [[0.7, 0.9, 1.0], [1.0, 0.8, 0.7], [0.8, 0.6, 0.9]],
}


def product(z: Tensor) -> Tensor:
    return z[..., 0].cos() * z[..., 1].square() * (z[..., 2] + 0.5).sin()


def exact_product(parameters: Parameters) -> Parameters:
    """The gradient of E[product(z)]: within a component the dimensions are independent, so three integrals each."""
    leaves = {k: v.double().requires_grad_() for k, v in parameters.items()}
    grid = torch.linspace(-10, 10, 4_001, dtype=torch.float64)
    density = dist.Normal(leaves["loc"][..., None], leaves["scale"][..., None]).log_prob(grid).exp()
    factors = torch.stack([grid.cos(), grid.square(), (grid + 0.5).sin()])
    moments = torch.trapezoid(factors * density, grid).prod(-1)
    expectation = (leaves["logits"].softmax(-1) * moments).sum()
    return dict(zip(leaves, torch.autograd.grad(expectation, list(leaves.values())), strict=True))


def test_gradients_of_a_mixture_in_several_dimensions_are_unbiased() -> None:
    parameters = tensors(**DIAGONAL)
    exact = exact_product(parameters)
    for name, sample in gradients(mixture(diagonal), parameters, product).items():
        assert z_score(sample, exact[name]) < MISSED, name


@pytest.mark.parametrize("factor", [0.0, 0.8])
def test_a_missing_or_smaller_derivative_in_the_weights_is_flagged(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = implicit._move

    def wrong(log_weights: Tensor, *others: Any) -> Tensor:
        return right(factor * log_weights + (1 - factor) * log_weights.detach(), *others)

    monkeypatch.setattr(implicit, "_move", wrong)
    parameters = tensors(**DIAGONAL)
    sample = gradients(mixture(diagonal), parameters, product)
    assert z_score(sample["logits"], exact_product(parameters)["logits"]) > FLAGGED


def test_mixtures_that_forget_how_earlier_dimensions_move_later_ones_are_flagged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = implicit._move
    monkeypatch.setattr(implicit, "_move", lambda p, log_q, cdf, score: right(p, log_q, cdf, 0 * score))
    parameters = tensors(**DIAGONAL)
    sample = gradients(mixture(diagonal), parameters, product)
    assert max(z_score(sample[name], exact) for name, exact in exact_product(parameters).items()) > FLAGGED


# --- draws ---


@pytest.mark.parametrize("concentration", [1e-6, 1e-2, 1.0, 30.0, 1e4, 1e8])
def test_von_mises_draws_follow_the_distribution(concentration: float) -> None:
    draws = implicit_rsample(dist.VonMises(torch.tensor(0.5), torch.tensor(concentration)), (20_000,)) - 0.5
    exact: Any = stats.norm(scale=concentration**-0.5) if concentration > 1e3 else stats.vonmises(concentration)
    if concentration < 1e6:  # beyond, adding the location in single precision leaves steps in the draws
        assert stats.kstest(draws.double().numpy(), exact.cdf).pvalue > 1e-3
    assert draws.double().std().item() == pytest.approx(exact.std(), rel=0.03)


def test_the_comparison_of_draws_notices_a_slightly_wrong_concentration() -> None:
    draws = implicit_rsample(dist.VonMises(torch.tensor(0.0), torch.tensor(1.1)), (20_000,))
    assert stats.kstest(draws.double().numpy(), stats.vonmises(1.0).cdf).pvalue < 1e-3


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_draws_follow_the_distribution(name: str) -> None:
    family, options, _, _ = MIXTURES[name]
    parameters = tensors(**options)
    draws = implicit_rsample(mixture(family)(torch.tensor(LOGITS), **parameters), (20_000,)).double()
    components = [implicit._cdf(family(**{k: v.double()[i] for k, v in parameters.items()}), draws) for i in range(3)]
    uniform = sum(p * cdf for p, cdf in zip(torch.tensor(LOGITS).softmax(-1), components, strict=True))
    assert stats.kstest(torch.as_tensor(uniform).numpy(), stats.uniform.cdf).pvalue > 1e-3


def test_scalar_weights_are_drawn_for_each_row_of_the_components() -> None:
    fn = mixture(dist.Normal)(
        torch.zeros(2), loc=torch.tensor([-100.0, 100.0]).expand(500, 2), scale=torch.ones(500, 2)
    )
    assert 150 < int((implicit_rsample(fn) > 0).sum()) < 350


# --- distribution functions ---


@pytest.mark.parametrize("concentration", [0.01, 0.3, 1.0, 4.0, 15.0, 25.0, 49.0, 80.0, 200.0])
def test_the_von_mises_distribution_function_is_accurate_in_single_precision(concentration: float) -> None:
    x = np.linspace(-math.pi, math.pi, 301)
    k = torch.tensor(concentration, requires_grad=True)
    own = k.expand(301).clone().detach().requires_grad_()
    value = von_mises_cdf(torch.tensor(x, dtype=torch.float32), torch.tensor(0.0), own)
    np.testing.assert_allclose(value.detach().numpy(), stats.vonmises.cdf(x, concentration), atol=1e-5)

    def exact(k: float) -> Any:
        nodes, weights = np.polynomial.legendre.leggauss(100)
        end = np.minimum(np.abs(x), 12 / k**0.5)[:, None]
        density = np.exp(-2 * k * np.sin((nodes + 1) * end / 4) ** 2) / (2 * math.pi * special.ive(0, k))
        return np.sign(x) * (weights * density).sum(-1) * end[:, 0] / 2

    step = 1e-4 * concentration
    differences = (exact(concentration + step) - exact(concentration - step)) / (2 * step)
    (derivative,) = torch.autograd.grad(value.sum(), own)
    np.testing.assert_allclose(derivative.numpy() * concentration, differences * concentration, atol=1e-6)


def test_the_von_mises_distribution_function_rises_by_one_with_each_turn() -> None:
    x = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    loc, k = torch.tensor(0.4, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    turn = von_mises_cdf(x + 4 * math.pi, loc, k) - von_mises_cdf(x, loc, k)
    torch.testing.assert_close(turn, torch.full_like(x, 2.0))


FAMILIES: dict[str, tuple[Make, list[float]]] = {
    "Normal": (dist.Normal, [0.3, 0.8]),
    "LogNormal": (dist.LogNormal, [0.3, 0.8]),
    "Laplace": (dist.Laplace, [0.3, 0.8]),
    "Cauchy": (dist.Cauchy, [0.3, 0.8]),
    "HalfNormal": (dist.HalfNormal, [0.8]),
    "HalfCauchy": (dist.HalfCauchy, [0.8]),
    "Exponential": (dist.Exponential, [0.8]),
    "Gamma": (dist.Gamma, [1.3, 0.8]),
    "Chi2": (dist.Chi2, [1.3]),
    "InverseGamma": (dist.InverseGamma, [2.3, 0.8]),
    "Weibull": (dist.Weibull, [1.3, 0.8]),
    "Gumbel": (dist.Gumbel, [0.3, 0.8]),
    "Kumaraswamy": (dist.Kumaraswamy, [1.3, 1.8]),
    "Logistic": (dist.Logistic, [0.3, 0.8]),
    "SkewLogistic": (dist.SkewLogistic, [0.3, 0.8, 1.4]),
    "SoftLaplace": (dist.SoftLaplace, [0.3, 0.8]),
    "VonMises": (dist.VonMises, [0.3, 0.8]),
    "LogitNormal": (logit_normal, [0.3, 0.8]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_components_have_right_distribution_functions_and_derivatives(name: str) -> None:
    family, values = FAMILIES[name]
    parameters = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    draws = family(*parameters.detach()).sample((20,))

    def cdf(at: Tensor, z: Tensor = draws) -> Tensor:
        return implicit._cdf(family(*at), z)

    step = 1e-6
    density = (cdf(parameters.detach(), draws + step) - cdf(parameters.detach(), draws - step)) / (2 * step)
    torch.testing.assert_close(density, family(*parameters.detach()).log_prob(draws).exp(), rtol=1e-5, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(cdf, parameters)
    for i, shift in enumerate(step * torch.eye(len(values), dtype=torch.float64)):
        difference = (cdf(parameters.detach() + shift) - cdf(parameters.detach() - shift)) / (2 * step)
        torch.testing.assert_close(jacobian[:, i], difference, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (von_mises, tensors(loc=[0.0] * 5, concentration=[1e-8, 1e-3, 1.0, 1e3, 1e8])),
        (mixture(dist.Normal), tensors(logits=[0.0, -30.0, 1.0], loc=[-50.0, 0.0, 1e4], scale=[1e-4, 1.0, 1e3])),
        (mixture(dist.Gamma), tensors(logits=[0.0, 1.0, 2.0], concentration=[0.01, 1.0, 1e4], rate=[1e-3, 1.0, 10.0])),
        (mixture(dist.VonMises), tensors(logits=[0.0, 1.0], loc=[0.0, 9.0], concentration=[1e-4, 1e4])),
    ],
)
def test_gradients_stay_finite_at_extreme_parameters(make: Make, parameters: Parameters) -> None:
    for sample in gradients(make, parameters, torch.tanh, 2_000).values():
        assert sample.isfinite().all()


# --- wrappers, shapes, refusals ---


def test_what_torch_can_draw_is_drawn_by_torch() -> None:
    for fn in (dist.Gamma(torch.tensor(2.0), 1.0), dist.Beta(torch.ones(3), 2.0), dist.Dirichlet(torch.ones(2, 3))):
        torch.manual_seed(3)
        expected = fn.rsample((4,))
        torch.manual_seed(3)
        assert torch.equal(implicit_rsample(fn, (4,)), expected)


WRAPPED: dict[str, Make] = {
    "to_event": lambda fn: fn.to_event(1),
    "mask": lambda fn: fn.mask(torch.tensor([True, False])),
    "mask False": lambda fn: fn.mask(False),
    "expand_by": lambda fn: fn.expand_by((4,)),
    "ExpandedDistribution": lambda fn: dist.ExpandedDistribution(fn, (4, 2)),
    "all": lambda fn: fn.expand_by((4,)).to_event(1).mask(torch.ones(4) > 0),
    "transformed": lambda fn: dist.TransformedDistribution(fn, [ExpTransform()]),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_are_seen_through(wrap: Make) -> None:
    location = torch.zeros(2, requires_grad=True)
    concentration = torch.full((2,), 3.0, requires_grad=True)
    for base in (
        dist.VonMises(location, concentration),
        mixture(dist.Normal)(torch.zeros(3), loc=location[:, None] + torch.arange(3), scale=concentration[:, None]),
    ):
        fn = wrap(base)
        assert not fn.has_rsample
        assert can_be_implicit(fn) is None
        draw = implicit_rsample(fn, (5,))
        assert draw.shape == fn.shape((5,))
        assert all(g.isfinite().all() and g.any() for g in torch.autograd.grad(draw.sum(), [location, concentration]))
        with torch.no_grad():
            assert not implicit_rsample(fn).requires_grad


def test_draws_of_an_expanded_distribution_are_independent() -> None:
    base = dist.VonMises(torch.zeros(1, 2), torch.ones(1, 2))
    draw = implicit_rsample(dist.ExpandedDistribution(base, (3, 4, 2)))
    assert draw.shape == (3, 4, 2)
    assert len(draw.unique()) == 24


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (dist.Bernoulli(torch.tensor(0.5)), "Bernoulli, which is discrete"),
        (dist.Categorical(torch.ones(3)).expand_by((2,)).mask(False), "Categorical, which is discrete"),
        (mixture(dist.Poisson)(torch.zeros(2), rate=torch.ones(2)), "a mixture of Poisson, which is discrete"),
        (mixture(dist.StudentT)(torch.zeros(2), df=torch.ones(2)), "a mixture of StudentT: expected components among"),
        (mixture(dist.Beta)(torch.zeros(2), concentration1=torch.ones(2), concentration0=1.0), "a mixture of Beta"),
        (mixture(dist.Uniform)(torch.zeros(2), low=torch.zeros(2), high=torch.ones(2)), "a mixture of Uniform"),
        (
            mixture(dist.MultivariateNormal)(
                torch.zeros(2), loc=torch.zeros(2, 3), covariance_matrix=torch.eye(3).expand(2, 3, 3)
            ),
            "a mixture of MultivariateNormal",
        ),
        (dist.VonMises3D(torch.tensor([1.0, 0.0, 0.0])), "VonMises3D, whose distribution function is not known here"),
    ],
)
def test_what_has_no_derivative_is_refused_with_a_reason(fn: Any, words: str) -> None:
    assert words in str(can_be_implicit(fn))
    with pytest.raises(ConfigError, match=f"^expected a distribution .* derivative; got {words}.*; choose another"):
        implicit_rsample(fn)


# --- tracing ---


TRACED: dict[str, tuple[Make, Parameters]] = {
    "VonMises": (dist.VonMises, tensors(loc=[0.1, 0.2], concentration=[0.5, 30.0])),
    **{name: (mixture(case[0]), tensors(logits=LOGITS, **case[1])) for name, case in MIXTURES.items()},
    "diagonal": (mixture(diagonal), tensors(**DIAGONAL)),
}


def gradient_step(make: Make, names: list[str]) -> Callable[..., list[Tensor]]:
    def step(*values: Tensor) -> list[Tensor]:
        leaves = [value.detach().requires_grad_() for value in values]
        draw = implicit_rsample(make(**dict(zip(names, leaves, strict=True))), (7,))
        return [draw.detach(), *torch.autograd.grad(draw.cos().sum(), leaves)]

    return step


@pytest.mark.parametrize("name", TRACED)
def test_a_recorded_graph_run_on_other_parameters_equals_eager(name: str) -> None:
    make, parameters = TRACED[name]
    step = gradient_step(make, list(parameters))
    with pyro.validation_enabled(False):
        graph = make_fx(step)(*parameters.values())
        for seed, factor in [(1, 1.0), (2, 0.7)]:
            inputs = [factor * value for value in parameters.values()]
            torch.manual_seed(seed)
            eager = step(*inputs)
            torch.manual_seed(seed)
            torch.testing.assert_close(graph(*inputs), eager)


def test_the_comparison_of_a_recorded_graph_notices_a_value_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = implicit._von_mises_angle, []

    def wrong(concentration: Tensor) -> Tensor:
        calls.append(1)
        return right(concentration) / len(calls)

    monkeypatch.setattr(implicit, "_von_mises_angle", wrong)
    with pytest.raises(AssertionError):
        test_a_recorded_graph_run_on_other_parameters_equals_eager("VonMises")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VonMises", "Gamma", "diagonal"])
def test_a_compiled_step_equals_eager(name: str) -> None:
    make, parameters = TRACED[name]
    step = gradient_step(make, list(parameters))
    with pyro.validation_enabled(False):
        compiled = compile_function(step, list(parameters.values()), [])
        for seed, factor in [(1, 1.0), (2, 0.7)]:
            inputs = [factor * value for value in parameters.values()]
            torch.manual_seed(seed)
            eager = step(*inputs)
            torch.manual_seed(seed)
            torch.testing.assert_close(list(compiled(*inputs)), eager, rtol=1e-4, atol=1e-5)
