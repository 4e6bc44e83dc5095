"""Networks: they map ``(..., features)`` to ``(..., features)``, since enumeration and particles add dimensions."""

from ppgen.nn.augmentation import RandomAffine, random_affine
from ppgen.nn.convolutional import ConvDecoder, ConvEncoder
from ppgen.nn.layers import MLP, activation, fold, one_hot, size_of
from ppgen.nn.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, likelihood
from ppgen.nn.networks import decoder, encoder

__all__ = [
    "MLP",
    "Bernoulli",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "Gaussian",
    "Likelihood",
    "RandomAffine",
    "activation",
    "decoder",
    "encoder",
    "fold",
    "likelihood",
    "one_hot",
    "random_affine",
    "size_of",
]
