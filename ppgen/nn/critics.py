"""Critics: networks that tell two sides apart, from one or several inputs."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn import dcgan
from ppgen.nn.batchwise import (
    MinibatchDiscrimination,
    Normalization,
    VirtualBatchNorm,
    spectrally_normalize,
)
from ppgen.nn.batchwise import normalization as normalizing
from ppgen.nn.layers import Factored, fold, size_of
from ppgen.nn.layers import activation as activating

AdversarialNetwork = Literal["mlp", "conv", "dcgan"]
NETWORKS: tuple[AdversarialNetwork, ...] = ("mlp", "conv", "dcgan")
CRITIC_SIZES: dict[str, tuple[int, ...]] = {"mlp": (256, 256), "conv": (32, 64, 256), "dcgan": (64, 128)}
JOINING = 4
"""Units of the dense layer in which further inputs join a DCGAN critic, for each channel of its last convolution."""


class Options(NamedTuple):
    """What all hidden layers of a network have in common."""

    activation: str
    dropout: float
    normalization: Normalization


class Critic(nn.Module):
    """A network from data, and further inputs, to ``outputs`` numbers a row, without a sigmoid at its end.

    Args:
        trunk: from the inputs to the last hidden layer ``(rows, width)``.
        inputs: shapes of one row of each input.
        width: of the last hidden layer.
        outputs: how many numbers each row gets.
        minibatch: kernels of minibatch discrimination appended to the last hidden layer.

    Attributes:
        inputs: shapes of one row of each input.
        width: of `features`.
        outputs: of `forward`.

    Shapes:
        inputs ``(..., *inputs[i])`` with leading dimensions that broadcast, all of them rows.

    Raises:
        ConfigError: if it has no outputs, a number of kernels below 0, or gets inputs of other shapes.
    """

    def __init__(
        self, trunk: nn.Module, inputs: Sequence[Sequence[int]], width: int, outputs: int = 1, *, minibatch: int = 0
    ) -> None:
        super().__init__()
        if outputs < 1 or minibatch < 0:
            raise ConfigError(f"expected outputs of 1 or more and minibatch of 0 or more; got {outputs}, {minibatch}")
        self.inputs = tuple(tuple(shape) for shape in inputs)
        self.trunk = trunk
        self.minibatch = MinibatchDiscrimination(width, minibatch) if minibatch else nn.Identity()
        self.width = width + minibatch
        self.outputs = outputs
        self.head = nn.Linear(self.width, outputs)

    def features(self, x: Tensor, *others: Tensor) -> Tensor:
        """Returns the last hidden layer ``(..., width)``, what minibatch discrimination appends included."""
        self._check(x, *others)
        return self.minibatch(self.trunk(x, *others))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Returns ``(..., outputs)``."""
        return self.head(self.features(x, *others))  # type: ignore[no-any-return]

    def _check(self, *given: Tensor) -> None:
        events = [tuple(x.shape)[-len(shape) :] for x, shape in zip(given, self.inputs, strict=False)]
        if len(given) != len(self.inputs) or events != [*self.inputs]:
            wanted, got = shapes_of(self.inputs), ", ".join(str(tuple(x.shape)) for x in given)
            raise ConfigError(f"expected {wanted} as inputs of the critic; got {got}")


