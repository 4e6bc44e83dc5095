"""One evaluation for every system: per-row measures of a trained pair, baselines, pictures, and ArviZ export.

Estimates are in nats per row, proportions come with 95 % Wilson intervals. `to_arviz` is imported when it is first
used, since ArviZ is slow to import; so are the modules `baselines` and `pictures`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppgen.evaluation.intervals import Estimate, Proportion
from ppgen.evaluation.measures import (
    MEASURES,
    Evaluation,
    Trained,
    accuracy,
    elbo,
    evaluate,
    negative_log_likelihood,
    predict,
)

if TYPE_CHECKING:
    from ppgen.evaluation.arviz import to_arviz

__all__ = [
    "MEASURES",
    "Estimate",
    "Evaluation",
    "Proportion",
    "Trained",
    "accuracy",
    "elbo",
    "evaluate",
    "negative_log_likelihood",
    "predict",
    "to_arviz",
]


def __getattr__(name: str) -> Any:
    if name == "to_arviz":
        return import_module("ppgen.evaluation.arviz").to_arviz
    raise AttributeError(f"module 'ppgen.evaluation' has no attribute {name!r}")
