"""Convolutional encoders and decoders for images of any size."""

from collections.abc import Sequence

from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn import layers
from ppgen.nn.layers import MLP, fold


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size


def _check(shape: Sequence[int]) -> None:
    if len(shape) != 3:
        raise ConfigError(f"expected images (channels, height, width) for a convolutional network; got {tuple(shape)}")


class ConvEncoder(nn.Module):
    """Strided convolutions, then a perceptron that may take further inputs.

    Args:
        shape: ``(channels, height, width)`` of the image.
        outputs: features of the output.
        channels: of each convolution; each halves height and width.
        hidden: size of the hidden layer after the convolutions.
        others: features of further inputs.
        activation: name of the activation.
        dropout: probability of dropping a feature of the convolutions and a hidden unit.

    Shapes:
        image ``(..., channels, height, width)``, others ``(..., features)``; output ``(..., outputs)``.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        others: Sequence[int] = (),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(shape)
        parts: list[nn.Module] = []
        for before, after in zip((shape[0], *channels[:-1]), channels, strict=True):
            parts += [nn.Conv2d(before, after, 3, stride=2, padding=1), layers.activation(activation)]
        self.convolutions = nn.Sequential(*parts, nn.Flatten(), nn.Dropout(dropout))
        height, width = (_halved(size, len(channels)) for size in shape[1:])
        sizes = [channels[-1] * height * width, *others]
        self.head = MLP(sizes, [hidden], outputs, activation=activation, dropout=dropout)

    def forward(self, image: Tensor, *others: Tensor) -> Tensor:
        """Returns ``(..., outputs)``."""
        return self.head(fold(self.convolutions, image, 3), *others)  # type: ignore[no-any-return]


class ConvDecoder(nn.Module):
    """A perceptron of one or several inputs, then transposed convolutions.

    Args:
        inputs: features of each input.
        shape: ``(channels, height, width)`` of the output.
        channels: of each transposed convolution's input; each doubles height and width.
        hidden: size of the hidden layer before them.
        activation: name of the activation.

    Shapes:
        inputs ``(..., features)``; output ``(..., channels * height * width)``.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        channels: Sequence[int] = (64, 32),
        hidden: int = 256,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _check(shape)
        sizes = [tuple(_halved(size, n) for size in shape[1:]) for n in range(len(channels), -1, -1)]
        self.head = MLP(inputs, [hidden], channels[0] * sizes[0][0] * sizes[0][1], activation=activation)
        parts: list[nn.Module] = [nn.Unflatten(1, (channels[0], *sizes[0]))]
        for index, (before, after) in enumerate(zip(channels, (*channels[1:], shape[0]), strict=True)):
            height, width = sizes[index + 1]
            odd = (1 - height % 2, 1 - width % 2)
            parts.append(layers.activation(activation))
            parts.append(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=odd))
        self.convolutions = nn.Sequential(*parts, nn.Flatten())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns ``(..., channels * height * width)``."""
        return fold(self.convolutions, self.head(*inputs), 1)
