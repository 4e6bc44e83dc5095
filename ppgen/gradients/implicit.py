r"""Implicit reparameterisation: pathwise derivatives of draws that no formula maps from noise.

A draw ``z`` of a density ``q`` with distribution function ``F(z; phi)`` keeps its quantile while ``phi`` moves, so
``dz/dphi = -(dF/dphi) / q(z)``: exact whatever way ``z`` was drawn. Draws here take a fixed number of operations and
read no value in Python, so that a step which contains them can be compiled.
"""

import functools
import math

import torch
from numpy.polynomial.legendre import leggauss
from pyro.distributions import (
    ExpandedDistribution,
    Logistic,
    MaskedDistribution,
    SkewLogistic,
    SoftLaplace,
    TorchDistribution,
)
from torch import Tensor
from torch import distributions as dist

from ppgen.errors import ConfigError

WRAPPERS = (dist.Independent, MaskedDistribution, ExpandedDistribution, dist.TransformedDistribution)
ON_THE_LINE = (dist.Normal, dist.Laplace, dist.Cauchy, Logistic, SkewLogistic, SoftLaplace)
"""Components with values anywhere on the real line, whose distribution function autograd differentiates."""
ON_THE_HALF_LINE = (dist.HalfNormal, dist.HalfCauchy, dist.Exponential)
TRANSFORMED = (dist.Weibull, dist.Gumbel, dist.InverseGamma, dist.Kumaraswamy)
COMPONENTS = (
    "Normal, LogNormal, Laplace, Cauchy, HalfNormal, HalfCauchy, Exponential, Gamma, InverseGamma, Weibull, Gumbel, "
    "Kumaraswamy, Logistic, SkewLogistic, SoftLaplace, VonMises"
)

PROPOSALS = 16
"""Of so many proposals for a von Mises draw at least one is accepted, but for a chance below 4e-8."""
POINTS = 32
NODES, WEIGHTS = (array.tolist() for array in leggauss(POINTS))
"""Gauss and Legendre's quadrature on [-1, 1]."""


def implicit_rsample(fn: TorchDistribution, sample_shape: tuple[int, ...] = ()) -> Tensor:
    r"""Draws with pathwise derivatives, also of distributions that torch draws without.

    A distribution with ``has_rsample`` is asked itself. The others:

    - ``VonMises``: the draw is ``loc + angle`` with the angle in [-pi, pi]. It is not wrapped, unlike torch's, so that
      its derivative with respect to ``loc`` is 1 and right for every function of the draw, a periodic one or not.
    - ``MixtureSameFamily`` of univariate continuous components or of ``Independent`` ones. Dimension by dimension,
      ``F`` is the mixture of the components' distribution functions given the dimensions before, whose weights are
      the components' posterior probabilities. Von Mises components are wrapped to [-pi, pi], and cut there.

    Derivatives are of first order: the derivative of a derivative of the draw is taken as zero. Where components
    lie far apart, mass moves from one to another through a region that is hardly ever drawn. The derivative with
    respect to the weights then has a large variance (two unit normals, deviation of the derivative of E[tanh z] by
    its size: 2 at a distance of 4, 7 at 6), and beyond a distance of about 8 it rests on draws that never come.

    Args:
        fn: the distribution; Pyro's and torch's wrappers (``Independent``, ``mask``, ``expand_by``, transforms) are
            seen through.
        sample_shape: as for ``sample``.

    Returns:
        A tensor of shape ``sample_shape + fn.batch_shape + fn.event_shape``.

    Raises:
        ConfigError: if there is no such derivative; `can_be_implicit` gives the reason.

    References:
        Figurnov, Mohamed, Mnih, 2018, arXiv:1805.08498. Mixtures: Graves, 2016, arXiv:1607.05690.

    Examples:
        >>> location = torch.tensor(1.0, requires_grad=True)
        >>> draw = implicit_rsample(dist.VonMises(location, torch.tensor(2.0)), (3,))
        >>> draw.shape, torch.autograd.grad(draw.sum(), location)[0]
        (torch.Size([3]), tensor(3.))
    """
    if (reason := can_be_implicit(fn)) is not None:
        raise ConfigError(
            f"expected a distribution whose draws have a pathwise derivative; got {reason}; choose another estimator"
        )
    sample_shape = torch.Size(sample_shape)
    value: Tensor
    if fn.has_rsample:
        value = fn.rsample(sample_shape)
    elif isinstance(fn, ExpandedDistribution):
        value = fn._sample(functools.partial(implicit_rsample, fn.base_dist), sample_shape)
    elif isinstance(fn, WRAPPERS):
        value = implicit_rsample(fn.base_dist, sample_shape)
        value = functools.reduce(lambda x, transform: transform(x), getattr(fn, "transforms", []), value)
    else:
        value = _von_mises(fn, sample_shape) if isinstance(fn, dist.VonMises) else _mixture(fn, sample_shape)
    return value