class _Trunk(nn.Module):
    """From data to features of their own, which others join in one layer, and on to the last hidden layer."""

    def __init__(self, front: nn.Module, event_dims: int, joining: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.event_dims = event_dims
        self.front = front
        self.joining = joining
        self.rest = rest

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return fold(self.rest, self.joining(fold(self.front, x, self.event_dims), *others), 1)


def critic(
    shape: Sequence[int],
    *,
    outputs: int = 1,
    network: AdversarialNetwork = "mlp",
    hidden: Sequence[int] | None = None,
    others: Sequence[int] = (),
    activation: str = "leaky-relu",
    dropout: float = 0.0,
    normalization: Normalization | None = None,
    minibatch: int = 0,
    reference: Tensor | Sequence[Tensor] | None = None,
) -> Critic:
    """Returns a critic of data ``(rows, *shape)`` and further inputs ``(rows, others[i])``.

    Args:
        shape: of one datum; ``(channels, height, width)``, of any size, for the convolutional networks.
        outputs: how many numbers each row gets: one logit unless told.
        network: "mlp"; "conv" (strided convolutions, then a dense layer); or "dcgan" (larger kernels, no dense hidden
            layer unless there are further inputs, batch normalisation, weights from N(0, 0.02); Radford et al., 2015).
        hidden: sizes of hidden layers; of "conv" the channels and last the dense layer; of "dcgan" the channels.
        others: features of further inputs, which join in the first dense layer.
        activation: name of the activation.
        dropout: probability of dropping a value of each hidden layer.
        normalization: of each hidden layer: "none", "batch", "layer" (each row by itself, as a gradient penalty
            wants), "spectral" (of the weights, so that the critic is Lipschitz), or "virtual" (by a reference batch).
            "batch" for "dcgan" unless told, where the first layer has none, and "none" for the others.
        minibatch: kernels of minibatch discrimination.
        reference: reference rows of x, or of x and each further input, for "virtual".

    Raises:
        ConfigError: if an argument is not one of these, or they do not go together.

    Example:
        >>> import torch
        >>> both = critic((1, 8, 8), others=[10], network="conv", hidden=(4, 8, 16))
        >>> both(torch.rand(5, 1, 8, 8), torch.randn(5, 10)).shape
        torch.Size([5, 1])
    """
    sizes = sizes_of(network, hidden, CRITIC_SIZES)
    kind = normalization_of(network, normalization)
    options = Options(activation, dropout, kind)
    build = {"mlp": _dense_trunk, "conv": _conv_trunk, "dcgan": _dcgan_trunk}[network]
    trunk, width = build(shape, sizes, others, options)
    events = [tuple(shape), *((size,) for size in others)]
    trunk = referenced(trunk, reference, events, normalization=kind)
    made = Critic(trunk, events, width, outputs, minibatch=minibatch)
    if network == "dcgan":
        dcgan.initialise(made.trunk)
        dcgan.initialise(made.head)
    if kind == "spectral":
        spectrally_normalize(made)
    return made


def hidden_layer(width: int, options: Options) -> list[nn.Module]:
    """Returns what follows the linear map of a hidden layer: normalisation, activation, dropout."""
    dropping = [nn.Dropout(options.dropout)] if options.dropout else []
    return [*normalizing(options.normalization, width), activating(options.activation), *dropping]


def dense_layers(hidden: Sequence[int], options: Options) -> list[nn.Module]:
    """Returns what follows the first linear map of a perceptron, up to its last hidden layer."""
    layers = hidden_layer(hidden[0], options)
    for width, following in itertools.pairwise(hidden):
        layers += [nn.Linear(width, following), *hidden_layer(following, options)]
    return layers


def _dense_trunk(
    shape: Sequence[int], hidden: Sequence[int], others: Sequence[int], options: Options
) -> tuple[nn.Module, int]:
    joining = Factored([size_of(shape), *others], hidden[0])
    return _Trunk(nn.Flatten(), len(shape), joining, nn.Sequential(*dense_layers(hidden, options))), hidden[-1]


def _conv_trunk(
    shape: Sequence[int], hidden: Sequence[int], others: Sequence[int], options: Options
) -> tuple[nn.Module, int]:
    front, features = dcgan.downwards(shape, hidden[:-1], 3, *options, first=True)
    joining = Factored([features, *others], hidden[-1])
    return _Trunk(front, 3, joining, nn.Sequential(*hidden_layer(hidden[-1], options))), hidden[-1]


def _dcgan_trunk(
    shape: Sequence[int], hidden: Sequence[int], others: Sequence[int], options: Options
) -> tuple[nn.Module, int]:
    front, features = dcgan.downwards(shape, hidden, 4, *options, first=False)
    if not others:
        return _Trunk(front, 3, nn.Identity(), nn.Identity()), features
    width = JOINING * hidden[-1]
    joining = Factored([features, *others], width)
    return _Trunk(front, 3, joining, nn.Sequential(*hidden_layer(width, options))), width


def sizes_of(network: str, hidden: Sequence[int] | None, usual: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the sizes of hidden layers, the usual ones unless told.

    Raises:
        ConfigError: if there is no such network, or it needs more sizes.
    """
    if network not in NETWORKS:
        raise ConfigError(f"expected network {', '.join(NETWORKS)}; got '{network}'")
    sizes = usual[network] if hidden is None else tuple(hidden)
    if len(sizes) < (2 if network == "conv" else 1):
        what = {
            "mlp": "one size or more, 256,256 say",
            "conv": "channels and last the size of a dense layer, 32,64,256 say",
            "dcgan": "channels of one convolution or more, 64,128 say",
        }[network]
        raise ConfigError(f"expected hidden as {what}; got {', '.join(map(str, sizes)) or 'nothing'}")
    return sizes


def normalization_of(network: str, normalization: Normalization | None) -> Normalization:
    """Returns the normalisation, DCGAN's own unless told."""
    if normalization is None:
        return "batch" if network == "dcgan" else "none"
    return normalization


def shapes_of(events: Sequence[Sequence[int]]) -> str:
    """Says of what shape inputs are.

    >>> shapes_of([(1, 8, 8), (10,)])
    '(rows, 1, 8, 8), (rows, 10)'
    """
    return ", ".join(f"(rows, {', '.join(map(str, event))})" for event in events)


def referenced(
    network: nn.Module,
    reference: Tensor | Sequence[Tensor] | None,
    events: Sequence[tuple[int, ...]],
    *,
    normalization: Normalization,
) -> nn.Module:
    """Returns the network, with its reference rows if its normalisation is "virtual".

    Raises:
        ConfigError: if there are none, or they are not of these event shapes, or nothing would use them.
    """
    if normalization != "virtual":
        if reference is not None:
            raise ConfigError(f'expected reference only with normalization="virtual"; got "{normalization}"')
        return network
    if reference is None:
        raise ConfigError('expected reference rows with normalization="virtual", a first batch of data say; got none')
    rows = [reference] if isinstance(reference, Tensor) else list(reference)
    if [tuple(x.shape[1:]) for x in rows] != list(events):
        got = ", ".join(str(tuple(x.shape)) for x in rows)
        raise ConfigError(f"expected {shapes_of(events)} as reference rows; got {got}")
    return VirtualBatchNorm(network, rows)
