"""Adversarial objectives: games between a critic and the programs."""

from ppgen.objectives.adversarial.aae import AAE
from ppgen.objectives.adversarial.avb import AVB
from ppgen.objectives.adversarial.gan import GAN, WGAN, WGANGP, BiGAN, PacGAN, UnrolledGAN
from ppgen.objectives.adversarial.infogan import InfoGAN
from ppgen.objectives.adversarial.labels import ACGAN, MADGAN
from ppgen.objectives.adversarial.penalties import GradientPenalty
from ppgen.objectives.adversarial.vae_gan import VAEGAN
from ppgen.objectives.adversarial.values import VALUES, Value

__all__ = [
    "AAE",
    "ACGAN",
    "AVB",
    "GAN",
    "MADGAN",
    "VAEGAN",
    "VALUES",
    "WGAN",
    "WGANGP",
    "BiGAN",
    "GradientPenalty",
    "InfoGAN",
    "PacGAN",
    "UnrolledGAN",
    "Value",
]
