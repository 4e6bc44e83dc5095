"""Exact expectations over all runs of small programs of units, by walking through them one by one."""

import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen import programs
from ppgen.objectives import Objective

Run = tuple[Any, Any]


class _Walk(poutine.messenger.Messenger):
    """Gives every unit of a run the values of one path, and goes from path to path."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[list[int]] = []
        self.place = 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or poutine.util.site_is_subsample(msg) or msg["done"]:
            return
        states = list(itertools.product([0.0, 1.0], repeat=msg["fn"].batch_shape.numel()))
        if self.place == len(self.path):
            self.path.append([0, len(states)])
        msg["value"] = torch.tensor(states[self.path[self.place][0]]).reshape(msg["fn"].batch_shape)
        msg["done"] = True
        self.place += 1

    def advance(self) -> bool:
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        self.place = 0
        return bool(self.path)


def every_run(model: Any, guide: Any, *args: Any) -> Iterator[Run]:
    """Yields the traces of guide and model for every value of every unit that the guide draws."""
    walk = _Walk()
    while True:
        with walk:
            q = poutine.trace(guide).get_trace(*args)
        yield q, poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
        if not walk.advance():
            return


def exact_loss(model: Any, guide: Any, *args: Any) -> Tensor:
    """Minus the evidence lower bound, in nats: a sum over all runs."""
    total = torch.zeros(())
    for q, p in every_run(model, guide, *args):
        log_q, log_p = q.log_prob_sum(), p.log_prob_sum()
        total = total + log_q.exp() * (log_q - log_p)
    return total


def leaves_of(model: Any, guide: Any, *args: Any) -> dict[str, Tensor]:
    """The parameters that all runs of a pair make in the active store, by name."""
    for _ in every_run(model, guide, *args):
        pass
    return {name: pyro.get_param_store()._params[name] for name in sorted(pyro.get_param_store().keys())}


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    """All gradients, flat; 0 where the loss does not depend on a leaf."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    parts = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves.values(), found, strict=True)]
    return torch.cat([part.flatten() for part in parts]).detach()


def drawn(
    objective: Objective, model: Any, guide: Any, *args: Any, calls: int, leaves: dict[str, Tensor], size: float = 1.0
) -> Tensor:
    """Gradients of so many losses, ``(calls, numbers)``; ``size`` is the number of data that a loss is divided by."""
    found = []
    for _ in range(calls):
        (only,) = objective.phases()
        losses, _ = only(model, guide, args)
        found.append(gradients(losses["all"] * size, leaves))
    return torch.stack(found)


def z_scores(draws: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the mean of draws is off, for each number."""
    error = draws.double().std(0) / len(draws) ** 0.5 + 1e-5 * (1 + exact.abs().max())
    scores: Tensor = (draws.double().mean(0) - exact.double()).abs() / error
    return scores


def largest_z(
    objective: Objective, model: Any, guide: Any, *args: Any, calls: int, size: float = 1.0, seed: int = 0
) -> float:
    """The largest z-score of the gradient of an objective against the sum over all runs."""
    torch.manual_seed(seed)
    with programs.Store().active(), programs.quiet():
        leaves = leaves_of(model, guide, *args)
        exact = gradients(exact_loss(model, guide, *args), leaves)
        found = drawn(objective, model, guide, *args, calls=calls, leaves=leaves, size=size)
        return float(z_scores(found, exact).max())
