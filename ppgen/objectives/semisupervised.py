"""Learning from few labels: one bound for labelled rows, one for unlabelled rows, and the classifier's own loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.bounds import Bound
from ppgen.objectives.elbo import ELBO, EnumeratedELBO
from ppgen.programs import Batch, Program


class SemiSupervised(Objective):
    r"""The semi-supervised objective of M2.

    ``w * L(x, y) + (1 - w) * U(x) + alpha * mean(-log q(y | x))`` in nats per datum, where ``L`` is the bound of
    labelled rows, ``U`` that of unlabelled rows with the label summed out, and ``w`` the share of labelled rows in the
    bound. Batches are ``{"labelled": {"x", "y"}, "unlabelled": {"x"}}``; the labels are the columns that only labelled
    rows have, and the guide must have a site for each.

    Args:
        alpha: weight of the classifier's log loss.
        labelled_share: ``w``; the paper's sum over all data has the number of labelled rows over that of all rows.
        labelled: bound of labelled rows.
        unlabelled: bound of unlabelled rows.

    References:
        Kingma, Rezende, Mohamed, Welling, 2014, arXiv:1406.5298, eq. 9.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        labelled_share: float = 0.5,
        labelled: ELBO | Bound | None = None,
        unlabelled: ELBO | Bound | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= labelled_share <= 1 or alpha < 0:
            raise ConfigError(f"expected 0 <= labelled_share <= 1 and alpha >= 0; got {labelled_share}, {alpha}")
        self.alpha = alpha
        self.labelled_share = labelled_share
        self.labelled = ELBO() if labelled is None else labelled
        self.unlabelled = EnumeratedELBO() if unlabelled is None else unlabelled

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
        self.labelled.check(model, guide, batch["labelled"], labels=labels)
        self.unlabelled.setup(model, guide, batch["unlabelled"])

    def explain(self, model: Program, guide: Program, batch: Batch) -> str | None:
        """See `Objective.explain`."""
        for part in ("unlabelled", "labelled"):
            labels = _labels(batch) if part == "labelled" else None
            if place := programs.first_nonfinite(model, guide, batch[part], labels=labels):
                return f"{place} of the {part} batch"
        return None

    def phases(self) -> tuple[Phase, ...]:
        """One phase: both kinds of rows on one graph."""
        return (self._phase,)

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        return self._phase(model, guide, batch)[0]["all"]

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        labels = _labels(batch)
        joint, labelled, one = self.labelled.parts(model, guide, batch["labelled"], labels=labels)
        _, unlabelled, other = self.unlabelled.parts(model, guide, batch["unlabelled"])
        size = joint.plate.size if joint.plate else 1
        log_q = (joint.reduced(name, joint.log_q(name)) for name in labels)
        cross_entropy = -sum((term.sum() / (term.numel() / term.shape[-1]) for term in log_q), torch.zeros(())) / size
        loss = self.labelled_share * labelled + (1 - self.labelled_share) * unlabelled + self.alpha * cross_entropy
        metrics = {"labelled": labelled, "unlabelled": unlabelled, "cross_entropy": cross_entropy}
        trained = [part for part in (one, other) if part is not None]
        losses = {"all": loss} | ({"estimator": sum(trained[1:], trained[0])} if trained else {})
        return losses, {name: value.detach() for name, value in metrics.items()}


def _labels(batch: Batch) -> dict[str, Tensor]:
    return {name: column for name, column in batch["labelled"].items() if name not in batch["unlabelled"]}
