"""Which estimator treats which site of a pair, and what they add to the loss of a run."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.gradients.base import Estimator, SignalEstimator, Situation, base_of, logits_of
from ppgen.gradients.control import REBAR, Control, Drawn, Signals, first_draw
from ppgen.gradients.exact import Enumerate, Pathwise
from ppgen.gradients.registry import ESTIMATORS, Spec, parsed
from ppgen.gradients.relaxed import soft
from ppgen.gradients.score import Score
from ppgen.programs import DENSITY, Joint


@dataclass(frozen=True)
class Cost:
    """A term of the loss of a run, before anything is summed.

    Attributes:
        sources: the sites that it is made of.
        node: a site that lies in the same plates.
        value: its value, with its scale, mask and weight.
        differentiated: what has the value's derivative, without parts of which it is 0 in expectation; the value
            itself, unless told.
    """

    sources: tuple[str, ...]
    node: Mapping[str, Any]
    value: Tensor
    differentiated: Tensor | None = None


@dataclass
class Draws:
    """How sites with control variates were drawn in one run, and why no gradient can be made of that, if so."""

    drawn: dict[str, Drawn] = field(default_factory=dict)
    refusal: str | None = None


class Plan(nn.Module):
    """Which estimator treats which site of a pair.

    Args:
        spec: an estimator by name, one for all sites that need one, or one by site.
        unfit: why estimators of some classes cannot be used by an objective.
    """

    def __init__(self, spec: Spec, *, unfit: Mapping[type[Estimator], str] | None = None) -> None:
        super().__init__()
        self._asked = parsed(spec)
        self._unfit = dict(unfit or {})
        self._ready = False
        self.sites = nn.ModuleDict()
        self._names: list[str] = []
        self._dependents: Mapping[str, frozenset[str]] = {}

    def estimators(self) -> dict[str, Estimator]:
        """Returns the estimator of each site that has one, in the order in which the guide draws them."""
        return dict(zip(self._names, self.sites.values(), strict=True))  # type: ignore[arg-type]

    @property
    def enumerated(self) -> frozenset[str]:
        """The sites that are enumerated."""
        return frozenset(name for name, one in self.estimators().items() if isinstance(one, Enumerate))

    @property
    def sums(self) -> bool:
        """Whether discrete sites are summed out, those that only the model has among them."""
        return any(isinstance(one, Enumerate) for one in self._asked.values())

    @property
    def versions(self) -> int:
        """How many versions of the draws are made."""
        return 1 + sum(one.versions for one in self.estimators().values())

    @property
    def ready(self) -> bool:
        """Whether `prepare` has chosen an estimator for every site."""
        return self._ready

    @property
    def has_signals(self) -> bool:
        """Whether some site's gradient is more than a derivative of the loss."""
        return any(isinstance(one, (SignalEstimator, Control)) for one in self.estimators().values())

    @property
    def is_trained(self) -> bool:
        """Whether estimators have parameters."""
        return any(True for _ in self.parameters())

    def prepare(
        self, joint: Joint, dependents: Callable[[], Mapping[str, frozenset[str]]], *, particles: int, step: Tensor
    ) -> None:
        """Chooses an estimator for every latent site of a checked run, and makes what they train; once.

        Raises:
            ConfigError: if a site cannot be treated by what was asked for.
        """
        if self._ready:
            return
        for name in self._asked:
            if name and name not in joint.latents:
                raise ConfigError(
                    f"there is no guide site '{name}' to estimate; there are {', '.join(joint.latents) or 'none'}"
                )
        for name in joint.latents:
            chosen = self._choose(joint, name, particles)
            if chosen is not None:
                event = joint.guide.nodes[name]["fn"].event_shape.numel()
                chosen.prepare(event=event, inputs=sum(x.shape[-1] for x in _inputs(joint, name, self.enumerated)))
                self._names.append(name)
                self.sites[name.replace(".", "/")] = chosen.to(step.device)
        general = self._asked.get("")
        if general is not None and not self._names and not isinstance(general, (Enumerate, Pathwise)):
            sites = ", ".join(f"{name}:{_name_of(general)}" for name in joint.latents)
            raise ConfigError(
                f"estimator '{_name_of(general)}' finds no site to treat: all have pathwise derivatives. Name those"
                f" that it is to treat all the same: {sites}"
            )
        if self.has_signals:
            self._dependents = dependents()
        self._ready = True
        self.share_clock(step)

    def share_clock(self, step: Tensor) -> None:
        """Makes every estimator read this step."""
        for module in self.modules():
            if isinstance(module, Estimator):
                module.step = step

    def _choose(self, joint: Joint, name: str, particles: int) -> Estimator | None:
        fn = joint.guide.nodes[name]["fn"]
        asked = self._asked.get(name) or self._asked.get("")
        if asked is None or (name not in self._asked and _has_pathwise(fn) and not isinstance(asked, Pathwise)):
            return None if _has_pathwise(fn) else self._refuse_undefined(name, fn)
        if isinstance(asked, Pathwise) and fn.has_rsample:
            return None
        reason = next((why for kind, why in self._unfit.items() if isinstance(asked, kind)), None)
        if reason := reason or asked.refusal(fn, particles=particles):
            kind = _name_of(asked)
            raise ConfigError(f"estimator '{kind}' cannot treat guide site '{name}': {reason}")
        return copy.deepcopy(asked)

    @staticmethod
    def _refuse_undefined(name: str, fn: Any) -> None:
        kind = type(base_of(fn)).__name__
        discrete = "estimator='enumerate' sums it out, " if fn.has_enumerate_support and not fn.event_shape else ""
        raise ConfigError(
            f"guide site '{name}' ({kind}) has no pathwise derivative, so its gradient would be biased: {discrete}"
            "estimator='leave-one-out' with particles=2 or more, 'rebar' and others estimate it"
        )

    # ------------------------------------------------------------------------------------------------- drawing

    def sampler(self, joint_rank: int, draws: Draws) -> Messenger | None:
        """Returns the handler under which the guide draws.

        Args:
            joint_rank: how many dimensions the terms of the run have.
            draws: where draws with control variates are put.
        """
        return _Sampler(self, joint_rank, draws) if self._names else None

    def owners(self) -> list[str]:
        """Returns to which site each version belongs, the first one to none."""
        return ["", *(name for name, one in self.estimators().items() for _ in range(one.versions))]

    def inputs(self, joint: Joint, name: str) -> Tensor:
        """Returns what a row shows before a site is drawn: ``(..., features)``."""
        return _joined(_inputs(joint, name, self.enumerated))

    def detached(self, name: str) -> bool:
        """Whether the expected derivative of a site's log q is left out of the loss, being 0."""
        return isinstance(self.estimators().get(name), (SignalEstimator, Control))

    # ------------------------------------------------------------------------------------------------ gradients

    def surrogates(self, joint: Joint, costs: Sequence[Cost], draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Returns a scalar of value 0 whose gradient completes that of the costs' sum, and what baselines lose.

        Args:
            joint: the run.
            costs: the terms of the loss, in nats, with the N/B scale.
            draws: how sites with control variates were drawn.

        Raises:
            ConfigError: if a control variate has no derivative through a later draw.
        """
        if draws.refusal is not None:
            raise ConfigError(draws.refusal)
        total, losses = torch.zeros(()), []
        for name, one in self.estimators().items():
            if isinstance(one, SignalEstimator):
                added, loss = self._by_signal(joint, costs, name, one)
            elif isinstance(one, Control):
                added, loss = self._by_control(joint, costs, name, one, draws)
            else:
                continue
            total = total + added
            losses += [] if loss is None else [loss]
        return total - total.detach(), sum(losses[1:], losses[0]) if losses else None

    def _by_signal(
        self, joint: Joint, costs: Sequence[Cost], name: str, one: SignalEstimator
    ) -> tuple[Tensor, Tensor | None]:
        site = _Site(joint, name)
        relevant = self._relevant(joint, costs, name, only=isinstance(one, Score) and one.rao_blackwell)
        signal = site.signal(relevant).detach()
        situation = Situation(lambda: self.inputs(joint, name), lambda _: site.left_out(signal))
        advantage, loss = one.advantage(signal, situation)
        return (site.weight * advantage.detach() * site.log_q).sum(), loss

    def _by_control(
        self, joint: Joint, costs: Sequence[Cost], name: str, one: Control, draws: Draws
    ) -> tuple[Tensor, Tensor | None]:
        site = _Site(joint, name)
        relevant = self._relevant(joint, costs, name, only=False)
        first = self.owners().index(name)
        versions = [0, *range(first, first + one.versions)]
        signals = Signals(
            values=tuple(site.signal(relevant, version) for version in versions),
            totals=tuple(site.total(relevant, version) for version in versions[1:]),
            weight=site.weight,
            log_q=site.log_q,
        )
        return one.surrogate(draws.drawn[name], signals)

    def _relevant(self, joint: Joint, costs: Sequence[Cost], name: str, *, only: bool) -> list[Cost]:
        """The costs that a site's signal is made of: those that depend on it, and the others of its row unless told."""
        local = joint.is_local(name)
        return [
            cost
            for cost in costs
            if name in cost.sources
            or any(name in self._dependents.get(source, ()) for source in cost.sources)
            or (not only and (not local or joint.is_local_node(cost.node)))
        ]


class _Site:
    """One site of a run, and the shape of its log probability, to which signals are brought."""

    def __init__(self, joint: Joint, name: str) -> None:
        self.joint = joint
        node = joint.guide.nodes[name]
        rank = joint.layout.rank
        log_q = joint.first_version(joint.padded(programs.log_prob_of(node)))
        self.log_q: Tensor = scale_and_mask(log_q, mask=node["mask"])
        self.keep = frozenset(d for d in range(-log_q.dim(), -rank) if log_q.shape[d] > 1)
        self.plates = frozenset(frame.dim for frame in node["cond_indep_stack"] if frame.vectorized)
        size = joint.plate.size if joint.plate else 1
        self.unit = joint.plate.scale if joint.plate and joint.is_local(name) else float(size)
        self.share = 1 / (size * joint.layout.particles)
        states = joint.probabilities(name, log_q) if self.keep else None
        ones = torch.ones((), device=log_q.device) if states is None else joint.first_version(states).detach()
        self.weight = ones * (self.unit * self.share)

    def signal(self, costs: Sequence[Cost], version: int = 0) -> Tensor:
        """Sums costs to the shape of the site's log probability: nats per row, or per datum of a global site."""
        total = sum((self._brought(cost, version) for cost in costs), torch.zeros(()))
        return (total / self.unit).expand_as(self.log_q)

    def total(self, costs: Sequence[Cost], version: int) -> Tensor:
        """Sums costs to their share in the loss, as it is in one version."""
        joint = self.joint
        terms = [self._version(joint.expectation(cost.node, cost.value), version).sum() for cost in costs]
        return sum(terms, torch.zeros(())) * self.share

    def _version(self, term: Tensor, version: int) -> Tensor:
        dim = -self.joint.layout.rank
        several = self.joint.layout.versions > 1 and term.dim() >= -dim and term.shape[dim] > 1
        return term.narrow(dim, version, 1) if several else term

    def _brought(self, cost: Cost, version: int) -> Tensor:
        term = self.joint.padded(self.joint.expectation(cost.node, cost.value, keep=self.keep))
        term = self._version(term, version)
        gone = tuple(d for d in range(-self.joint.nesting, 0) if d not in self.plates)
        return term.sum(gone, keepdim=True) if gone else term

    def left_out(self, signal: Tensor) -> Tensor | None:
        """Returns the mean signal of the other particles."""
        particles = self.joint.layout.particles
        if particles < 2:
            return None
        return (signal.sum(-1 - self.joint.nesting, keepdim=True) - signal) / (particles - 1)


class _Sampler(Messenger):
    """Draws sites as their estimators want them drawn."""

    def __init__(self, plan: Plan, rank: int, draws: Draws) -> None:
        super().__init__()
        self.estimators = plan.estimators()
        self.owners = plan.owners()
        self.rank = rank
        self.draws = draws

    def _pyro_sample(self, msg: Any) -> None:
        one = self.estimators.get(msg["name"])
        if one is None or msg["done"] or msg["is_observed"]:
            return
        if isinstance(one, SignalEstimator):
            self._see_versions(msg)
        value = self._versions(msg, one) if isinstance(one, Control) else one.draw(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True

    def _see_versions(self, msg: Any) -> None:
        relaxed = [name for name in self.draws.drawn if isinstance(self.estimators[name], REBAR)]
        shape = msg["fn"].batch_shape
        if relaxed and len(shape) >= self.rank and shape[-self.rank] > 1:
            kind = _name_of(self.estimators[relaxed[-1]])
            # raised when the run is over: Pyro adds the shapes of all sites to what is raised within one
            late = _name_of(self.estimators[msg["name"]])
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


def _has_pathwise(fn: Any) -> bool:
    return bool(getattr(fn, "has_rsample", False))


def _name_of(one: Estimator) -> str:
    return next((name for name, kind in ESTIMATORS.items() if type(one) is kind), type(one).__name__)


def _inputs(joint: Joint, name: str, summed: Collection[str]) -> list[Tensor]:
    """What a row shows before a site is drawn: observed values and earlier draws, each ``(..., features)``."""
    own = programs.frames(joint.guide.nodes[name])
    earlier = joint.latents[: joint.latents.index(name)] if name in joint.latents else []
    nodes = [
        joint.model.nodes[n] for n in (*joint.observed, *sorted(joint.absorbed)) if joint.model.nodes[n]["is_observed"]
    ]
    nodes += [joint.guide.nodes[n] for n in earlier if n not in summed]
    found = []
    for node in nodes:
        fn, value = node["fn"], node["value"]
        inside = programs.frames(node) <= own and (joint.is_local_node(node) or not joint.is_local(name))
        if not inside or not isinstance(value, Tensor) or isinstance(base_of(fn), dist.Delta):
            continue
        event = len(fn.event_shape)
        flat = value.flatten(-event) if event else value.unsqueeze(-1)
        while flat.dim() < joint.layout.rank + 1:
            flat = flat.unsqueeze(0)
        if joint.layout.versions > 1:
            flat = flat.narrow(-1 - joint.layout.rank, 0, 1)
        found.append(flat.detach().to(torch.get_default_dtype()))
    return found


def _joined(inputs: Sequence[Tensor]) -> Tensor:
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return torch.cat([x.expand(*shape, x.shape[-1]) for x in inputs], -1)
