"""The evidence lower bound, sampled or with discrete sites summed exactly."""

import logging
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, kl_divergence
from torch.nn.functional import logsigmoid

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.gradients import Cost, Draws, Plan, Spec, soft
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.programs import Batch, Dependencies, Joint, Program
from ppgen.programs.scales import own_mask, without_mask
from ppgen.programs.states import Along
from ppgen.randomness import forked

logger = logging.getLogger("ppgen")


class ELBO(Objective):
    r"""The evidence lower bound with pathwise gradients, as a loss.

    ``loss = -(E_q[log p(x, z)] - beta * KL(q(z | x) || p(z))) / N`` in nats per datum. The divergence of a latent site
    is taken analytically where torch knows it and the guide's order of sites allows it, by Monte Carlo elsewhere.

    Args:
        beta: weight of the divergence (1 is the bound).
        warmup: number of steps over which ``beta`` grows linearly from 0; 0 for none.
        free_bits: nats below which a latent dimension's mean divergence over the batch is not penalised; dimensions
            are told apart where the divergence is analytic, else the site counts as one.
        particles: draws of the latents, vectorised.
        analytic_kl: False takes every divergence by Monte Carlo.
        estimator: of the gradient of sites without a pathwise derivative: a name or an object of `ppgen.gradients`,
            or a dict of them by site. Without one such sites are refused.

    Raises:
        ConfigError: if the guide samples a site whose gradient would silently be wrong, or that the estimator asked
            for cannot treat.

    References:
        Kingma, Welling, 2013, arXiv:1312.6114. ``beta``: Higgins et al., 2017. Warm-up: Sonderby et al., 2016,
        arXiv:1602.02282. ``free_bits``: Kingma et al., 2016, arXiv:1606.04934.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
        particles: int = 1,
        analytic_kl: bool = True,
        estimator: Spec = None,
    ) -> None:
        super().__init__()
        if particles < 1:
            raise ConfigError(f"expected particles >= 1; got {particles}")
        if warmup < 0 or beta < 0 or free_bits < 0:
            raise ConfigError(f"expected beta, warmup, free_bits >= 0; got {beta}, {warmup}, {free_bits}")
        self.beta = beta
        self.warmup = warmup
        self.free_bits = free_bits
        self.particles = particles
        self.analytic_kl = analytic_kl
        self.plan = Plan(estimator)
        self._late = frozenset[str]()
        self._late_of: dict[tuple[Program, Program], frozenset[str]] = {}

    @property
    def sums_out(self) -> bool:
        """See `Objective.sums_out`."""
        return self.plan.sums

    def check(self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None) -> Joint:
        """See `Objective.check`; estimators are chosen by what it finds."""
        joint = super().check(model, guide, batch, labels=labels)
        if self.analytic_kl and labels is None:
            self._late_of[model, guide] = _late_priors(model, guide, batch)
        self.plan.prepare(
            joint,
            (model, guide),
            dependents=lambda: _dependencies(model, guide, batch),
            seen=lambda: programs.latents_of_runs(guide, batch),
            particles=self.particles,
            step=self.step,
        )
        self._require_derivatives()
        return joint

    def _require_derivatives(self) -> None:
        if self.free_bits and self.plan.has_signals:
            raise ConfigError("free_bits need pathwise derivatives or enumeration: leave them out")

    def phases(self) -> Sequence[Phase]:
        """See `Objective.phases`: one, with the loss of the estimators' own parameters if they have any."""
        return super().phases() if type(self).loss is not ELBO.loss else (self._phase,)

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        _, loss, estimator = self.parts(model, guide, batch)
        return {"all": loss} | ({} if estimator is None else {"estimator": estimator}), {}

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        return self.parts(model, guide, batch)[1]

    def parts(
        self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None
    ) -> tuple[Joint, Tensor, Tensor | None]:
        """Returns a run of the pair, its loss, and the loss of what estimators train (None if nothing).

        ``labels`` are guide sites conditioned on given values.
        """
        joint, draws = self._drawn(model, guide, batch, labels)
        return joint, *self._losses(joint, draws)

    def _drawn(
        self, model: Program, guide: Program, batch: Batch, labels: dict[str, Tensor] | None
    ) -> tuple[Joint, Draws]:
        if not self.plan.use(model, guide):
            with forked():
                self.check(model, guide, batch, labels=labels)
        draws, plan = Draws(), self.plan
        self._late = self._late_of.get((model, guide), frozenset())
        joint = self.joint(
            model,
            guide,
            batch,
            particles=self.particles,
            labels=labels,
            enumerate_discrete=plan.summed,
            versions=plan.versions,
            sampler=lambda layout: plan.sampler(layout.rank, draws),
        )
        plan.settle(joint, draws)
        self._require_derivatives()
        return joint, draws

    def _losses(self, joint: Joint, draws: Draws) -> tuple[Tensor, Tensor | None]:
        size = joint.plate.size if joint.plate else 1
        costs = self._costs(joint)
        total = sum((self._in_loss(joint, cost) for cost in costs), torch.zeros(())) / size
        if self.free_bits:
            weight, free = self._weight(), self._free(joint)
            return total + weight * free / size, None
        if not self.plan.has_signals:
            return total, None
        added, estimator = self.plan.surrogates(joint, costs, draws)
        return total + added, estimator

    def _weight(self) -> Tensor | float:
        return self.beta if self.warmup == 0 else self.beta * (self.step / self.warmup).clamp(max=1.0)

    def _in_loss(self, joint: Joint, cost: Cost) -> Tensor:
        term = cost.value if cost.differentiated is None else cost.differentiated
        reduced = joint.reduce_plates(cost.node, joint.expectation(cost.node, term))
        return reduced.sum() / reduced.shape[0]

    def _costs(self, joint: Joint) -> list[Cost]:
        weight = self._weight()
        costs = [Cost((name,), joint.node(name), -joint.log_p(name)) for name in joint.observed]
        sources = tuple(joint.absorbed)
        costs += [Cost(sources, summed.node, -summed.term) for summed in joint.summed]
        costs += [Cost((name,), joint.node(name), weight * joint.log_q(name)) for name in joint.factors]
        if not self.free_bits:
            costs += [self._divergence(joint, name, weight) for name in joint.latents]
        return costs

    def _divergence(self, joint: Joint, name: str, weight: Tensor | float) -> Cost:
        node = joint.node(name)
        if (terms := self._closed_form(joint, name)) is not None:
            return Cost((name,), node, weight * terms.sum(-1))
        log_q = joint.log_q(name)
        log_p = joint.log_p(name) if joint.has_log_p(name) else torch.zeros(())
        if self.plan.detached(name):
            return Cost((name,), node, weight * (log_q - log_p), weight * (log_q.detach() - log_p))
        return Cost((name,), node, weight * (log_q - log_p))

    def _closed_form(self, joint: Joint, name: str) -> Tensor | None:
        return analytic_kl(joint, name) if self.analytic_kl and name not in self._late else None

    def _free(self, joint: Joint) -> Tensor:
        """The divergences, of which as much as is free does not count."""
        total = torch.zeros(())
        for name in joint.latents:
            terms = self._closed_form(joint, name)
            if terms is None:
                parts = [joint.log_q(name) - (joint.log_p(name) if joint.has_log_p(name) else torch.zeros(()))]
            else:
                parts = list(terms.unbind(-1))
            totals = torch.stack([_total(joint, name, part) for part in parts])
            total = total + totals.clamp(min=self.free_bits * _count(joint, name)).sum()
        return total


