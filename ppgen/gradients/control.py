"""Unbiased estimators of discrete sites with control variates from relaxed or mean values."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppgen.gradients.base import (
    Estimator,
    hardened,
    is_one_hot,
    mean_of,
    noise,
    softened,
    uniform,
    why_not_binary,
)

__all__ = ["REBAR", "RELAX", "Control", "MuProp"]


@dataclass(frozen=True)
class Drawn:
    """How a site was drawn in the versions of a run.

    Attributes:
        fn: its distribution.
        logits: in the first version.
        value: the discrete value that counts.
        nodes: what its further versions were made of, differentiable: noisy logits, or the mean.
    """

    fn: dist.TorchDistribution
    logits: Tensor
    value: Tensor
    nodes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Signals:
    """What a control variate is made of, for one site.

    Attributes:
        values: the signal of each version, the first one first, in the shape of the site's log probability.
        totals: the share in the loss of each further version: scalars.
        weight: of a signal in the loss.
        log_q: log probability of the value that counts.
    """

    values: tuple[Tensor, ...]
    totals: tuple[Tensor, ...]
    weight: Tensor
    log_q: Tensor


class Control(Estimator):
    """An estimator that looks at further versions of a draw; abstract."""

    def refusal(self, fn: dist.TorchDistribution, *, particles: int) -> str | None:
        """See `Estimator.refusal`."""
        return why_not_binary(fn)

    def nodes(self, fn: dist.TorchDistribution, logits: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Returns what the further versions are made of.

        Args:
            fn: the site's distribution.
            logits: its logits.
            z: noisy logits.
            value: the discrete value that they decide for.
        """
        raise TypeError(f"{type(self).__name__} does not define nodes")

    def relaxed(self, fn: dist.TorchDistribution, node: Tensor) -> Tensor:
        """Returns the value that the site takes in the version of a node."""
        raise TypeError(f"{type(self).__name__} does not define relaxed")

    def followed(self, fn: dist.TorchDistribution, logits: Tensor, random: Tensor) -> Tensor:
        """Returns the value that the site takes in a version of a site before it, differentiable in its logits.

        A discrete draw would hide how the objective depends on that site through this one: a bias.

        Args:
            fn: the site's distribution.
            logits: its logits in that version.
            random: the noise of its draw.
        """
        raise TypeError(f"{type(self).__name__} does not define followed")

    def surrogate(self, drawn: Drawn, signals: Signals) -> tuple[Tensor, Tensor | None]:
        """Returns a scalar whose gradient is the estimate, and the loss of what the control variate trains."""
        raise TypeError(f"{type(self).__name__} does not define surrogate")


def _gradient(total: Tensor, node: Tensor, *, differentiable: bool) -> Tensor:
    (found,) = torch.autograd.grad(total, node, create_graph=differentiable, retain_graph=True, allow_unused=True)
    return torch.zeros_like(node) if found is None else found


def _per_value(term: Tensor, drawn: Drawn) -> Tensor:
    """Gives a term of the shape of a log probability the dimensions of the site's values."""
    return term.reshape((*term.shape, *(1 for _ in drawn.fn.event_shape)))


def _sum_event(term: Tensor, drawn: Drawn) -> Tensor:
    dims = tuple(range(-len(drawn.fn.event_shape), 0))
    return term.sum(dims) if dims else term


