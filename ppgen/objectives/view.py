"""The unifying view: every objective as a game, what each of its players minimises, and which divergence that is."""

from collections.abc import Mapping
from dataclasses import dataclass

from ppgen.objectives.adversarial import (
    AAE,
    ACGAN,
    AVB,
    GAN,
    MADGAN,
    VAEGAN,
    VALUES,
    WGAN,
    WGANGP,
    BiGAN,
    InfoGAN,
    PacGAN,
    UnrolledGAN,
)
from ppgen.objectives.base import Objective, Stock
from ppgen.objectives.bounds import CIWAE, IWAE, MIWAE, PIWAE, Renyi, VRMax
from ppgen.objectives.divergences import WAE, InfoVAE, SlicedWAE
from ppgen.objectives.elbo import ELBO, EnumeratedELBO
from ppgen.objectives.monte_carlo_em import MonteCarloEM
from ppgen.objectives.semisupervised import SemiSupervised
from ppgen.objectives.total_correlation import BetaTCVAE
from ppgen.objectives.transport import SinkhornAE
from ppgen.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep


@dataclass(frozen=True)
class View:
    """An objective as a game over ``q(x, z) = data(x) q(z | x)`` and ``p(x, z) = p(z) p(x | z)``.

    Attributes:
        players: what each minimises, by the name of the player.
        divergence: what the programs minimise when every other player is at its best, up to terms of the data alone.
    """

    players: Mapping[str, str]
    divergence: str


_JOINT = "KL(q(x, z) || p(x, z))"
_EXTENDED = "KL of K weighted draws: KL(q_K(x, z_1..K) || p_K(x, z_1..K))"
_RATIO = "its logistic loss (q against p)"
_RECONSTRUCTION = "-E_q log p(x | z)"