class EnumeratedELBO(ELBO):
    r"""The evidence lower bound with every discrete site summed exactly.

    ``E_{q(y | x)} E_{q(z | x, y)} [log p(x, y, z) - log q(y, z | x)]`` where the sum over ``y`` runs over all states of
    all discrete sites of the guide, each in a tensor dimension of its own; continuous sites keep their pathwise
    gradients. Discrete sites that only the model has are summed out inside the logarithm, by variable elimination: of
    ``pyro.markov`` chains step by step.

    Args:
        **options: those of `ELBO`.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298, eq. 7; Obermeyer et al., 2019, arXiv:1902.03210.
    """

    def __init__(self, *, estimator: Spec = "enumerate", **options: Any) -> None:
        super().__init__(estimator=estimator, **options)


def _dependencies(model: Program, guide: Program, batch: Batch) -> Dependencies:
    try:
        return programs.dependencies(model, guide, batch)
    except Exception as error:
        logger.debug("no provenance of terms: %s", error)
        return Dependencies.unknown()


def _late_priors(model: Program, guide: Program, batch: Batch) -> frozenset[str]:
    try:
        return programs.late_priors(model, guide, batch)
    except Exception as error:  # a user's program may not bear tensors that are followed
        logger.debug("no provenance of priors: %s", error)
        return frozenset()


