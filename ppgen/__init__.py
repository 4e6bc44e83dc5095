"""Any Pyro model, with any guide, trained by any objective, in one compiled loop, judged by one evaluation.

Names are imported when they are first used, so that `import ppgen` and `ppgen --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.comparison import compare
    from ppgen.evaluation import evaluate, to_arviz
    from ppgen.objectives import (
        CIWAE,
        ELBO,
        IWAE,
        MIWAE,
        PIWAE,
        WAE,
        BetaTCVAE,
        EnumeratedELBO,
        InfoVAE,
        MonteCarloEM,
        Objective,
        Renyi,
        ReweightedWakeSleep,
        SemiSupervised,
        SinkhornAE,
        SlicedWAE,
        VRMax,
        WakeSleep,
    )
    from ppgen.players import Optimizer
    from ppgen.programs import generate, log_weights
    from ppgen.runs import load_run
    from ppgen.training import Trainer

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "WAE",
    "BetaTCVAE",
    "EnumeratedELBO",
    "InfoVAE",
    "MonteCarloEM",
    "Objective",
    "Optimizer",
    "Renyi",
    "ReweightedWakeSleep",
    "SemiSupervised",
    "SinkhornAE",
    "SlicedWAE",
    "Trainer",
    "VRMax",
    "WakeSleep",
    "compare",
    "evaluate",
    "generate",
    "load_run",
    "log_weights",
    "to_arviz",
]

_NAMES = {
    "comparison": ["compare"],
    "evaluation": ["evaluate", "to_arviz"],
    "objectives": [
        *("CIWAE", "ELBO", "IWAE", "MIWAE", "PIWAE", "WAE", "BetaTCVAE", "EnumeratedELBO", "InfoVAE", "MonteCarloEM"),
        *("Objective", "Renyi", "ReweightedWakeSleep", "SemiSupervised", "SinkhornAE", "SlicedWAE", "VRMax"),
        "WakeSleep",
    ],
    "programs": ["generate", "log_weights"],
    "runs": ["load_run"],
    "players": ["Optimizer"],
    "training": ["Trainer"],
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = {*_NAMES, "data", "estimators", "gradients", "guides", "models", "nn", "recipes"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    if name in _MODULES:
        return import_module(f"ppgen.{name}")
    if name in _HOMES:
        return getattr(import_module(f"ppgen.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ppgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES, "__version__"})


def _installed_version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("ppgen"))
    except metadata.PackageNotFoundError:  # a clone that is not installed
        return "0+unknown"
