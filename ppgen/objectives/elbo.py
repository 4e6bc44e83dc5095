"""The evidence lower bound, sampled or with discrete sites summed exactly."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.base import Objective
from ppgen.programs import Batch, Joint, Program


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

    Raises:
        ConfigError: if the guide samples a site that has no pathwise derivative (a discrete one, say): its gradient
            would silently be wrong.

    References:
        Kingma, Welling, 2013, arXiv:1312.6114. ``beta``: Higgins et al., 2017. Warm-up: Sonderby et al., 2016,
        arXiv:1602.02282. ``free_bits``: Kingma et al., 2016, arXiv:1606.04934.
    """

    enumerate_discrete = False

    def __init__(
        self,
        *,
        beta: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
        particles: int = 1,
        analytic_kl: bool = True,
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

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        return self.of(self.run(model, guide, batch))

    def run(self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None) -> Joint:
        """Runs the pair as this bound needs it; `labels` are guide sites conditioned on given values."""
        options = {"particles": self.particles, "labels": labels, "enumerate_discrete": self.enumerate_discrete}
        return self.joint(model, guide, batch, **options)

    def of(self, joint: Joint) -> Tensor:
        """Returns the loss of one joint run."""
        for name in joint.latents:
            _require_pathwise(joint, name)
        size = joint.plate.size if joint.plate else 1
        weight = self.beta if self.warmup == 0 else self.beta * (self.step / self.warmup).clamp(max=1.0)
        negative = -sum((_total(joint, name, joint.log_p(name)) for name in joint.observed), torch.zeros(()))
        divergence = sum((self._divergence(joint, name) for name in joint.latents), torch.zeros(()))
        divergence = sum((_total(joint, name, joint.log_q(name)) for name in joint.factors), divergence)
        return (negative + weight * divergence) / size

    def _divergence(self, joint: Joint, name: str) -> Tensor:
        if self.analytic_kl and (terms := analytic_kl(joint, name)) is not None:
            if self.free_bits:
                return self._free(joint, name, terms)
            return _total(joint, name, terms.sum(-1))
        term = joint.log_q(name)
        if name in joint.model.nodes:
            term = term - joint.log_p(name)
        total = _total(joint, name, term)
        return total.clamp(min=self.free_bits * _count(joint, name)) if self.free_bits else total

    def _free(self, joint: Joint, name: str, terms: Tensor) -> Tensor:
        totals = [_total(joint, name, term) for term in terms.unbind(-1)]
        return torch.stack(totals).clamp(min=self.free_bits * _count(joint, name)).sum()


class EnumeratedELBO(ELBO):
    r"""The evidence lower bound with every discrete site of the guide summed exactly.

    ``E_{q(y | x)} E_{q(z | x, y)} [log p(x, y, z) - log q(y, z | x)]`` where the sum over ``y`` runs over all states of
    all discrete sites, each in a tensor dimension of its own; continuous sites keep their pathwise gradients.

    Args:
        **options: those of `ELBO`.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298, eq. 7.
    """

    enumerate_discrete = True


def _count(joint: Joint, name: str) -> float:
    """How many data a site's total stands for."""
    return float(joint.plate.size) if joint.plate and joint.is_local(name) else 1.0


def _total(joint: Joint, name: str, term: Tensor) -> Tensor:
    reduced = joint.reduced(name, term)
    return reduced.sum() / reduced.shape[0]


def _require_pathwise(joint: Joint, name: str) -> None:
    site = joint.guide.nodes[name]
    if name in joint.enumerated or getattr(site["fn"], "has_rsample", False):
        return
    if getattr(site["fn"], "has_enumerate_support", False):
        remedy = "sum it out with EnumeratedELBO, or use a stock ELBO with score-function gradients (TraceGraph_ELBO)"
    else:
        remedy = "use a stock ELBO with score-function gradients (pyro.infer.TraceGraph_ELBO)"
    kind = type(site["fn"]).__name__
    raise ConfigError(f"guide site '{name}' ({kind}) has no pathwise derivative, so its gradient is biased: {remedy}")


def analytic_kl(joint: Joint, name: str) -> Tensor | None:
    """Returns ``KL(q || p)`` of a latent site with the event dimensions last: ``(..., dims)``, or None.

    The closed form stands for the sampled term only if ``p`` of the site does not depend on what the guide samples
    from the site on: every latent site that the model runs before it must have run before it in the guide too. It
    also takes one scale and one mask, of model and guide alike.
    """
    if name not in joint.model.nodes:
        return None
    q, p = joint.guide.nodes[name], joint.model.nodes[name]
    before = [n for n in joint.model.nodes if n in joint.guide.nodes]
    guide_before = joint.latents[: joint.latents.index(name)]
    if any(n in joint.latents and n not in guide_before for n in before[: before.index(name)]):
        return None
    if q["mask"] is not p["mask"] or not _same_scale(q["scale"], p["scale"]):
        return None
    if isinstance(_base(q["fn"]), dist.Delta):
        return None
    try:
        with programs.in_full_precision():
            terms = _per_dimension(q["fn"], p["fn"])
    except NotImplementedError:
        return None
    rank = terms.dim() - 1
    scale = q["scale"].unsqueeze(-1) if isinstance(q["scale"], Tensor) and q["scale"].dim() else q["scale"]
    mask = q["mask"].unsqueeze(-1) if isinstance(q["mask"], Tensor) and rank else q["mask"]
    scaled: Tensor = dist.util.scale_and_mask(terms, scale=scale, mask=mask)
    return scaled


def _same_scale(one: object, two: object) -> bool:
    # tensors are not compared by value, which would stop tracing
    return one is two or (not isinstance(one, Tensor) and not isinstance(two, Tensor) and one == two)


def _base(fn: object) -> object:
    while isinstance(fn, (Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _per_dimension(q: dist.Distribution, p: dist.Distribution) -> Tensor:
    if isinstance(q, Independent) and isinstance(p, Independent):
        dims = q.reinterpreted_batch_ndims
        if dims == p.reinterpreted_batch_ndims:
            inner = kl_divergence(q.base_dist, p.base_dist)
            return inner.flatten(-dims) if dims else inner.unsqueeze(-1)
    return kl_divergence(q, p).unsqueeze(-1)
