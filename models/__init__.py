"""Generative models, one file each: Pyro programs that any guide and any objective can be put beside."""

from ppgen.models.belief import BeliefNet
from ppgen.models.clusters import Clusters
from ppgen.models.codes import CodedGenerator
from ppgen.models.generator import ConditionalGenerator, Generator, GeneratorMixture
from ppgen.models.m2 import M2
from ppgen.models.priors import RingOfGaussians, SwissRoll
from ppgen.models.steered import LabelledPriorVAE, PriorVAE
from ppgen.models.structured import StructuredPrediction, UpperHalf
from ppgen.models.toy import Coins
from ppgen.models.vae import VAE

__all__ = [
    "M2",
    "VAE",
    "BeliefNet",
    "Clusters",
    "CodedGenerator",
    "Coins",
    "ConditionalGenerator",
    "Generator",
    "GeneratorMixture",
    "LabelledPriorVAE",
    "PriorVAE",
    "RingOfGaussians",
    "StructuredPrediction",
    "SwissRoll",
    "UpperHalf",
]
