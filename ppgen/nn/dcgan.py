"""Strided convolutions from an image to features and back, with or without normalisation: DCGAN's and plain ones."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from ppgen.errors import ConfigError
from ppgen.nn.batchwise import normalization as normalizing
from ppgen.nn.layers import activation as activating

Kernel = Literal[3, 4]


def sizes(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Returns height and width of an image that is halved so many times, rounded up, the largest first.

    Raises:
        ConfigError: if ``shape`` is no image's.

    >>> sizes((1, 28, 28), 3)
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    if len(shape) != 3:
        raise ConfigError(f"expected images (channels, height, width) for a convolutional network; got {tuple(shape)}")
    found = [(shape[1], shape[2])]
    for _ in range(times):
        height, width = found[-1]
        found.append(((height + 1) // 2, (width + 1) // 2))
    return found


def _padding(size: int, kernel: Kernel) -> int:
    # halves the size, rounded up, whether it is even or odd
    return 1 + size % 2 if kernel == 4 else 1


def halving(before: int, after: int, size: tuple[int, int], kernel: Kernel) -> nn.Conv2d:
    """Returns the convolution that halves an image of that size, rounded up."""
    padding = _padding(size[0], kernel), _padding(size[1], kernel)
    return nn.Conv2d(before, after, kernel, stride=2, padding=padding)


def doubling(before: int, after: int, size: tuple[int, int], kernel: Kernel) -> nn.ConvTranspose2d:
    """Returns the transposed convolution whose output has that size: `halving` the other way round."""
    padding = _padding(size[0], kernel), _padding(size[1], kernel)
    odd = size[0] % 2, size[1] % 2
    further = odd if kernel == 4 else (1 - odd[0], 1 - odd[1])
    return nn.ConvTranspose2d(before, after, kernel, stride=2, padding=padding, output_padding=further)


def downwards(
    shape: Sequence[int],
    channels: Sequence[int],
    kernel: Kernel,
    activation: str,
    dropout: float,
    normalization: str,
    *,
    first: bool,
) -> tuple[nn.Sequential, int]:
    """Returns convolutions from ``(rows, *shape)`` to ``(rows, features)``, and how many features these are.

    Args:
        shape: ``(channels, height, width)`` of the image.
        channels: of each convolution; each halves height and width.
        kernel: its height and width.
        activation: after each convolution.
        dropout: probability of dropping a value, after each activation.
        normalization: before each activation.
        first: whether the first convolution is normalised too.
    """
    places = sizes(shape, len(channels))
    parts: list[nn.Module] = []
    for index, (before, after) in enumerate(zip((shape[0], *channels[:-1]), channels, strict=True)):
        parts.append(halving(before, after, places[index], kernel))
        parts += normalizing(normalization, after, image=True) if index or first else []
        parts.append(activating(activation))
        parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts, nn.Flatten()), channels[-1] * places[-1][0] * places[-1][1]


def upwards(
    channels: Sequence[int], shape: Sequence[int], kernel: Kernel, activation: str, normalization: str
) -> tuple[int, nn.Sequential]:
    """Returns how many features it takes, and transposed convolutions from ``(rows, features)`` to ``(rows, *shape)``.

    Args:
        channels: of each transposed convolution's input; each doubles height and width.
        shape: ``(channels, height, width)`` of the output.
        kernel: its height and width.
        activation: before each transposed convolution.
        normalization: before each activation.
    """
    places = sizes(shape, len(channels))[::-1]
    parts: list[nn.Module] = [nn.Unflatten(1, (channels[0], *places[0]))]
    for before, after, size in zip(channels, (*channels[1:], shape[0]), places[1:], strict=True):
        parts += normalizing(normalization, before, image=True)
        parts += [activating(activation), doubling(before, after, size, kernel)]
    return channels[0] * places[0][0] * places[0][1], nn.Sequential(*parts)


def initialise(network: nn.Module) -> None:
    """Draws all weights from N(0, 0.02), as DCGAN's are.

    References:
        Radford, Metz, Chintala, 2015, arXiv:1511.06434.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
