"""Entropic optimal transport between the guide's draws and the prior's, solved by the library POT."""

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.objectives.kernels import is_positive, squared_distances
from ppgen.objectives.prior_matching import PriorMatching, checked_scale

TOLERANCE = 1e-6
"""Error of the plan's marginals, below which the iteration ends."""


class SinkhornAE(PriorMatching):
    r"""The Sinkhorn autoencoder.

    ``loss = -E_q[log p(x | z)] + scale * S(q(z), p(z))`` per datum. ``S`` is the transport cost between draws
    ``T(a, b) = min_P sum_ij P_ij |a_i - b_j|^2 + regularization * KL(P || uniform)``, less half of ``T(a, a)`` and half
    of ``T(b, b)``, which the entropy adds (``debias``), so that it is 0 between equal draws.

    The plan ``P`` is the library POT's, by iterations in logarithms; its own derivative does not enter that of a
    minimum, so it is a constant in the gradient.

    Args:
        scale: the paper's beta.
        regularization: the paper's epsilon, in the unit of a squared distance: a number, or "dimension", the number of
            dimensions. A small one takes more iterations, and pulls the codes of few rows in many dimensions together:
            ``T(a, b)`` is then far above 0 for draws of equal distributions, ``T(a, a)`` is not.
        iterations: at most so many.
        debias: whether the entropy's own part is taken off.
        site: the latent site that is compared with the prior; None for all.

    Raises:
        ConfigError: if POT is not installed, or an option is not positive.

    References:
        Patrini et al., 2019, arXiv:1810.01118. Iterations: Cuturi, 2013, arXiv:1306.0895. ``debias`` and gradient:
        Feydy et al., 2019, arXiv:1810.08278.

    >>> SinkhornAE(regularization=0.1).regularization
    0.1
    """

    def __init__(
        self,
        *,
        scale: float = 10.0,
        regularization: float | str = "dimension",
        iterations: int = 100,
        debias: bool = True,
        site: str | None = None,
    ) -> None:
        super().__init__(weight=checked_scale(scale), site=site)
        if regularization != "dimension" and not is_positive(regularization):
            raise ConfigError(f"expected regularization dimension or a positive number; got {regularization!r}")
        if iterations < 1:
            raise ConfigError(f"expected iterations >= 1; got {iterations}")
        if importlib.util.find_spec("ot") is None:
            raise ConfigError("SinkhornAE needs the library POT, which is not installed: pip install pot")
        self.regularization = regularization
        self.iterations = iterations
        self.debias = debias

    def discrepancy(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """See `PriorMatching.discrepancy`."""
        dims = posterior.shape[1]
        regularization = float(dims if self.regularization == "dimension" else self.regularization)
        cost = functools.partial(transport_cost, regularization=regularization, iterations=self.iterations)
        own = 0.5 * (cost(posterior, posterior) + cost(prior, prior)) if self.debias else 0.0
        return cost(posterior, prior) - own


def transport_cost(x: Tensor, y: Tensor, *, regularization: float, iterations: int = 100) -> Tensor:
    """Returns ``min_P sum_ij P_ij |x_i - y_j|^2 + regularization * KL(P || uniform)`` over plans with equal marginals.

    Args:
        x: ``(n, dims)``.
        y: ``(m, dims)``.
        regularization: weight of the divergence of the plan from the one that sends every row to all alike.
        iterations: at most so many.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> round(transport_cost(x, x + 3, regularization=0.01).item(), 2)
    9.01
    """
    squared = squared_distances(x, y)
    # the plan is the same for shifted draws, and found in fewer iterations if both lie around one point
    centred = squared_distances(x - x.mean(0), y - y.mean(0)).detach()
    plan = _plan_operation()(centred, float(regularization), int(iterations))
    divergence: Tensor = torch.special.xlogy(plan, plan * plan.numel()).sum()
    return (plan * squared).sum() + regularization * divergence


@functools.cache
def _plan_operation() -> Callable[..., Tensor]:
    """POT's solver as one operation of torch: its loop, which looks at values to end early, is not recorded."""
    from ot.bregman import sinkhorn_log  # type: ignore[import-not-found, import-untyped, unused-ignore]

    @torch.library.custom_op("ppgen::sinkhorn_plan", mutates_args=())
    def sinkhorn_plan(cost: Tensor, regularization: float, iterations: int) -> Tensor:
        uniform = [cost.new_full((rows,), 1 / rows) for rows in cost.shape]
        plan: Tensor = sinkhorn_log(
            *uniform, cost, regularization, numItermax=iterations, stopThr=TOLERANCE, warn=False
        )
        return plan

    @sinkhorn_plan.register_fake
    def _(cost: Tensor, regularization: float, iterations: int) -> Tensor:
        return torch.empty_like(cost)

    operation: Callable[..., Tensor] = sinkhorn_plan
    return operation
