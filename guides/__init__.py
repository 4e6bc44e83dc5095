"""Inference programs, one file each: what is known of the latents once the data are seen."""

from ppgen.guides.belief import BottomUp
from ppgen.guides.codes import Codes
from ppgen.guides.deterministic import Deterministic
from ppgen.guides.gaussian import DiagonalGaussian, FullGaussian
from ppgen.guides.implicit import Implicit
from ppgen.guides.label import Label
from ppgen.guides.nothing import Nothing
from ppgen.guides.points import PointEstimate, PosteriorDraws
from ppgen.guides.toy import SameCoins

__all__ = [
    "BottomUp",
    "Codes",
    "Deterministic",
    "DiagonalGaussian",
    "FullGaussian",
    "Implicit",
    "Label",
    "Nothing",
    "PointEstimate",
    "PosteriorDraws",
    "SameCoins",
]
