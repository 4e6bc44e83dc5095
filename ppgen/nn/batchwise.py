"""Layers by which rows see each other: normalisation of every kind, and minibatch discrimination."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppgen.errors import ConfigError
from ppgen.nn.layers import fold

Normalization = Literal["none", "batch", "layer", "spectral", "virtual"]
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "batch", "layer", "spectral", "virtual")


def normalization(name: str, features: int, *, image: bool = False) -> list[nn.Module]:
    """Returns the layers that normalise ``(rows, features)``, or of an image ``(rows, features, height, width)``.

    None for "none", and for "spectral", which normalises weights: see `spectrally_normalize`.

    Raises:
        ConfigError: if there is no normalisation of that name.
    """
    if name not in NORMALIZATIONS:
        raise ConfigError(f"expected normalization {', '.join(NORMALIZATIONS)}; got '{name}'")
    if name == "batch":
        return [nn.BatchNorm2d(features) if image else nn.BatchNorm1d(features)]
    if name == "layer":
        return [nn.GroupNorm(1, features) if image else nn.LayerNorm(features)]
    return [ReferenceNorm(features)] if name == "virtual" else []


def spectrally_normalize(network: nn.Module) -> None:
    """Divides the weight of every linear and convolutional layer by its largest singular value.

    The value is followed by one power iteration in every forward pass of training. A convolution's weight counts as
    the matrix ``(outputs, inputs * height * width)``, and each input of a factored layer has a matrix of its own.

    References:
        Miyato et al., 2018, arXiv:1802.05957.
    """
    for layer in list(network.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            spectral_norm(layer)


class ReferenceNorm(nn.Module):
    """A layer that normalises by the statistics of reference rows and of the row itself: see `VirtualBatchNorm`.

    Args:
        features: of the input.
        eps: added to the variance.

    Shapes:
        input and output ``(rows, features, ...)``; the first rows are the reference, as many as `VirtualBatchNorm`
        puts there.
    """

    def __init__(self, features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.eps = eps
        self.references = 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the same shape.

        Raises:
            ConfigError: outside `VirtualBatchNorm`.
        """
        if not self.references:
            raise ConfigError("expected a network with virtual batch normalisation inside nn.VirtualBatchNorm")
        flat = x.unflatten(1, (-1, 1)).flatten(2)  # (rows, features, positions)
        reference, rows = flat[: self.references], flat[self.references :]
        variance, mean = torch.var_mean(reference, (0, 2), correction=0, keepdim=True)
        own_variance, own_mean = torch.var_mean(rows, 2, correction=0, keepdim=True)
        share = 1 / (self.references + 1)
        joint = (1 - share) * variance + share * own_variance + share * (1 - share) * (own_mean - mean).square()
        normalised = [
            (reference - mean) * (variance + self.eps).rsqrt(),
            (rows - mean - share * (own_mean - mean)) * (joint + self.eps).rsqrt(),
        ]
        return (torch.cat(normalised) * self.weight.unsqueeze(-1) + self.bias.unsqueeze(-1)).reshape(x.shape)


class VirtualBatchNorm(nn.Module):
    """A network whose rows are normalised by those of a reference batch, not by the others of their own batch.

    Every forward pass sends the reference through the network too; each `ReferenceNorm` in it takes mean and variance
    over the reference rows and the row that it normalises, so that what comes out for one row depends on no other.

    Args:
        network: with `ReferenceNorm` layers in it; it maps inputs ``(rows, ...)`` to outputs ``(rows, ...)``.
        reference: the reference rows of its input, or of each input.

    Shapes:
        inputs ``(..., *reference[i].shape[1:])`` with leading dimensions that broadcast; output ``(..., ...)``.

    Raises:
        ConfigError: if the network has no such layer, or the reference is not of two rows or more.

    References:
        Salimans et al., 2016, arXiv:1606.03498, section 3.4.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), ReferenceNorm(3), nn.ReLU())
        >>> virtual, x = VirtualBatchNorm(network, torch.randn(50, 2)), torch.randn(7, 2)
        >>> torch.allclose(virtual(x)[:1], virtual(x[:1]), atol=1e-6)
        True
    """

    def __init__(self, network: nn.Module, reference: Tensor | Sequence[Tensor]) -> None:
        super().__init__()
        rows = [reference] if isinstance(reference, Tensor) else list(reference)
        if len({len(x) for x in rows}) != 1 or len(rows[0]) < 2:
            got = ", ".join(str(tuple(x.shape)) for x in rows)
            raise ConfigError(f"expected two or more reference rows, as many of each input; got {got or 'none'}")
        layers = [layer for layer in network.modules() if isinstance(layer, ReferenceNorm)]
        if not layers:
            raise ConfigError('expected a network with normalization="virtual" for a reference batch; it has none')
        for layer in layers:
            layer.references = len(rows[0])
        for index, x in enumerate(rows):
            self.register_buffer(f"reference_{index}", x.detach().clone())
        self.network = network

    @property
    def references(self) -> list[Tensor]:
        """The reference rows of each input."""
        return list(self.buffers(recurse=False))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns what the network makes of the inputs ``(..., ...)``."""
        references = self.references
        events = [reference.shape[1:] for reference in references]
        pairs = list(zip(inputs, events, strict=True))
        leading = torch.broadcast_shapes(*(x.shape[: x.dim() - len(event)] for x, event in pairs))
        rows = [x.expand(*leading, *event).reshape(-1, *event) for x, event in pairs]
        joined = [torch.cat([reference, x]) for reference, x in zip(references, rows, strict=True)]
        outputs: Tensor = self.network(*joined)[len(references[0]) :]
        return outputs.reshape(*leading, *outputs.shape[1:])


class MinibatchDiscrimination(nn.Module):
    """Appends to each row how close it lies to the others: draws that are all alike give themselves away.

    ``o_k(x_i) = sum_j exp(-|M_ik - M_jk|_1)`` over all rows j, with ``M_ik`` in ``dimensions`` dimensions a linear
    function of the features of row i.

    Args:
        features: of the input.
        kernels: how many closenesses are appended.
        dimensions: of the space in which kernel k measures.

    Shapes:
        input ``(..., features)``, every leading dimension one of rows; output ``(..., features + kernels)``.

    References:
        Salimans et al., 2016, arXiv:1606.03498, section 3.2.
    """

    def __init__(self, features: int, kernels: int, *, dimensions: int = 5) -> None:
        super().__init__()
        self.kernels = kernels
        self.projection = nn.Linear(features, kernels * dimensions, bias=False)
        # distances of order 1, or every closeness begins at 0 without a gradient
        nn.init.normal_(self.projection.weight, std=features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(..., features + kernels)``."""
        return torch.cat([x, fold(self._closeness, x, 1)], -1)

    def _closeness(self, rows: Tensor) -> Tensor:
        # rows last, over which all sums run
        places = self.projection(rows).T.unflatten(0, (self.kernels, -1))
        distances = (places.unsqueeze(-1) - places.unsqueeze(-2)).abs().sum(1)
        closeness: Tensor = (-distances).exp().sum(-1).T
        return closeness
