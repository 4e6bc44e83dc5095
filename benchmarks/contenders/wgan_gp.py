"""A step of a Wasserstein GAN with gradient penalty, five times the critic and once the generator, in several ways.

All ways train the same modules, made here, from the same initial weights.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ppgen
from benchmarks.contenders.handwritten import Step
from benchmarks.works import Work
from ppgen import guides, models, objectives

LEARNING_RATE, BETAS = 1e-4, (0.0, 0.9)
PENALTY, CRITIC_STEPS = 10.0, 5
KERNEL: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}

Penalty = Callable[[nn.Module, Tensor], Tensor]


def shape(work: Work) -> tuple[int, ...]:
    """Returns the shape of a datum: a vector, or an image of one channel."""
    side = math.isqrt(work.x)
    return (1, side, side) if work.kind == "wgan-gp-dcgan" else (work.x,)


def networks(work: Work) -> tuple[nn.Module, nn.Module]:
    """Returns generator and critic, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _convolutional(work) if work.kind == "wgan-gp-dcgan" else _dense(work)


def _dense(work: Work) -> tuple[nn.Module, nn.Module]:
    up, down = [work.z, *reversed(work.hidden)], [work.x, *work.hidden]
    generator = [part for a, b in itertools.pairwise(up) for part in (nn.Linear(a, b), nn.ReLU())]
    critic = [part for a, b in itertools.pairwise(down) for part in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return (
        nn.Sequential(*generator, nn.Linear(up[-1], work.x), nn.Sigmoid()),
        nn.Sequential(*critic, nn.Linear(down[-1], 1)),
    )


def _convolutional(work: Work) -> tuple[nn.Module, nn.Module]:
    few, many = work.hidden
    small = math.isqrt(work.x) // 4
    generator = nn.Sequential(
        nn.Linear(work.z, many * small * small),
        nn.Unflatten(1, (many, small, small)),
        nn.BatchNorm2d(many),
        nn.ReLU(),
        nn.ConvTranspose2d(many, few, **KERNEL),
        nn.BatchNorm2d(few),
        nn.ReLU(),
        nn.ConvTranspose2d(few, 1, **KERNEL),
        nn.Sigmoid(),
    )
    critic = nn.Sequential(
        nn.Conv2d(1, few, **KERNEL),
        nn.LeakyReLU(0.2),
        nn.Conv2d(few, many, **KERNEL),
        nn.GroupNorm(1, many),  # each row by itself, as the penalty wants
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(many * small * small, 1),
    )
    return generator, critic


def batches_of(work: Work) -> Iterator[dict[str, Tensor]]:
    """Returns the batches of a work, in memory, again and again."""
    columns = [torch.from_numpy(batch["x"]).reshape(-1, *shape(work)) for batch in work.batches()]
    return itertools.cycle([{"x": x} for x in columns])


def told(critic: Tensor, model: Tensor) -> float:
    """Returns what is compared with the reference: the critic's loss less the generator's.

    What the critic makes of draws stands in both with opposite signs; their sum would hide the generator.
    """
    return float(critic - model)


def penalty(critic: nn.Module, between: Tensor) -> Tensor:
    """Returns the gradient penalty as one writes it: a gradient that is differentiated again."""
    between.requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return penalty_of(gradient)


def functional_penalty(critic: nn.Module, between: Tensor) -> Tensor:
    """Returns the same by `torch.func`, which `torch.compile` can follow where it cannot differentiate twice."""
    gradient = torch.func.grad(lambda rows: critic(rows).sum())(between)
    return penalty_of(gradient)


def penalty_of(gradient: Tensor) -> Tensor:
    """Returns the penalty of the critic's gradient ``(rows, ...)``."""
    found: Tensor = PENALTY * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return found


def critic_loss(generator: nn.Module, critic: nn.Module, x: Tensor, z: Tensor, *, smooth: Penalty) -> Tensor:
    """Returns the critic's loss: ``z`` (rows, latents) are the draws for ``x`` (rows, ...)."""
    with torch.no_grad():
        fake = generator(z)
    share = torch.rand(len(x), *[1] * (x.dim() - 1))
    between = fake + share * (x - fake)
    loss: Tensor = critic(fake).mean() - critic(x).mean() + smooth(critic, between)
    return loss


def generator_loss(generator: nn.Module, critic: nn.Module, z: Tensor) -> Tensor:
    """Returns the generator's loss."""
    loss: Tensor = -critic(generator(z)).mean()
    return loss


def handwritten(work: Work, *, compiled: bool = False) -> Step:
    """Returns a step as one writes it: two optimizers, backward, and the critic frozen for the generator."""
    generator, critic = networks(work)
    critic_adam, generator_adam = (
        torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
        for network in (critic, generator)
    )
    of_critic: Callable[..., Tensor] = functools.partial(critic_loss, generator, critic, smooth=penalty)
    of_generator: Callable[..., Tensor] = functools.partial(generator_loss, generator, critic)
    if compiled:
        of_critic = functools.partial(
            torch.compile(critic_loss, dynamic=False), generator, critic, smooth=functional_penalty
        )
        of_generator = functools.partial(torch.compile(generator_loss, dynamic=False), generator, critic)
    batches = batches_of(work)

    def step() -> float:
        critic.requires_grad_(True)
        for _ in range(CRITIC_STEPS):
            x = next(batches)["x"]
            loss = of_critic(x, torch.randn(len(x), work.z))
            critic_adam.zero_grad(set_to_none=True)
            loss.backward()
            critic_adam.step()
        critic.requires_grad_(False)
        other = of_generator(torch.randn(len(next(batches)["x"]), work.z))
        generator_adam.zero_grad(set_to_none=True)
        other.backward()
        generator_adam.step()
        return told(loss.detach(), other.detach())

    return step


def own(work: Work, *, precision: str = "fp32", compile: Literal["on", "off"] = "on") -> Step:
    """Returns one step of ppgen's trainer."""
    generator, critic = networks(work)
    trainer = ppgen.Trainer(
        models.Generator(generator, shape(work), work.z),
        guides.Nothing(),
        objectives.WGANGP(critic, penalty=PENALTY, critic_steps=CRITIC_STEPS),
        functools.partial(torch.optim.Adam, lr=LEARNING_RATE, betas=BETAS),
        device="cpu",
        precision=precision,
        compile=compile,
    )
    batches = batches_of(work)

    def step() -> float:
        found = trainer.step(batches)
        return told(found["loss/critic"], found["loss/model"])

    return step


def eager(work: Work) -> Step:
    """By hand, eager."""
    return handwritten(work)


def compiled(work: Work) -> Step:
    """By hand, losses and gradients by `torch.compile`."""
    return handwritten(work, compiled=True)


def full(work: Work) -> Step:
    """ppgen, compiled, float32."""
    return own(work)


def half(work: Work) -> Step:
    """ppgen, compiled, matrix products in bfloat16."""
    return own(work, precision="bf16")


def uncompiled(work: Work) -> Step:
    """ppgen, not compiled."""
    return own(work, compile="off")
