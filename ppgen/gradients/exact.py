"""Estimators that sum or differentiate exactly."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from ppgen.gradients.base import Estimator, Message, base_of
from ppgen.gradients.implicit import can_be_implicit, implicit_rsample

__all__ = ["Enumerate", "Pathwise"]


class Enumerate(Estimator):
    """Every state of a discrete site, weighted by its probability.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298; Obermeyer et al., 2019, arXiv:1902.03210.
    """

    def refusal(self, fn: dist.TorchDistribution, *, particles: int) -> str | None:
        """See `Estimator.refusal`."""
        if not base_of(fn).has_enumerate_support:
            return f"a {type(base_of(fn)).__name__} has no finite list of states"
        if fn.event_shape and not isinstance(fn, (dist.OneHotCategorical,)):
            return f"it has too many joint states (event shape {tuple(fn.event_shape)})"
        return None


class Pathwise(Estimator):
    """Derivatives through the draw; implicit ones for von Mises and for mixtures.

    References:
        Kingma, Welling, 2013, arXiv:1312.6114; Figurnov, Mohamed, Mnih, 2018, arXiv:1805.08498.
    """

    def refusal(self, fn: dist.TorchDistribution, *, particles: int) -> str | None:
        """See `Estimator.refusal`."""
        return None if fn.has_rsample else can_be_implicit(fn)

    def draw(self, site: Message) -> Tensor | None:
        """See `Estimator.draw`."""
        fn: Any = site["fn"]
        return None if fn.has_rsample else implicit_rsample(fn)
