"""Generators: networks from latents to data itself, where a decoder's features become a likelihood."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn import dcgan
from ppgen.nn.batchwise import Normalization, spectrally_normalize
from ppgen.nn.critics import (
    AdversarialNetwork,
    Options,
    dense_layers,
    hidden_layer,
    normalization_of,
    referenced,
    sizes_of,
)
from ppgen.nn.layers import Factored, fold, size_of

Output = Literal["identity", "sigmoid"]
OUTPUTS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "sigmoid": nn.Sigmoid}
GENERATOR_SIZES: dict[str, tuple[int, ...]] = {"mlp": (256, 256), "conv": (32, 64, 256), "dcgan": (64, 128)}


class _Generator(nn.Module):
    def __init__(self, joining: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.joining = joining
        self.rest = rest

    def forward(self, *inputs: Tensor) -> Tensor:
        return fold(self.rest, self.joining(*inputs), 1)


def generator(
    inputs: Sequence[int],
    shape: Sequence[int],
    *,
    network: AdversarialNetwork = "mlp",
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
    normalization: Normalization | None = None,
    output: Output = "identity",
    reference: Sequence[Tensor] | None = None,
) -> nn.Module:
    """Returns a network from ``(..., inputs[i])`` to data ``(..., *shape)``.

    Args:
        inputs: features of each input.
        shape: of one datum; ``(channels, height, width)``, of any size, for the convolutional networks.
        network: as of `critic`, mirrored.
        hidden: as of `critic`, in the same order, from data to latents.
        activation: name of the activation.
        normalization: as of `critic`; never of the output.
        output: "sigmoid" for data in [0, 1].
        reference: reference rows of each input, for "virtual".

    Raises:
        ConfigError: if an argument is not one of these, or they do not go together.

    Example:
        >>> import torch
        >>> generator([16, 10], (1, 8, 8), network="dcgan")(torch.randn(5, 16), torch.eye(10)[:5]).shape
        torch.Size([5, 1, 8, 8])
    """
    if output not in OUTPUTS:
        raise ConfigError(f"expected output {', '.join(OUTPUTS)}; got '{output}'")
    sizes = sizes_of(network, hidden, GENERATOR_SIZES)[::-1]
    kind = normalization_of(network, normalization)
    options = Options(activation, 0.0, kind)
    if network == "mlp":
        joining, rest = _dense(inputs, shape, sizes, options)
    else:
        joining, rest = _convolutional(inputs, shape, sizes, options, network=network)
    made: nn.Module = _Generator(joining, nn.Sequential(*rest, OUTPUTS[output]()))
    if network == "dcgan":
        dcgan.initialise(made)
    made = referenced(made, reference, [(size,) for size in inputs], normalization=kind)
    if kind == "spectral":
        spectrally_normalize(made)
    return made


_Parts = tuple[nn.Module, list[nn.Module]]


def _dense(inputs: Sequence[int], shape: Sequence[int], hidden: Sequence[int], options: Options) -> _Parts:
    layers = dense_layers(hidden, options)
    last = [nn.Linear(hidden[-1], size_of(shape)), nn.Unflatten(1, tuple(shape))]
    return Factored(inputs, hidden[0]), [*layers, *last]


def _convolutional(
    inputs: Sequence[int],
    shape: Sequence[int],
    hidden: Sequence[int],
    options: Options,
    *,
    network: AdversarialNetwork,
) -> _Parts:
    channels = hidden if network == "dcgan" else hidden[1:]
    kernel: dcgan.Kernel = 4 if network == "dcgan" else 3
    features, layers = dcgan.upwards(channels, shape, kernel, options.activation, options.normalization)
    if network == "dcgan":
        return Factored(inputs, features), [layers]
    dense = [*hidden_layer(hidden[0], options), nn.Linear(hidden[0], features)]
    return Factored(inputs, hidden[0]), [*dense, layers]
