"""Priors in the plane whose parts can be asked for by label: what an adversarial autoencoder bends its codes to."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.errors import ConfigError


class LabelledPrior(TorchDistribution):
    """A mixture of equally likely parts in the plane: with a label ``p(z | y)``, else ``p(z)``.

    It has no parameters, so its draws count as reparameterised.

    Args:
        y: labels ``(*batch)``, integers from 0, or -1 for any part; None: any part, batch shape ``()``.
        classes: how many parts there are.
        device: where draws are made if no labels are given.
    """

    has_rsample = True
    support = constraints.real_vector

    def __init__(
        self,
        y: Tensor | None = None,
        *,
        classes: int = 10,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if classes < 1:
            raise ConfigError(f"expected at least 1 class in a labelled prior; got {classes}")
        self.classes = classes
        self.y = torch.full((), -1, device=device) if y is None else y.long()
        super().__init__(self.y.shape, torch.Size((2,)), validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """What labels may be, checked where Pyro's validation is on."""
        return {"y": constraints.integer_interval(-1, self.classes - 1)}

    @abstractmethod
    def draw(self, part: Tensor) -> Tensor:
        """Draws ``(*shape, 2)`` from parts ``(*shape)``."""

    @abstractmethod
    def log_densities(self, value: Tensor) -> Tensor:
        """Returns log densities ``(*shape, classes)`` of ``value``, ``(*shape, 2)``, under every part."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample, *batch, 2)``."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        any_part = torch.randint(self.classes, shape, device=self.y.device)
        return self.draw(torch.where(self.y < 0, any_part, self.y))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log densities ``(*sample, *batch)`` in nats."""
        parts = self.log_densities(value)
        shape = torch.broadcast_shapes(parts.shape[:-1], self.batch_shape)
        parts, y = parts.expand(*shape, self.classes), self.y.expand(shape)
        given = parts.gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(y < 0, parts.logsumexp(-1) - math.log(self.classes), given)


class RingOfGaussians(LabelledPrior):
    """Gaussians around a circle, as petals: longer outwards than across; 10 of them unless told.

    Part ``k`` lies at angle ``2 pi k / classes``. The paper gives no figures: radius 1.4 and standard deviations 0.5
    outwards and 0.1 across are those that implementations of it share.

    References:
        Makhzani et al., 2015, Adversarial autoencoders, arXiv:1511.05644, figure 4.

    Example:
        >>> import torch
        >>> y = torch.tensor([0, 0, 5, -1])
        >>> prior = RingOfGaussians(y)
        >>> prior.sample().shape, prior.log_prob(torch.zeros(2)).shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    radius, outwards, across = 1.4, 0.5, 0.1

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "RingOfGaussians":
        """Returns the same with another batch shape."""
        return RingOfGaussians(self.y.expand(batch_shape), classes=self.classes, validate_args=False)

    def draw(self, part: Tensor) -> Tensor:
        """Draws ``(*shape, 2)`` from parts ``(*shape)``."""
        noise = torch.randn(*part.shape, 2, device=part.device)
        out, across = self.radius + self.outwards * noise[..., 0], self.across * noise[..., 1]
        angle = part * (2 * math.pi / self.classes)
        cosine, sine = angle.cos(), angle.sin()
        return torch.stack([out * cosine - across * sine, out * sine + across * cosine], -1)

    def log_densities(self, value: Tensor) -> Tensor:
        """Returns log densities ``(*shape, classes)``."""
        angle = torch.arange(self.classes, device=value.device) * (2 * math.pi / self.classes)
        x, y = value[..., :1], value[..., 1:]
        out = (x * angle.cos() + y * angle.sin() - self.radius) / self.outwards
        across = (y * angle.cos() - x * angle.sin()) / self.across
        return -(out**2 + across**2) / 2 - math.log(2 * math.pi * self.outwards * self.across)


class SwissRoll(LabelledPrior):
    """A spiral of two turns out to radius 3 with a little noise, cut into equally likely segments; 10 unless told.

    The point at share ``u`` of the spiral lies at radius ``3 sqrt(u)`` and angle ``4 pi sqrt(u)``; label ``k`` stands
    for ``k / classes <= u < (k + 1) / classes``. The data set ``swiss-roll`` has this distribution. Densities are sums
    over points of the spiral that lie closer together than the noise.

    Args:
        y: labels ``(*batch)``, or -1 for any segment; None: any segment.
        classes: how many segments.
        noise: standard deviation around the spiral.
        device: where draws are made if no labels are given.

    References:
        Makhzani et al., 2015, Adversarial autoencoders, arXiv:1511.05644, figure 4.

    Example:
        >>> import torch
        >>> SwissRoll().sample((100,)).shape
        torch.Size([100, 2])
    """

    radius, turns, length = 3.0, 2.0, 20.0

    def __init__(
        self,
        y: Tensor | None = None,
        *,
        classes: int = 10,
        noise: float = 0.05,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not noise > 0:
            raise ConfigError(f"expected noise above 0 around the swiss roll, so that it has a density; got {noise}")
        super().__init__(y, classes=classes, device=device, validate_args=validate_args)
        self.noise = noise

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "SwissRoll":
        """Returns the same with another batch shape."""
        y = self.y.expand(batch_shape)
        return SwissRoll(y, classes=self.classes, noise=self.noise, validate_args=False)

    def draw(self, part: Tensor) -> Tensor:
        """Draws ``(*shape, 2)`` from segments ``(*shape)``."""
        share = (part + torch.rand(part.shape, device=part.device)) / self.classes
        return self._curve(share.sqrt()) + self.noise * torch.randn(*part.shape, 2, device=part.device)

    def log_densities(self, value: Tensor) -> Tensor:
        """Returns log densities ``(*shape, classes)``."""
        points, weights = self._points(value)
        away = [(value[..., i, None, None] - points[..., i]).square() for i in range(2)]
        squares = (away[0] + away[1]) / self.noise**2
        return (weights.log() - squares / 2).logsumexp(-1) - math.log(2 * math.pi * self.noise**2)

    def _curve(self, turn: Tensor) -> Tensor:
        angle = 2 * math.pi * self.turns * turn
        return self.radius * turn.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)

    def _points(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the spiral ``(classes, points, 2)`` and their weights ``(classes, points)``, for the sums."""
        count = math.ceil(2 * self.length / (self.classes * self.noise))
        ends = (torch.arange(self.classes + 1, dtype=like.dtype, device=like.device) / self.classes).sqrt()
        middles = (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
        turn = ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * middles
        return self._curve(turn), turn / turn.sum(
            -1, keepdim=True
        )  # u = turn^2 is uniform: the density of turn is 2 turn
