"""BiGAN and ALI: the encoder becomes the generator's inverse where that is known, and its features are kept."""

import functools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from run_helpers import tiny
from torch import Tensor, nn

from ppgen import Trainer, guides, models
from ppgen import nn as networks
from ppgen.evaluation.embedding import embed
from ppgen.objectives import BiGAN
from ppgen.players import Optimizer
from ppgen.runs import Run

MEAN, SCALE = 1.0, 2.0
NOISE = 0.5


class Line(nn.Module):
    """``x = scale z + mean``, both learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 0.5)
        nn.init.zeros_(self.line.bias)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(self.line(z), event_dim=1), obs=x)


class Inverse(nn.Module):
    """A linear encoder, deterministic or with noise."""

    def __init__(self, *, noise: bool) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 0.1)
        nn.init.zeros_(self.line.bias)
        self.noise = noise
        self.log_scale = nn.Parameter(torch.tensor(-1.0)) if noise else torch.tensor(0.0)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean = self.line(x)
            drawn = dist.Normal(mean, self.log_scale.exp()).to_event(1) if self.noise else dist.Delta(mean, event_dim=1)
            pyro.sample("z", drawn)


class Quadratic(nn.Module):
    """A critic that is as good as any between two Gaussians."""

    def __init__(self, *, sees_latents: bool = True) -> None:
        super().__init__()
        self.weights = nn.Linear(5, 1)
        self.sees_latents = sees_latents

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        z = z if self.sees_latents else torch.zeros_like(z)
        found: Tensor = self.weights(torch.cat([x, z, x * x, x * z, z * z], dim=1))
        return found


def play(model: nn.Module, guide: nn.Module, critic: nn.Module, *, steps: int = 1000, **options: Any) -> None:
    def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def adam(rate: float) -> Optimizer:
        return Optimizer(functools.partial(torch.optim.Adam, lr=rate, betas=(0.5, 0.99)), schedule=decaying)

    trainer = Trainer(
        model,
        guide,
        BiGAN(critic, noise=NOISE, **options),
        {"critic": adam(0.05), "autoencoder": adam(0.02)},
        total_steps=steps,
        device="cpu",
        compile="off",
    )
    batches = ({"x": MEAN + SCALE * torch.randn(256, 1)} for _ in iter(int, 1))
    for _ in trainer.fit(batches, steps=steps):
        pass


def inversion_error(model: Line, guide: Inverse) -> float:
    """How far the encoder takes draws of the model from the latents that they were drawn of."""
    z = torch.linspace(-2, 2, 9).unsqueeze(1)
    with torch.no_grad():
        return float((guide.line(model.line(z)) - z).abs().max())


@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
def test_the_encoder_inverts_the_generator(loss: str) -> None:
    model, guide = Line(), Inverse(noise=False)
    before = inversion_error(model, guide)
    play(model, guide, Quadratic(), loss=loss)
    assert before > 1.5
    assert inversion_error(model, guide) < 0.2
    # what the generator is, up to the sign of z
    assert abs(abs(model.line.weight.item()) - SCALE) < 0.15
    assert abs(model.line.bias.item() - MEAN) < 0.15


def test_a_critic_that_does_not_see_the_latents_teaches_the_encoder_nothing() -> None:
    model, guide = Line(), Inverse(noise=False)
    play(model, guide, Quadratic(sees_latents=False), steps=500)
    assert inversion_error(model, guide) > 1.0
    assert abs(abs(model.line.weight.item()) - SCALE) < 0.3


def test_an_encoder_with_noise_finds_the_posterior_of_the_blurred_generator() -> None:
    model, guide = Line(), Inverse(noise=True)
    play(model, guide, Quadratic())
    # data carry noise that the encoder does not see, so codes of the model's data may carry some, too: their sum is 1
    spread = (guide.line.weight * SCALE).square() + guide.log_scale.exp().square()
    assert abs(spread.item() - 1) < 0.15
    assert abs(abs(model.line.weight.item()) - SCALE) < 0.2


# The guide


def encoder(*, outputs: int = 3) -> networks.Critic:
    return networks.critic((1, 4, 4), outputs=outputs, hidden=(8, 6), normalization="batch")


@pytest.mark.parametrize("bounded", [False, True])
def test_a_deterministic_guide_gives_codes_and_its_last_hidden_layer(bounded: bool) -> None:
    guide, x = guides.Deterministic(encoder(), bounded=bounded), torch.rand(20, 1, 4, 4)
    model = models.Generator(networks.generator([3], (1, 4, 4), hidden=(8,)), (1, 4, 4), 3)
    trainer = Trainer(model, guide, BiGAN(networks.critic((1, 4, 4), others=[3], hidden=(8,))), device="cpu")
    found = embed(trainer, {"x": x})
    guide.eval()
    with torch.no_grad():
        expected = guide.encoder(x)
        assert torch.allclose(found["z"], expected.tanh() if bounded else expected, atol=1e-6)
        assert torch.allclose(found["features"], guide.encoder.features(x), atol=1e-6)


# The recipes


@pytest.mark.parametrize("recipe", ["bigan", "ali"])
@pytest.mark.parametrize("data", ["digits", "ring"])
def test_recipes_train_and_embed(tmp_path: Path, recipe: str, data: str) -> None:
    options = {"z_dim": 2, "hidden": (16,), "critic_hidden": (16,)}
    run = Run.create(tiny(recipe, steps=3, data={"name": data}, options=options), tmp_path / "run")
    with run.folder.lock():
        records = list(run.train())
    assert {"loss/critic", "loss/autoencoder"} <= records[-1].keys()
    found = embed(run.trainer, run.data.test)
    assert found["z"].shape == (len(run.data.test["x"]), 2)
    assert ("features" in found) == (recipe == "bigan")
