"""How far a discrete latent that was learnt without labels agrees with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.evaluation.embedding import embed
from ppgen.evaluation.intervals import Proportion
from ppgen.evaluation.measures import Trained
from ppgen.evaluation.slices import taken
from ppgen.programs.encoding import PROBABILITIES


@dataclass(frozen=True)
class Clusters:
    """How far the clusters of a guide agree with labels.

    Attributes:
        accuracy: share of the test rows.
        site: the latent whose states the clusters are.
        states: how many it has.
        used: how many of them are the cluster of a test row.
    """

    accuracy: Proportion
    site: str
    states: int
    used: int

    def as_dict(self) -> dict[str, Any]:
        """Returns ``{"value", "low", "high", "site", "states", "used"}``."""
        return {**self.accuracy.as_dict(), "site": self.site, "states": self.states, "used": self.used}


def cluster_accuracy(
    trained: Trained,
    train: Mapping[str, Tensor],
    test: Mapping[str, Tensor],
    *,
    site: str | None = None,
    label: str = "y",
    seed: int = 0,
) -> Clusters:
    """Returns the share of test rows whose label is the most frequent one of train rows in their cluster.

    A row's cluster is the state that the guide finds most probable. Test rows of a cluster without train rows are
    wrong. Labels of train rows do nothing but name the clusters.

    Args:
        trained: the pair.
        train: columns with labels, by which clusters are named; rows with label -1 are left out.
        test: columns with labels; rows with label -1 are left out.
        site: the latent; the only discrete one of the guide unless told.
        label: the column of labels.
        seed: of draws, if the guide needs any.

    Raises:
        ConfigError: if the guide has no such latent.
        DataError: if no row has a label.

    References:
        Makhzani et al., 2015, arXiv:1511.05644, section 6; Chen et al., 2016, arXiv:1606.03657, section 7.2.
    """
    named, labels, name = _clusters(trained, train, site, label, seed)
    probabilities, truth, _ = _clusters(trained, test, site, label, seed)
    states, found = probabilities.shape[-1], probabilities.argmax(-1)
    right = majority(named.argmax(-1), labels, states=states)[found] == truth
    accuracy = Proportion.of(int(right.sum()), len(truth))
    return Clusters(accuracy, name, states, used=len(found.unique()))


def majority(clusters: Tensor, labels: Tensor, *, states: int) -> Tensor:
    """Returns the most frequent label of each of so many clusters, the lowest of several; -1 for one without rows.

    >>> majority(torch.tensor([0, 0, 0, 2]), torch.tensor([5, 5, 1, 3]), states=3).tolist()
    [5, -1, 3]
    """
    counts = torch.zeros(states, int(labels.max()) + 1)
    counts.index_put_((clusters, labels), torch.ones(len(labels)), accumulate=True)
    return torch.where(counts.any(1), counts.argmax(1), -1)


def _clusters(
    trained: Trained, columns: Mapping[str, Tensor], site: str | None, label: str, seed: int
) -> tuple[Tensor, Tensor, str]:
    if label not in columns or not (known := columns[label] >= 0).any():
        raise DataError(f"expected labels in the column '{label}', which clusters are compared with; got none")
    rows = taken(columns, known)
    found = embed(trained, rows, label=label, seed=seed)
    discrete = [name.removesuffix(PROBABILITIES) for name in found if name.endswith(PROBABILITIES)]
    if site is None and len(discrete) == 1:
        site = discrete[0]
    if site is None or site not in discrete:
        has = ", ".join(discrete) or "none"
        raise ConfigError(f"expected one categorical latent of single rows in the guide, its clusters; got {has}")
    return found[site + PROBABILITIES], rows[label].cpu(), site
