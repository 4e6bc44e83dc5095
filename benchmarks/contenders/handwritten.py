"""Hand-written PyTorch: the losses as one would write them without a probabilistic language."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.works import ALPHA, LABELLED_SHARE, LEARNING_RATE, SMALLEST_SCALE, Array, Layers, Work

Parameters = dict[str, list[Tensor]]
"""Weights and biases in turn, by network; the first layer's weights of several inputs are apart where factored."""
Loss = Callable[[Parameters, Mapping[str, Tensor]], Tensor]
Step = Callable[[], float]


def tensors(batch: Mapping[str, Array]) -> dict[str, Tensor]:
    """Turns the columns of a batch into tensors."""
    return {name: torch.from_numpy(column) for name, column in batch.items()}


def endless(work: Work) -> Iterator[dict[str, Tensor]]:
    """Returns the batches of a work, in memory, again and again."""
    return itertools.cycle([tensors(batch) for batch in work.batches()])


def parameters(work: Work, *, factored: bool) -> Parameters:
    """Returns the initial weights as leaves."""
    sizes = {name: inputs if factored else [sum(inputs)] for name, (inputs, _) in work.networks().items()}
    return {name: _leaves(layers, sizes[name]) for name, layers in work.weights().items()}


def _leaves(layers: Layers, inputs: Sequence[int]) -> list[Tensor]:
    (weight, bias), *rest = layers
    first = [part.contiguous() for part in torch.from_numpy(weight).split(list(inputs), dim=1)]
    others = [torch.from_numpy(array) for layer in rest for array in layer]
    return [tensor.clone().requires_grad_() for tensor in (*first, torch.from_numpy(bias), *others)]


def rest(hidden: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Applies all but the first layer."""
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        hidden = functional.linear(functional.relu(hidden), weight, bias)
    return hidden


def perceptron(x: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Returns the output for one input."""
    return rest(functional.linear(x, layers[0], layers[1]), layers[2:])


def gaussian(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a draw, mean and scale of the latent vector."""
    mean, free = features.chunk(2, dim=-1)
    scale = functional.softplus(free) + SMALLEST_SCALE
    return mean + scale * torch.randn_like(scale), mean, scale


def divergence(mean: Tensor, scale: Tensor) -> Tensor:
    """Returns KL(N(mean, scale) || N(0, 1)) by row, in nats."""
    return (0.5 * (scale.square() + mean.square() - 1) - scale.log()).sum(-1)


def reconstruction(logits: Tensor, x: Tensor) -> Tensor:
    """Returns -log p(x | logits) by row, in nats."""
    target = x.expand_as(logits)
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def vae_loss(weights: Parameters, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the negative bound of a VAE, in nats per datum."""
    x = batch["x"]
    z, mean, scale = gaussian(perceptron(x, weights["encoder"]))
    logits = perceptron(z, weights["decoder"])
    return (reconstruction(logits, x) + divergence(mean, scale)).mean()


def iwae_loss(particles: int) -> Loss:
    """Returns the loss of an importance-weighted autoencoder, in nats per datum."""

    def loss(weights: Parameters, batch: Mapping[str, Tensor]) -> Tensor:
        x = batch["x"]
        mean, free = perceptron(x, weights["encoder"]).chunk(2, dim=-1)
        scale = functional.softplus(free) + SMALLEST_SCALE
        noise = torch.randn(particles, *scale.shape)
        z = mean + scale * noise
        ratio = 0.5 * (noise.square() - z.square()) + scale.log()  # log p(z) - log q(z | x)
        log_w = ratio.sum(-1) - reconstruction(perceptron(z, weights["decoder"]), x)
        return (math.log(particles) - log_w.logsumexp(0)).mean()

    return loss


def joined(x: Tensor, y: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Returns the output for two inputs that are expanded and concatenated."""
    leading = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    return perceptron(torch.cat([x.expand(*leading, -1), y.expand(*leading, -1)], dim=-1), layers)


def apart(x: Tensor, y: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Returns the output for two inputs with a layer of its own each."""
    hidden = functional.linear(x, layers[0], layers[2]) + functional.linear(y, layers[1])
    return rest(hidden, layers[3:])


def m2_loss(network: Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]) -> Loss:
    """Returns the loss of M2, in nats per datum, with networks of two inputs evaluated in one of two ways."""

    def bound(weights: Parameters, x: Tensor, y: Tensor) -> Tensor:
        z, mean, scale = gaussian(network(x, y, weights["encoder"]))
        return reconstruction(network(z, y, weights["decoder"]), x) + divergence(mean, scale)

    def loss(weights: Parameters, batch: Mapping[str, Tensor]) -> Tensor:
        y = batch["y"]
        classes = y.shape[-1]
        uniform = torch.log(torch.tensor(float(classes)))
        log_q = torch.log_softmax(perceptron(batch["labelled"], weights["classifier"]), dim=-1)
        cross_entropy = -(log_q * y).sum(-1).mean()
        labelled = bound(weights, batch["labelled"], y).mean() + uniform
        logits = perceptron(batch["x"], weights["classifier"])
        q = torch.softmax(logits, dim=-1)
        states = bound(weights, batch["x"], torch.eye(classes).unsqueeze(1)).T  # (rows, classes)
        unlabelled = (q * (states + torch.log_softmax(logits, dim=-1))).sum(-1).mean() + uniform
        return LABELLED_SHARE * labelled + (1 - LABELLED_SHARE) * unlabelled + ALPHA * cross_entropy

    return loss


def build(work: Work, *, factored: bool = True, compiled: bool = False) -> Step:
    """Returns a training step: loss, autograd, and torch's fused Adam."""
    weights = parameters(work, factored=factored)
    loss = iwae_loss(work.particles) if work.kind == "iwae" else vae_loss
    loss = m2_loss(apart if factored else joined) if work.kind == "m2" else loss
    if compiled:
        loss = torch.compile(loss, dynamic=False)
    advance = stepping(loss, weights)
    batches = endless(work)
    return lambda: advance(next(batches)).item()


def stepping(loss: Loss, weights: Parameters) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Returns a function that takes one step on a batch."""
    leaves = [leaf for layers in weights.values() for leaf in layers]
    optimizer = torch.optim.Adam(leaves, lr=LEARNING_RATE, fused=True)

    def advance(batch: Mapping[str, Tensor]) -> Tensor:
        value = loss(weights, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return advance


def eager(work: Work) -> Step:
    """Eager, first layers factored."""
    return build(work)


def eager_joined(work: Work) -> Step:
    """Eager, inputs expanded and concatenated."""
    return build(work, factored=False)


def compiled(work: Work) -> Step:
    """Loss and gradients by `torch.compile`, first layers factored."""
    return build(work, compiled=True)
