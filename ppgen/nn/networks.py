"""Encoders and decoders by name: the one place that knows which network fits which data."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn.convolutional import ConvDecoder, ConvEncoder
from ppgen.nn.layers import MLP, size_of

Network = Literal["mlp", "conv"]


class _Flat(nn.Module):
    """A perceptron whose first input is an array of ``shape``."""

    def __init__(self, shape: Sequence[int], mlp: MLP) -> None:
        super().__init__()
        self.event_dims = len(shape)
        self.mlp = mlp

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.mlp(x.flatten(-self.event_dims), *others)  # type: ignore[no-any-return]


def encoder(
    shape: Sequence[int],
    outputs: int,
    *,
    network: Network = "mlp",
    hidden: Sequence[int] = (400,),
    others: Sequence[int] = (),
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Returns a network from data ``(..., *shape)`` (and further inputs) to ``(..., outputs)``.

    ``hidden`` are the sizes of hidden layers; of a convolutional network, the channels and last the hidden layer.
    """
    if network == "conv":
        channels, width = _channels_and_width(hidden)
        return ConvEncoder(
            shape, outputs, channels=channels, hidden=width, others=others, activation=activation, dropout=dropout
        )
    mlp = MLP([size_of(shape), *others], hidden, outputs, activation=activation, dropout=dropout)
    return _Flat(shape, mlp)


def decoder(
    inputs: Sequence[int],
    shape: Sequence[int],
    features: int | None = None,
    *,
    network: Network = "mlp",
    hidden: Sequence[int] = (400,),
    activation: str = "relu",
) -> nn.Module:
    """Returns a network from ``(..., inputs[i])`` to ``(..., features)``; one for every value of ``shape`` unless told.

    ``hidden`` as in `encoder`: a convolutional decoder is the encoder of the same ``hidden`` mirrored. Features that
    are not a number of values for every value of the data (a full covariance) come from a perceptron's last layer.
    """
    features = size_of(shape) if features is None else features
    per_value, rest = divmod(features, size_of(shape))
    if network == "conv" and not rest:
        channels, width = _channels_and_width(hidden)
        full = (shape[0] * per_value, *shape[1:])
        return ConvDecoder(inputs, full, channels=channels[::-1], hidden=width, activation=activation)
    return MLP(inputs, hidden[::-1], features, activation=activation)


def _channels_and_width(hidden: Sequence[int]) -> tuple[Sequence[int], int]:
    if len(hidden) < 2:
        raise ConfigError(
            "expected hidden of a convolutional network as channels and last the size of a hidden layer, 32,64,256 say;"
            f" got {', '.join(map(str, hidden)) or 'nothing'}"
        )
    return hidden[:-1], hidden[-1]
