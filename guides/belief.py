"""Guides of nets of stochastic layers."""

from collections.abc import Sequence
from typing import cast

import pyro
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn.units import Units


class BottomUp(nn.Module):
    """``z_1 ~ units_1(network_1(x))``, ``z_l ~ units_l(network_l(z_{l-1}))``: from the data up, layer by layer.

    Args:
        units: of the layers ``z1 ... zL``, from the data up; the model's, or others of the same sizes.
        networks: from ``x`` to the features of ``z1``, from the inputs of ``z1`` to the features of ``z2``, and so on.

    Raises:
        ConfigError: if there are no layers, or not one network to each.

    References:
        Mnih, Gregor, 2014, arXiv:1402.0030.
    """

    def __init__(self, units: Sequence[Units], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not units or len(units) != len(networks):
            raise ConfigError(f"expected one network to each of at least one layer; got {len(networks)}, {len(units)}")
        self.units = nn.ModuleList(units)
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``z1`` ... ``zL`` in the plate ``data``."""
        inputs = x
        with pyro.plate("data", len(x)):
            for number, (layer, network) in enumerate(zip(self.units, self.networks, strict=True), start=1):
                units = cast(Units, layer)
                inputs = units.inputs(pyro.sample(f"z{number}", units(network(inputs))))
