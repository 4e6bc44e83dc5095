"""The score-function estimator and its baselines: for a site of any distribution."""

import torch
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.gradients.base import SignalEstimator, Situation

__all__ = ["NVIL", "VIMCO", "LeaveOneOut", "MovingAverage", "RaoBlackwell", "Score"]


class Score(SignalEstimator):
    """The score function (REINFORCE): the signal of a draw is the whole objective of its row.

    References:
        Williams, 1992; Paisley, Blei, Jordan, 2012, arXiv:1206.6430.
    """

    rao_blackwell = False

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        """See `SignalEstimator.advantage`."""
        return signal, None


class RaoBlackwell(Score):
    """The score function, its signal cut down to the terms that depend on the draw.

    Which these are is found by following the draws through one run of model and guide; plates that the draw lies in are
    kept apart.

    References:
        Ranganath, Gerrish, Blei, 2014, arXiv:1401.0118; Schulman et al., 2015, arXiv:1506.05254.
    """

    rao_blackwell = True


class MovingAverage(Score):
    """The score function less a moving average of earlier signals.

    Args:
        decay: of the average, per step.

    References:
        Williams, 1992; Mnih, Gregor, 2014, arXiv:1402.0030.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, *, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(f"expected 0 <= decay < 1; got {decay}")
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        """See `SignalEstimator.advantage`; the average is of steps before this one, so it adds no bias."""
        centred = signal - self.mean
        with torch.no_grad():
            self.count.add_(1.0)
            weight = torch.maximum(1 / self.count, torch.full_like(self.count, 1 - self.decay))
            self.mean.lerp_(signal.detach().mean(), weight)
        return centred, None


class NVIL(MovingAverage):
    """The score function less a moving average and a network's prediction of the signal from what its row shows.

    The network sees the observed columns of the row, and what the guide drew before the site; where a row shows nothing
    before it, the moving average is left alone. Unlike in the paper, signals are not divided by their running
    deviation, which would scale the gradient.

    Args:
        decay: of the average, per step.
        hidden: size of the network's one hidden layer.

    References:
        Mnih, Gregor, 2014, arXiv:1402.0030.
    """

    def __init__(self, *, decay: float = 0.9, hidden: int = 100) -> None:
        super().__init__(decay=decay)
        self.hidden = hidden
        self.network: nn.Module | None = None
        self.is_prepared = False

    def prepare(self, *, event: int, inputs: int) -> None:
        """See `Estimator.prepare`."""
        self.is_prepared = True
        if inputs:
            self.network = nn.Sequential(nn.Linear(inputs, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1))

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        """See `SignalEstimator.advantage`."""
        centred, _ = super().advantage(signal, situation)
        if not self.is_prepared:
            raise ConfigError("the network of NVIL is made in setup: train with ppgen.Trainer")
        if self.network is None:
            return centred, None
        prediction = self.network(situation.inputs()).squeeze(-1)
        loss = (centred.detach() - prediction).square().mean()
        return centred - prediction.detach(), loss


class LeaveOneOut(Score):
    """The score function less what the other particles have on average.

    For bounds of several samples, less the bound of the other samples.

    References:
        Salimans, Knowles, 2014, arXiv:1401.1022; Kool, van Hoof, Welling, 2019.
    """

    mean = "arithmetic"

    def refusal(self, fn: object, *, particles: int) -> str | None:
        """See `Estimator.refusal`."""
        return "it compares particles: give at least 2" if particles < 2 else super().refusal(fn, particles=particles)  # type: ignore[arg-type]

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        """See `SignalEstimator.advantage`."""
        baseline = situation.left_out(self.mean)
        if baseline is None:
            raise ConfigError("it compares particles: give at least 2")
        return signal - baseline.detach(), None


class VIMCO(LeaveOneOut):
    """The score function less the bound with the sample's weight replaced by the geometric mean of the others'.

    With one sample a bound (an ELBO of several particles), the same as `LeaveOneOut`.

    References:
        Mnih, Rezende, 2016, arXiv:1602.06725.
    """

    mean = "geometric"
