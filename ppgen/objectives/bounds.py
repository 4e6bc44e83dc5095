"""Bounds of several samples: importance-weighted ones, Renyi's, and mixtures of them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.gradients import Control, Draws, Estimator, Plan, RaoBlackwell, Spec
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.reductions import Mixed, PowerMean, Reduction
from ppgen.objectives.signals import surrogates
from ppgen.programs import Batch, Joint, Program, Weights
from ppgen.randomness import forked

Gradient = Literal["total", "sticking-the-landing", "doubly-reparameterized"]
Weighted = Literal["auto", "datum", "joint"]

_ONE_SAMPLE = "it expands an objective of one sample: use it with ELBO, or take vimco"
_UNFIT: Mapping[type[Estimator], str] = {
    Control: _ONE_SAMPLE,
    RaoBlackwell: "the terms of a bound of several samples do not add up: take score, nvil or vimco",
}


class Bound(Objective):
    r"""A bound of several samples, as a loss: abstract.

    Weights are per datum, given one draw of the global latents ``g``:
    ``loss = -E_{q(g)}[log p(g) - log q(g) + sum_n N / B * bound_k(w_nk)] / N`` in nats per datum. Where all latents are
    global there is one weight for the whole data set, which a subsampled data plate does not allow.

    Args:
        reduction: of the log weights to the bound.
        particles: samples of each bound (K).
        outer: independent bounds whose mean is taken (M).
        gradient: "total"; "sticking-the-landing" leaves the score of the guide out, which is unbiased with one sample
            only (or for ``alpha = 1``); "doubly-reparameterized" puts a second pathwise derivative in its place, and
            trains model and guide as two players.
        estimator: of sites without a pathwise derivative, as in `ELBO`; enumerated sites are summed inside the bound,
            weighted by the guide's probabilities.
        weights: "datum" or "joint" (one weight for everything); "auto" is "datum" where there are local latents.
    """

    def __init__(
        self,
        reduction: Reduction,
        *,
        particles: int,
        outer: int = 1,
        gradient: Gradient = "total",
        estimator: Spec = None,
        weights: Weighted = "auto",
    ) -> None:
        super().__init__()
        if particles < 1 or outer < 1:
            raise ConfigError(f"expected particles, outer >= 1; got {particles}, {outer}")
        if gradient not in ("total", "sticking-the-landing", "doubly-reparameterized"):
            raise ConfigError(
                f"expected gradient total, sticking-the-landing or doubly-reparameterized; got '{gradient}'"
            )
        if weights not in ("auto", "datum", "joint"):
            raise ConfigError(f"expected weights auto, datum or joint; got '{weights}'")
        self.reduction = reduction
        self.particles = particles
        self.outer = outer
        self.gradient = gradient
        self.weights = weights
        self.plan = Plan(estimator, unfit=_UNFIT)
        self._joint_weights = weights == "joint"
        self._as_one: dict[tuple[Program, Program], bool] = {}

    @property
    def sums_out(self) -> bool:
        """See `Objective.sums_out`."""
        return self.plan.sums

    def check(self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None) -> Joint:
        """See `Objective.check`.

        Raises:
            ConfigError: if there is no such bound of the pair.
        """
        joint = super().check(model, guide, batch, labels=labels)
        local = any(joint.is_local(name) for name in joint.latents)
        summed = _summed_outside(joint)
        outside = [name for name in joint.latents if not joint.is_local(name)] + summed
        whole = bool(outside)
        self._joint_weights = self.weights == "joint" or (self.weights == "auto" and whole and not local)
        self._joint_weights |= joint.plate is None
        self._as_one[model, guide] = self._joint_weights
        if self._joint_weights and joint.plate is not None and joint.plate.scale != 1:
            site = next(iter((*outside, *joint.latents)), "the guide")
            raise ConfigError(
                f"the weight of a draw of '{site}' needs all {joint.plate.size} rows, and a batch has"
                f" {joint.plate.rows}: no scale makes that a bound. Take all rows in every batch, or ELBO"
            )
        if summed and not self._joint_weights:
            raise ConfigError(
                f"model site '{summed[0]}' is summed out for all rows at once, and a weight is of one row: take"
                " weights=joint"
            )
        if not self._joint_weights:
            programs.require_known_rows(joint)
        programs.require_one_weight(joint, whole=self._joint_weights, linear=self.reduction.linear)
        self.plan.prepare(
            joint,
            (model, guide),
            dependents=None,
            seen=lambda: programs.latents_of_runs(guide, batch),
            particles=self.particles,
            step=self.step,
        )
        self._check_gradient(joint, whole=whole)
        if self.gradient != "total":
            programs.require_repeatable(joint, guide, batch)
        return joint

    def _check_gradient(self, joint: Joint, *, whole: bool) -> None:
        if self.gradient == "total":
            return
        self._require_derivatives()
        if self.gradient == "sticking-the-landing":
            return
        if whole and not self._joint_weights:
            raise ConfigError(
                "doubly reparameterised gradients are of one level of latents, and there are global and local ones:"
                " take gradient=total"
            )
        summed = [joint.latents.index(name) for name in self.plan.enumerated]
        if any(place not in summed for place in range(max(summed, default=-1))):
            raise ConfigError("doubly reparameterised gradients expect enumerated sites before all others of the guide")

    def _require_derivatives(self) -> None:
        if self.gradient != "total" and self.plan.has_signals:
            raise ConfigError(f"gradient {self.gradient} is of pathwise derivatives: take gradient=total")

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """See `Objective.players`: "model" and "guide" where they have losses of their own."""
        return (
            programs.separate_leaves(model, guide, batch) if self._two_losses else super().players(model, guide, batch)
        )

    @property
    def _two_losses(self) -> bool:
        return self.gradient == "doubly-reparameterized"

    def phases(self) -> Sequence[Phase]:
        """See `Objective.phases`."""
        return super().phases() if type(self).loss is not Bound.loss else (self._phase,)

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        if not self._two_losses:
            _, loss, estimator = self.parts(model, guide, batch)
            return {"all": loss} | ({} if estimator is None else {"estimator": estimator}), {}
        joint = self._drawn(model, guide, batch)
        rescored = self._weights(programs.with_frozen_guide(joint, guide, batch))
        return {"model": self._loss(self._weights(joint), self.reduction), "guide": self._doubly(rescored)}, {}

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`; its gradient is that of model and guide together, "total" if there are two losses."""
        return self.parts(model, guide, batch)[1]

    def parts(
        self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None
    ) -> tuple[Joint, Tensor, Tensor | None]:
        """Returns a run of the pair, its loss, and the loss of what estimators train (None if nothing).

        ``labels`` are guide sites conditioned on given values.
        """
        joint = self._drawn(model, guide, batch, labels)
        rescored = programs.with_frozen_guide(joint, guide, batch) if self.gradient == "sticking-the-landing" else joint
        weights = self._weights(rescored)
        loss = self._loss(weights, self.reduction)
        if not self.plan.has_signals:
            return joint, loss, None
        added, estimator = surrogates(self.plan, joint, weights, self.reduction, as_one=self._joint_weights)
        return joint, loss + added, estimator

    def _drawn(self, model: Program, guide: Program, batch: Batch, labels: dict[str, Tensor] | None = None) -> Joint:
        if not self.plan.use(model, guide):
            with forked():
                self.check(model, guide, batch, labels=labels)
        as_one = self._joint_weights = self._as_one[model, guide]
        plan, draws = self.plan, Draws()
        joint = self.joint(
            model,
            guide,
            batch,
            labels=labels,
            particles=self.outer * self.particles if as_one else self.outer,
            local_particles=None if as_one else self.particles,
            enumerate_discrete=plan.summed,
            sampler=lambda layout: plan.sampler(layout.rank, draws),
        )
        plan.settle(joint, draws)
        self._require_derivatives()
        return joint

    def _weights(self, joint: Joint) -> Weights:
        """Returns the weights of a run, ``local`` as ``(states..., outer, particles, rows)``."""
        found = programs.weights_of(joint, scaled=not self._joint_weights)
        if not self._joint_weights:
            return found
        if found.log_q is not None:
            raise ConfigError("enumerated sites are summed within a datum's weight: take weights=datum")
        whole = (found.global_ + found.local.sum(-1)).reshape(self.outer, self.particles, 1)
        nothing = torch.zeros((), device=whole.device).expand(self.outer)
        return Weights(whole, None, nothing, found.plate, found.row_scale)

    def _loss(self, weights: Weights, reduction: Reduction) -> Tensor:
        return self._total(weights, reduction(weights.local, weights.log_q))

    def _total(self, weights: Weights, bounds: Tensor) -> Tensor:
        size, scale = _units(weights)
        return -(weights.global_ + scale * (weights.row_scale * bounds).sum(-1)).mean() / size

    def _doubly(self, weights: Weights) -> Tensor:
        """The guide's loss: its value is the bound's, its gradient doubly reparameterised."""
        size, scale = _units(weights)
        coefficients = self.reduction.coefficients(weights.local, weights.log_q).detach()
        log_w, states = weights.local, torch.zeros(())
        if (counted := weights.counted) is not None:
            log_w = log_w + counted - counted.detach()
            # the bound as a function of the states' probabilities alone
            of_states = self.reduction(log_w.detach() + counted.detach() - counted, weights.log_q)
            states = (weights.row_scale * of_states).sum()
        linear = scale * ((weights.row_scale * coefficients * log_w).sum() + states) + weights.global_.sum()
        value = self._loss(weights, self.reduction).detach()
        return value - (linear - linear.detach()) / (self.outer * size)


