"""Value functions: what a critic and the programs make of the critic's outputs."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, softplus

from ppgen.errors import ConfigError

ValueName = Literal["minimax", "non-saturating", "least-squares", "hinge", "wasserstein"]


class Value(ABC):
    """The losses of a game by the critic's outputs ``(rows, 1)`` on the data's side and on the model's.

    Attributes:
        classifies: whether the sign of the output tells the sides apart.
        divergence: what the programs minimise against the best critic, in words.
    """

    classifies = True
    divergence = ""

    def metrics(self, data: Tensor, model: Tensor) -> dict[str, Tensor]:
        """Returns the mean output on either side, and where it classifies the share of rows that are told right."""
        found = {"critic_real": data.mean(), "critic_fake": model.mean()}
        if self.classifies:
            found["critic_accuracy"] = ((data > 0).float().mean() + (model < 0).float().mean()) / 2
        return found

    @abstractmethod
    def critic(self, data: Tensor, model: Tensor) -> Tensor:
        """Returns the critic's loss, a scalar."""

    @abstractmethod
    def model(self, outputs: Tensor) -> Tensor:
        """Returns the loss of what draws the model's side, a scalar."""

    @abstractmethod
    def guide(self, outputs: Tensor) -> Tensor:
        """Returns the loss of what draws the data's side, a scalar."""


class Minimax(Value):
    """``-E log D`` of the data's side, ``-E log(1 - D)`` of the model's, ``D`` the logistic function of the output.

    The programs maximise the critic's loss. At the best critic the output is the log ratio of the two densities.

    Args:
        smoothing: by how much the target of the data's side lies below 1 (one-sided label smoothing: Salimans et al.,
            2016, arXiv:1606.03498).

    References:
        Goodfellow et al., 2014, arXiv:1406.2661.
    """

    divergence = "Jensen-Shannon"

    def __init__(self, *, smoothing: float = 0.0) -> None:
        self.smoothing = _share(smoothing)

    def critic(self, data: Tensor, model: Tensor) -> Tensor:
        """See `Value.critic`."""
        right = (1 - self.smoothing) * softplus(-data) + self.smoothing * softplus(data)
        return right.mean() + softplus(model).mean()

    def model(self, outputs: Tensor) -> Tensor:
        """See `Value.model`."""
        return -softplus(outputs).mean()

    def guide(self, outputs: Tensor) -> Tensor:
        """See `Value.guide`."""
        return -softplus(-outputs).mean()


class NonSaturating(Minimax):
    """The critic's loss of `Minimax`; the programs minimise it with the sides' labels changed.

    References:
        Goodfellow et al., 2014, arXiv:1406.2661, section 3. Divergence: Arjovsky, Bottou, 2017, arXiv:1701.04862,
        theorem 2.5.
    """

    divergence = "KL(model || data) - 2 Jensen-Shannon (its gradient)"

    def model(self, outputs: Tensor) -> Tensor:
        """See `Value.model`."""
        return softplus(-outputs).mean()

    def guide(self, outputs: Tensor) -> Tensor:
        """See `Value.guide`."""
        return softplus(outputs).mean()


class LeastSquares(Value):
    """Half squared distances to the targets 1 (the data's side) and -1; the programs want 0.

    Args:
        smoothing: by how much the target of the data's side lies below 1.

    References:
        Mao et al., 2017, arXiv:1611.04076, whose theorem 1 takes these targets.
    """

    divergence = "Pearson chi-squared of the mean of both and the model"

    def __init__(self, *, smoothing: float = 0.0) -> None:
        self.target = 1 - _share(smoothing)

    def critic(self, data: Tensor, model: Tensor) -> Tensor:
        """See `Value.critic`."""
        return 0.5 * ((data - self.target).square().mean() + (model + 1).square().mean())

    def model(self, outputs: Tensor) -> Tensor:
        """See `Value.model`."""
        return 0.5 * outputs.square().mean()

    def guide(self, outputs: Tensor) -> Tensor:
        """See `Value.guide`."""
        return 0.5 * outputs.square().mean()


class Hinge(Value):
    """Hinge losses around outputs of 1 and -1; the programs move the mean output.

    References:
        Lim, Ye, 2017, arXiv:1705.02894; Tran, Ranganath, Blei, 2017, arXiv:1702.08896.
    """

    divergence = "total variation"

    def critic(self, data: Tensor, model: Tensor) -> Tensor:
        """See `Value.critic`."""
        return relu(1 - data).mean() + relu(1 + model).mean()

    def model(self, outputs: Tensor) -> Tensor:
        """See `Value.model`."""
        return -outputs.mean()

    def guide(self, outputs: Tensor) -> Tensor:
        """See `Value.guide`."""
        return outputs.mean()


class Wasserstein(Value):
    """The difference of mean outputs; only of a critic that is Lipschitz is it a distance.

    References:
        Arjovsky, Chintala, Bottou, 2017, arXiv:1701.07875.
    """

    classifies = False
    divergence = "Wasserstein-1 (of a Lipschitz critic)"

    def critic(self, data: Tensor, model: Tensor) -> Tensor:
        """See `Value.critic`."""
        return model.mean() - data.mean()

    def model(self, outputs: Tensor) -> Tensor:
        """See `Value.model`."""
        return -outputs.mean()

    def guide(self, outputs: Tensor) -> Tensor:
        """See `Value.guide`."""
        return outputs.mean()


VALUES: Mapping[str, type[Value]] = {
    "minimax": Minimax,
    "non-saturating": NonSaturating,
    "least-squares": LeastSquares,
    "hinge": Hinge,
    "wasserstein": Wasserstein,
}


def value_of(loss: "str | Value", *, smoothing: float = 0.0) -> Value:
    """Returns the value function of that name.

    Raises:
        ConfigError: if there is none, or it has no target that smoothing would move.

    >>> value_of("hinge").divergence
    'total variation'
    """
    if isinstance(loss, Value):
        return loss
    if loss not in VALUES:
        near = difflib.get_close_matches(loss, VALUES, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(VALUES)}"
        raise ConfigError(f"there is no adversarial loss '{loss}': {hint}")
    kind = VALUES[loss]
    if kind in (Minimax, NonSaturating, LeastSquares):
        return kind(smoothing=smoothing)  # type: ignore[call-arg]
    if smoothing:
        raise ConfigError(f"expected label smoothing with minimax, non-saturating or least-squares; got loss '{loss}'")
    return kind()


def named_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of logits ``(rows, classes)`` against integers ``(rows,)``; -1 is left out."""
    known = (labels >= 0).to(outputs.dtype)
    losses = cross_entropy(outputs, labels.clamp(min=0), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def _share(smoothing: float) -> float:
    if not 0 <= smoothing < 0.5:
        raise ConfigError(f"expected label smoothing from 0 to below 0.5; got {smoothing}")
    return smoothing


def require_critic(critic: object) -> nn.Module:
    """Returns the critic.

    Raises:
        ConfigError: if it is no module with parameters.
    """
    if not isinstance(critic, nn.Module) or not any(p.requires_grad for p in critic.parameters()):
        raise ConfigError(f"expected a critic that can be trained, an nn.Module; got {type(critic).__name__}")
    return critic
