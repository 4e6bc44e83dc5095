"""How a guide draws sites as their estimators want them drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.gradients.base import Estimator, SignalEstimator, logits_of
from ppgen.gradients.control import REBAR, Control, Drawn, first_draw
from ppgen.gradients.registry import name_of
from ppgen.gradients.relaxed import soft
from ppgen.programs import DENSITY


@dataclass
class Draws:
    """How sites with control variates were drawn in one run, and why no gradient can be made of that, if so."""

    drawn: dict[str, Drawn] = field(default_factory=dict)
    refusal: str | None = None


class Sampler(Messenger):
    """Draws sites as their estimators want them drawn.

    Args:
        estimators: of each site.
        owners: to which site each version of the draws belongs.
        rank: how many dimensions the terms of the run have.
        draws: where draws with control variates are put.
        meet: returns the estimator of a site, of its message; None if it needs none.
    """

    def __init__(
        self,
        estimators: Mapping[str, Estimator],
        owners: Sequence[str],
        rank: int,
        draws: Draws,
        meet: Callable[[Any], Estimator | None],
    ) -> None:
        super().__init__()
        self.estimators = estimators
        self.owners = owners
        self.rank = rank
        self.draws = draws
        self.meet = meet

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or poutine.util.site_is_subsample(msg):
            return
        try:
            one = self.meet(msg)
        except ConfigError as error:
            # raised when the run is over: Pyro adds the shapes of all sites to what is raised within one
            self.draws.refusal = self.draws.refusal or str(error)
            return
        if one is None:
            return
        if isinstance(one, SignalEstimator):
            self._see_versions(msg, one)
        value = self._versions(msg, one) if isinstance(one, Control) else one.draw(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True

    def _see_versions(self, msg: Any, one: Estimator) -> None:
        relaxed = [name for name in self.draws.drawn if isinstance(self.estimators[name], REBAR)]
        shape = msg["fn"].batch_shape
        if relaxed and len(shape) >= self.rank and shape[-self.rank] > 1:
            kind, late = name_of(self.estimators[relaxed[-1]]), name_of(one)
            self.draws.refusal = (
                f"guide site '{msg['name']}' is drawn after '{relaxed[-1]}' and depends on it: estimator '{kind}'"
                f" cannot differentiate through a draw by '{late}'; take 'muprop' for '{relaxed[-1]}', or '{kind}' for"
                " both"
            )

    def _versions(self, msg: Any, one: Control) -> Tensor:
        fn: dist.TorchDistribution = msg["fn"]
        msg["infer"] = {**msg["infer"], DENSITY: soft}
        logits = logits_of(fn)
        place = -self.rank - len(fn.event_shape)
        while logits.dim() < -place:
            logits = logits.unsqueeze(0)

        def of(version: int) -> Tensor:
            return logits.narrow(place, version, 1) if logits.shape[place] > 1 else logits

        own_logits = of(0)  # one tensor: what is drawn from it is differentiated with respect to it
        random, z, first = first_draw(fn, own_logits)
        nodes = one.nodes(fn, own_logits, z, first)
        own = iter(nodes)
        values = [first]
        for version, owner in enumerate(self.owners[1:], start=1):
            if owner == msg["name"]:
                values.append(one.relaxed(fn, next(own)))
            elif owner not in self.draws.drawn or logits.shape[place] == 1:
                values.append(first)
            else:
                values.append(one.followed(fn, of(version), random))
        self.draws.drawn[msg["name"]] = Drawn(fn, own_logits, first, nodes)
        return torch.cat(torch.broadcast_tensors(*values), place)