def _summed_outside(joint: Joint) -> list[str]:
    """The sites that only the model has and that lie outside the data plate."""
    return [
        name
        for name, site in joint.model.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and name not in joint.guide.nodes
        and not joint.is_local(name)
    ]


def _units(weights: Weights) -> tuple[int, float]:
    """The full size of the data plate, and what a row stands for."""
    return (weights.plate.size, weights.plate.scale) if weights.plate else (1, 1.0)


class IWAE(Bound):
    r"""The importance-weighted bound, ``log 1/K sum_k w_k``.

    Args:
        particles: samples (K).
        **options: those of `Bound`.

    References:
        Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519. Sticking the landing: Roeder, Wu, Duvenaud, 2017,
        arXiv:1703.09194. Doubly reparameterised: Tucker, Lawson, Gu, Maddison, 2018, arXiv:1810.04152.
    """

    def __init__(
        self,
        *,
        particles: int = 5,
        outer: int = 1,
        gradient: Gradient = "total",
        estimator: Spec = None,
        weights: Weighted = "auto",
    ) -> None:
        options = {"outer": outer, "gradient": gradient, "estimator": estimator, "weights": weights}
        super().__init__(PowerMean(0.0), particles=particles, **options)  # type: ignore[arg-type]


class Renyi(Bound):
    r"""The variational Renyi bound, ``1 / (1 - alpha) * log 1/K sum_k w_k^(1 - alpha)``.

    ``alpha = 1`` is the evidence lower bound, 0 the importance-weighted one. Below 0 it is an upper bound in the limit
    of many samples.

    Args:
        alpha: order of the divergence; minus infinity is `VRMax`.
        particles: samples (K).
        **options: those of `Bound`.

    References:
        Li, Turner, 2016, arXiv:1602.02311.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        particles: int = 5,
        outer: int = 1,
        gradient: Gradient = "total",
        estimator: Spec = None,
        weights: Weighted = "auto",
    ) -> None:
        if alpha != alpha or alpha == float("inf"):
            raise ConfigError(f"expected alpha below infinity; got {alpha}")
        options = {"outer": outer, "gradient": gradient, "estimator": estimator, "weights": weights}
        super().__init__(PowerMean(alpha), particles=particles, **options)  # type: ignore[arg-type]


class VRMax(Bound):
    r"""The bound of the largest weight, ``max_k log w_k``: Renyi's for ``alpha`` to minus infinity.

    Args:
        particles: samples (K).
        **options: those of `Bound`.

    References:
        Li, Turner, 2016, arXiv:1602.02311, section 4.2.
    """

    def __init__(
        self, *, particles: int = 5, outer: int = 1, gradient: Gradient = "total", estimator: Spec = None
    ) -> None:
        options = {"outer": outer, "gradient": gradient, "estimator": estimator}
        super().__init__(PowerMean(float("-inf")), particles=particles, **options)  # type: ignore[arg-type]


class MIWAE(Bound):
    r"""The mean of several importance-weighted bounds, ``1/M sum_m log 1/K sum_k w_mk``.

    Args:
        particles: samples of each bound (K).
        outer: bounds (M).
        **options: those of `Bound`.

    References:
        Rainforth et al., 2018, arXiv:1802.04537.
    """

    def __init__(
        self, *, particles: int = 8, outer: int = 8, gradient: Gradient = "total", estimator: Spec = None
    ) -> None:
        options = {"gradient": gradient, "estimator": estimator}
        super().__init__(PowerMean(0.0), particles=particles, outer=outer, **options)  # type: ignore[arg-type]


class CIWAE(Bound):
    r"""A combination of bounds, ``beta * 1/K sum_k log w_k + (1 - beta) * log 1/K sum_k w_k``.

    Args:
        beta: share of the evidence lower bound.
        particles: samples (K).
        **options: those of `Bound`.

    References:
        Rainforth et al., 2018, arXiv:1802.04537.
    """

    def __init__(
        self, *, beta: float = 0.05, particles: int = 64, gradient: Gradient = "total", estimator: Spec = None
    ) -> None:
        if not 0 <= beta <= 1:
            raise ConfigError(f"expected 0 <= beta <= 1; got {beta}")
        options = {"gradient": gradient, "estimator": estimator}
        super().__init__(Mixed(beta), particles=particles, **options)  # type: ignore[arg-type]


class PIWAE(Bound):
    r"""Partially importance-weighted: the model climbs the bound of all ``M K`` samples, the guide `MIWAE`'s.

    Model and guide are two players.

    Args:
        particles: samples of each of the guide's bounds (K).
        outer: of these bounds (M).

    References:
        Rainforth et al., 2018, arXiv:1802.04537.
    """

    def __init__(self, *, particles: int = 8, outer: int = 8) -> None:
        super().__init__(PowerMean(0.0), particles=particles, outer=outer)

    @property
    def _two_losses(self) -> bool:
        return True

    def check(self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None) -> Joint:
        """See `Bound.check`; bounds that share samples are of local latents."""
        joint = super().check(model, guide, batch, labels=labels)
        if self._joint_weights or any(not joint.is_local(name) for name in joint.latents):
            raise ConfigError("PIWAE is of local latents: take IWAE")
        return joint

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        weights = self._weights(self._drawn(model, guide, batch))
        together = weights.local.flatten(-3, -2).unsqueeze(-3)
        of_model = self._total(weights, self.reduction(together, None))
        return {"model": of_model, "guide": self._loss(weights, self.reduction)}, {}
