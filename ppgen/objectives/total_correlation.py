"""The divergence of a guide from its prior taken apart: information, total correlation, and each dimension's own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.prior_matching import divergence, local_sites, reconstruction
from ppgen.programs import Batch, Joint, Program
from ppgen.randomness import forked

SAMPLINGS = ("stratified", "weighted")


@dataclass(frozen=True)
class Decomposition:
    """Parts of the mean divergence ``KL(q(z | x) || p(z))`` over the data, estimated, in nats; they add up to it.

    Attributes:
        mutual_information: of the index of a datum and its code, ``KL(q(z, n) || q(z) p(n))``.
        total_correlation: ``KL(q(z) || prod_k q(z_k))``.
        dimension_wise_kl: ``sum_k KL(q(z_k) || p(z_k))``.
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class BetaTCVAE(Objective):
    r"""The evidence lower bound with a weight of its own on the total correlation of the code.

    ``loss = -E_q[log p(x | z)] + alpha * I(z; n) + beta * KL(q(z) || prod_k q(z_k)) + gamma * sum_k KL(q(z_k) ||
    p(z_k))`` in nats per datum, where ``q(z)`` is the mean of ``q(z | x_n)`` over the data. Its density at the draws of
    a batch is estimated from the rows of the batch. With all weights 1 the estimates add up to the sampled
    ``ELBO(analytic_kl=False)``, draw by draw.

    The dimensions of the code have to be independent given ``x`` in the guide, or jointly Gaussian, and independent in
    the prior. Further latent sites keep the weight 1; the code has to be the first that both programs draw. The loss is
    no mean over rows, so several processes cannot share a batch.

    Args:
        alpha: weight of the mutual information of code and index.
        beta: weight of the total correlation.
        gamma: weight of the dimensions' own divergences.
        sampling: "stratified": ``q(z)`` is estimated without bias, a row's own term weighing ``1/N`` and the others
            equally the rest (the paper's unequal weights of the others average to these, with more variance);
            "weighted": every term weighs ``1/(N B)``.
        data_size: ``N``, the number of data; None takes that of the data plate, which is the batch itself if the model
            says ``plate("data", len(x))``.
        site: the latent site that is the code; None if there is but one.

    Raises:
        ConfigError: if there is no such sampling, or a weight is negative.

    References:
        Chen, Li, Grosse, Duvenaud, 2018, arXiv:1802.04942, eq. 2, appendix C.

    >>> BetaTCVAE(beta=4.0, data_size=60_000).beta
    4.0
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        sampling: str = "stratified",
        data_size: int | None = None,
        site: str | None = None,
    ) -> None:
        super().__init__()
        if min(alpha, beta, gamma) < 0:
            raise ConfigError(f"expected alpha, beta, gamma >= 0; got {alpha}, {beta}, {gamma}")
        if sampling not in SAMPLINGS:
            raise ConfigError(f"expected sampling {' or '.join(SAMPLINGS)}; got '{sampling}'")
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.sampling = sampling
        self.data_size = data_size
        self.site = site

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if the divergence cannot be taken apart.
        """
        super().setup(model, guide, batch)
        with programs.quiet(), torch.no_grad(), forked():
            self.decompose(self.joint(model, guide, batch))

    def phases(self) -> Sequence[Phase]:
        """One phase, whose metrics are the reconstruction and the parts of the divergence, in nats per datum."""
        return (self._phase,)

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        return self._phase(model, guide, batch)[0]["all"]

    def decompose(self, joint: Joint) -> Decomposition:
        """Returns the parts of the divergence of the code, estimated from one joint run."""
        name = self._code(joint)
        guide, model = joint.guide.nodes[name], joint.model.nodes[name]
        with programs.in_full_precision():
            pairs, marginal_pairs = _pairwise(guide, name)
            prior = _factors(model["fn"], name, "model").log_prob(guide["value"])
            weights = self._log_weights(joint, pairs)
            log_q = (pairs + weights).logsumexp(1)
            marginals = (marginal_pairs + weights.unsqueeze(-1)).logsumexp(1).sum(-1)
        return Decomposition(
            mutual_information=(pairs.diagonal() - log_q).mean(),
            total_correlation=(log_q - marginals).mean(),
            dimension_wise_kl=(marginals - prior.reshape(len(prior), -1).sum(-1)).mean(),
        )

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        joint = self.joint(model, guide, batch)
        parts = self.decompose(joint)
        error = reconstruction(joint)
        rest = divergence(joint, leave_out=[self._code(joint)], analytic=False)
        loss = error + self.alpha * parts.mutual_information + self.beta * parts.total_correlation
        loss = loss + self.gamma * parts.dimension_wise_kl + rest
        metrics = {"reconstruction": error, **vars(parts)}
        return {"all": loss}, {name: value.detach() for name, value in metrics.items()}

    def _code(self, joint: Joint) -> str:
        names = local_sites(joint, self.site, "BetaTCVAE")
        if len(names) > 1:
            raise ConfigError(
                f"expected one latent site for BetaTCVAE; got {', '.join(names)}: name the code, site=..."
            )
        in_model = [name for name in joint.model.nodes if name in joint.latents]
        if joint.latents[0] != names[0] or in_model[0] != names[0]:
            raise ConfigError(
                f"expected a code whose density depends on no other latent; got site '{names[0]}', before which"
                f" '{joint.latents[0] if joint.latents[0] != names[0] else in_model[0]}' is drawn: name that, site=..."
            )
        return names[0]

    def _log_weights(self, joint: Joint, pairs: Tensor) -> Tensor:
        """Logarithms of the weights of the rows' densities in that of each draw: ``(rows, rows)``."""
        rows = len(pairs)
        size = self.data_size or (joint.plate.size if joint.plate else rows)
        if size < rows:
            raise ConfigError(f"expected data_size of at least the {rows} rows of a batch; got {size}")
        if self.sampling == "weighted":
            return torch.full_like(pairs, -math.log(size * rows))
        others = torch.full_like(pairs, math.log((size - 1) / (size * (rows - 1))))
        return others.diagonal_scatter(others.new_full((rows,), -math.log(size)))


def _pairwise(node: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor]:
    """Log densities of the draw of each row under the guide of each row: ``(rows, rows)``, and by dimension."""
    fn, value = node["fn"], node["value"]
    if isinstance(fn, (dist.MultivariateNormal, dist.LowRankMultivariateNormal)) and len(fn.batch_shape) == 1:
        marginals = dist.Normal(fn.loc, fn.variance.sqrt()).log_prob(value.unsqueeze(1))
        return fn.log_prob(value.unsqueeze(1)), marginals
    by_dimension = _factors(fn, name, "guide").log_prob(value.unsqueeze(1)).reshape(len(value), len(value), -1)
    return by_dimension.sum(-1), by_dimension


def _factors(fn: Any, name: str, role: str) -> Any:
    """The distribution of the dimensions of a site, independent of each other: batch shape ``(rows, dims...)``."""
    base = fn
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, dist.Delta) or base.event_shape or len(fn.batch_shape) != 1:
        kind = type(base).__name__
        given = " given x" if role == "guide" else ""
        remedy = "Normal(...).to_event(1), say" + (", or a MultivariateNormal" if role == "guide" else "")
        raise ConfigError(
            f"expected site '{name}' of the {role} to have a density with independent dimensions{given} ({remedy});"
            f" got {kind} of shape {tuple(fn.shape())}"
        )
    return base
