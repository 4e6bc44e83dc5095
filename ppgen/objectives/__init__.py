"""Objectives: what is optimised, one class per paper."""

from ppgen.objectives.adversarial import (
    AAE,
    ACGAN,
    AVB,
    GAN,
    MADGAN,
    VAEGAN,
    WGAN,
    WGANGP,
    BiGAN,
    InfoGAN,
    PacGAN,
    UnrolledGAN,
)
from ppgen.objectives.base import Losses, Metrics, Objective, Phase, Stock, as_objective
from ppgen.objectives.bounds import CIWAE, IWAE, MIWAE, PIWAE, Renyi, VRMax
from ppgen.objectives.divergences import WAE, InfoVAE, SlicedWAE
from ppgen.objectives.elbo import ELBO, EnumeratedELBO
from ppgen.objectives.monte_carlo_em import MonteCarloEM
from ppgen.objectives.named import OBJECTIVES, named
from ppgen.objectives.semisupervised import SemiSupervised
from ppgen.objectives.total_correlation import BetaTCVAE
from ppgen.objectives.transport import SinkhornAE
from ppgen.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep

__all__ = [
    "AAE",
    "ACGAN",
    "AVB",
    "CIWAE",
    "ELBO",
    "GAN",
    "IWAE",
    "MADGAN",
    "MIWAE",
    "OBJECTIVES",
    "PIWAE",
    "VAEGAN",
    "WAE",
    "WGAN",
    "WGANGP",
    "BetaTCVAE",
    "BiGAN",
    "EnumeratedELBO",
    "InfoGAN",
    "InfoVAE",
    "Losses",
    "Metrics",
    "MonteCarloEM",
    "Objective",
    "PacGAN",
    "Phase",
    "Renyi",
    "ReweightedWakeSleep",
    "SemiSupervised",
    "SinkhornAE",
    "SlicedWAE",
    "Stock",
    "UnrolledGAN",
    "VRMax",
    "WakeSleep",
    "as_objective",
    "named",
]
