"""Multilayer perceptrons of one or several inputs, and the shape helpers that all networks share."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppgen.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": functools.partial(nn.LeakyReLU, 0.2),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """Returns the activation of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"expected activation {', '.join(ACTIVATIONS)}; got '{name}'")
    return ACTIVATIONS[name]()


def size_of(shape: Sequence[int]) -> int:
    """Returns the number of values of a shape."""
    return math.prod(shape)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Turns integer labels ``(...)`` into ``(..., classes)`` of 0 and 1; all 0 for -1, a label that is missing.

    Probabilities of the classes ``(..., classes)``, by which adversarial objectives relax labels, stay as they are.

    >>> one_hot(torch.tensor([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if labels.is_floating_point():
        return labels
    # torch.nn.functional.one_hot reads the largest label back to the host, which stops tracing
    states = torch.arange(classes, device=labels.device)
    return (labels.unsqueeze(-1) == states).to(torch.get_default_dtype())


def fold(function: Callable[[Tensor], Tensor], x: Tensor, event_dims: int) -> Tensor:
    """Applies a function of ``(batch, *event)`` to ``(..., *event)``."""
    leading = x.shape[: x.dim() - event_dims]
    y = function(x.reshape(-1, *x.shape[len(leading) :]))
    return y.reshape(*leading, *y.shape[1:])


class Factored(nn.ModuleList):
    """The linear layer of one or several inputs, ``W_a a + W_b b + c``: inputs broadcast, nothing is concatenated.

    Args:
        sizes: features of each input.
        outputs: features of the output.

    Shapes:
        inputs ``(..., sizes[i])`` with leading dimensions that broadcast; output ``(..., outputs)``.
    """

    def __init__(self, sizes: Sequence[int], outputs: int) -> None:
        super().__init__(nn.Linear(size, outputs, bias=index == 0) for index, size in enumerate(sizes))
        # as one layer over the concatenated inputs would be
        bound = 1 / math.sqrt(sum(sizes))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns ``(..., outputs)``."""
        first, *others = (layer(x) for layer, x in zip(self, inputs, strict=True))
        total: Tensor = sum(others, first)
        return total


class MLP(nn.Module):
    """A multilayer perceptron of one or several inputs.

    The first layer of several inputs is factored, ``W_a a + W_b b + c``: inputs broadcast against each other instead
    of being expanded and concatenated, so an image goes through its layer once for all labels and particles.

    Args:
        inputs: features of the input, or of each input.
        hidden: sizes of the hidden layers.
        outputs: features of the output.
        activation: name of the activation.
        batch_norm: normalise each hidden layer over all leading dimensions.
        dropout: probability of dropping a hidden unit.

    Shapes:
        inputs ``(..., inputs[i])`` with leading dimensions that broadcast; output ``(..., outputs)``.
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [inputs] if isinstance(inputs, int) else list(inputs)
        first, *rest = (*hidden, outputs)
        self.first = Factored(sizes, first)
        layers: list[nn.Module] = []
        for width, following in zip(hidden, rest, strict=True):
            layers += [_BatchNorm(width)] if batch_norm else []
            layers.append(_activation(activation))
            layers += [nn.Dropout(dropout)] if dropout else []
            layers.append(nn.Linear(width, following))
        self.rest = nn.Sequential(*layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns ``(..., outputs)``."""
        return self.rest(self.first(*inputs))  # type: ignore[no-any-return]


_activation = activation  # the function, where an argument has its name


class _BatchNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return fold(super().forward, x, 1)
