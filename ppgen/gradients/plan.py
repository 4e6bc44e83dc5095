"""Which estimator treats which site of a pair, and what they add to the loss of a run."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.gradients.base import Estimator, SignalEstimator, Situation, base_of
from ppgen.gradients.baselines import asked_at
from ppgen.gradients.control import Control, Signals
from ppgen.gradients.exact import Enumerate, Pathwise
from ppgen.gradients.registry import Spec, name_of, not_in_every_run, parsed, require_every_run
from ppgen.gradients.sampling import Draws, Sampler
from ppgen.gradients.score import Score
from ppgen.gradients.sites import Cost, LatentSite, Plates, inputs_of, joined
from ppgen.programs import Dependencies, Joint, Program

Pair = tuple[Program, Program]


@dataclass
class _Chosen:
    """What was chosen for one pair.

    Attributes:
        sites: the estimators.
        names: of the sites that have one, in the order in which the guide draws them.
        kinds: the classes of distributions of every latent site that some run had.
        dependencies: of the pair; where nobody asked, anything may depend on anything.
        particles: of its runs.
    """

    sites: nn.ModuleDict
    names: list[str] = field(default_factory=list)
    kinds: dict[str, set[type]] = field(default_factory=dict)
    dependencies: Dependencies = field(default_factory=Dependencies.unknown)
    particles: int = 1

    def add(self, name: str, one: Estimator) -> None:
        self.names.append(name)
        self.sites[name.replace(".", "/")] = one


class Plan(nn.Module):
    """Which estimator treats which site of a pair; of each pair that an objective meets, by itself.

    Args:
        spec: an estimator by name, one for all sites that need one, or one by site.
        unfit: why estimators of some classes cannot be used by an objective.
    """

    def __init__(self, spec: Spec, *, unfit: Mapping[type[Estimator], str] | None = None) -> None:
        super().__init__()
        self._asked = parsed(spec)
        self._unfit = dict(unfit or {})
        self._pairs: dict[Pair, _Chosen] = {}
        self.sites = nn.ModuleDict()  # of the first pair
        self.others = nn.ModuleList()  # of all further ones
        self._now = _Chosen(self.sites)
        self._step = torch.zeros((), dtype=torch.int64)

    def use(self, model: Program, guide: Program) -> bool:
        """Turns to a pair, and says whether `prepare` has chosen an estimator for every site of it."""
        found = self._pairs.get((model, guide))
        if found is not None:
            self._now = found
        return found is not None

    def estimators(self) -> dict[str, Estimator]:
        """Returns the estimator of each site that has one, in the order in which the guide draws them."""
        now = self._now
        return dict(zip(now.names, now.sites.values(), strict=True))  # type: ignore[arg-type]

    @property
    def enumerated(self) -> frozenset[str]:
        """The sites that are enumerated."""
        return frozenset(name for name, one in self.estimators().items() if isinstance(one, Enumerate))

    @property
    def sums(self) -> bool:
        """Whether discrete sites are summed out, those that only the model has among them."""
        return any(isinstance(one, Enumerate) for one in self._asked.values())

    @property
    def summed(self) -> "bool | Collection[str]":
        """Which sites a run enumerates."""
        general = isinstance(self._asked.get(""), Enumerate)
        return _Summed(self.enumerated, (*self._now.kinds, *self._asked) if general else None) if self.sums else False

    @property
    def versions(self) -> int:
        """How many versions of the draws are made."""
        return 1 + sum(one.versions for one in self.estimators().values())

    @property
    def has_signals(self) -> bool:
        """Whether some site's gradient is more than a derivative of the loss."""
        return any(map(_has_signal, self.estimators().values()))

    # ------------------------------------------------------------------------------------------------- choosing

    def prepare(
        self,
        joint: Joint,
        pair: Pair,
        *,
        dependents: Callable[[], Dependencies] | None,
        seen: Callable[[], Mapping[str, Any]],
        particles: int,
        step: Tensor,
    ) -> None:
        """Chooses an estimator for every latent site of a checked run, and makes what they train; once for a pair.

        Args:
            joint: the run.
            pair: model and guide.
            dependents: says on which draws what depends, where that is of use.
            seen: says which latent sites, of which distributions, several runs of the guide have.
            particles: of the runs to come.
            step: the number of steps taken.

        Raises:
            ConfigError: if a site cannot be treated by what was asked for.
        """
        if self.use(*pair):
            return
        chosen = _Chosen(self.sites if not self._pairs else nn.ModuleDict(), particles=particles)
        self._require_sites(joint, seen)
        made = {name: self._made(joint, name, particles) for name in joint.latents}
        if not any(one is not None for one in made.values()):
            self._require_use(joint, seen)
        for name, one in made.items():
            chosen.kinds[name] = {_kind(joint.guide.nodes[name]["fn"])}
            if one is not None:
                chosen.add(name, one.to(step.device))
        require_every_run(made, seen)
        if dependents is not None and any(map(_has_signal, made.values())):
            chosen.dependencies = dependents()
            _require_one_run(chosen)
        if self._pairs:
            self._require_no_state(chosen)
            self.others.append(chosen.sites)
        self._pairs[pair] = self._now = chosen
        self.share_clock(step)

    def share_clock(self, step: Tensor) -> None:
        """Makes every estimator read this step."""
        self._step = step
        for module in self.modules():
            if isinstance(module, Estimator):
                module.step = step

    def _made(self, joint: Joint, name: str, particles: int) -> Estimator | None:
        node = joint.guide.nodes[name]
        chosen = self._choose(name, node, particles)
        if chosen is not None:
            summed = [n for n in joint.latents if isinstance(self._named(n, joint.guide.nodes[n]), Enumerate)]
            width = sum(x.shape[-1] for x in inputs_of(joint, name, summed))
            try:
                chosen.prepare(event=node["fn"].event_shape.numel(), inputs=width)
            except ConfigError as error:
                raise _untreated(chosen, name, str(error)) from error
        return chosen

    def _named(self, name: str, node: Mapping[str, Any]) -> Estimator | None:
        """What was asked for at a site: by its name, by the guide itself, or for all sites that need something."""
        general = self._asked.get("")
        if (own := self._asked.get(name)) is not None or isinstance(general, Enumerate) or _has_pathwise(node["fn"]):
            return own or general
        return asked_at(name, node["infer"]) or general

    def _choose(self, name: str, node: Mapping[str, Any], particles: int) -> Estimator | None:
        fn, asked = node["fn"], self._named(name, node)
        if asked is None or (name not in self._asked and _has_pathwise(fn) and not isinstance(asked, Pathwise)):
            if not _has_pathwise(fn):
                raise _undefined(name, fn)
            return None
        if isinstance(asked, Pathwise) and fn.has_rsample:
            return None
        reason = next((why for kind, why in self._unfit.items() if isinstance(asked, kind)), None)
        if reason := reason or asked.refusal(fn, particles=particles):
            raise _untreated(asked, name, reason)
        return copy.deepcopy(asked) if asked in self._asked.values() else asked

    def _require_sites(self, joint: Joint, seen: Callable[[], Mapping[str, Any]]) -> None:
        """Checks that every name that was asked for is that of a site, in some runs at least."""
        unknown = [name for name in self._asked if name and name not in joint.latents]
        later = seen() if unknown else {}
        for name in unknown:
            if name not in later:
                there = ", ".join(joint.latents) or "none"
                raise ConfigError(f"there is no guide site '{name}' to estimate; there are {there}")

    def _require_use(self, joint: Joint, seen: Callable[[], Mapping[str, Any]]) -> None:
        """Checks that an estimator for all sites that need one has such a site, in some runs at least."""
        general = self._asked.get("")
        if general is None or isinstance(general, (Enumerate, Pathwise)):
            return
        if all(_has_pathwise(fn) for fn, _ in seen().values()):
            sites = ", ".join(f"{name}:{name_of(general)}" for name in joint.latents)
            raise ConfigError(
                f"estimator '{name_of(general)}' finds no site to treat: all have pathwise derivatives. Name those"
                f" that it is to treat all the same: {sites}"
            )

    def _require_no_state(self, chosen: _Chosen) -> None:
        keeping = [name for name, one in zip(chosen.names, chosen.sites.values(), strict=True) if one.state_dict()]
        if keeping and self.state_dict():
            raise ConfigError(
                f"the estimator of guide site '{keeping[0]}' learns along with one pair, and this objective has trained"
                " another: make an objective for each"
            )

    # ------------------------------------------------------------------------------------------------- drawing

    def sampler(self, joint_rank: int, draws: Draws) -> Messenger | None:
        """Returns the handler under which the guide draws.

        Args:
            joint_rank: how many dimensions the terms of the run have.
            draws: where draws with control variates are put.
        """
        if not self._now.names and not self._asked:
            return None
        return Sampler(self.estimators(), self.owners(), joint_rank, draws, self._met)

    def settle(self, joint: Joint, draws: Draws) -> None:
        """Looks at the sites of a run, of which there may be some that no run before it had.

        Raises:
            ConfigError: if one of them cannot be treated, or no gradient can be made of how they were drawn.
        """
        if draws.refusal is not None:
            raise ConfigError(draws.refusal)
        for name in joint.latents:
            node = joint.guide.nodes[name]
            if name not in self._now.kinds or not (self._asked or _has_pathwise(node["fn"]) or self.detached(name)):
                self._add(name, node, summed=name in joint.enumerated)

    def _met(self, msg: Any) -> Estimator | None:
        """Returns the estimator of a site about to be drawn, that of a new one made on the spot."""
        if _kind(msg["fn"]) not in self._now.kinds.get(msg["name"], ()):
            self._add(msg["name"], msg, summed=False)
        return self.estimators().get(msg["name"])

    def _add(self, name: str, node: Mapping[str, Any], *, summed: bool) -> None:
        now = self._now
        one, before = self._choose(name, node, now.particles), self.estimators().get(name)
        if name in now.kinds and type(one) is not type(before):
            kinds = " and ".join(sorted(kind.__name__ for kind in {*now.kinds[name], _kind(node["fn"])}))
            raise ConfigError(f"guide site '{name}' takes turns at being {kinds}: give them names of their own")
        if name not in now.kinds and one is not None:
            if isinstance(one, (Control, Enumerate)) and not summed:
                raise not_in_every_run(name, one, "has to be laid out before a run")
            if one.state_dict():
                raise not_in_every_run(name, one, "keeps a state of its own")
            one.step = self._step
            now.add(name, one.to(self._step.device))
        now.kinds.setdefault(name, set()).add(_kind(node["fn"]))

    def owners(self) -> list[str]:
        """Returns to which site each version belongs, the first one to none."""
        return ["", *(name for name, one in self.estimators().items() for _ in range(one.versions))]

    def inputs(self, joint: Joint, name: str) -> Tensor:
        """Returns what a row shows before a site is drawn: ``(..., features)``."""
        return joined(inputs_of(joint, name, self.enumerated))

    def situation(self, joint: Joint, name: str, left_out: Callable[[str], Tensor | None], *, unit: float) -> Situation:
        """Returns what the estimator of a site may look at."""
        node = joint.guide.nodes[name]
        return Situation(lambda: self.inputs(joint, name), left_out, name=name, asked=node["infer"], unit=unit)

    def detached(self, name: str) -> bool:
        """Whether the expected derivative of a site's log q is left out of the loss, being 0."""
        return _has_signal(self.estimators().get(name))

    # ------------------------------------------------------------------------------------------------ gradients

    def surrogates(self, joint: Joint, costs: Sequence[Cost], draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Returns a scalar of value 0 whose gradient completes that of the costs' sum, and what baselines lose.

        Args:
            joint: the run.
            costs: the terms of the loss, in nats, with the N/B scale.
            draws: how sites with control variates were drawn.
        """
        total, losses = torch.zeros(()), []
        plates = Plates(joint, self._now.dependencies)
        for name, one in self.estimators().items():
            if name not in joint.latents:
                continue
            site = LatentSite(joint, name, plates)
            if isinstance(one, SignalEstimator):
                added, loss = self._by_signal(site, costs, one)
            elif isinstance(one, Control):
                added, loss = self._by_control(site, costs, one, draws)
            else:
                continue
            total = total + added
            losses += [] if loss is None else [loss]
        return total - total.detach(), sum(losses[1:], losses[0]) if losses else None

    def _by_signal(self, site: LatentSite, costs: Sequence[Cost], one: SignalEstimator) -> tuple[Tensor, Tensor | None]:
        relevant = self._relevant(site, costs, only=isinstance(one, Score) and one.rao_blackwell)
        signal = site.signal(relevant).detach()
        situation = self.situation(site.joint, site.name, lambda _: site.left_out(signal), unit=site.unit)
        advantage, loss = one.advantage(signal, situation)
        return (site.weight * advantage.detach() * site.log_q).sum(), loss

    def _by_control(
        self, site: LatentSite, costs: Sequence[Cost], one: Control, draws: Draws
    ) -> tuple[Tensor, Tensor | None]:
        relevant = self._relevant(site, costs, only=False)
        first = self.owners().index(site.name)
        versions = [0, *range(first, first + one.versions)]
        signals = Signals(
            values=tuple(site.signal(relevant, version) for version in versions),
            totals=tuple(site.total(relevant, version) for version in versions[1:]),
            weight=site.weight,
            log_q=site.log_q,
        )
        return one.surrogate(draws.drawn[site.name], signals)

    def _relevant(self, site: LatentSite, costs: Sequence[Cost], *, only: bool) -> list[Cost]:
        """The costs that a site's signal is made of: those that depend on it, and the others of its row unless told."""
        joint, known = site.joint, self._now.dependencies
        local = joint.is_local(site.name)
        return [
            cost
            for cost in costs
            if site.name in cost.sources
            or any(known.of_term(source, site.name) for source in cost.sources)
            or (not only and (not local or joint.is_local_node(cost.node)))
        ]


class _Summed(Collection[str]):
    """The names of the sites that are enumerated: if all that need something are, unknown ones among them."""

    def __init__(self, names: frozenset[str], known: Collection[str] | None) -> None:
        self._names = names
        self._known = known

    def __contains__(self, name: object) -> bool:
        return name in self._names or (self._known is not None and name not in self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __bool__(self) -> bool:
        return True  # those that only the model has are summed whatever the guide has


def _require_one_run(chosen: _Chosen) -> None:
    """Checks that nobody reads a draw of which a run makes several."""
    made = zip(chosen.names, chosen.sites.values(), strict=True)
    versions = {name: name_of(one) for name, one in made if isinstance(one, Control)}
    for name in sorted(chosen.dependencies.read & chosen.kinds.keys()):
        if chosen.particles > 1 or name in versions:
            several = f"estimator '{versions[name]}'" if name in versions else f"particles={chosen.particles}"
            raise ConfigError(
                f"the program reads the value of site '{name}' (in an if, say, or by .item()), and {several} draws"
                " several at once: take particles=1, and 'score' or 'rao-blackwell' for it; or do not read it"
            )


def _has_pathwise(fn: Any) -> bool:
    return bool(getattr(fn, "has_rsample", False))


def _has_signal(one: Estimator | None) -> bool:
    return isinstance(one, (SignalEstimator, Control))


def _kind(fn: Any) -> type:
    return type(base_of(fn))


def _untreated(one: Estimator, name: str, reason: str) -> ConfigError:
    return ConfigError(f"estimator '{name_of(one)}' cannot treat guide site '{name}': {reason}")


def _undefined(name: str, fn: Any) -> ConfigError:
    discrete = "estimator='enumerate' sums it out, " if fn.has_enumerate_support and not fn.event_shape else ""
    return ConfigError(
        f"guide site '{name}' ({_kind(fn).__name__}) has no pathwise derivative, so its gradient would be biased:"
        f" {discrete}estimator='leave-one-out' with particles=2 or more, 'rebar' and others estimate it"
    )
