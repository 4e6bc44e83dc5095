"""What is measured on validation rows while a run trains: cheap, and without touching its random streams."""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen import programs
from ppgen.data import Columns, Dataset
from ppgen.errors import ConfigError
from ppgen.evaluation.densities import missing_density
from ppgen.evaluation.measures import only_the_models, require_own_likelihoods
from ppgen.evaluation.modes import has_known_modes, mode_coverage
from ppgen.evaluation.simulated import samples_of
from ppgen.evaluation.slices import taken
from ppgen.evaluation.two_sample import kernel_test
from ppgen.programs import Program
from ppgen.randomness import forked

ROWS = 1_000
COMPARED = 300
"""How many samples are compared with as many validation rows: the time that it takes grows with the square."""
MOST_VALUES = 400_000
"""How many numbers these samples have at most: 130 of 32x32 colour images."""
SEARCHED = 2_500
"""How many samples are searched for modes, as in the papers."""
TAIL = 0.05
"""The share of values at either end of a column that do not count for how far rows lie apart."""

logger = logging.getLogger("ppgen")


def validated(trained: Any, data: Dataset, *, label: str = "y") -> dict[str, float]:
    """Returns what validation rows say of a pair as it is now.

    "validation_bound" (nats, one draw a row), left out where the pair has no log weight for a row: no data plate, say.
    Where the pair has no density for its data, samples are compared with validation rows instead: "spread", how far
    samples lie apart over how far rows do (1 is right, near 0 a collapse), "mmd", the square of the kernel discrepancy
    (near 0 is right; see `kernel_test`), and "modes", how many modes of a known mixture samples lie in, with
    "modes_of_data", how many as many test rows do. "validation_accuracy" where the guide infers labels.
    """
    columns = taken(data.validation, slice(ROWS), trained.device)
    hidden = {name: column for name, column in columns.items() if name != label}
    without_density = missing_density(trained, columns, label=label) is not None
    found = _compared(trained, data) if without_density else {}
    with forked(0), trained.evaluating():
        discrete = label in columns and _has_label(trained.guide, hidden, label)
        if not without_density:
            # labels that the guide does not infer are data, or inputs
            found = _bound(trained, hidden if discrete else columns, enumerate_discrete=discrete)
        if discrete:
            guessed = programs.label_log_probs(trained.guide, hidden, label).argmax(-1)
            known = columns[label] >= 0
            found["validation_accuracy"] = float((guessed == columns[label])[known].float().mean())
    return found


def _bound(trained: Any, given: Columns, *, enumerate_discrete: bool) -> dict[str, float]:
    with contextlib.suppress(ConfigError):  # as `Run.judge` will say, once
        left = only_the_models(trained, given)
        require_own_likelihoods(trained, given, left)
        summed = enumerate_discrete or left
        weights = programs.log_weights(trained.model, trained.guide, given, enumerate_discrete=summed)
        if weights.plate is not None:
            return {"validation_bound": -float(weights.local.mean())}
    return {}


def _compared(trained: Any, data: Dataset) -> dict[str, float]:
    values = data.validation["x"][0].numel()
    rows = data.validation["x"][: min(COMPARED, MOST_VALUES // values)].reshape(-1, values)
    try:
        # modes of images take a classifier, and more samples than there is time for now
        mixture = len(data.shape) == 1 and has_known_modes(data)
        samples = samples_of(trained, data, SEARCHED if mixture else len(rows))
        first = samples[: len(rows)].reshape(-1, values)
        found = {"spread": spread(first, rows), "mmd": kernel_test(first, rows, permutations=0).value}
        modes = mode_coverage(samples, data) if mixture else None
        return found | ({"modes": modes.covered, "modes_of_data": modes.covered_of_data} if modes else {})
    except Exception as error:  # a user's program may fail in any way
        logger.debug("samples are not compared with validation rows: %s", error)
        return {}


def spread(samples: Tensor, rows: Tensor) -> float:
    """Returns the mean distance between two samples over that between two rows, without their tails.

    In every column of either set the 5 % of values at each end are drawn in to the next one: of a column with heavy
    tails, the mean distance is that of a few values, or does not exist at all.

    Args:
        samples: ``(n, values)``, at least two.
        rows: ``(m, values)``, at least two.

    >>> round(spread(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [4.0]])), 4)
    0.25
    """
    of_samples, of_rows = (float(torch.pdist(_without_tails(points.double())).mean()) for points in (samples, rows))
    return of_samples / of_rows


def _without_tails(points: Tensor) -> Tensor:
    low, high = points.quantile(points.new_tensor([TAIL, 1 - TAIL]), dim=0)
    # a column that is nearly always the same says something where it is not
    rare = low == high
    low, high = torch.where(rare, points.amin(0), low), torch.where(rare, points.amax(0), high)
    return points.clamp(low, high)


def _has_label(guide: Program, columns: Mapping[str, Any], label: str) -> bool:
    try:
        programs.label_log_probs(guide, columns, label)
    except Exception:  # a user's guide that cannot do without labels may fail in any way
        return False
    return True
