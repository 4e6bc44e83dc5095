"""Adversarial variational Bayes against densities that are known."""

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen import Trainer, programs
from ppgen import nn as networks
from ppgen.errors import ConfigError
from ppgen.guides import Implicit
from ppgen.objectives import AVB
from ppgen.players import Optimizer

STILL = functools.partial(torch.optim.SGD, lr=0.0)


class Model(nn.Module):
    """``z ~ N(0, I)``, ``x ~ N(weight * z, 1)``."""

    def __init__(self, dims: int = 1) -> None:
        super().__init__()
        self.dims = dims
        self.weight = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.weight * z, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """``z ~ N(loc, scale^2)``, whatever the data."""

    def __init__(self, loc: float, scale: float, *, kind: Any = dist.Normal, dims: int = 1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((dims,), loc))
        self.scale = nn.Parameter(torch.full((dims,), scale))
        self.kind = kind

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.kind(self.loc, self.scale).expand([len(x), len(self.loc)]).to_event(1))


class Zero(nn.Module):
    """A critic that sees no difference; its parameter changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return 0 * self.weight * z.sum(-1, keepdim=True)


def trained(critic: nn.Module, guide: nn.Module, *, steps: int, contrast: int = 0) -> dict[str, float]:
    """The last report of a game in which only the critic moves."""
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    moving = Optimizer(functools.partial(torch.optim.Adam, lr=1e-2), schedule=cosine)
    players = {"critic": moving, "autoencoder": Optimizer(STILL)}
    trainer = Trainer(Model(), guide, AVB(critic, contrast=contrast), players, total_steps=steps, compile="off")
    *_, report = trainer.fit({"x": torch.zeros(4_000, 1)}, steps=steps, every=50)
    return report


def error(critic: nn.Module, guide: Guide) -> float:
    """Root mean squared difference of the critic and the log ratio of guide and prior, on draws of both."""
    loc, scale = guide.loc.detach(), guide.scale.detach()
    z = torch.cat([torch.randn(5_000, 1), loc + scale * torch.randn(5_000, 1)])
    truth = dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    with torch.no_grad():
        found: Tensor = critic(torch.zeros(len(z), 1), z) - truth
    return float(found.square().mean().sqrt())


def test_the_critic_finds_the_log_ratio_of_guide_and_prior() -> None:
    torch.manual_seed(0)
    critic = networks.critic((1,), hidden=(32,), others=[1], activation="silu")
    guide = Guide(0.7, 0.8)
    assert error(critic, guide) > 0.3  # the control: one that nobody trained
    report = trained(critic, guide, steps=800)
    assert error(critic, guide) < 0.05
    exact = -float(torch.distributions.kl_divergence(dist.Normal(0.7, 0.8), dist.Normal(0.0, 1.0)))
    assert report["bound"] + report["reconstruction"] == pytest.approx(exact, abs=0.03)


def divergence(contrast: int, guide: Guide, critic: nn.Module | None = None) -> Tensor:
    """The estimated divergence of guide and prior, with its graph, over many rows."""
    objective, batch = AVB(critic or Zero(), contrast=contrast), {"x": torch.zeros(40_000, len(guide.loc))}
    model = Model(len(guide.loc))
    objective.setup(model, guide, batch)
    (losses, metrics) = objective.phases()[-1](model, guide, batch)
    return losses["autoencoder"] - metrics["reconstruction"]


def test_with_adaptive_contrast_a_gaussian_guide_needs_no_critic() -> None:
    """Its contrast is itself, so the best critic sees no difference: value and gradients are exact."""
    torch.manual_seed(0)
    guide = Guide(0.7, 0.6, dims=2)
    prior = dist.Normal(torch.zeros(2), 1.0)
    exact = torch.distributions.kl_divergence(dist.Normal(guide.loc, guide.scale), prior).sum()
    estimate = divergence(200, guide)
    assert float(estimate.detach()) == pytest.approx(float(exact.detach()), abs=0.02)
    wanted = torch.autograd.grad(exact, list(guide.parameters()))
    # less the gradient of the reconstruction, which the loss has too
    found = torch.autograd.grad(divergence(200, guide) - _reconstruction_of(guide), list(guide.parameters()))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=0.06)
    # the control: without contrast, and blind to the difference, nothing is seen of it
    assert float(divergence(0, guide).detach()) == 0


def _reconstruction_of(guide: Guide) -> Tensor:
    """What ``divergence`` leaves of the reconstruction: its gradient, by the closed form ``(x - w z)^2 / 2``."""
    mean = (guide.loc.square() + guide.scale.square()).sum() / 2
    return mean - mean.detach()


def test_an_implicit_guide_has_a_bound_below_the_evidence() -> None:
    """The bound as the critic tells it lies below the exact evidence, but for noise, and close to it."""
    torch.manual_seed(1)
    x = torch.randn(500, 1) * 2**0.5
    guide = Implicit(networks.MLP([1, 1], [32], 1), 1)
    critic = networks.critic((1,), hidden=(32,), others=[1], activation="silu")
    rates = {"critic": 1e-2, "autoencoder": 2e-3}
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1_000)
    players = {n: Optimizer(functools.partial(torch.optim.Adam, lr=rate), schedule=cosine) for n, rate in rates.items()}
    model = Model()
    model.weight.requires_grad_(False)
    trainer = Trainer(model, guide, AVB(critic, critic_steps=2), players, total_steps=1_000, compile="off")
    *_, report = trainer.fit({"x": x}, steps=1_000, every=100)
    evidence = float(dist.Normal(0.0, 2**0.5).log_prob(x).mean())
    assert evidence - 0.15 < report["bound"] < evidence + 0.05
    with torch.no_grad():
        z = programs.rows_of(programs.infer(guide, {"x": torch.full((5_000, 1), 2.0)})["z"])
    assert float(z.mean()) == pytest.approx(1.0, abs=0.15)  # the posterior of x = 2 is N(1, 1/2)
    assert float(z.var()) == pytest.approx(0.5, abs=0.15)


class Discrete(Guide):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(self.scale.expand(len(x), 1)).to_event(1))


class Shapeless(Guide):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x), 3), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("guide", "critic", "message"),
    [
        (Discrete(0.0, 0.5), Zero(), "expected continuous latents of the guide for AVB; got site 'z'"),
        (Guide(0.0, 1.0, kind=dist.VonMises), Zero(), "site 'z'.* pathwise derivative"),
        (Shapeless(0.0, 1.0), Zero(), r"shape that the prior's have, \(6, 1\); got \(6, 3\)"),
        (Guide(0.0, 1.0), networks.critic((1,), hidden=(4,)), "the critic does not take inputs"),
        (Guide(0.0, 1.0), networks.critic((1,), others=[1], outputs=2, hidden=(4,)), r"gives \(6, 1\) .* got \(6, 2\)"),
    ],
)
def test_what_the_game_cannot_use_is_refused(guide: nn.Module, critic: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(Model(), guide, AVB(critic), compile="off").setup({"x": torch.zeros(6, 1)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AVB(nn.Identity()), "expected a critic that can be trained, an nn.Module; got Identity"),
        (lambda: AVB(Zero(), contrast=1), "contrast 0 or >= 2"),
        (lambda: AVB(Zero(), critic_steps=0), "critic_steps >= 1"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
