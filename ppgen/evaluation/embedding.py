"""Features of rows, as the guide of a trained pair sees them, and how far they tell labels apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.data import Columns
from ppgen.errors import ConfigError, DataError, PpgenError
from ppgen.evaluation.intervals import Proportion
from ppgen.evaluation.measures import Trained
from ppgen.evaluation.slices import count_rows, few, fitting, slices, taken, values_per_row, without
from ppgen.programs import posterior
from ppgen.programs.encoding import PROBABILITIES, encode
from ppgen.randomness import forked

DRAWS = 32
"""Over so many draws a guide is averaged that has auxiliary noise, or a latent without a mean."""


def embed(trained: Trained, columns: Mapping[str, Tensor], *, label: str = "y", seed: int = 0) -> Columns:
    """Returns the features of every row: of each latent of its guide, the mean.

    Labels are withheld where the guide can do without them. Means are the guide's own where it knows them (given the
    means of the latents that others depend on), averages of 32 draws elsewhere; a site of unordered categories gives
    their probabilities, as ``SITE_probabilities``. What the guide names by `pyro.deterministic` comes with them.

    Args:
        trained: the pair; a `ppgen.Trainer`, say.
        columns: ``(rows, ...)`` by name.
        label: the column that is withheld if the guide infers it.
        seed: of the draws; no random stream moves.

    Returns:
        float32 ``(rows, ...)`` by site, on the CPU.

    Raises:
        ConfigError: if the guide draws no latents of single rows.
        DataError: if there are no rows.

    References:
        Features of an encoder: Donahue, Krahenbuhl, Darrell, 2016, arXiv:1605.09782.
    """
    with forked(seed), trained.evaluating():
        rows = _withheld(trained, columns, label)
        some = few(rows, 8, trained.device)
        first, second = _tried(trained, some), _tried(trained, some)
        if not first:
            raise ConfigError(
                "expected a guide that draws latents of single rows, whose means are the features; got a model without"
                " an encoder, or one whose latents are of all rows together"
            )
        draws = 1 if all(torch.equal(value, second[name]) for name, value in first.items()) else DRAWS
        compute: Callable[[Columns], Columns] = lambda part: _average(trained, part, draws)  # noqa: E731
        size = fitting(values_per_row(compute, rows, trained.device), trained.device)
        parts = [compute(part) for _, part in slices(rows, size, trained.device)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in first}


def _tried(trained: Trained, part: Columns) -> Columns:
    try:
        return _encoded(trained, part)
    except PpgenError:
        raise
    except Exception as error:  # a user's guide may fail in any way
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the guide does not run on these rows, which have {', '.join(part)}: {message}") from error


def _encoded(trained: Trained, part: Columns) -> Columns:
    found = encode(trained.guide, part)
    for name, value in found.items():
        if len(value) != count_rows(part):
            raise ConfigError(
                f"expected a value of '{name}' for each of {count_rows(part)} rows; got {len(value)}: the guide's data"
                " plate must take the rows it is given, pyro.plate('data', len(x))"
            )
    return found


def _average(trained: Trained, part: Columns, draws: int) -> Columns:
    found = [_encoded(trained, part) for _ in range(draws)]
    return {name: torch.stack([draw[name] for draw in found]).mean(0) for name in found[0]}


def _withheld(trained: Trained, columns: Mapping[str, Tensor], label: str) -> Columns:
    count_rows(columns)
    rest = without(columns, label)
    try:
        posterior(trained.guide, few(rest, 2, trained.device))
    except Exception:  # a guide that cannot do without labels may fail in any way
        return dict(columns)
    return rest


@dataclass(frozen=True)
class Neighbours:
    """How often nearest neighbours by a guide's features have the same label.

    Attributes:
        accuracy: share of the test rows.
        sites: those whose features they are neighbours by.
        train_rows: labelled rows that are neighbours.
    """

    accuracy: Proportion
    sites: tuple[str, ...]
    train_rows: int

    def as_dict(self) -> dict[str, Any]:
        """Returns ``{"value", "low", "high", "sites", "train_rows"}``."""
        return {**self.accuracy.as_dict(), "sites": list(self.sites), "train_rows": self.train_rows}


def nearest_neighbour_accuracy(
    trained: Trained, train: Mapping[str, Tensor], test: Mapping[str, Tensor], *, label: str = "y", seed: int = 0
) -> Neighbours:
    """Returns the share of test rows whose nearest labelled train row, by the guide's features, has their label.

    Features are those of `embed`: what the guide names by `pyro.deterministic` if it names any, such as a hidden layer,
    else its latents, side by side. Distances are Euclidean.

    Args:
        trained: the pair.
        train: columns with labels; rows with label -1 are left out.
        test: columns with labels; rows with label -1 are left out.
        label: the column of labels.
        seed: of the draws, if any.

    Raises:
        ConfigError: if the guide draws no latents of single rows.
        DataError: if no row has a label.

    References:
        Donahue, Krahenbuhl, Darrell, 2017, arXiv:1605.09782, section 4.2.
    """
    from sklearn.neighbors import KNeighborsClassifier

    (known, labels), (held_out, truth) = (_labelled(trained, part, label, seed) for part in (train, test))
    sites = _neighbourly(trained, train, list(known), label)
    by = KNeighborsClassifier(1).fit(_beside(known, sites), labels.numpy())
    hits = by.predict(_beside(held_out, sites)) == truth.numpy()
    return Neighbours(Proportion.of(int(hits.sum()), len(hits)), sites, len(labels))


def _labelled(trained: Trained, columns: Mapping[str, Tensor], label: str, seed: int) -> tuple[Columns, Tensor]:
    if label not in columns or not (known := columns[label] >= 0).any():
        raise DataError(f"expected labels in the column '{label}', for nearest neighbours to agree in; got none")
    rows = taken(columns, known)
    return embed(trained, rows, label=label, seed=seed), rows[label].cpu()


def _neighbourly(trained: Trained, columns: Mapping[str, Tensor], names: list[str], label: str) -> tuple[str, ...]:
    with forked(0), trained.evaluating():
        rows = _withheld(trained, few(columns, 2, trained.device), label)
        latents = posterior(trained.guide, rows).keys()
    return tuple(name for name in names if name.removesuffix(PROBABILITIES) not in latents) or tuple(names)


def _beside(features: Columns, sites: tuple[str, ...]) -> Any:
    return torch.cat([features[name].flatten(1) for name in sites], 1).numpy()
