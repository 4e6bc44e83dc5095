"""Measures of a trained pair on held-out rows: likelihood in nats per row, and accuracy."""

import functools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ppgen import programs
from ppgen.data import Columns
from ppgen.errors import ConfigError, DataError, PpgenError
from ppgen.evaluation.densities import missing_density
from ppgen.evaluation.intervals import Estimate, Proportion
from ppgen.evaluation.slices import count_rows, few, fitting, slices, taken, values_per_row, without
from ppgen.programs import Program, Structure
from ppgen.randomness import forked

MEASURES = ("nll", "accuracy", "elbo")

Enumerated = bool | Collection[str]
"""Whether discrete sites of the guide are summed out, or a choice of sites."""

logger = logging.getLogger("ppgen")


class Trained(Protocol):
    """A trained pair; a `ppgen.Trainer` is one."""

    @property
    def model(self) -> Program:
        """The generative program."""

    @property
    def guide(self) -> Program:
        """The inference program."""

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Within it, the pair runs as evaluation wants it."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; None where a measure was not asked for or has no meaning."""

    nll: Estimate | None = None
    accuracy: Proportion | None = None
    elbo: Estimate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the measures as JSON has them, absent ones left out."""
        found = {"accuracy": self.accuracy, "nll": self.nll, "elbo": self.elbo}
        return {name: measure.as_dict() for name, measure in found.items() if measure is not None}


@dataclass(frozen=True)
class _Manner:
    """How a pair's log weights can be computed on held-out rows."""

    vectorized: bool
    enumerate_discrete: Enumerated
    structure: Structure
    fitting: int  # pairs of a row and a particle that fit into a slice

    def sizes(self, particles: int, rows: int, batch_size: int | None) -> tuple[int, int]:
        """Returns how many particles and rows to take at a time."""
        fitting = self.fitting if batch_size is None else max(1, self.fitting // batch_size)
        together = min(particles, fitting) if self.vectorized else 1
        return together, min(rows, fitting // together) if batch_size is None else batch_size


def negative_log_likelihood(
    trained: Trained,
    columns: Mapping[str, Tensor],
    *,
    particles: int = 100,
    label: str = "y",
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    r"""Estimates ``-log p(x)`` of every row by importance sampling from the guide: ``-log 1/K sum_k w_k``.

    In the mean an upper bound, tighter with every particle. Labels are withheld: they, and all discrete local latents,
    are summed out exactly where the programs allow it and sampled elsewhere. Programs with global latents draw those
    from the guide for each particle, without weighting them: the result is then the held-out log predictive density
    ``-log E_q(g)[p(x | g)]``.

    Args:
        trained: the pair.
        columns: ``(rows, ...)`` by name; they need not be on the pair's device, nor fit there.
        particles: draws of the latents per row.
        label: the column that is withheld, if the guide infers it.
        seed: of the draws; no random stream moves.
        batch_size: rows at a time; as many as fit unless told.

    Returns:
        Nats, float64 ``(rows,)``, on the CPU.

    Raises:
        ConfigError: if the rows cannot be told apart (no data plate), or the pair does not run on them.
        DataError: if there are no rows.

    References:
        Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519.
    """
    total = torch.full((count_rows(columns),), -torch.inf, dtype=torch.float64)
    for place, weights in _log_weights(trained, columns, particles, label, seed, batch_size, enumerate_discrete=True):
        total[place] = torch.logaddexp(total[place], weights.logsumexp(0))
    return torch.log(torch.tensor(particles, dtype=torch.float64)) - total


def elbo(
    trained: Trained,
    columns: Mapping[str, Tensor],
    *,
    particles: int = 100,
    label: str = "y",
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Estimates the evidence lower bound of every row, ``E_q[log w]``: nats, float64 ``(rows,)``.

    All latents are sampled but the discrete ones that only the model has, which are summed out.

    Arguments and errors are those of `negative_log_likelihood`.
    """
    total = torch.zeros(count_rows(columns), dtype=torch.float64)
    for place, weights in _log_weights(trained, columns, particles, label, seed, batch_size, enumerate_discrete=False):
        total[place] += weights.sum(0)
    return total / particles


def predict(
    trained: Trained, columns: Mapping[str, Tensor], *, label: str = "y", seed: int = 0, batch_size: int | None = None
) -> Tensor:
    """Returns the guide's probability of every class, ``q(y | x)``: ``(rows, classes)``, on the CPU.

    Where it depends on other latents of the guide, it is averaged over 100 draws of them.

    Raises:
        ConfigError: if the guide has no discrete local site of that name.
        DataError: if there are no rows.
    """
    rest = without(columns, label)
    with forked(seed), trained.evaluating():

        def classify(part: Columns) -> Tensor:
            return programs.label_log_probs(trained.guide, part, label).exp()

        some = few(rest, 8, trained.device)
        draws = 1 if torch.equal(classify(some), classify(some)) else 100
        size = batch_size or fitting(values_per_row(classify, rest, trained.device), trained.device)
        parts = (part for _, part in slices(rest, size, trained.device))
        return torch.cat([torch.stack([classify(part) for _ in range(draws)]).mean(0).cpu() for part in parts])


def accuracy(trained: Trained, columns: Mapping[str, Tensor], *, label: str = "y", seed: int = 0) -> Proportion:
    """Returns the share of rows whose most probable class is their label; rows with label -1 are left out.

    Raises:
        ConfigError: if the guide has no discrete local site of that name.
        DataError: if no row has a label.
    """
    if label not in columns:
        raise DataError(f"expected a column '{label}' of labels; got {', '.join(columns)}")
    known = columns[label] >= 0
    if not known.any():
        raise DataError(f"expected labels in the column '{label}'; got none that is 0 or more")
    labelled = taken(columns, known)
    hits = predict(trained, labelled, label=label, seed=seed).argmax(-1) == labelled[label].cpu()
    return Proportion.of(int(hits.sum()), len(hits))


def evaluate(
    trained: Trained,
    columns: Mapping[str, Tensor],
    *,
    particles: int = 100,
    label: str = "y",
    seed: int = 0,
    measures: Sequence[str] | None = None,
) -> Evaluation:
    """Measures a trained pair on held-out rows by its densities; `ppgen.evaluation.judge` measures samples, too.

    Args:
        trained: a `ppgen.Trainer`, say.
        columns: ``(rows, ...)`` by name.
        particles: draws of the latents per row.
        label: the column of labels; accuracy is left out where there are none, or the guide does not infer them.
        seed: of the draws: the same seed gives the same numbers.
        measures: some of "nll", "accuracy", "elbo"; unless told, "nll" where there is a density, and "accuracy".

    Raises:
        ConfigError: if a measure is unknown or the pair has no density for it, or see `negative_log_likelihood`.
        DataError: if there are no rows.
    """
    missing = missing_density(trained, columns, label=label)
    if measures is None:
        measures = ("accuracy",) if missing else ("nll", "accuracy")
    for name in measures:
        if name not in MEASURES:
            raise ConfigError(f"expected measures from {', '.join(MEASURES)}; got '{name}'")
        if missing and name != "accuracy":
            raise ConfigError(
                f"'{name}' needs a density for the data, which this pair has not: {missing}; judge its samples instead,"
                " by mmd, c2st or another measure of samples"
            )
    found: dict[str, Any] = {}
    options: dict[str, Any] = {"particles": particles, "label": label, "seed": seed}
    if "nll" in measures:
        found["nll"] = Estimate.of(negative_log_likelihood(trained, columns, **options), particles=particles)
    if "elbo" in measures:
        found["elbo"] = Estimate.of(elbo(trained, columns, **options), particles=particles)
    if "accuracy" in measures and _classifies(trained, columns, label):
        found["accuracy"] = accuracy(trained, columns, label=label, seed=seed)
    return Evaluation(**found)


def _classifies(trained: Trained, columns: Mapping[str, Tensor], label: str) -> bool:
    if label not in columns or columns[label].is_floating_point() or not (columns[label] >= 0).any():
        return False
    try:
        predict(trained, few(columns, 2, trained.device), label=label)
    except Exception as error:  # a user's guide that cannot do without labels may fail in any way
        logger.debug("no accuracy: %s", error)
        return False
    return True


def _log_weights(
    trained: Trained,
    columns: Mapping[str, Tensor],
    particles: int,
    label: str,
    seed: int,
    batch_size: int | None,
    *,
    enumerate_discrete: bool,
) -> Iterator[tuple[slice, Tensor]]:
    """Yields log weights ``(some particles, some rows)`` in float64 with the place of the rows."""
    for name, number in (("particles", particles), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"expected {name} of at least 1; got {number}")
    with trained.evaluating():
        with forked(seed):
            columns = _without_inferred(trained, columns, label)
            manner = _manner(trained, columns, particles, enumerate_discrete=enumerate_discrete)
            some = few(columns, 2, trained.device)
            programs.report_scales(programs.run(trained.model, trained.guide, some, check=False))
        together, size = manner.sizes(particles, count_rows(columns), batch_size)
        with forked(seed):
            for place, part in slices(columns, size, trained.device):
                for start in range(0, particles, together):
                    count = min(together, particles - start)
                    weights = _weights(trained, part, count, manner.structure, manner.enumerate_discrete)
                    yield place, weights.double().cpu()


def _weights(
    trained: Trained, part: Columns, particles: int, structure: Structure, enumerate_discrete: Enumerated
) -> Tensor:
    weights = programs.log_weights(
        trained.model,
        trained.guide,
        part,
        particles=particles,
        structure=structure,
        enumerate_discrete=enumerate_discrete,
    ).local
    if weights.shape != (particles, count_rows(part)):
        raise ConfigError(
            f"expected a log weight for each of {count_rows(part)} rows; got {weights.shape[-1]}: the model's data"
            " plate must take the rows it is given, pyro.plate('data', len(x))"
        )
    return weights


def _without_inferred(trained: Trained, columns: Mapping[str, Tensor], label: str) -> Columns:
    """Withholds the labels if the guide samples them when they are not given."""
    rest = without(columns, label)
    if len(rest) == len(columns):
        return rest
    try:
        inferred = label in programs.posterior(trained.guide, few(rest, 2, trained.device))
    except Exception:  # a user's guide that cannot do without them may fail in any way
        inferred = False
    return rest if inferred else dict(columns)


def _manner(trained: Trained, columns: Mapping[str, Tensor], particles: int, *, enumerate_discrete: bool) -> _Manner:
    """Finds the best manner in which the pair runs: users' programs need not bear enumeration or particles."""
    _require_own_rows(trained.guide, columns)
    reason: Exception | None = None
    left = only_the_models(trained, columns)
    require_own_likelihoods(trained, columns, left)
    manners: list[Enumerated] = [True, left] if enumerate_discrete else [left]
    for enumerated in manners:
        for count in (2, 1) if particles > 1 else (1,):
            try:
                return _try(trained, columns, count, enumerate_discrete=enumerated)
            except Exception as error:  # a user's program may fail in any way
                logger.debug("%d particles, enumerate_discrete=%s: %s", count, enumerated, error)
                reason = error
    if isinstance(reason, PpgenError):
        raise reason
    message = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    raise ConfigError(f"the model and guide do not run on held-out rows: {message}") from reason


def _require_own_rows(guide: Program, columns: Mapping[str, Tensor]) -> None:
    if name := programs.needs_training_rows(guide):
        raise ConfigError(
            f"the guide keeps parameters of latent '{name}' for each row that it was trained on, by its place, and has"
            f" none for the {count_rows(columns)} rows given: evaluate a guide that infers '{name}' from what a row is"
            " (an encoder); ppgen.to_arviz shows the posterior of the training rows"
        )


def require_own_likelihoods(trained: Trained, columns: Mapping[str, Tensor], left: Collection[str]) -> None:
    """Checks that no discrete site that only the model has (``left``) is summed out for all rows at once.

    Raises:
        ConfigError: if one is.
    """
    if not left:
        return
    joint = programs.run(trained.model, trained.guide, few(columns, 2, trained.device), check=False)
    for name in sorted(left):
        if joint.plate is not None and not joint.is_local(name):
            raise ConfigError(
                f"model site '{name}' is shared by all rows and summed out for all of them at once, so that a row has"
                f" no likelihood of its own: let the guide draw '{name}'"
            )


def only_the_models(trained: Trained, columns: Mapping[str, Tensor]) -> frozenset[str]:
    """Returns the discrete sites of the model that the guide leaves to it."""
    try:
        return programs.left_to_the_model(trained.model, trained.guide, few(columns, 2, trained.device))
    except Exception:  # what fails here fails again, with a reason
        return frozenset()


def _try(trained: Trained, columns: Mapping[str, Tensor], particles: int, *, enumerate_discrete: Enumerated) -> _Manner:
    structure = programs.structure_of(trained.model, trained.guide, few(columns, 2, trained.device))
    if structure.rows is None:
        raise ConfigError(
            "expected an observed site in a data plate, with pyro.plate('data', len(x)); got none: without it held-out"
            " rows cannot be told apart"
        )
    weigh = functools.partial(
        _weights, trained, particles=particles, structure=structure, enumerate_discrete=enumerate_discrete
    )
    values = values_per_row(weigh, columns, trained.device) / particles
    return _Manner(particles > 1, enumerate_discrete, structure, fitting(values, trained.device))
