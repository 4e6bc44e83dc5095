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


class AgreedLogits(nn.Module):
    """Log probabilities of a classifier, averaged over several random changes of an image while training.

    Their average is only sure of a class where the classifier says the same of every change: who asks it to be sure
    (the critic of a label, say) asks it not to mind the changes.

    Args:
        classifier: from images ``(batch, *shape)`` to logits ``(batch, classes)``.
        change: a random change of images, which does nothing in evaluation.
        views: how many changes of each image.

    Shapes:
        image ``(batch, *shape)``; output ``(batch, classes)``.
    """

    def __init__(self, classifier: nn.Module, change: nn.Module, *, views: int = 2) -> None:
        super().__init__()
        if views < 1:
            raise ConfigError(f"expected views >= 1; got {views}")
        self.classifier = classifier
        self.change = change
        self.views = views

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(batch, classes)``."""
        views = self.views if self.training else 1
        many = x.repeat(views, *(1 for _ in x.shape[1:]))  # side by side: one pass through the classifier
        logits: Tensor = self.classifier(self.change(many))
        if views == 1:
            return logits
        each: Tensor = logits.unflatten(0, (views, -1)).log_softmax(-1)
        return each.logsumexp(0) - math.log(views)


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
