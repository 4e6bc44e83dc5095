"""Random changes of images that do not change what they show."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from ppgen.errors import ConfigError


class RandomAffine(nn.Module):
    """`random_affine` while training, nothing in evaluation: a first layer of a network that should not mind.

    In a guide it keeps the bound a bound: the guide merely draws noise of its own.

    Args:
        shift: largest shift in each direction, in pixels.
        rotation: largest angle, in degrees.
        scale: largest relative change of size.
        shear: largest slant.
    """

    def __init__(self, *, shift: float = 2.0, rotation: float = 10.0, scale: float = 0.1, shear: float = 0.15) -> None:
        super().__init__()
        self.options = {"shift": shift, "rotation": rotation, "scale": scale, "shear": shear}

    def forward(self, x: Tensor) -> Tensor:
        """Returns images of the same shape."""
        return random_affine(x, **self.options) if self.training else x


def random_affine(
    x: Tensor, *, shift: float = 2.0, rotation: float = 10.0, scale: float = 0.1, shear: float = 0.15
) -> Tensor:
    """Shifts, turns, scales and slants every image by a random amount of its own.

    Args:
        x: images ``(batch, channels, height, width)``.
        shift: largest shift in each direction, in pixels.
        rotation: largest angle, in degrees.
        scale: largest relative change of size.
        shear: largest slant.

    Returns:
        Images of the same shape, with zeros where nothing was.

    Raises:
        ConfigError: if ``x`` are no images.

    References:
        Simard, Steinkraus, Platt, 2003, Best practices for convolutional neural networks applied to visual document
        analysis.
    """
    if x.dim() != 4:
        raise ConfigError(f"expected images (batch, channels, height, width) to augment; got {tuple(x.shape)}")
    angle, size, slant, right, down = torch.rand(5, len(x), device=x.device, dtype=x.dtype) * 2 - 1
    angle, size, slant = angle * (rotation * math.pi / 180), 1 + size * scale, slant * shear
    # grid_sample measures in half widths and half heights
    right, down = right * (2 * shift / x.shape[-1]), down * (2 * shift / x.shape[-2])
    cosine, sine = angle.cos() * size, angle.sin() * size
    first, second = torch.stack([cosine, slant - sine, right], -1), torch.stack([sine, cosine, down], -1)
    grid = affine_grid(torch.stack([first, second], -2), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)
