"""Learning from few labels: one bound for labelled rows, one for unlabelled rows, and the classifier's own loss."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.aae import AAE
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.bounds import Bound
from ppgen.objectives.elbo import ELBO, EnumeratedELBO
from ppgen.programs import Batch, Joint, Program


class SemiSupervised(Objective):
    r"""The semi-supervised objective of M2.

    ``w * L(x, y) + (1 - w) * U(x) + alpha * mean(-log q(y | x))`` in nats per datum, where ``L`` is the bound of
    labelled rows, ``U`` that of unlabelled rows with the label summed out, and ``w`` the share of labelled rows in the
    bound. Batches are ``{"labelled": {"x", "y"}, "unlabelled": {"x"}}``; the labels are the columns that only labelled
    rows have, and the guide must have a site for each.

    With the adversarial autoencoder for unlabelled rows there is no bound of labelled rows: its players and phases stay
    as they are, and the classifier's log loss, ``alpha`` times, is added to the loss of "autoencoder".

    Args:
        alpha: weight of the classifier's log loss.
        labelled_share: ``w``; the paper's sum over all data has the number of labelled rows over that of all rows.
        labelled: bound of labelled rows.
        unlabelled: bound of unlabelled rows, or `AAE`.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298, eq. 9; Makhzani et al., 2015, arXiv:1511.05644.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        labelled_share: float = 0.5,
        labelled: ELBO | Bound | None = None,
        unlabelled: ELBO | Bound | AAE | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= labelled_share <= 1 or alpha < 0:
            raise ConfigError(f"expected 0 <= labelled_share <= 1 and alpha >= 0; got {labelled_share}, {alpha}")
        self.alpha = alpha
        self.labelled_share = labelled_share
        if isinstance(unlabelled, AAE) and labelled is not None:
            raise ConfigError(f"expected no bound of labelled rows beside AAE; got {type(labelled).__name__}")
        self.labelled = ELBO() if labelled is None else labelled
        self.unlabelled: ELBO | Bound | AAE = EnumeratedELBO() if unlabelled is None else unlabelled

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if the batch does not hold labelled and unlabelled rows, or labels the guide has no site for.
        """
        if not isinstance(batch, Mapping) or batch.keys() != {"labelled", "unlabelled"}:
            raise ConfigError("expected batches {'labelled': {...}, 'unlabelled': {...}} for SemiSupervised")
        if not (labels := _labels(batch)):
            raise ConfigError("expected a column, the label, that labelled rows have and unlabelled rows have not")
        joint = self.check(model, guide, batch["labelled"], labels=labels)
        if missing := labels.keys() - joint.guide.nodes.keys():
            raise ConfigError(f"the guide has no site '{min(missing)}' for the label of that name")
        if not isinstance(self.unlabelled, AAE):
            self.labelled.check(model, guide, batch["labelled"], labels=labels)
        self.unlabelled.setup(model, guide, batch["unlabelled"])

    def explain(self, model: Program, guide: Program, batch: Batch) -> str | None:
        """See `Objective.explain`."""
        if isinstance(self.unlabelled, AAE):
            return None
        for part in ("unlabelled", "labelled"):
            labels = _labels(batch) if part == "labelled" else None
            if place := programs.first_nonfinite(model, guide, batch[part], labels=labels):
                return f"{place} of the {part} batch"
        return None

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """See `Objective.players`; those of `AAE`, where it is taken."""
        if isinstance(self.unlabelled, AAE):
            return self.unlabelled.players(model, guide, batch["unlabelled"])
        return super().players(model, guide, batch)

    def phases(self) -> Sequence[Phase]:
        """One phase, both kinds of rows on one graph; or those of `AAE`."""
        if not isinstance(self.unlabelled, AAE):
            return (self._phase,)
        return (self._critic_phase,) * self.unlabelled.critic_steps + (self._autoencoder_phase,)

    def _critic_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        critic, *_ = self.unlabelled.phases()
        return critic(model, guide, batch["unlabelled"])

    def _autoencoder_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        *_, autoencoder = self.unlabelled.phases()
        losses, metrics = autoencoder(model, guide, batch["unlabelled"])
        labels = _labels(batch)
        joint = self.joint(model, guide, batch["labelled"], labels=labels)
        cross_entropy = _cross_entropy(joint, labels)
        loss = losses["autoencoder"] + self.alpha * cross_entropy
        return {"autoencoder": loss}, metrics | {"cross_entropy": cross_entropy.detach()}

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`; there is no one loss with `AAE`."""
        if isinstance(self.unlabelled, AAE):
            return self.unlabelled.loss(model, guide, batch)
        return self._phase(model, guide, batch)[0]["all"]

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        labels = _labels(batch)
        joint, labelled, one = self.labelled.parts(model, guide, batch["labelled"], labels=labels)
        bound = cast(ELBO | Bound, self.unlabelled)  # with AAE there are other phases
        _, unlabelled, other = bound.parts(model, guide, batch["unlabelled"])
        cross_entropy = _cross_entropy(joint, labels)
        loss = self.labelled_share * labelled + (1 - self.labelled_share) * unlabelled + self.alpha * cross_entropy
        metrics = {"labelled": labelled, "unlabelled": unlabelled, "cross_entropy": cross_entropy}
        trained = [part for part in (one, other) if part is not None]
        losses = {"all": loss} | ({"estimator": sum(trained[1:], trained[0])} if trained else {})
        return losses, {name: value.detach() for name, value in metrics.items()}


def _cross_entropy(joint: Joint, labels: Mapping[str, Tensor]) -> Tensor:
    """Returns ``-log q(y | x)`` of labelled rows, in nats per datum."""
    size = joint.plate.size if joint.plate else 1
    log_q = (joint.reduced(name, joint.log_q(name)) for name in labels)
    return -sum((term.sum() / (term.numel() / term.shape[-1]) for term in log_q), torch.zeros(())) / size


def _labels(batch: Batch) -> dict[str, Tensor]:
    return {name: column for name, column in batch["labelled"].items() if name not in batch["unlabelled"]}
