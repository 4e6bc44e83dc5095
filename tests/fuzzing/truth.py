"""What a random program comes to, by explicit sums over states and by moments of Gaussians, in float64.

Every continuous value is affine in independent standard normal noise: a constant and a coefficient for each noise, both
with a dimension of rows where they vary along rows. Features are told apart by name. Neither Pyro nor ppgen is used.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .affine import Affine
from .autoguides import Auto
from .description import FEATURE_COUNT, STATES, UNSEEN, Description, Site
from .source import columns

Values = Mapping[str, Tensor]


State = dict[str, Affine | int]
"""Values by site; of discrete ones the state, of sites along features one for each, named ``site.0`` and so on."""


class Truth:
    """Exact figures of one program.

    Args:
        described: the program.
        values: of its parameters, constrained, float64 scalars.
        auto: what its autoguide draws.
    """

    def __init__(self, described: Description, values: Values, auto: Auto | None = None) -> None:
        self.d = described
        self.auto = auto or Auto()
        self.values = {**values, **self.auto.values}
        self.model = _with_unseen(described)
        self.columns = {name: column.double() for name, column in columns(described).items()}
        self.by_name = {site.name: site for site in (*self.model, *described.guide)}

    # ------------------------------------------------------------------------------------------------ densities

    def mean(self, role: str, site: Site, state: State, feature: int | None) -> Affine:
        """The location of a site given what it depends on."""
        own = _own(role, site)
        found = Affine(self.values[f"{role}_{_place(site, feature)}" if self.d.auto and role == "g" else own])
        for parent in site.parents:
            factor = self.values[f"{own}_{parent}"]
            known = self.by_name[parent]
            if known.only_if and state[known.only_if] != 1:
                continue
            value: Affine | int | Tensor
            value = self.column(known, feature) if known.observed else state[_place(known, feature)]
            if not isinstance(value, Affine):
                value = Affine(torch.as_tensor(value, dtype=torch.float64))
            found = found.plus(value, factor)
        return found

    def column(self, site: Site, feature: int | None) -> Tensor:
        """Data of a site, ``(rows,)``."""
        column = self.columns[site.name]
        return column[:, feature] if "m" in site.index else column

    def log_states(self, role: str, site: Site, state: State) -> Tensor:
        """Log probabilities of the states of a discrete site: ``(states,)`` or ``(states, rows)``."""
        if site.simplex:
            return self.values[f"{role}_{site.name}_states"].log()
        slope = self.mean(role, site, state, None).constant
        if site.kind == "bernoulli":
            return torch.stack([-torch.nn.functional.softplus(slope), -torch.nn.functional.softplus(-slope)])
        logits = torch.stack([torch.zeros_like(slope), slope, 2 * slope])
        if not site.forbidden:
            return logits.log_softmax(0)
        rest = logits[1:].log_softmax(0)
        return torch.cat([torch.full_like(rest[:1], -math.inf), rest])

    def log_density(self, role: str, site: Site, value: Affine, state: State, feature: int | None) -> Tensor:
        """The expected log density of a normal site."""
        scale = self._scale(role, site, feature)
        if scale is None:
            return torch.zeros((), dtype=torch.float64)
        apart = value.plus(self.mean(role, site, state, feature), torch.tensor(-1.0, dtype=torch.float64))
        return -0.5 * apart.mean_square() / scale.square() - scale.log() - 0.5 * math.log(2 * math.pi)

    def draw(self, role: str, site: Site, state: State, feature: int | None) -> Affine:
        """A normal site, with a noise of its own."""
        mean, noise = self.mean(role, site, state, feature), f"{role}.{_place(site, feature)}"
        scale = self._scale(role, site, feature)
        return mean if scale is None else Affine(mean.constant, {**mean.coefficients, noise: scale})

    def _scale(self, role: str, site: Site, feature: int | None) -> Tensor | None:
        """The scale of a normal site; None for a point."""
        name = f"g_{_place(site, feature)}" if self.d.auto and role == "g" else _own(role, site)
        return self.values.get(f"{name}_scale")

    # ---------------------------------------------------------------------------------------------------- states

    def _combinations(self, sites: Sequence[Site]) -> Iterator[dict[str, int]]:
        for states in itertools.product(*(range(STATES[site.kind]) for site in sites)):
            yield dict(zip((site.name for site in sites), states, strict=True))

    def guide_states(self) -> Iterator[tuple[Tensor, Tensor, State]]:
        """Yields every state of the guide: its probability as a whole, that of its rows, and the values drawn."""
        discrete = [site for site in self.d.guide if site.is_discrete]
        for chosen in self._combinations(discrete):
            state: State = dict(chosen)
            whole, local = torch.ones((), dtype=torch.float64), torch.ones(self.d.rows, dtype=torch.float64)
            for site in self.d.guide:
                if site.is_discrete:
                    probability = self.log_states("g", site, state).exp()[chosen[site.name]]
                    whole, local = (whole, local * probability) if site.index else (whole * probability, local)
                    continue
                for feature in _features(site):
                    place = _place(site, feature)
                    state[place] = self.auto.joint.get(place) or self.draw("g", site, state, feature)
            if (whole > 0) and (local > 0).any():
                yield whole, local, state

    # ------------------------------------------------------------------------------------------------------ weights

    def scale_of(self, site: Site) -> Tensor:
        """What a site's log probability is multiplied by: a number or one for each row."""
        d = self.d
        scale: Tensor = torch.tensor(site.scale, dtype=torch.float64)
        whole = self.columns["weight"] if d.whole_scale == "row" else torch.tensor(float(d.whole_scale))
        scale = scale * (d.size / d.rows) if "r" in site.index else scale
        return scale * whole

    def mask_of(self, site: Site) -> Tensor:
        """Where a site counts: 1 or 0."""
        mask, local = self.d.mask, "r" in site.index
        if UNSEEN in site.name:
            return 1 - self.columns["known"]
        if self.d.is_unseen(site) or (mask == "data" and site.observed) or (mask in ("all", "model") and local):
            return self.columns["known"]
        return torch.ones((), dtype=torch.float64)

    # --------------------------------------------------------------------------------------------------------- bounds

    def loss(self) -> Tensor:
        """The negative evidence lower bound, in nats per datum."""
        d, total = self.d, torch.zeros((), dtype=torch.float64)
        only = [site for site in d.model if site.only_model]
        for whole, local, state in self.guide_states():
            for site, term in self._terms(state, only):
                weighted = term * self.scale_of(site) * self.mask_of(site)
                probability = whole * local if "r" in site.index or weighted.dim() else whole
                # a shared term is counted once, however many states rows are in
                share = probability if probability.dim() else whole * local[0]
                total = total + (torch.where(share > 0, share * weighted, torch.zeros_like(share * weighted))).sum()
        factor = d.factor * (1.0 if d.whole_scale == "row" else float(d.whole_scale))
        if d.factor and d.whole_scale == "row":
            factor = d.factor * float(self.columns["weight"].sum())
        return -(total + factor + self.auto.entropy) / (1 if d.plates == "sequential" else d.size)

    def _terms(self, state: State, only: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
        """Yields expected log probabilities given the states of the guide, those of the guide subtracted."""
        for site in () if self.auto.joint else self.d.guide:
            if _runs(site, state):
                yield site, -self._term("g", site, state)
        summed = {site.name for site in only}
        inside = [s for s in self.model if s.only_model or summed.intersection(s.parents)]
        for site in self.model:
            if site not in inside and _runs(site, state):
                yield site, self._term("m", site, state)
        if inside:
            yield inside[0], self._summed(state, only, inside)

    def _summed(self, state: State, only: Sequence[Site], inside: Sequence[Site]) -> Tensor:
        """The log of the sum over states of what the guide leaves out."""
        parts = []
        for chosen in self._combinations(only):
            # what is summed keeps its probabilities in rows that do not count
            terms = [
                self._term("m", site, {**state, **chosen}) * (1.0 if site.only_model else self.mask_of(site))
                for site in inside
            ]
            parts.append(sum(terms[1:], terms[0]).expand(self.d.rows))
        return torch.stack(parts).logsumexp(0)

    def _term(self, role: str, site: Site, state: State) -> Tensor:
        if site.is_discrete:
            logs = self.log_states(role, site, state)
            if site.observed:
                states = self.columns[site.name].long().unsqueeze(0)
                return logs.reshape(len(logs), -1).expand(-1, self.d.rows).gather(0, states)[0]
            found: Tensor = logs[state[site.name]]  # type: ignore[index]
            return found
        total = torch.zeros((), dtype=torch.float64)
        for feature in _features(site):
            value = Affine(self.column(site, feature)) if site.observed else state[_place(site, feature)]
            if isinstance(value, Affine):
                total = total + self.log_density(role, site, value, state, feature)
        return total

    # ------------------------------------------------------------------------------------------------------- evidence

    def evidence(self) -> Tensor:
        """The log density of every row, what rows share being drawn from the guide: ``(rows,)``."""
        shared = [site for site in self.d.guide if "r" not in site.index]
        parts = []
        for chosen in self._combinations([site for site in shared if site.is_discrete]):
            state: State = dict(chosen)
            log_q = torch.zeros((), dtype=torch.float64)
            for site in shared:
                if site.is_discrete:
                    log_q = log_q + self.log_states("g", site, state)[chosen[site.name]]
                    continue
                for feature in _features(site):
                    place = _place(site, feature)
                    state[place] = self.auto.joint.get(place) or self.draw("g", site, state, feature)
            if log_q > -math.inf:
                parts.append(log_q + self._row_evidence(state))
        return torch.stack(parts).logsumexp(0)

    def _row_evidence(self, shared: State) -> Tensor:
        local = [site for site in self.d.model if "r" in site.index]
        hidden = [site for site in local if not site.observed and site.is_discrete]
        parts = []
        for chosen in self._combinations(hidden):
            state, log_p = {**shared, **chosen}, torch.zeros(self.d.rows, dtype=torch.float64)
            seen: list[tuple[Affine, Tensor]] = []
            for site in local:
                if site.is_discrete:
                    log_p = log_p + self._term("m", site, state) * (self.mask_of(site) if site.observed else 1.0)
                    continue
                for feature in _features(site):
                    drawn = self.draw("m", site, state, feature)
                    if site.observed:
                        seen.append((drawn, self.column(site, feature)))
                    else:
                        state[_place(site, feature)] = drawn
            parts.append(log_p + self._gaussian(seen))
        found = torch.stack(parts).logsumexp(0)
        return torch.where(self.columns["known"] > 0, found, torch.zeros_like(found)) if self.d.mask else found

    # ---------------------------------------------------------------------------------------------------------- tails

    def moment_of_weights(self, order: float) -> Tensor:
        """A bound of the log of a moment of a row's importance weights over their mean: ``(rows,)``.

        Infinite where the guide is too narrow. States are taken as drawn; where they are summed it is less.
        """
        only = [site for site in self.model if site.only_model]
        parts = []
        for whole, _, state in self.guide_states():
            drawn = [site for site in self.d.guide if site.is_discrete and site.index]
            log_q = sum((self._term("g", site, state) for site in drawn), torch.zeros(self.d.rows, dtype=torch.float64))
            summed = [self._moment({**state, **chosen}, order) / order for chosen in self._combinations(only)]
            part = whole.log() + (1 - order) * log_q + order * torch.stack(summed).logsumexp(0)
            parts.append(torch.where(log_q > -math.inf, part, torch.full_like(part, -math.inf)))
        found = torch.stack(parts).logsumexp(0) - order * self.evidence()
        whole_rows = (self.columns["known"] == 0) & (self.d.mask in ("all", "model"))
        return torch.where(whole_rows, torch.zeros_like(found), found)

    def _moment(self, state: State, order: float) -> Tensor:
        """The log of a moment of a row's weights given all states; that is an integral over the guide's noise."""
        rows, half = self.d.rows, 0.5 * math.log(2 * math.pi)
        constant, noises = torch.zeros(rows, dtype=torch.float64), dict[str, Tensor]()
        for site in self.d.guide:
            for feature in () if site.is_discrete else _features(site):
                weighs = self.mask_of(site) * float("r" in site.index) * torch.ones(rows, dtype=torch.float64)
                noises[f"g.{_place(site, feature)}"] = 1.0 - order * weighs
                scale = self._scale("g", site, feature)
                assert scale is not None
                constant = constant + weighs * (scale.log() + half)
        if noises:
            precision = torch.stack([*noises.values()], -1).diag_embed()
        else:
            precision = torch.zeros(rows, 0, 0, dtype=torch.float64)
        slope = torch.zeros(rows, len(noises), dtype=torch.float64)
        for site in (site for site in self.model if "r" in site.index):
            mask = self.mask_of(site).expand(rows)
            if site.is_discrete:
                constant = constant + self._term("m", site, state) * (mask if site.observed else 1.0)
                continue
            for feature in _features(site):
                value = Affine(self.column(site, feature)) if site.observed else state[_place(site, feature)]
                scale = self._scale("m", site, feature)
                assert isinstance(value, Affine)
                assert scale is not None
                apart = value.plus(self.mean("m", site, state, feature), torch.tensor(-1.0, dtype=torch.float64))
                row, weight = self._rows_of([apart], list(noises)), mask / scale.square()
                constant = constant - mask * (0.5 * apart.constant.square() / scale.square() + scale.log() + half)
                precision = precision + order * weight.reshape(-1, 1, 1) * row.mT @ row
                slope = slope - order * (weight * apart.constant).unsqueeze(-1) * row.squeeze(-2)
        if not noises:
            return order * constant
        values, vectors = torch.linalg.eigh(precision)
        along = (vectors.mT @ slope.unsqueeze(-1)).squeeze(-1)
        found: Tensor = order * constant + 0.5 * (along.square() / values - values.log()).sum(-1)
        return torch.where(values.amin(-1) > 0, found, torch.full_like(found, math.inf))

    def _rows_of(self, values: Sequence[Affine], noises: Sequence[str]) -> Tensor:
        """Coefficients of values for every row: ``(rows, values, noises)``."""
        zero = torch.zeros((), dtype=torch.float64)
        if not noises:
            return torch.zeros(self.d.rows, len(values), 0, dtype=torch.float64)
        return torch.stack(
            [torch.stack([v.coefficients.get(n, zero).expand(self.d.rows) for n in noises], -1) for v in values], -2
        )

    def _gaussian(self, seen: Sequence[tuple[Affine, Tensor]]) -> Tensor:
        """The joint log density of affine values at data, row by row."""
        if not seen:
            return torch.zeros(self.d.rows, dtype=torch.float64)
        noises = sorted({noise for value, _ in seen for noise in value.coefficients})
        factor = self._rows_of([value for value, _ in seen], noises)
        mean = torch.stack([value.constant.expand(self.d.rows) for value, _ in seen], -1)
        x = torch.stack([column for _, column in seen], -1)
        normal = torch.distributions.MultivariateNormal(mean, factor @ factor.mT, validate_args=False)
        found: Tensor = normal.log_prob(x)
        return found


def _features(site: Site) -> Sequence[int | None]:
    return range(FEATURE_COUNT) if "m" in site.index else (None,)


def _place(site: Site, feature: int | None) -> str:
    return f"{site.name}.{feature}" if "m" in site.index else site.name


def _own(role: str, site: Site) -> str:
    """What the names of a site's parameters begin with: data that are not known have those of their site."""
    return f"{role}_{site.name.removesuffix(UNSEEN) if role == 'm' else site.name}"


def _runs(site: Site, state: State) -> bool:
    return not site.only_if or state[site.only_if] == 1


def _with_unseen(described: Description) -> list[Site]:
    """The sites of the model, those among them that stand for data that are not known."""
    found = []
    for site in described.model:
        found.append(site)
        if described.is_unseen(site):
            found.append(replace(site, name=site.name + UNSEEN, observed=False))
    return found
