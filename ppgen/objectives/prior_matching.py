"""What objectives need that compare the guide's draws, over all data together, with draws from the prior."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.elbo import analytic_kl
from ppgen.programs import Batch, Joint, Program
from ppgen.programs.priors import draw_prior
from ppgen.randomness import forked


class PriorMatching(Objective, ABC):
    r"""Reconstruction, and a discrepancy between the guide's draws for all rows of a batch and draws from the prior.

    ``loss = bound + weight * D(draws of q(z), draws of p(z))``, where ``q(z)`` is the mean of ``q(z | x)`` over the
    data (the aggregate posterior), ``p(z)`` the model run without data, and ``bound`` the reconstruction
    ``-E_q[log p(x | z)]`` unless a class says otherwise, in nats per datum. Both sets have as many rows as the batch;
    gradients pass through both, so a prior may have parameters. Every latent site of the guide has to be continuous
    and to lie in the data plate; all of them are compared as one vector a row, unless ``site`` names one. The loss is
    no mean over rows, so several processes cannot share a batch.

    Args:
        weight: of the discrepancy.
        site: the latent site that is compared; None for all.
    """

    def __init__(self, *, weight: float, site: str | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.site = site

    @abstractmethod
    def discrepancy(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Returns the discrepancy between draws ``(rows, dims)`` of the guide and of the prior, a scalar."""

    def bound(self, joint: Joint) -> Tensor:
        """Returns what is minimised besides the discrepancy, in nats per datum."""
        return reconstruction(joint)

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if the latents cannot be compared with draws from the prior.
        """
        super().setup(model, guide, batch)
        with programs.quiet(), torch.no_grad(), forked():
            self._draws(self.joint(model, guide, batch), model, batch)

    def phases(self) -> Sequence[Phase]:
        """One phase, whose metrics are the reconstruction in nats per datum and the discrepancy."""
        return (self._phase,)

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        return self._phase(model, guide, batch)[0]["all"]

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        joint = self.joint(model, guide, batch)
        posterior, prior = self._draws(joint, model, batch)
        with programs.in_full_precision():
            discrepancy = self.discrepancy(posterior, prior)
        loss = self.bound(joint) + self.weight * discrepancy
        return {"all": loss}, {
            "reconstruction": reconstruction(joint).detach(),
            "discrepancy": discrepancy.detach(),
        }

    def _draws(self, joint: Joint, model: Program, batch: Batch) -> tuple[Tensor, Tensor]:
        names = local_sites(joint, self.site, type(self).__name__)
        drawn = draw_prior(model, batch, names)
        posterior, prior = (
            torch.cat([_rows(nodes[name]) for name in names], -1) for nodes in (joint.guide.nodes, drawn)
        )
        if posterior.shape != prior.shape:
            raise ConfigError(
                f"expected as many draws from the prior as from the guide; got {tuple(prior.shape)} and"
                f" {tuple(posterior.shape)} for {', '.join(names)}"
            )
        return posterior, prior


def checked_scale(scale: float) -> float:
    """Returns the weight of a discrepancy.

    Raises:
        ConfigError: if it is negative.
    """
    if scale < 0:
        raise ConfigError(f"expected scale >= 0; got {scale}")
    return scale


def reconstruction(joint: Joint) -> Tensor:
    """Returns ``-log p(x | z)`` of the guide's draws, in nats per datum."""
    total = sum((joint.reduce(name, joint.log_p(name)).sum() for name in joint.observed), torch.zeros(()))
    return -total / (joint.plate.size if joint.plate else 1)


def divergence(joint: Joint, *, leave_out: Collection[str] = (), analytic: bool = True) -> Tensor:
    """Returns ``log q(z | x) - log p(z)`` of the guide's draws, in nats per datum.

    Args:
        joint: a run of the pair, without discrete latents.
        leave_out: latent sites that do not count.
        analytic: whether to take a site's exact mean instead where it is known.
    """
    terms = [(name, joint.log_q(name)) for name in joint.factors]
    for name in joint.latents:
        if name in leave_out:
            continue
        exact = analytic_kl(joint, name) if analytic else None
        terms.append((name, joint.log_q(name) if exact is None else exact.sum(-1)))
        if exact is None and name in joint.model.nodes:
            terms.append((name, -joint.log_p(name)))
    total = sum((joint.reduce(name, term).sum() for name, term in terms), torch.zeros(()))
    return total / (joint.plate.size if joint.plate else 1)


def local_sites(joint: Joint, site: str | None, objective: str) -> list[str]:
    """Returns the names of the latent sites whose rows are compared.

    Args:
        joint: a run of the pair.
        site: the name of the only one; None for all.
        objective: what compares them, for messages.

    Raises:
        ConfigError: if rows of latents cannot be compared.
    """
    if joint.plate is None or joint.plate.rows < 2:
        got = "no such plate" if joint.plate is None else "one row"
        raise ConfigError(
            f"expected a data plate at dim -1 with at least two rows, which {objective} compares; got {got}"
        )
    for name in joint.latents:
        _require_comparable(joint, name, objective)
    names = [name for name in joint.latents if name in joint.model.nodes]
    if site is not None and site not in names:
        raise ConfigError(f"expected a latent site of the model for site; got '{site}' (sites: {', '.join(names)})")
    if not names:
        raise ConfigError(f"expected a latent site, which {objective} compares with its prior; got none")
    return names if site is None else [site]


def _require_comparable(joint: Joint, name: str, objective: str) -> None:
    node = joint.guide.nodes[name]
    if not getattr(node["fn"], "has_rsample", False):
        discrete = getattr(node["fn"], "has_enumerate_support", False)
        what = "discrete" if discrete else f"a {type(node['fn']).__name__}, which has no pathwise derivative"
        raise ConfigError(f"expected continuous latents for {objective}; got site '{name}', which is {what}: use ELBO")
    if not joint.is_local(name):
        raise ConfigError(
            f"expected latents in the data plate, a draw for each row, for {objective};"
            f" got the global site '{name}': use ELBO"
        )
    if isinstance(node["mask"], Tensor) or node["mask"] is False:
        raise ConfigError(f"expected latents of all rows for {objective}; got site '{name}', which is masked: use ELBO")


def _rows(node: Mapping[str, Any]) -> Tensor:
    """The value of a site in the data plate, as one vector a row: ``(rows, dims)``."""
    value: Tensor = node["value"]
    value = value.expand(torch.broadcast_shapes(node["fn"].batch_shape + node["fn"].event_shape, value.shape))
    value = value.movedim(-1 - len(node["fn"].event_shape), 0)
    return value.reshape(len(value), -1)
