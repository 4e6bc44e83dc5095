"""Score-function gradients of bounds of several samples."""

from collections.abc import Callable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.gradients import Plan, SignalEstimator
from ppgen.objectives.reductions import Reduction, left_out
from ppgen.programs import Joint, Weights


def surrogates(
    plan: Plan, joint: Joint, weights: Weights, reduction: Reduction, *, as_one: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns a scalar of value 0 whose gradient completes that of the bound, and what baselines lose.

    Args:
        plan: which estimator treats which site.
        joint: the run.
        weights: its log weights, ``(states..., outer, samples, rows)``.
        reduction: of the log weights to the bound.
        as_one: whether there is one weight for everything.
    """
    total, losses = torch.zeros(()), []
    size, scale = (weights.plate.size, weights.plate.scale) if weights.plate else (1, 1.0)
    bounds = weights.row_scale * reduction(weights.local, weights.log_q).detach()
    for name, one in plan.estimators().items():
        if not isinstance(one, SignalEstimator) or name not in joint.latents:
            continue
        log_q = _log_q(joint, name)
        if as_one:
            log_q = joint.reduce(name, log_q)
            log_q = log_q.sum(-1) if joint.is_local(name) else log_q
            log_q, unit = log_q.reshape(*weights.local.shape[-3:]), float(size)
            signal, baseline = -bounds.unsqueeze(-2) / unit, _baseline(reduction, weights, unit)
        elif joint.is_local(name):
            log_q = joint.collapsed(joint.sum_inner_plates(log_q), weights.local.shape[-1])
            unit, signal = scale, -bounds.unsqueeze(-2)
            baseline = _baseline(reduction, weights, 1.0)
        else:
            log_q, unit = joint.reduce(name, log_q), float(size)
            signal = -(weights.global_.detach() + scale * bounds.sum(-1)) / unit
            baseline = _others(signal)
        if log_q.dim() > 3:
            raise ConfigError(f"site '{name}' depends on an enumerated site: take pathwise, or enumerate it too")
        situation = plan.situation(joint, name, baseline, unit=unit)
        advantage, loss = one.advantage(signal.expand_as(log_q), situation)
        total = total + (advantage.detach() * log_q).sum() * unit / (size * weights.global_.numel())
        losses += [] if loss is None else [loss]
    return total - total.detach(), sum(losses[1:], losses[0]) if losses else None


def _log_q(joint: Joint, name: str) -> Tensor:
    node = joint.guide.nodes[name]
    log_q: Tensor = scale_and_mask(programs.log_prob_of(node), mask=node["mask"])
    return log_q


def _baseline(reduction: Reduction, weights: Weights, unit: float) -> Callable[[str], Tensor | None]:
    def of(kind: str) -> Tensor | None:
        if weights.local.shape[-2] < 2:
            return None
        return -weights.row_scale * left_out(reduction, weights.local.detach(), weights.log_q, kind) / unit

    return of


def _others(signal: Tensor) -> Callable[[str], Tensor | None]:
    count = signal.numel()
    return lambda kind: None if count < 2 else (signal.sum() - signal) / (count - 1)
