"""What an estimator of the gradient of one guide site is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn

from ppgen.errors import ConfigError

_CERTAIN = 1e30
Message = Any
"""One of Pyro's messages: a site about to be drawn."""


@dataclass(frozen=True)
class Situation:
    """What an estimator of a site with learning signals may look at.

    Attributes:
        inputs: features of the rows that the site's distribution may depend on: ``(..., features)``.
        left_out: for "geometric" or "arithmetic", the signal that each particle would have if it were one of the
            others on average; None where there is one particle.
        name: of the site.
        asked: the site's ``infer`` in this run.
        unit: what a signal is multiplied by to be in the scale of the program.
    """

    inputs: Callable[[], Tensor]
    left_out: Callable[[str], Tensor | None]
    name: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)
    unit: float = 1.0


class Estimator(nn.Module):
    """How the gradient of a site of the guide is estimated; abstract.

    Attributes:
        unbiased: whether its expectation is the exact gradient.
        versions: how many further versions of the draws it needs.
    """

    unbiased = True
    versions = 0
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    def refusal(self, fn: dist.TorchDistribution, *, particles: int) -> str | None:
        """Returns why the estimator cannot treat a site of that distribution; None if it can."""
        raise TypeError(f"{type(self).__name__} does not define refusal")

    def prepare(self, *, event: int, inputs: int) -> None:
        """Makes what is trained along, for a site of ``event`` values a row and ``inputs`` features."""

    def draw(self, site: Message) -> Tensor | None:
        """Returns the value that a site takes, or None to let it be drawn as usual."""
        return None


class SignalEstimator(Estimator):
    """Gradients by ``(signal - baseline) * grad log q``: abstract, the baseline is what they differ in."""

    def refusal(self, fn: dist.TorchDistribution, *, particles: int) -> str | None:
        """See `Estimator.refusal`: whatever has a density will do."""
        return "a Delta has no density" if isinstance(base_of(fn), dist.Delta) else None

    def draw(self, site: Message) -> Tensor | None:
        """See `Estimator.draw`: without a pathwise derivative, which would count twice."""
        return site["fn"].sample() if getattr(site["fn"], "has_rsample", False) else None

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        """Returns the signal less the baseline, and the loss of what the baseline trains (None if nothing)."""
        raise TypeError(f"{type(self).__name__} does not define advantage")


def base_of(fn: Any) -> Any:
    """Returns the distribution that Pyro's wrappers (``to_event``, ``mask``, ``expand``) are around."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def is_one_hot(fn: Any) -> bool:
    """Whether a distribution is over one-hot vectors."""
    return isinstance(base_of(fn), torch.distributions.OneHotCategorical)


def is_bernoulli(fn: Any) -> bool:
    """Whether a distribution is over 0 and 1."""
    return isinstance(base_of(fn), torch.distributions.Bernoulli)


def why_not_binary(fn: Any) -> str | None:
    """Says why a site cannot be relaxed or expanded around its mean; None if it can."""
    if is_one_hot(fn) or is_bernoulli(fn):
        return None
    kind = type(base_of(fn)).__name__
    if kind == "Categorical":
        return "it takes Bernoulli and OneHotCategorical sites; make the Categorical a OneHotCategorical"
    return f"it takes Bernoulli and OneHotCategorical sites; got {kind}"


def logits_of(fn: Any) -> Tensor:
    """Returns the logits of a Bernoulli or OneHotCategorical site, broadcast to the shape of a value.

    That of what cannot be is a large number: unlike an infinite one it has a product with 0.
    """
    logits: Tensor = base_of(fn).logits.clamp(-_CERTAIN, _CERTAIN)
    return logits.expand(fn.batch_shape + fn.event_shape) if logits.shape != fn.batch_shape + fn.event_shape else logits


def mean_of(fn: Any, logits: Tensor) -> Tensor:
    """Returns the mean of a Bernoulli or OneHotCategorical of these logits."""
    return logits.softmax(-1) if is_one_hot(fn) else logits.sigmoid()


def uniform(like: Tensor) -> Tensor:
    """Draws uniform numbers, none of them 0 or 1."""
    return torch.rand_like(like).clamp(1e-6, 1 - 1e-6)


def noise(fn: Any, like: Tensor) -> Tensor:
    """Draws the noise whose sum with the logits decides: Gumbel for one-hot vectors, logistic for 0 and 1."""
    u = uniform(like)
    return -(-u.log()).log() if is_one_hot(fn) else u.log() - (-u).log1p()


def hardened(fn: Any, z: Tensor) -> Tensor:
    """Returns the discrete value that noisy logits decide for."""
    if not is_one_hot(fn):
        return (z > 0).to(z.dtype)
    states = torch.arange(z.shape[-1], device=z.device)
    return (z.argmax(-1, keepdim=True) == states).to(z.dtype)


def softened(fn: Any, z: Tensor, temperature: Tensor) -> Tensor:
    """Returns the relaxed value of noisy logits."""
    return (z / temperature).softmax(-1) if is_one_hot(fn) else (z / temperature).sigmoid()


def options_error(name: str, options: Mapping[str, Any], known: tuple[str, ...]) -> ConfigError:
    """Returns the error for options that an estimator does not have."""
    unknown = ", ".join(sorted(set(options) - set(known)))
    has = f"it has {', '.join(known)}" if known else "it has none"
    return ConfigError(f"estimator '{name}' has no option {unknown}: {has}")
