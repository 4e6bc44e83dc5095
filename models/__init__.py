"""Generative models, one file each: Pyro programs that any guide and any objective can be put beside."""

from ppgen.models.belief import BeliefNet
from ppgen.models.generator import ConditionalGenerator, Generator, GeneratorMixture
from ppgen.models.m2 import M2
from ppgen.models.structured import StructuredPrediction, UpperHalf
from ppgen.models.toy import Coins
from ppgen.models.vae import VAE

__all__ = ["M2", "VAE", "BeliefNet", "Coins", "ConditionalGenerator", "Generator", "GeneratorMixture", "StructuredPrediction", "UpperHalf"]