VIEWS: Mapping[type[Objective], View] = {
    ELBO: View({"all": "-E_q[log p(x, z) - log q(z | x)]"}, _JOINT),
    EnumeratedELBO: View({"all": "-E_q[log p(x, z) - log q(z | x)], discrete sites summed"}, _JOINT),
    IWAE: View({"all": "-E_q log mean_k w_k"}, _EXTENDED),
    MIWAE: View({"all": "-E_q log mean_k w_k, mean of M"}, _EXTENDED),
    PIWAE: View({"model": "-E_q log mean_k w_k of M K draws", "guide": "-E_q log mean_k w_k, mean of M"}, _EXTENDED),
    CIWAE: View({"all": "beta ELBO + (1 - beta) IWAE, negated"}, f"beta {_JOINT} + (1 - beta) {_EXTENDED}"),
    Renyi: View(
        {"all": "-log mean_k w_k^(1 - alpha) / (1 - alpha)"}, "Renyi, D_alpha(q(z | x) || p(z | x)), for K large"
    ),
    VRMax: View({"all": "-log max_k w_k"}, "Renyi, alpha to minus infinity"),
    Stock: View({"all": "the loss of one of Pyro's own ELBOs"}, "that of its class"),
    SemiSupervised: View(
        {"all": "bounds of labelled and unlabelled rows, and -log q(y | x) of labels"},
        f"{_JOINT}, and KL(data(y | x) || q(y | x)) of labelled rows",
    ),
    WakeSleep: View(
        {"model": "-E_q log p(x, z)", "guide": "-E_p(x, z) log q(z | x)"},
        f"model: {_JOINT}; guide: E_p(x) KL(p(z | x) || q(z | x))",
    ),
    ReweightedWakeSleep: View(
        {"model": "-sum_k v_k log p(x, z_k)", "guide": "-sum_k v_k log q(z_k | x), or dreams as in wake-sleep"},
        f"model: {_EXTENDED}; guide: KL(p(z | x) || q(z | x)) of data, of dreams, or of both",
    ),
    MonteCarloEM: View(
        {"model": "-log p(x, z) of z moved towards p(z | x)", "guide": "-log q(z | x) of these z"},
        "model: KL(data(x) || p(x)), as moves grow; guide: KL(p(z | x) || q(z | x))",
    ),
    InfoVAE: View(
        {"all": f"{_RECONSTRUCTION} + (1 - alpha) KL(q(z | x) || p(z)) + (alpha + scale - 1) MMD(q(z), p(z))"},
        f"{_JOINT} less information of z on x, with the maximum mean discrepancy of q(z) and p(z)",
    ),
    WAE: View(
        {"all": f"{_RECONSTRUCTION} + scale MMD(q(z), p(z))"},
        "optimal transport of data(x) and p(x), its constraint q(z) = p(z) relaxed",
    ),
    SlicedWAE: View(
        {"all": f"{_RECONSTRUCTION} + scale sliced W2(q(z), p(z))"},
        "optimal transport of data(x) and p(x), its constraint q(z) = p(z) relaxed",
    ),
    SinkhornAE: View(
        {"all": f"{_RECONSTRUCTION} + scale Sinkhorn(q(z), p(z))"},
        "optimal transport of data(x) and p(x), its constraint q(z) = p(z) relaxed",
    ),
    BetaTCVAE: View(
        {"all": f"{_RECONSTRUCTION} + alpha I(z; n) + beta KL(q(z) || prod q(z_k)) + gamma sum_k KL(q(z_k) || p(z_k))"},
        f"{_JOINT}, its parts weighted",
    ),
    GAN: View(
        {"critic": "the value function's loss: data(x) against p(x)", "model": "the value function's other loss"},
        "that of the value function, of data(x) and p(x): see below",
    ),
    PacGAN: View(
        {"critic": "as GAN, of several rows at once", "model": "as GAN"},
        "as GAN, of data(x)^m and p(x)^m, m rows at once",
    ),
    UnrolledGAN: View({"critic": "as GAN", "model": "as GAN, against the critic some steps ahead"}, "as GAN"),
    WGAN: View(
        {"critic": "E_p T - E_data T, |parameters| <= clip", "model": "-E_p T"},
        "Wasserstein-1 of data(x) and p(x), up to a factor",
    ),
    WGANGP: View(
        {"critic": "E_p T - E_data T + penalty E(|grad T| - 1)^2", "model": "-E_p T"},
        "Wasserstein-1 of data(x) and p(x)",
    ),
    ACGAN: View(
        {"critic": "as GAN - weight E log C(y | x), data and draws", "model": "as GAN - weight E_p log C(y | x)"},
        "as GAN, with the error of a classifier on draws",
    ),
    MADGAN: View(
        {"critic": "cross-entropy of data and of each generator", "model": "-E_p log D(data | x)"},
        "as GAN, of data(x) and the mixture, with the generators driven apart",
    ),
    InfoGAN: View(
        {"critic": "as GAN - weight E_p log q(code | x)", "model": "as GAN - weight E_p log q(code | x)"},
        "as GAN, less a lower bound on the information of x on the code",
    ),
    BiGAN: View(
        {
            "critic": "as GAN: q(x, z) against p(x, z)",
            "autoencoder": "the value function's other losses, of both sides",
        },
        "as GAN, of q(x, z) and p(x, z)",
    ),
    AAE: View(
        {"critic": "as GAN: q(z) against p(z)", "autoencoder": f"{_RECONSTRUCTION} + weight * the other loss"},
        "reconstruction, and as GAN of q(z) and p(z)",
    ),
    AVB: View({"critic": _RATIO, "autoencoder": f"{_RECONSTRUCTION} + E_q T(x, z)"}, _JOINT),
    VAEGAN: View(
        {
            "critic": "as GAN: data(x) against p(x) and reconstructions",
            "model": "as GAN + similarity * distance in the critic's features",
            "guide": "KL(q(z | x) || p(z)) + distance in the critic's features",
        },
        f"{_JOINT} with features in the place of x; model also as GAN of data(x) and p(x)",
    ),
}


def rows() -> list[tuple[str, str, str, str]]:
    """Returns a row for every player: objective, player, what it minimises, and (in the first) the divergence."""
    found = []
    for objective, view in VIEWS.items():
        for index, (player, minimised) in enumerate(view.players.items()):
            first = index == 0
            name, divergence = (objective.__name__, view.divergence) if first else ("", "")
            found.append((name, player, minimised, divergence))
    return found


def value_rows() -> list[tuple[str, str]]:
    """Returns the name and the divergence of every adversarial value function.

    >>> dict(value_rows())["minimax"]
    'Jensen-Shannon'
    """
    return [(name, value.divergence) for name, value in VALUES.items()]


def markdown() -> str:
    """Returns both tables as they stand in ``docs/games.md``."""
    lines = ["| objective | player | minimises | divergence |", "|---|---|---|---|"]
    lines += [f"| {_code(a)} | {_code(b)} | {_cell(c)} | {_cell(d)} |" for a, b, c, d in rows()]
    lines += ["", "| `loss=` of a game | divergence at the best critic |", "|---|---|"]
    lines += [f"| {_code(name)} | {_cell(divergence)} |" for name, divergence in value_rows()]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