def can_be_implicit(fn: TorchDistribution) -> str | None:
    """Returns None if `implicit_rsample` can draw from a distribution, and otherwise the reason in words.

    >>> can_be_implicit(dist.Bernoulli(torch.tensor(0.5)))
    'Bernoulli, which is discrete: its draws jump, they have no derivative'
    """
    if fn.has_rsample or isinstance(fn, dist.VonMises):
        return None
    if isinstance(fn, WRAPPERS):
        return can_be_implicit(fn.base_dist)
    if isinstance(fn, dist.MixtureSameFamily):
        base = _univariate(fn.component_distribution)
        known = "" if _is_discrete(base) else f": expected components among {COMPONENTS}"
        return None if _has_cdf(base) else f"a mixture of {_named(base)}{known}"
    return _named(fn) if _is_discrete(fn) else f"{_named(fn)}, whose distribution function is not known here"


def _named(fn: TorchDistribution) -> str:
    name = type(fn).__name__
    return f"{name}, which is discrete: its draws jump, they have no derivative" if _is_discrete(fn) else name


def _is_discrete(fn: TorchDistribution) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


# --- von Mises ---


def von_mises_cdf(value: Tensor, loc: Tensor, concentration: Tensor) -> Tensor:
    r"""The von Mises distribution function from ``loc - pi``, with derivatives in all three arguments.

    ``F(x) = integral from loc - pi to x of exp(k cos(t - loc)) / (2 pi I0(k)) dt``, which rises by 1 with each turn.
    The three arguments broadcast; the result is accurate to about 1e-6 in single precision.

    >>> von_mises_cdf(torch.tensor(0.5), torch.tensor(0.5), torch.tensor(3.0))
    tensor(0.5000)
    """
    angle = value - loc
    turns = torch.round(angle.detach() / (2 * math.pi))
    inner = angle - 2 * math.pi * turns
    with torch.no_grad():
        cdf, density, slope = _von_mises_integrals(inner, concentration)
    return _linear(cdf + turns, (inner, density), (concentration, -density * slope))


