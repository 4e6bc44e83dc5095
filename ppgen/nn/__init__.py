"""Networks: they map ``(..., features)`` to ``(..., features)``, since enumeration and particles add dimensions."""

from ppgen.nn.augmentation import AgreedLogits, RandomAffine, random_affine
from ppgen.nn.batchwise import MinibatchDiscrimination, Normalization, ReferenceNorm, VirtualBatchNorm
from ppgen.nn.convolutional import ConvDecoder, ConvEncoder
from ppgen.nn.critics import AdversarialNetwork, Critic, critic
from ppgen.nn.generators import Output, generator
from ppgen.nn.layers import MLP, Factored, activation, fold, one_hot, size_of
from ppgen.nn.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, likelihood
from ppgen.nn.networks import decoder, encoder

__all__ = [
    "MLP",
    "AdversarialNetwork",
    "AgreedLogits",
    "Bernoulli",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "Factored",
    "Gaussian",
    "Likelihood",
    "MinibatchDiscrimination",
    "Normalization",
    "Output",
    "RandomAffine",
    "ReferenceNorm",
    "VirtualBatchNorm",
    "activation",
    "critic",
    "decoder",
    "encoder",
    "fold",
    "generator",
    "likelihood",
    "one_hot",
    "random_affine",
    "size_of",
]
