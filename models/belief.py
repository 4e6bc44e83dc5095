"""Directed nets of stochastic layers: sigmoid belief nets, categorical VAEs, deep latent Gaussian models."""

from collections.abc import Sequence
from typing import cast

import pyro
import torch
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.nn.likelihoods import Likelihood
from ppgen.nn.units import Units


class BeliefNet(nn.Module):
    """``z_L ~ units_L(prior)``, ``z_l ~ units_l(network_l(z_{l+1}))``, ``x ~ likelihood(network_0(z_1))``.

    Args:
        units: of the layers ``z1 ... zL``, from the data up.
        networks: from the inputs of ``z1`` to ``(..., likelihood.features)``, from those of ``z2`` to the features of
            ``z1``, and so on: as many as there are layers.
        likelihood: of ``x`` given the first network's features.
        learn_prior: whether the topmost layer's features are trained; else they stay 0 (fair coins, equal classes, or
            the standard Gaussian).

    Shapes:
        ``x``: ``(batch, *likelihood.shape)``; sites ``z1`` ... ``zL`` as their units have them.

    Raises:
        ConfigError: if there are no layers, or not one network to each.

    References:
        Neal, 1992, Connectionist learning of belief networks. Discrete units: Mnih, Gregor, 2014, arXiv:1402.0030;
        Jang, Gu, Poole, 2016, arXiv:1611.01144. Gaussian: Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519.

    Example:
        >>> from ppgen import nn, programs
        >>> from ppgen.nn.units import BernoulliUnits
        >>> layers = [BernoulliUnits(3), BernoulliUnits(2)]
        >>> model = BeliefNet(layers, [nn.MLP(3, [], 4), nn.MLP(2, [], 3)], nn.Bernoulli((4,)))
        >>> drawn = programs.generate(model, {"x": torch.zeros(5, 4)})
        >>> {name: tuple(draw.shape) for name, draw in drawn.items()}
        {'z2': (5, 2), 'z1': (5, 3), 'x': (5, 4)}
    """

    def __init__(
        self, units: Sequence[Units], networks: Sequence[nn.Module], likelihood: Likelihood, *, learn_prior: bool = True
    ) -> None:
        super().__init__()
        if not units or len(units) != len(networks):
            raise ConfigError(f"expected one network to each of at least one layer; got {len(networks)}, {len(units)}")
        self.units = nn.ModuleList(units)
        self.networks = nn.ModuleList(networks)
        self.likelihood = likelihood
        self.prior = nn.Parameter(torch.zeros(units[-1].features), requires_grad=learn_prior)

    def forward(self, x: Tensor) -> None:
        """The program: sites ``zL`` ... ``z1`` and ``x`` in the plate ``data``."""
        features: Tensor = self.prior
        with pyro.plate("data", len(x)):
            for number in range(len(self.units), 0, -1):
                units = cast(Units, self.units[number - 1])
                draw = pyro.sample(f"z{number}", units(features))
                features = self.networks[number - 1](units.inputs(draw))
            pyro.sample("x", self.likelihood(features), obs=self.likelihood.prepare(x))
