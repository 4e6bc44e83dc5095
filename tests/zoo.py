"""Small programs with known answers, and what compares estimates with them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppgen import guides, models, nn, programs
from ppgen.objectives import as_objective

Batch = dict[str, Any]
Gradients = dict[str, Tensor]


def small_m2(
    *, pixels: int = 6, classes: int = 10, z_dim: int = 3, hidden: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[models.M2, guides.Label]:
    """An M2 of tiny perceptrons, with Bernoulli pixels."""
    torch.manual_seed(5)
    decoder = nn.MLP([z_dim, classes], [hidden], pixels)
    encoder = nn.MLP([pixels, classes], [hidden], 2 * z_dim)
    classifier = nn.MLP(pixels, [hidden], classes, activation="tanh")
    model = models.M2(decoder, nn.Bernoulli((pixels,)), z_dim, classes)
    guide = guides.Label(classifier, encoder, classes)
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight)
    return model.to(dtype), guide.to(dtype)


def small_vae(
    *, pixels: int = 6, z_dim: int = 2, hidden: int = 8, **options: Any
) -> tuple[models.VAE, guides.DiagonalGaussian]:
    """A VAE of tiny perceptrons, with Bernoulli pixels."""
    torch.manual_seed(5)
    model = models.VAE(nn.MLP(z_dim, [hidden], pixels), nn.Bernoulli((pixels,)), z_dim)
    return model, guides.DiagonalGaussian(nn.MLP(pixels, [hidden], 2 * z_dim, **options), z_dim)


def binary_rows(rows: int, pixels: int = 6, *, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    """Rows of correlated zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(2, (rows, 1), generator=generator)
    noise = torch.rand(rows, pixels, generator=generator)
    return ((noise < 0.2 + 0.6 * kind * (torch.arange(pixels) % 2) + 0.1).to(dtype)).clamp(0, 1)


def value_and_gradients(
    objective: Any, model: Any, guide: Any, batch: Any, *, seed: int = 0
) -> tuple[Tensor, Gradients]:
    """Loss and gradients of every leaf that it depends on, in a fresh store; leaves start as the programs say."""
    with programs.Store().active():
        made = as_objective(objective)
        made.setup(model, guide, batch)
        torch.manual_seed(seed)
        with programs.quiet():
            loss = made.loss(model, guide, batch)
        leaves = programs.leaves(model, guide)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.detach(), {n: g for n, g in zip(leaves, found, strict=True) if g is not None}


def repeated(
    objective: Any, model: Any, guide: Any, batch: Any, *, draws: int, seed: int = 0
) -> tuple[Tensor, Gradients]:
    """Losses ``(draws,)`` and gradients ``(draws, ...)`` of independent draws."""
    losses: list[Tensor] = []
    gradients: dict[str, list[Tensor]] = {}
    with programs.Store().active():
        made = as_objective(objective)
        made.setup(model, guide, batch)
        leaves = programs.leaves(model, guide)
        torch.manual_seed(seed)
        with programs.quiet():
            for _ in range(draws):
                loss = made.loss(model, guide, batch)
                found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
                losses.append(loss.detach())
                for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
                    gradients.setdefault(name, []).append(torch.zeros_like(leaf) if gradient is None else gradient)
    return torch.stack(losses), {name: torch.stack(parts) for name, parts in gradients.items()}


def z_between(one: Tensor, two: Tensor) -> float:
    """The largest absolute two-sample z-score of means over the first dimension."""
    error = (one.double().var(0) / len(one) + two.double().var(0) / len(two)).sqrt()
    difference = (one.double().mean(0) - two.double().mean(0)).abs()
    return float((difference / (error + 1e-12)).max()) if difference.max() > 1e-6 else 0.0


def z_score(draws: Tensor, exact: Tensor | float) -> float:
    """The largest absolute z-score of means over the first dimension against exact values."""
    error = draws.double().std(0) / len(draws) ** 0.5
    return float(((draws.double().mean(0) - exact).abs() / (error + 1e-12)).max())


def relative(one: Gradients, two: Gradients) -> float:
    """The largest distance of a gradient from another, relative to the largest norm of any."""
    assert one.keys() == two.keys()
    size = max(float(g.norm()) for g in two.values())
    return max(float((one[name] - two[name]).norm()) for name in two) / size


Program = Callable[..., None]