def _linear(value: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Returns ``value`` with the given derivatives with respect to the given tensors."""
    return functools.reduce(lambda total, term: total + (term[0] - term[0].detach()) * term[1], terms, value)


def _von_mises(fn: dist.VonMises, sample_shape: torch.Size) -> Tensor:
    concentration = fn.concentration.expand(sample_shape + fn.batch_shape)
    with torch.no_grad():
        angle = _von_mises_angle(concentration)
        _, _, slope = _von_mises_integrals(angle, concentration)
    return fn.loc + _linear(angle, (concentration, slope))


def _von_mises_angle(concentration: Tensor) -> Tensor:
    """Draws angles around 0 by rejection from a wrapped Cauchy (Best and Fisher, 1979), all proposals at once.

    The usual formulas are rewritten without differences of nearly equal numbers, which would need double precision.
    """
    k = concentration
    root = (1 + 4 * k * k).sqrt()
    bound = 1 + root + (2 * (1 + root)).sqrt()
    rho = 2 * k / bound
    remainder = (1 + 1 / (root + 2 * k) + (2 * (1 + root)).sqrt()) / bound  # 1 - rho
    uniform = torch.rand((2, PROPOSALS, *k.shape), dtype=k.dtype, device=k.device)
    half_turn = 0.5 * math.pi * (2 * uniform[0] - 1)
    angle = 2 * torch.atan2(remainder * half_turn.sin(), (1 + rho) * half_turn.cos())
    c = remainder.square() * bound / 4 + 2 * k * (angle / 2).sin().square()
    accepted = uniform[1].log() <= c.log() + 1 - c
    first = accepted.to(torch.int32).argmax(0, keepdim=True)
    return angle.gather(0, first).squeeze(0)


def _von_mises_integrals(angle: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``F``, the density and ``d angle / d concentration`` of angles in [-pi, pi] around 0.

    The derivative is ``-integral of (cos t - A) q(t) dt / q(angle)`` from 0, where ``A = I1/I0`` is the mean of the
    cosine. That from ``angle`` to pi is its negative: taking the one whose integrand does not change its sign, and
    the density relative to that at ``angle``, nothing cancels.
    """
    angle, k = torch.broadcast_tensors(angle, concentration)
    size = angle.abs()
    slack = _one_minus_mean_cosine(k)
    rise = _versine(size)
    centre = rise <= slack
    start = torch.where(centre, 0.0, size)
    stop = torch.where(centre, size, (size + 9 / k.sqrt()).clamp(max=math.pi))
    half = (stop - start).unsqueeze(-1) / 2
    versine = _versine(start.unsqueeze(-1) + half * (1 + angle.new_tensor(NODES)))
    relative = (k.unsqueeze(-1) * (rise.unsqueeze(-1) - versine)).exp() * half * angle.new_tensor(WEIGHTS)
    density = (-k * rise).exp() / (2 * math.pi * torch.special.i0e(k))
    mass = density * relative.sum(-1)
    slope = -(relative * (slack.unsqueeze(-1) - versine)).sum(-1).abs() * angle.sign()
    upper = torch.where(centre, 0.5 + mass, 1 - mass)
    return torch.where(angle < 0, 1 - upper, upper), density, slope


def _versine(angle: Tensor) -> Tensor:
    return 2 * (angle / 2).sin().square()


def _one_minus_mean_cosine(k: Tensor) -> Tensor:
    """Returns ``1 - I1(k)/I0(k)``; an asymptotic series where the two Bessel functions would cancel."""
    inverse = 1 / k.clamp(min=20.0)
    series = inverse * (1 / 2 + inverse * (1 / 8 + inverse * (1 / 8 + inverse * (25 / 128 + inverse * (13 / 32)))))
    return torch.where(k > 20, series, 1 - torch.special.i1e(k) / torch.special.i0e(k))


# --- mixtures ---


def _univariate(component: TorchDistribution) -> TorchDistribution:
    """The distribution of one dimension of a component: that inside of `Independent`."""
    return _univariate(component.base_dist) if isinstance(component, dist.Independent) else component


def _has_cdf(fn: TorchDistribution) -> bool:
    """Whether `_cdf` can be asked; the support must not depend on parameters, else a draw can leave a component's."""
    if isinstance(fn, (*ON_THE_LINE, *ON_THE_HALF_LINE, *TRANSFORMED, dist.Gamma, dist.VonMises)):
        return True
    if not isinstance(fn, dist.TransformedDistribution) or not isinstance(fn.base_dist, ON_THE_LINE):
        return False
    return [type(transform) for transform in fn.transforms] in ([dist.ExpTransform], [dist.SigmoidTransform])


def _cdf(fn: TorchDistribution, value: Tensor) -> Tensor:
    """The distribution function, with derivatives with respect to the parameters of ``fn``."""
    if isinstance(fn, dist.VonMises):
        cut = torch.full_like(value, -math.pi)
        return von_mises_cdf(value, fn.loc, fn.concentration) - von_mises_cdf(cut, fn.loc, fn.concentration)
    if isinstance(fn, dist.Gamma):
        return _gamma_cdf(fn.concentration, fn.rate * value)
    if isinstance(fn, dist.TransformedDistribution) and not isinstance(fn, ON_THE_HALF_LINE):
        sign: Tensor | int = 1
        for transform in reversed(fn.transforms):
            value, sign = transform.inv(value), sign * transform.sign
        return 0.5 + sign * (_cdf(fn.base_dist, value) - 0.5)
    cdf: Tensor = fn.cdf(value)
    return cdf


def _gamma_cdf(concentration: Tensor, value: Tensor) -> Tensor:
    """The regularised incomplete gamma function with the derivative in ``concentration``, which torch's has not."""
    with torch.no_grad():
        # expand, as the compiler takes torch's gamma operations only with sizes that the graph names
        shape = torch.broadcast_shapes(concentration.shape, value.shape)
        a, x = concentration.expand(shape), value.clamp(min=torch.finfo(value.dtype).tiny).expand(shape)
        density = (torch.xlogy(a - 1, x) - x - torch.lgamma(a)).exp()
        slope = torch._standard_gamma_grad(a.contiguous(), x.contiguous())
        cdf = torch.special.gammainc(a, x)
    return _linear(cdf, (value, density), (concentration, -density * slope))


def _mixture(fn: dist.MixtureSameFamily, sample_shape: torch.Size) -> Tensor:
    base = _univariate(fn.component_distribution)
    lead = sample_shape + fn.batch_shape
    log_weights = fn.mixture_distribution.logits.log_softmax(-1)
    value = _mixture_draw(base, log_weights.detach(), fn, sample_shape)
    if not torch.is_grad_enabled():
        return value
    shape = (*lead, log_weights.shape[-1], *fn.event_shape)
    flat = (*shape[: len(lead) + 1], fn.event_shape.numel())
    place = value.unsqueeze(len(lead)).expand(shape)
    log_q, cdf = base.log_prob(place).reshape(flat), _cdf(base, place).reshape(flat)
    score = _score(base, place).reshape(flat) if flat[-1] > 1 else None
    move = _move(log_weights.expand(flat[:-1]).unsqueeze(-1), log_q, cdf, score)
    return value + (move - move.detach()).reshape(value.shape)


def _score(fn: TorchDistribution, value: Tensor) -> Tensor:
    """The derivative of the log density with respect to the value."""
    place = value.clone().requires_grad_()
    (score,) = torch.autograd.grad(fn.log_prob(place).sum(), place)
    return score


def _mixture_draw(
    base: TorchDistribution, log_weights: Tensor, fn: dist.MixtureSameFamily, sample_shape: torch.Size
) -> Tensor:
    """Draws from every component and keeps the draw of one; torch's own cannot be traced for every component."""
    with torch.no_grad():
        weights = log_weights.expand(*fn.batch_shape, -1)
        which = dist.Categorical(logits=weights, validate_args=False).sample(sample_shape)
        draws = implicit_rsample(base, sample_shape)
        if isinstance(base, dist.VonMises):
            draws = draws - 2 * math.pi * torch.round(draws / (2 * math.pi))
        index = which.reshape(*which.shape, *[1] * (1 + len(fn.event_shape)))
        return draws.take_along_dim(index, which.dim()).squeeze(which.dim())


def _move(log_weights: Tensor, log_q: Tensor, cdf: Tensor, score: Tensor | None) -> Tensor:
    r"""The change of a draw with the parameters: solves ``dF + (dF/dz) dz = 0``, a triangular system.

    ``F_d(z_d | z_1..z_d-1) = sum_k w_kd F_k(z_d)`` with ``w_kd`` proportional to ``w_k prod_{j<d} q_k(z_j)``. So
    ``dF_d/dz_d`` is the density of the mixture, and ``dF_d/dz_j`` for ``j < d`` is the covariance over the components
    of ``F_k(z_d)`` and the score ``d log q_k(z_j)/dz_j``.

    Args:
        log_weights: ``(..., components, 1)``.
        log_q: log densities of the draw's dimensions, ``(..., components, dimensions)``.
        cdf: their distribution functions.
        score: derivatives of ``log_q`` with respect to the draw; None if there is one dimension.

    Returns:
        A tensor of shape ``(..., dimensions)``, whose derivatives count and whose value does not.
    """
    before = torch.cat([torch.zeros_like(log_q[..., :1]), log_q[..., :-1].cumsum(-1)], -1)
    posterior = (log_weights + before).log_softmax(-2)
    density = (posterior + log_q).logsumexp(-2).exp().detach()
    probability = posterior.detach().exp()
    # adds nothing, as the weights sum to one, but keeps the derivatives of the weights from cancelling
    centred = cdf - (probability * cdf.detach()).sum(-2, keepdim=True)
    step = (posterior.exp() * centred).sum(-2) / density
    if score is None:
        return -step
    with torch.no_grad():
        jacobian = (probability * centred).transpose(-1, -2) @ score / density.unsqueeze(-1)
        jacobian = jacobian.tril(-1) + torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
    solved: Tensor = torch.linalg.solve_triangular(jacobian, -step.unsqueeze(-1), upper=False, unitriangular=True)
    return solved.squeeze(-1)
