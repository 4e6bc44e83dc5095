"""Baselines that a guide asks for at its sites, by the options of Pyro's ``TraceGraph_ELBO``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.gradients.base import Situation
from ppgen.gradients.score import MovingAverage, RaoBlackwell

BASELINE = "baseline"
"""Key of a guide site's ``infer``."""
_OPTIONS = ("use_decaying_avg_baseline", "baseline_beta", "nn_baseline", "nn_baseline_input", "baseline_value")


class Baseline(RaoBlackwell):
    """The score function with the baseline that a guide site asks for by ``infer={"baseline": {...}}``.

    As with Pyro's ``TraceGraph_ELBO`` the baseline stands for what the terms that depend on the draw add to the bound,
    in the scale of the program; a network is trained to predict that, by the player "estimator".

    Args:
        decay: of a moving average of earlier signals; None for none.
        network: of the user, from ``nn_baseline_input`` to ``(..., rows)``.
        given: whether each run gives a ``baseline_value``.

    References:
        Mnih, Gregor, 2014, arXiv:1402.0030; Schulman et al., 2015, arXiv:1506.05254.
    """

    def __init__(self, *, decay: float | None = None, network: nn.Module | None = None, given: bool = False) -> None:
        super().__init__()
        self.average = None if decay is None else MovingAverage(decay=decay)
        self.network = network
        self.given = given

    def advantage(self, signal: Tensor, situation: Situation) -> tuple[Tensor, Tensor | None]:
        """See `SignalEstimator.advantage`."""
        centred = signal if self.average is None else self.average.advantage(signal, situation)[0]
        asked = situation.asked.get(BASELINE, {})
        if self.network is not None:
            found = self.network(_detached(asked["nn_baseline_input"]))
            prediction = _fitted(found, signal, situation)
            return centred - prediction.detach(), (centred.detach() - prediction).square().mean()
        if not self.given:
            return centred, None
        value = torch.as_tensor(asked["baseline_value"], device=signal.device)
        if value.requires_grad:
            raise ConfigError(
                f"guide site '{situation.name}': what its baseline_value is computed from would not be trained; give"
                " the network as nn_baseline, and what it reads as nn_baseline_input"
            )
        return centred - _fitted(value, signal, situation), None


def _fitted(found: Tensor, signal: Tensor, situation: Situation) -> Tensor:
    """Returns a baseline of the bound, in the scale of the program, as one of signals, which are of the loss."""
    try:
        return -found.expand_as(signal) / situation.unit
    except RuntimeError as error:
        raise ConfigError(
            f"guide site '{situation.name}': expected a baseline that broadcasts to the log probability of the site,"
            f" of shape {tuple(signal.shape)}; got {tuple(found.shape)}"
        ) from error


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_detached, value))
    return value


def asked_at(name: str, infer: Mapping[str, Any]) -> Baseline | None:
    """Returns the estimator that a guide site asks for; None if it asks for none.

    Raises:
        ConfigError: if it asks for what there is not.
    """
    options: Mapping[str, Any] = infer.get(BASELINE) or {}
    where = f"guide site '{name}': "
    if unknown := options.keys() - set(_OPTIONS):
        raise ConfigError(f"{where}its baseline has no option {min(unknown)}; it has {', '.join(_OPTIONS)}")
    network, value = options.get("nn_baseline"), options.get("baseline_value")
    decay = float(options.get("baseline_beta", 0.9)) if options.get("use_decaying_avg_baseline") else None
    _require(decay is None or 0 <= decay < 1, where, f"0 <= baseline_beta < 1; got {decay}")
    _require(network is None or value is None, where, "nn_baseline or baseline_value; got both")
    _require(
        network is None or isinstance(network, nn.Module),
        where,
        f"an nn.Module as nn_baseline, whose parameters can be found; got {type(network).__name__}",
    )
    _require(network is None or "nn_baseline_input" in options, where, "nn_baseline_input along with nn_baseline")
    if decay is None and network is None and value is None:
        return None
    return Baseline(decay=decay, network=network, given=value is not None)


def _require(condition: bool, where: str, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{where}expected {expected}")
