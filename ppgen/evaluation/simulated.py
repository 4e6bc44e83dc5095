"""Rows that a trained pair makes up, for comparison with held-out ones."""

from collections.abc import Mapping

import torch
from pyro.distributions import Bernoulli, Independent, MaskedDistribution
from torch import Tensor

from ppgen import programs
from ppgen.data import Dataset
from ppgen.errors import ConfigError
from ppgen.evaluation.measures import Trained
from ppgen.evaluation.slices import fitting, slices, taken, values_per_row
from ppgen.randomness import forked

DATA = "x"


def samples_of(trained: Trained, data: Dataset, rows: int, *, seed: int = 0) -> Tensor:
    """Draws rows from the model, with the shape and the scale of the data; global latents come from the guide.

    Columns that the model takes as inputs are those of random test rows. Where the data are grey and the model is a
    Bernoulli of them, whose draws are black or white, rows are its means given the latents.

    Args:
        trained: the pair; a `ppgen.Trainer`, say.
        data: what it was trained on.
        rows: how many.
        seed: of the draws; no random stream moves.

    Returns:
        float32 ``(rows, *shape)``, on the CPU.

    Raises:
        ConfigError: if the model draws no site ``x``, or of another shape.
    """
    with forked(seed), trained.evaluating():
        chosen = torch.randint(len(data.test[DATA]), (rows,))
        columns = taken(data.test, chosen)
        some = taken(columns, slice(2), trained.device)
        given = global_draws(trained, some)
        means = _shown_as_means(trained, some, columns[DATA])

        def draw(part: dict[str, Tensor]) -> dict[str, Tensor]:
            return programs.generate(trained.model, part, given=given, mean=means)

        size = fitting(values_per_row(draw, columns, trained.device), trained.device)
        drawn = [draw(part) for _, part in slices(columns, size, trained.device)]
    if DATA not in drawn[0]:
        raise ConfigError(f"expected a model that draws '{DATA}', to judge samples of; it draws {', '.join(drawn[0])}")
    x = torch.cat([part[DATA].detach().float().cpu() for part in drawn])
    levels = getattr(getattr(trained.model, "likelihood", None), "levels", None)
    x = x / (levels - 1) if levels else x
    if x[0].numel() != data.test[DATA][0].numel():
        raise ConfigError(f"expected samples of shape {data.shape}, as the data; got {tuple(x.shape[1:])}")
    return x.reshape(rows, *data.shape)


def global_draws(trained: Trained, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws what all rows share from the guide: the model alone would draw it from its prior."""
    joint = programs.run(trained.model, trained.guide, batch, check=False)
    if joint.plate is None:
        return {}
    names = [name for name in joint.latents if name in joint.model.nodes and not joint.is_local(name)]
    return {name: joint.guide.nodes[name]["value"] for name in names}


def _shown_as_means(trained: Trained, batch: Mapping[str, Tensor], rows: Tensor) -> list[str]:
    joint = programs.run(trained.model, trained.guide, batch, check=False)
    if DATA not in joint.model.nodes or bool(((rows == 0) | (rows == 1)).all()):
        return []
    observation = joint.model.nodes[DATA]["fn"]
    while isinstance(observation, (Independent, MaskedDistribution)):
        observation = observation.base_dist
    return [DATA] if isinstance(observation, Bernoulli) else []
