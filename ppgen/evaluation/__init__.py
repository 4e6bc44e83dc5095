"""One evaluation for every system: measures of a trained pair and of its samples, baselines, pictures, ArviZ export.

Estimates are in nats per row, proportions come with 95 % Wilson intervals. `to_arviz` is imported when it is first
used, since ArviZ is slow to import; so are `embed`, `judge` and the modules `baselines` and `pictures`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppgen.evaluation.densities import missing_density
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
    from ppgen.evaluation.embedding import embed
    from ppgen.evaluation.judging import ALL_MEASURES, judge

__all__ = [
    "ALL_MEASURES",
    "MEASURES",
    "Estimate",
    "Evaluation",
    "Proportion",
    "Trained",
    "accuracy",
    "elbo",
    "embed",
    "evaluate",
    "judge",
    "missing_density",
    "negative_log_likelihood",
    "predict",
    "to_arviz",
]


_LATER = {"to_arviz": "arviz", "embed": "embedding", "judge": "judging", "ALL_MEASURES": "judging"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"ppgen.evaluation.{_LATER[name]}"), name)
    raise AttributeError(f"module 'ppgen.evaluation' has no attribute {name!r}")