class MuProp(Control):
    """The score function less a first-order expansion of the objective around the site's mean, added in closed form.

    References:
        Gu, Levine, Sutskever, Mnih, 2015, arXiv:1511.05176.
    """

    versions = 1

    def nodes(self, fn: dist.TorchDistribution, logits: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """See `Control.nodes`."""
        return (mean_of(fn, logits),)

    def relaxed(self, fn: dist.TorchDistribution, node: Tensor) -> Tensor:
        """See `Control.relaxed`."""
        return node

    def followed(self, fn: dist.TorchDistribution, logits: Tensor, random: Tensor) -> Tensor:
        """See `Control.followed`: the mean."""
        return mean_of(fn, logits)

    def surrogate(self, drawn: Drawn, signals: Signals) -> tuple[Tensor, Tensor | None]:
        """See `Control.surrogate`."""
        (mean,) = drawn.nodes
        slope = _gradient(signals.totals[0], mean, differentiable=False).detach()
        linear = _sum_event(slope * (drawn.value - mean.detach()), drawn)
        advantage = signals.weight * (signals.values[0] - signals.values[1]).detach() - linear
        return (advantage * signals.log_q).sum() + (slope * mean).sum(), None


class REBAR(Control):
    """The score function with the objective at the relaxed draw as its control variate.

    Scale and temperature of the control variate are trained to minimise the variance of the gradient with respect to
    the site's logits; they belong to the player "estimator".

    Args:
        temperature: of the relaxation, at first.

    References:
        Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein, 2017, arXiv:1703.07370.
    """

    versions = 2

    def __init__(self, *, temperature: float = 0.5) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.scale = nn.Parameter(torch.tensor(1.0))

    def nodes(self, fn: dist.TorchDistribution, logits: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """See `Control.nodes`: noisy logits, and noisy logits that decide for the same value."""
        return z, _conditional(fn, logits, value)

    def relaxed(self, fn: dist.TorchDistribution, node: Tensor) -> Tensor:
        """See `Control.relaxed`."""
        return softened(fn, node, self.log_temperature.exp())

    def followed(self, fn: dist.TorchDistribution, logits: Tensor, random: Tensor) -> Tensor:
        """See `Control.followed`: the relaxed draw."""
        return self.relaxed(fn, logits + random)

    def free(self, drawn: Drawn, node: Tensor) -> Tensor:
        """Returns what is added to the control variate, in the shape of the log probability."""
        return torch.zeros((), device=node.device)

    def surrogate(self, drawn: Drawn, signals: Signals) -> tuple[Tensor, Tensor | None]:
        """See `Control.surrogate`."""
        slopes = []
        for node, total in zip(drawn.nodes, signals.totals, strict=True):
            whole = self.scale * total + (signals.weight * self.free(drawn, node)).sum()
            slopes.append(_gradient(whole, node, differentiable=True))
        conditional = drawn.nodes[1]
        variate = self.scale * signals.values[2] + self.free(drawn, conditional)
        through, *_ = torch.autograd.grad(conditional, drawn.logits, slopes[1], create_graph=True, retain_graph=True)
        advantage = _per_value(signals.weight * (signals.values[0].detach() - variate), drawn)
        gradient = advantage * self._score(drawn) + slopes[0] - through
        rows = (gradient / _per_value(signals.weight, drawn).clamp(min=1e-12)).square()
        variance = rows.sum() / signals.values[0].numel()
        return (gradient.detach() * drawn.logits).sum(), variance

    @staticmethod
    def _score(drawn: Drawn) -> Tensor:
        logits = drawn.logits.detach()
        return drawn.value if is_one_hot(drawn.fn) else drawn.value - logits.sigmoid()


class RELAX(REBAR):
    """The score function with a free network beside the objective at the relaxed draw as its control variate.

    ``c(z) = scale * f(relaxed(z)) + r(z)``, all trained to minimise the variance, as in `REBAR`.

    Args:
        temperature: of the relaxation, at first.
        hidden: size of the network's one hidden layer.

    References:
        Grathwohl, Choi, Wu, Roeder, Duvenaud, 2017, arXiv:1711.00123.
    """

    def __init__(self, *, temperature: float = 0.5, hidden: int = 10) -> None:
        super().__init__(temperature=temperature)
        self.hidden = hidden
        self.network: nn.Module | None = None

    def prepare(self, *, event: int, inputs: int) -> None:
        """See `Estimator.prepare`."""
        self.network = nn.Sequential(nn.Linear(event, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1))
        # at first nothing but noise, it starts out of the way: as REBAR
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def free(self, drawn: Drawn, node: Tensor) -> Tensor:
        """See `REBAR.free`."""
        dims = len(drawn.fn.event_shape)
        flat = node.flatten(-dims) if dims else node.unsqueeze(-1)
        found: Tensor = self.network(flat).squeeze(-1)  # type: ignore[misc]
        return found


def _conditional(fn: dist.TorchDistribution, logits: Tensor, value: Tensor) -> Tensor:
    """Draws noisy logits that decide for ``value``, differentiable in the logits."""
    v = uniform(logits)
    if not is_one_hot(fn):
        below = torch.sigmoid(-logits)  # the chance of 0
        u = torch.where(value > 0, below + v * (1 - below), v * below).clamp(1e-6, 1 - 1e-6)
        return logits + u.log() - (-u).log1p()
    top = -(-v.log()).log()
    chosen = (value * v).sum(-1, keepdim=True)
    others = -torch.logaddexp((-v.log()).log() - logits, (-chosen.log()).log())
    return torch.where(value > 0, top, others)


def first_draw(fn: dist.TorchDistribution, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns noise, noisy logits, and the discrete value that they decide for."""
    random = noise(fn, logits)
    z = logits + random
    return random, z, hardened(fn, z).detach()
