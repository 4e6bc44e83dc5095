"""Estimators by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ppgen.errors import ConfigError
from ppgen.gradients.base import Estimator, options_error
from ppgen.gradients.control import REBAR, RELAX, MuProp
from ppgen.gradients.exact import Enumerate, Pathwise
from ppgen.gradients.relaxed import Concrete, GumbelSoftmax, GumbelStraightThrough, StraightThrough
from ppgen.gradients.score import NVIL, VIMCO, LeaveOneOut, MovingAverage, RaoBlackwell, Score

ESTIMATORS: Mapping[str, type[Estimator]] = {
    "pathwise": Pathwise,
    "enumerate": Enumerate,
    "score": Score,
    "rao-blackwell": RaoBlackwell,
    "moving-average": MovingAverage,
    "nvil": NVIL,
    "leave-one-out": LeaveOneOut,
    "vimco": VIMCO,
    "gumbel-softmax": GumbelSoftmax,
    "concrete": Concrete,
    "straight-through": StraightThrough,
    "gumbel-straight-through": GumbelStraightThrough,
    "muprop": MuProp,
    "rebar": REBAR,
    "relax": RELAX,
}


def estimator(name: str, **options: Any) -> Estimator:
    """Returns the estimator of that name.

    Raises:
        ConfigError: if there is none, or it has no such option; the nearest name is suggested.

    >>> estimator("gumbel-softmax", temperature=1.0).unbiased
    False
    """
    if name not in ESTIMATORS:
        near = difflib.get_close_matches(name, ESTIMATORS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(ESTIMATORS)}"
        raise ConfigError(f"there is no estimator '{name}': {hint}")
    made = ESTIMATORS[name]
    known = tuple(inspect.signature(made).parameters)
    if set(options) - set(known):
        raise options_error(name, options, known)
    return made(**options)


def name_of(one: Estimator) -> str:
    """Returns the name of an estimator, that of its class if it has none."""
    return next((name for name, kind in ESTIMATORS.items() if type(one) is kind), type(one).__name__)


Spec = str | Estimator | Mapping[str, str | Estimator] | None
"""One estimator for all sites that need one, or one for each site by its name; as text, "relax" or "z:relax,y:nvil"."""


def parsed(spec: Spec) -> dict[str, Estimator]:
    """Returns estimators by site; that of the empty name is for all other sites that need one.

    Raises:
        ConfigError: if there is no such estimator.
    """
    if spec is None:
        return {}
    if isinstance(spec, Estimator):
        return {"": spec}
    if isinstance(spec, str):
        if ":" not in spec:
            return {"": estimator(spec.strip())}
        parts = [part.partition(":") for part in spec.split(",")]
        spec = {site.strip(): name.strip() for site, _, name in parts}
    return {site: estimator(one) if isinstance(one, str) else one for site, one in spec.items()}


def require_every_run(made: Mapping[str, Estimator | None], seen: Callable[[], Mapping[str, Any]]) -> None:
    """Checks that what keeps a state treats sites that every run has, so that a checkpoint has a place for it."""
    keeping = {name: one for name, one in made.items() if one is not None and one.state_dict()}
    for name, (_, always) in seen().items() if keeping else ():
        if name in keeping and not always:
            raise not_in_every_run(name, keeping[name], "keeps a state of its own")


def not_in_every_run(name: str, one: Estimator, what: str) -> ConfigError:
    """Returns the error for a site that comes and goes, and an estimator that cannot."""
    return ConfigError(
        f"guide site '{name}' is not drawn in every run, and estimator '{name_of(one)}' {what}: take 'score' or"
        " 'rao-blackwell' for it, or draw it in every run"
    )
