"""Objectives: what is optimised, one class per paper."""

from ppgen.objectives.base import Losses, Metrics, Objective, Phase, Stock, as_objective
from ppgen.objectives.elbo import ELBO, EnumeratedELBO
from ppgen.objectives.semisupervised import SemiSupervised

__all__ = [
    "ELBO",
    "EnumeratedELBO",
    "Losses",
    "Metrics",
    "Objective",
    "Phase",
    "SemiSupervised",
    "Stock",
    "as_objective",
]
