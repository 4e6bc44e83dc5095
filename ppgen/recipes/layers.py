"""What recipes of stochastic layers share: units and bounds by name, networks, where outputs start."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.errors import ConfigError
from ppgen.nn.units import BernoulliUnits, CategoricalUnits, Shift, Units
from ppgen.objectives import Objective, named

Bound = Literal["elbo", "iwae", "wake-sleep", "reweighted-wake-sleep"]
UnitKind = Literal["bernoulli", "categorical"]
ROWS_FOR_MEAN = 50_000


def units_of(kind: UnitKind, size: int, classes: int) -> Units:
    """Returns a layer of ``size`` Bernoulli units, or of ``size // classes`` one-hot vectors of ``classes`` each.

    Raises:
        ConfigError: if the classes do not divide the size.
    """
    if kind == "bernoulli":
        return BernoulliUnits(size)
    if size % classes:
        raise ConfigError(f"expected a layer of a multiple of {classes} values for {classes} classes; got {size}")
    return CategoricalUnits(size // classes, classes)


def bound(name: Bound | None, estimator: Any, particles: int | None) -> Objective:
    """Returns an objective for discrete layers: unless told, the bound that the estimator is for.

    Wake-sleep and its reweighted form need no estimator.
    """
    if name is None:
        name = "iwae" if estimator == "vimco" else "elbo"
    chosen = {"estimator": estimator} if name in ("elbo", "iwae") else {}
    if particles is None:
        several = name in ("iwae", "reweighted-wake-sleep")
        particles = 5 if several else 2 if chosen.get("estimator") == "leave-one-out" else 1
    return named(name, particles=particles, **chosen)


def training_mean(data: Dataset) -> Tensor:
    """Returns the mean of the training data; of more than 50,000 rows, that of as many spread over them."""
    x = data.train["x"]
    chosen: Tensor = x[torch.arange(0, len(x), max(1, len(x) // ROWS_FOR_MEAN))]
    return chosen.mean(0)


def start_at(network: torch.nn.Module, mean: Tensor) -> None:
    """Sets the bias of a network's output so that it starts at the logits of ``mean``.

    References:
        Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519, whose program does so.
    """
    output = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        output.bias.copy_(mean.flatten().clamp(1e-3, 1 - 1e-3).logit())


def belief_net(
    data: Dataset,
    units: Sequence[Units],
    hidden: Sequence[Sequence[int]],
    *,
    downward: Sequence[Sequence[int]] | None = None,
    activation: str = "tanh",
    learn_prior: bool = True,
) -> tuple[models.BeliefNet, guides.BottomUp]:
    """Returns a net over data in [0, 1] and its guide; data enter less their mean, and outputs start at it.

    Args:
        data: what it is for.
        units: of the stochastic layers, from the data up.
        hidden: sizes of the deterministic layers below each stochastic layer, in the guide's direction.
        downward: the model's, in the guide's direction too; the guide's unless told.
        activation: of the deterministic layers.
        learn_prior: whether the topmost layer's prior is learned.

    Raises:
        ConfigError: if there are no layers.
    """
    if not units:
        raise ConfigError("expected at least one layer of latents (layers=200, say); got none")
    mean = training_mean(data)
    sizes = [layer.size for layer in units]
    likelihood = nn.Bernoulli(data.shape)
    first = nn.encoder(data.shape, units[0].features, hidden=hidden[0], activation=activation)
    up: list[torch.nn.Module] = [torch.nn.Sequential(Shift(-mean), first)]
    up += [
        nn.MLP(below, sizes_between, layer.features, activation=activation)
        for below, sizes_between, layer in zip(sizes[:-1], hidden[1:], units[1:], strict=True)
    ]
    back = [tuple(between)[::-1] for between in (hidden if downward is None else downward)]
    features = [likelihood.features, *(layer.features for layer in units[:-1])]
    down = [
        nn.MLP(above, between, below, activation=activation)
        for above, between, below in zip(sizes, back, features, strict=True)
    ]
    start_at(down[0], mean)
    model = models.BeliefNet(units, down, likelihood, learn_prior=learn_prior)
    return model, guides.BottomUp(units, up)
