"""Biased estimators of discrete sites, by relaxed draws."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.nn.functional import softplus

from ppgen.errors import ConfigError
from ppgen.gradients.base import (
    Estimator,
    Message,
    hardened,
    is_one_hot,
    logits_of,
    mean_of,
    noise,
    softened,
    why_not_binary,
)
from ppgen.programs import DENSITY

__all__ = ["Concrete", "GumbelSoftmax", "GumbelStraightThrough", "StraightThrough"]


class _SoftOneHot(dist.OneHotCategorical):
    """Scores vectors between the one-hot ones, linearly."""

    has_rsample = True

    def log_prob(self, value: Tensor) -> Tensor:
        # what cannot be, and is not, does not count
        logits = torch.where((value == 0) & self.logits.isneginf(), torch.zeros_like(self.logits), self.logits)
        log_prob: Tensor = (value * logits).sum(-1)
        return log_prob


class _Logarithmic:
    """What scores a relaxed value by its logarithm (or logit), which no low temperature rounds to infinity.

    Args:
        temperature: of the relaxation.
        logits: of the discrete distribution.
        logs: of the value.
    """

    def __init__(self, temperature: Tensor, logits: Tensor, logs: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)  # type: ignore[call-arg]
        self.temperature = temperature
        self.score = logits - logs * temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns itself: the logarithms have the shape of the value."""
        return self


class _LogOneHot(_Logarithmic, dist.OneHotCategorical):
    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the density of the logarithms."""
        states = self.score.shape[-1]
        constant = math.lgamma(states) + (states - 1) * self.temperature.log()
        log_prob: Tensor = self.score.log_softmax(-1).sum(-1) + constant
        return log_prob


class _LogUnit(_Logarithmic, dist.Bernoulli):
    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the density of the logit."""
        return self.temperature.log() + self.score - 2 * softplus(self.score)


def soft(fn: Any) -> Any:
    """Returns a discrete distribution that scores relaxed values too, linearly between the discrete ones."""
    # a Bernoulli's log probability is linear as it is
    kind = _SoftOneHot if is_one_hot(fn) else dist.Bernoulli
    return _rewrapped(fn, lambda base: kind(logits=base.logits, validate_args=False))


def _rewrapped(fn: Any, change: Any) -> Any:
    if isinstance(fn, dist.Independent):
        return dist.Independent(_rewrapped(fn.base_dist, change), fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, dist.MaskedDistribution):
        return dist.MaskedDistribution(_rewrapped(fn.base_dist, change), fn._mask)
    if isinstance(fn, ExpandedDistribution):
        return _rewrapped(fn.base_dist, change).expand(fn.batch_shape)
    return change(fn)


class GumbelSoftmax(Estimator):
    """Draws relaxed by Gumbel noise; densities are those of the discrete site, linearly in between.

    Where a divergence has a closed form, it is that of the discrete distributions, as in the paper.

    Args:
        temperature: of the relaxation, at first.
        final: what it is annealed to, exponentially; as at first, unless told.
        anneal: number of steps of the annealing.

    References:
        Jang, Gu, Poole, 2016, arXiv:1611.01144; Maddison, Mnih, Teh, 2016, arXiv:1611.00712.
    """

    unbiased = False

    def __init__(self, *, temperature: float = 0.5, final: float | None = None, anneal: int = 0) -> None:
        super().__init__()
        if temperature <= 0 or (final is not None and final <= 0) or anneal < 0:
            raise ConfigError(f"expected temperature, final > 0, anneal >= 0; got {temperature}, {final}, {anneal}")
        if final is not None and not anneal:
            raise ConfigError("expected anneal, the number of steps of the annealing, along with final")
        self.initial = temperature
        self.final = final
        self.anneal = anneal

    def temperature(self) -> Tensor:
        """Returns the temperature at this step."""
        start = torch.full((), self.initial, device=self.step.device)
        if self.final is None:
            return start
        done = (self.step / self.anneal).clamp(max=1.0)
        return start * (done * math.log(self.final / self.initial)).exp()

    def refusal(self, fn: dist.TorchDistribution, *, particles: int) -> str | None:
        """See `Estimator.refusal`."""
        return why_not_binary(fn)

    def draw(self, site: Message) -> Tensor | None:
        """See `Estimator.draw`."""
        fn = site["fn"]
        logits = logits_of(fn)
        site["infer"] = {**site["infer"], DENSITY: soft}
        return self.value(fn, logits)

    def value(self, fn: Any, logits: Tensor) -> Tensor:
        """Returns the draw of a site of these logits."""
        return softened(fn, logits + noise(fn, logits), self.temperature())


class Concrete(GumbelSoftmax):
    """Draws relaxed by Gumbel noise, scored by the densities of the relaxed distributions in model and guide alike.

    What is trained is a bound of the relaxed model. Densities are those of logarithms, and of logits: those of the
    values differ from them by what model and guide have in common, and are infinite at the corners.

    Args:
        **options: those of `GumbelSoftmax`.

    References:
        Maddison, Mnih, Teh, 2016, arXiv:1611.00712.
    """

    def draw(self, site: Message) -> Tensor | None:
        """See `Estimator.draw`."""
        fn, temperature = site["fn"], self.temperature()
        logits = logits_of(fn)
        noisy = logits + noise(fn, logits)
        logs = (noisy / temperature).log_softmax(-1) if is_one_hot(fn) else noisy / temperature

        def relaxed(base: Any) -> Any:
            kind = _LogOneHot if isinstance(base, torch.distributions.OneHotCategorical) else _LogUnit
            return kind(temperature, base.logits, logs)

        site["infer"] = {**site["infer"], DENSITY: lambda fn: _rewrapped(fn, relaxed)}
        return softened(fn, noisy, temperature)


class GumbelStraightThrough(GumbelSoftmax):
    """Discrete draws with the derivative of the Gumbel-softmax relaxation.

    Args:
        **options: those of `GumbelSoftmax`.

    References:
        Jang, Gu, Poole, 2016, arXiv:1611.01144, section 2.2.
    """

    def value(self, fn: Any, logits: Tensor) -> Tensor:
        """See `GumbelSoftmax.value`."""
        z = logits + noise(fn, logits)
        relaxed = softened(fn, z, self.temperature())
        return hardened(fn, z) + (relaxed - relaxed.detach())


class StraightThrough(GumbelSoftmax):
    """Discrete draws with the derivative of their mean.

    With annealing, the mean is sharpened by the temperature ("slope annealing").

    Args:
        **options: those of `GumbelSoftmax`; ``temperature`` is 1 unless told.

    References:
        Bengio, Leonard, Courville, 2013, arXiv:1308.3432; Chung, Ahn, Bengio, 2016, arXiv:1609.01704.
    """

    def __init__(self, *, temperature: float = 1.0, final: float | None = None, anneal: int = 0) -> None:
        super().__init__(temperature=temperature, final=final, anneal=anneal)

    def value(self, fn: Any, logits: Tensor) -> Tensor:
        """See `GumbelSoftmax.value`."""
        mean = mean_of(fn, logits / self.temperature())
        hard = hardened(fn, logits + noise(fn, logits)).detach()
        return hard + (mean - mean.detach())
