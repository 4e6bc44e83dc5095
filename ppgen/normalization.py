"""Batch normalisation over the rows of several processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Team(Protocol):
    """What is needed of the processes that train together."""

    size: int

    def total(self, tensor: Tensor) -> Tensor:
        """Returns the sum over all processes."""


class SharedStatistics(TorchFunctionMode):
    """Within it, batch normalisation takes its mean and variance over the rows of all processes."""

    def __init__(self, processes: Team) -> None:
        super().__init__()
        self.processes = processes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func not in _BATCH_NORMS:
            return func(*args, **kwargs)
        given = _BATCH_NORMS[func](*args, **kwargs)
        return self._normalised(given) if given.training else func(*args, **kwargs)

    def _normalised(self, given: "_BatchNorm") -> Tensor:
        x = given.input.float() if given.input.dtype in (torch.bfloat16, torch.float16) else given.input
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = self._mean(x.mean(dims))
        centred = x - mean.view(shape)
        variance = self._mean(centred.square().mean(dims))
        normalised = centred * (variance + given.eps).rsqrt().view(shape)
        if given.weight is not None:
            normalised = normalised * given.weight.view(shape)
        if given.bias is not None:
            normalised = normalised + given.bias.view(shape)
        count = self.processes.size * x.numel() // x.shape[1]
        given.follow(mean.detach(), variance.detach() * (count / max(1, count - 1)))
        return normalised.to(given.input.dtype)

    def _mean(self, statistic: Tensor) -> Tensor:
        mean: Tensor = _Mean.apply(statistic, self.processes)
        return mean


class _Mean(torch.autograd.Function):
    """The mean over processes; its derivative is the mean over processes too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Team) -> Tensor:
        ctx.processes = processes
        return processes.total(value) / processes.size

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Mean.apply(gradient, ctx.processes), None


@dataclass(frozen=True)
class _BatchNorm:
    """The arguments of a batch normalisation."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @classmethod
    def of_torch(
        cls,
        x: Tensor,
        weight: Any,
        bias: Any,
        mean: Any,
        var: Any,
        training: bool,
        momentum: float,
        eps: float,
        _: bool,
    ) -> "_BatchNorm":
        """The arguments in the order in which ``torch.batch_norm`` takes them."""
        return cls(x, mean, var, weight, bias, training, momentum, eps)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics."""
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.mul_(1 - self.momentum).add_(new.to(running.dtype), alpha=self.momentum)


_BATCH_NORMS: dict[Any, Callable[..., _BatchNorm]] = {
    torch.nn.functional.batch_norm: _BatchNorm,
    torch.batch_norm: _BatchNorm.of_torch,
}
