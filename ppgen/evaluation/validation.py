"""What is measured on validation rows while a run trains: cheap, and without touching its random streams."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from ppgen import programs
from ppgen.data import Dataset
from ppgen.errors import ConfigError
from ppgen.evaluation.measures import only_the_models
from ppgen.programs import Program

ROWS = 1_000


def validated(trained: Any, data: Dataset, *, label: str = "y") -> dict[str, float]:
    """Returns "validation_bound" (nats, one draw a row), and "validation_accuracy" where the guide has labels.

    The bound is left out where the pair has no log weight for a row: no data plate, say.
    """
    columns = {name: column[:ROWS].to(trained.device) for name, column in data.validation.items()}
    hidden = {name: column for name, column in columns.items() if name != label}
    found: dict[str, float] = {}
    devices = [trained.device] if trained.device.type == "cuda" else []
    with trained.evaluating(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        discrete = label in columns and _has_label(trained.guide, hidden, label)
        # labels that the guide does not infer are data, or inputs
        given = hidden if discrete else columns
        with contextlib.suppress(ConfigError):  # as `Run.judge` will say, once
            summed = discrete or only_the_models(trained, given)
            weights = programs.log_weights(trained.model, trained.guide, given, enumerate_discrete=summed)
            if weights.plate is not None:
                found["validation_bound"] = -float(weights.local.mean())
        if discrete:
            guessed = programs.label_log_probs(trained.guide, hidden, label).argmax(-1)
            known = columns[label] >= 0
            found["validation_accuracy"] = float((guessed == columns[label])[known].float().mean())
    return found


def _has_label(guide: Program, columns: Mapping[str, Any], label: str) -> bool:
    try:
        programs.label_log_probs(guide, columns, label)
    except Exception:  # a user's guide that cannot do without labels may fail in any way
        return False
    return True
