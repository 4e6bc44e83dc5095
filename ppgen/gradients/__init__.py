"""Gradient estimators for the sites of a guide, by name or as objects with options.

``ELBO(estimator="rebar")`` uses one for every site without a pathwise derivative, ``estimator={"z": "relax", "y":
"enumerate"}`` one for each site. An estimator that cannot treat a site says so before training starts.
"""

from ppgen.gradients.base import Estimator, SignalEstimator, Situation
from ppgen.gradients.baselines import Baseline
from ppgen.gradients.control import REBAR, RELAX, Control, MuProp
from ppgen.gradients.exact import Enumerate, Pathwise
from ppgen.gradients.implicit import implicit_rsample
from ppgen.gradients.plan import Plan
from ppgen.gradients.registry import ESTIMATORS, Spec, estimator
from ppgen.gradients.relaxed import Concrete, GumbelSoftmax, GumbelStraightThrough, StraightThrough, soft
from ppgen.gradients.sampling import Draws
from ppgen.gradients.score import NVIL, VIMCO, LeaveOneOut, MovingAverage, RaoBlackwell, Score
from ppgen.gradients.sites import Cost

__all__ = [
    "ESTIMATORS",
    "NVIL",
    "REBAR",
    "RELAX",
    "VIMCO",
    "Baseline",
    "Concrete",
    "Control",
    "Cost",
    "Draws",
    "Enumerate",
    "Estimator",
    "GumbelSoftmax",
    "GumbelStraightThrough",
    "LeaveOneOut",
    "MovingAverage",
    "MuProp",
    "Pathwise",
    "Plan",
    "RaoBlackwell",
    "Score",
    "SignalEstimator",
    "Situation",
    "Spec",
    "StraightThrough",
    "estimator",
    "implicit_rsample",
    "soft",
]
