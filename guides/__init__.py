"""Inference programs, one file each: what is known of the latents once the data are seen."""

from ppgen.guides.gaussian import DiagonalGaussian, FullGaussian
from ppgen.guides.label import Label

__all__ = ["DiagonalGaussian", "FullGaussian", "Label"]