def _count(joint: Joint, name: str) -> float:
    """How many data a site's total stands for."""
    return float(joint.plate.size) if joint.plate and joint.is_local(name) else 1.0


def _total(joint: Joint, name: str, term: Tensor) -> Tensor:
    reduced = joint.reduced(name, term)
    return reduced.sum() / reduced.shape[0]


def analytic_kl(joint: Joint, name: str) -> Tensor | None:
    """Returns ``KL(q || p)`` of a latent site with the event dimensions last: ``(..., dims)``, or None.

    The closed form stands for the sampled term only if ``p`` of the site does not depend on what the guide samples
    from the site on: every latent site that the model runs before it must have run before it in the guide too. It
    also takes one scale and one mask, of model and guide alike.
    """
    if not joint.has_log_p(name):
        return None
    q, p = joint.guide.nodes[name], joint.model.nodes[name]
    before = [n for n in joint.model.nodes if n in joint.guide.nodes]
    guide_before = joint.latents[: joint.latents.index(name)]
    if any(n in joint.latents and n not in guide_before for n in before[: before.index(name)]):
        return None
    if q["mask"] is not p["mask"] or not _alike(q["scale"], p["scale"]):
        return None
    relaxed = q["infer"].get(programs.DENSITY, soft) is not soft
    if relaxed or (terms := _terms_of(q["fn"], p["fn"])) is None:
        return None
    rank = terms.dim() - 1
    scale = q["scale"].unsqueeze(-1) if isinstance(q["scale"], Tensor) and q["scale"].dim() else q["scale"]
    mask = q["mask"].unsqueeze(-1) if isinstance(q["mask"], Tensor) and rank else q["mask"]
    scaled: Tensor = dist.util.scale_and_mask(terms, scale=scale, mask=mask)
    return scaled


def _terms_of(q: Any, p: Any) -> Tensor | None:
    """The divergence of two distributions, with the event dimensions last; None if torch does not know it."""
    if isinstance(p, Along):
        ones = q.parts if isinstance(q, Along) else [q] * len(p.parts)
        parts = [None if None in pair else _terms_of(*pair) for pair in zip(ones, p.parts, strict=True)]
        known = [part for part in parts if part is not None]
        return p.stacked(known) if len(known) == len(parts) else None
    if not _alike(own_mask(q), own_mask(p)) or isinstance(_base(q), dist.Delta):
        return None
    try:
        with programs.in_full_precision():
            terms = _per_dimension(without_mask(q), without_mask(p))
    except NotImplementedError:
        return None
    return torch.zeros_like(terms) if own_mask(q) is False else terms


def _alike(one: object, two: object) -> bool:
    # tensors are not compared by value, which would stop tracing
    return one is two or (not isinstance(one, Tensor) and not isinstance(two, Tensor) and one == two)


def _base(fn: object) -> object:
    while isinstance(fn, (Independent, dist.MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _per_dimension(q: dist.Distribution, p: dist.Distribution) -> Tensor:
    if isinstance(q, Independent) and isinstance(p, Independent):
        dims = q.reinterpreted_batch_ndims
        if dims == p.reinterpreted_batch_ndims:
            inner = _kl(q.base_dist, p.base_dist)
            return inner.flatten(-dims) if dims else inner.unsqueeze(-1)
    return _kl(q, p).unsqueeze(-1)


def _kl(q: dist.Distribution, p: dist.Distribution) -> Tensor:
    # torch's own of discrete distributions takes no shapes that broadcast, and has no gradient at a probability of 0
    if isinstance(q, torch.distributions.Bernoulli) and isinstance(p, torch.distributions.Bernoulli):
        one, zero = (_states_kl(logsigmoid(sign * q.logits), logsigmoid(sign * p.logits)) for sign in (1, -1))
        return one + zero
    categorical = (torch.distributions.OneHotCategorical, torch.distributions.Categorical)
    if isinstance(q, categorical) and isinstance(p, categorical):
        return _states_kl(q.logits, p.logits).sum(-1)
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    # nor do others, whose support is bounded
    divergence: Tensor = kl_divergence(*(one if one.batch_shape == shape else one.expand(shape) for one in (q, p)))
    return divergence


def _states_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """What each state adds to a divergence: nothing if it has no probability, whatever that of the other is."""
    difference = log_q - log_p
    probability = log_q.exp()
    return probability * torch.where(probability > 0, difference, torch.zeros_like(difference))
