"""What a run came to: the document that ``--json`` prints, and that a run folder keeps as ``result.json``."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppgen.configuration import digest
from ppgen.data import Dataset
from ppgen.places import load_data
from ppgen.sampling import Sampler

if TYPE_CHECKING:
    from ppgen.runs import Run


def judged(
    run: "Run", *, measures: Sequence[str] = (), particles: int | None = None, samples: int | None = None
) -> dict[str, Any]:
    """Judges a run on its test rows.

    Args:
        run: the run.
        measures: as `ppgen.evaluation.judge` takes them; unless told, those of its density if it has one, else quick
            ones of its samples.
        particles: draws of the latents per row; the recipe's unless told.
        samples: how many samples are compared with test rows.

    Raises:
        ConfigError: if a measure is unknown or does not suit the run.
        DataError: if a measure needs labels, or more rows.
    """
    from ppgen import evaluation
    from ppgen.evaluation.baselines import baselines

    count = particles or run.recipe.particles
    test = evaluation.judge(
        run.trainer,
        run.data,
        measures=measures,
        particles=count,
        samples=samples,
        complete=lambda: _with_all_labels(run),
    )
    document = documented(run, test)
    if "accuracy" in test:
        found = baselines(run.loaded)  # intensities where the model was given binary draws of them
        document["baselines"] = {name: proportion.as_dict() for name, proportion in found.items()}
    if "nll" not in test and (missing := evaluation.missing_density(run.trainer, run.data.test)):
        document["no_density"] = missing
    return document


def documented(run: "Run", test: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run is, with what was measured on its test rows."""
    return {
        "run": str(run.folder.path),
        "recipe": run.config.recipe,
        "data": run.config.data.name,
        "labels": run.config.data.labels,
        "seed": run.config.seed,
        "configuration": digest(run.config),
        "steps": run.trainer.steps,
        "seconds": round(run.seconds, 3),
        "compiled": bool(run.trainer.compiled),
        "test": test,
        **({"sampling": run.trainer.report()} if isinstance(run.trainer, Sampler) else {}),
    }


def _with_all_labels(run: "Run") -> Dataset:
    """Returns the data with the train labels that the run was not given: they serve to judge it."""
    data = run.config.data
    if data.labels is None or "y" not in run.data.train:
        return run.data
    labels = load_data(run.config.model_copy(update={"data": data.model_copy(update={"labels": None})})).train["y"]
    return dataclasses.replace(run.data, train={**run.data.train, "y": labels})
