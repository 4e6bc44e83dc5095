"""Gradient estimators side by side, on a pair of yours: bias, variance, cost.

``compare(model, guide, batch)`` says which of them is unbiased, which varies least, and which is worth its time.
"""

from ppgen.estimators.comparison import compare
from ppgen.estimators.contenders import known
from ppgen.estimators.exact import Enumeration, NotEnumerableError, enumeration
from ppgen.estimators.pictures import draw
from ppgen.estimators.results import ALL, Comparison, Row, State
from ppgen.estimators.statistics import FLAGGED, Bias, Interval, Reference

__all__ = [
    "ALL",
    "FLAGGED",
    "Bias",
    "Comparison",
    "Enumeration",
    "Interval",
    "NotEnumerableError",
    "Reference",
    "Row",
    "State",
    "compare",
    "draw",
    "enumeration",
    "known",
]
