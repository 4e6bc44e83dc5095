"""Objectives by name."""

import difflib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from ppgen.errors import ConfigError
from ppgen.objectives.base import Objective
from ppgen.objectives.bounds import CIWAE, IWAE, MIWAE, PIWAE, Renyi, VRMax
from ppgen.objectives.divergences import WAE, InfoVAE, SlicedWAE
from ppgen.objectives.elbo import ELBO, EnumeratedELBO
from ppgen.objectives.monte_carlo_em import MonteCarloEM
from ppgen.objectives.total_correlation import BetaTCVAE
from ppgen.objectives.transport import SinkhornAE
from ppgen.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep

OBJECTIVES: Mapping[str, type[Objective]] = {
    "elbo": ELBO,
    "enumerated-elbo": EnumeratedELBO,
    "iwae": IWAE,
    "renyi": Renyi,
    "vr-max": VRMax,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "wake-sleep": WakeSleep,
    "reweighted-wake-sleep": ReweightedWakeSleep,
    "monte-carlo-em": MonteCarloEM,
    "info-vae": InfoVAE,
    "wae-mmd": WAE,
    "sliced-wae": SlicedWAE,
    "sinkhorn-ae": SinkhornAE,
    "beta-tcvae": BetaTCVAE,
}


def options_of(name: str) -> dict[str, tuple[Any, Any]]:
    """Returns the type and default of every option of an objective."""
    kind = OBJECTIVES[name]
    made = ELBO if kind is EnumeratedELBO else kind
    hints = typing.get_type_hints(made.__init__)
    parameters = inspect.signature(made).parameters.values()
    defaults = {p.name: (hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return defaults | ({"estimator": (hints["estimator"], "enumerate")} if kind is EnumeratedELBO else {})


def named(name: str, **options: Any) -> Objective:
    """Returns the objective of that name.

    Raises:
        ConfigError: if there is none, or it has no such option; the nearest name is suggested.

    >>> named("iwae", particles=50).particles
    50
    """
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(OBJECTIVES)}"
        raise ConfigError(f"there is no objective '{name}': {hint}")
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"objective '{name}' has no option '{option}': it has {', '.join(known) or 'none'}")
    return OBJECTIVES[name](**options)
