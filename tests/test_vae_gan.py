"""VAE-GAN: each player's loss by hand, and what the game cannot use."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen import Trainer, guides, models
from ppgen import nn as networks
from ppgen.errors import ConfigError
from ppgen.objectives import VAEGAN


class Critic(nn.Module):
    """Features are twice the data, and the output their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def features(self, x: Tensor) -> Tensor:
        return self.scale * x

    def head(self, features: Tensor) -> Tensor:
        return features.sum(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Model(nn.Module):
    """``x = weight * z``; of two numbers."""

    def __init__(self, kind: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.5, 0.5]))
        self.kind = kind or (lambda mean: dist.Delta(mean, event_dim=1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.kind(self.weight * z), obs=x)


class Guide(nn.Module):
    """``z ~ N(weight * x, scale^2)``."""

    def __init__(self, scale: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.scale = scale

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight * x, self.scale).to_event(1))


def test_the_losses_are_those_of_the_formulas() -> None:
    """With a guide of hardly any noise reconstructions are known; draws come from the same random state."""
    model, guide, critic, batch = Model(), Guide(1e-4), Critic(), {"x": torch.randn(50, 2)}
    objective = VAEGAN(critic, similarity=0.3)
    objective.setup(model, guide, batch)
    torch.manual_seed(3)
    (losses, metrics) = objective.phases()[0](model, guide, batch)
    torch.manual_seed(3)
    noise = [dist.Normal(torch.zeros(50, 2), 1.0).sample() for _ in range(2)]
    rebuilt = model.weight * (guide.weight * batch["x"] + 1e-4 * noise[0])
    drawn = model.weight * noise[1]
    similarity = 0.5 * (2 * batch["x"] - 2 * rebuilt).square().sum(-1).mean()
    posterior, prior = dist.Normal(guide.weight * batch["x"], 1e-4), dist.Normal(0.0, 1.0)
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(-1).mean()
    real, fake = critic(batch["x"]), critic(torch.cat([rebuilt, drawn]))
    expected = {
        "critic": softplus(-real).mean() + softplus(fake).mean(),
        "model": 0.3 * similarity + softplus(-fake).mean(),
        "guide": divergence + similarity,
    }
    for player, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(float(expected[player].detach()), rel=1e-4), player
    assert float(metrics["similarity"]) == pytest.approx(float(similarity.detach()), rel=1e-4)
    assert float(losses["model"].detach()) != pytest.approx(float(expected["guide"].detach()), rel=0.01)  # they are two


def test_it_learns_to_reconstruct_in_the_features_of_its_critic() -> None:
    """What nobody trained does not: the control."""
    torch.manual_seed(0)
    x = torch.randn(400, 4)

    def error(steps: int) -> float:
        torch.manual_seed(0)
        generator = networks.generator([4], (4,), hidden=(32,))
        guide = guides.DiagonalGaussian(networks.encoder((4,), 8, hidden=(32,)), 4)
        critic = networks.critic((4,), hidden=(32,), normalization="layer")
        trainer = Trainer(
            models.Generator(generator, (4,), 4),
            guide,
            VAEGAN(critic),
            lambda leaves: torch.optim.Adam(leaves, lr=3e-3, betas=(0.5, 0.9)),
            compile="off",
        )
        for _ in trainer.fit({"x": x}, steps=steps):
            pass
        with trainer.evaluating():
            found = generator(guide.encoder(x)[:, :4])
        return float((found - x).square().mean())

    assert error(400) < 0.4
    assert error(0) > 0.8


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.sum(-1, keepdim=True)


class Sure(Guide):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.weight * x, event_dim=1))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (Model(lambda mean: dist.Bernoulli(logits=mean).to_event(1)), Guide(), "site 'x', which is a Bernoulli"),
        (Model(lambda mean: dist.Delta(mean.repeat(1, 2), event_dim=1)), Guide(), "of the shape that the data have"),
        (Model(), Sure(), "guide site 'z' is a Delta, so the guide has no density"),
    ],
)
def test_what_the_game_cannot_use_is_refused(model: nn.Module, guide: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(model, guide, VAEGAN(Critic()), compile="off").setup({"x": torch.ones(6, 2)})


def test_a_critic_needs_features() -> None:
    with pytest.raises(ConfigError, match=r"expected a critic with features\(x\) and head\(features\).* got Plain"):
        VAEGAN(Plain())
    with pytest.raises(ConfigError, match="expected similarity >= 0; got -1"):
        VAEGAN(Critic(), similarity=-1.0)
