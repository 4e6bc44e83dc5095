"""What a run gives away: samples of its model, and an ArviZ file."""

import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppgen import programs
from ppgen.data import Columns, Dataset
from ppgen.errors import ConfigError, StorageError
from ppgen.evaluation import arviz, missing_density
from ppgen.evaluation.slices import count_rows, few, without
from ppgen.files import replace_file, storage_errors
from ppgen.programs import Program
from ppgen.randomness import forked
from ppgen.runs import Run
from ppgen.sampling import Sampler
from ppgen.streams import has_rows

LABEL = "y"
FORMATS = (".png", ".npz", ".npy")
DRAWS = 100
MOST_VALUES = 2e7
"""Largest number of values of a variable in an ArviZ file (80 MB)."""
SMALLEST_SIDE = 56
"""Pixels of the shorter side of an image in a picture."""


def draw_samples(run: Run, rows: int, *, label: str | None = None, seed: int = 0) -> tuple[Columns, Columns]:
    """Draws rows from a run's model; global latents come from the guide.

    Args:
        run: the run.
        rows: how many.
        label: name or number of the class of all rows; drawn by the model unless told.
        seed: of the draws; no random stream moves.

    Returns:
        Draws of the data sites, labels, and the columns that are only inputs (those of test rows), each
        ``(rows, ...)``; and the means of the data sites given the latents, where they are known.

    Raises:
        ConfigError: if there is no such label.
    """
    trainer = run.trainer
    batch = few(run.data.test, rows, trainer.device)
    with forked(seed), trainer.evaluating():
        if run.data.classes is not None and _infers(trainer.guide, without(batch, LABEL)):
            batch = without(batch, LABEL)
        joint = programs.run(trainer.model, trainer.guide, batch, check=False)
        shared = [name for name in joint.latents if name in joint.model.nodes and not joint.is_local(name)]
        given = {name: joint.guide.nodes[name]["value"] for name in shared}
        if label is not None:
            given[LABEL] = torch.full((rows,), _class_of(run.data, label), device=trainer.device)
            if LABEL not in joint.model.nodes:
                raise ConfigError(f"expected no --label, since the model of '{run.config.recipe}' has no labels")
        drawn = programs.generate(trainer.model, batch, given=given)
        latents = {name: value for name, value in drawn.items() if name not in joint.observed or name in given}
        means = programs.generate(trainer.model, batch, given=latents, mean=joint.observed)
    taken = programs.arguments(trainer.model, batch)[1]
    inputs = {name: column for name, column in batch.items() if name in taken and name not in drawn}
    chosen = {name: drawn[name] for name in (*joint.observed, LABEL) if name in drawn}
    shown = [name for name in joint.observed if name in means and (name != LABEL or run.data.classes is None)]
    return _on_cpu(inputs | chosen), _on_cpu({name: means[name] for name in shown})


def _infers(guide: Program, batch: Columns) -> bool:
    """Whether a guide draws the label where it is not given."""
    try:
        return LABEL in programs.posterior(guide, batch)
    except Exception:  # a user's guide that cannot do without it may fail in any way
        return False


def _on_cpu(columns: Columns) -> Columns:
    """Returns columns as they are written to a file: what has one value for all rows as an array without dimensions."""
    tensors = {name: torch.as_tensor(column) for name, column in columns.items() if not isinstance(column, str | None)}
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _class_of(data: Dataset, label: str) -> int:
    classes = data.classes
    if classes is None:
        raise ConfigError(f"expected no --label, since data set '{data.name}' has no labels")
    if label in classes:
        return classes.index(label)
    if label.isdigit() and int(label) < len(classes):
        return int(label)
    raise ConfigError(f"there is no label '{label}': there are {', '.join(classes[:50])}")


def is_image(data: Dataset) -> bool:
    """Whether one row can be shown as an image: ``(height, width)`` or ``(1 or 3, height, width)``."""
    return len(data.shape) == 2 or (len(data.shape) == 3 and data.shape[0] in (1, 3))


def default_file(run: Run) -> Path:
    """Where samples go unless told: beside the user, named after the run."""
    return Path(f"{run.folder.path.name}-samples{'.png' if is_image(run.data) else '.npz'}")


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Checks, before the work, that a file can be written there.

    Raises:
        ConfigError: if its folder does not exist or its suffix names no known format.
    """
    if path.suffix not in suffixes:
        raise ConfigError(f"expected a file ending in {' or '.join(suffixes)}; got '{path}'")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"expected a file in an existing folder; got '{path}'")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"cannot write {path}: its folder is read-only")


def write_samples(run: Run, path: Path, rows: int, *, label: str | None = None, seed: int = 0) -> None:
    """Writes samples: ``.png`` shows the means of images, ``.npy`` holds ``x``, ``.npz`` all columns and ``x_mean``.

    Args:
        run: the run.
        path: of the file.
        rows: how many.
        label: see `draw_samples`.
        seed: of the draws.

    Raises:
        ConfigError: if the format does not suit the data, or there is no such label.
        StorageError: if the file cannot be written.
    """
    if path.suffix == ".png" and not is_image(run.data):
        raise ConfigError(f"samples of shape {run.data.shape} are no images: choose a file ending in .npz")
    drawn, means = draw_samples(run, rows, label=label, seed=seed)
    if path.suffix != ".npz" and "x" not in means:
        raise ConfigError(f"the model has no data site 'x' but {', '.join(means)}: choose a file ending in .npz")
    if path.suffix == ".png":
        write_file(path, _png(means["x"], run))
    elif path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, drawn["x"].numpy(), allow_pickle=False)
        write_file(path, buffer.getvalue())
    else:
        buffer = io.BytesIO()
        arrays = drawn | {f"{name}_mean": mean for name, mean in means.items()}
        np.savez_compressed(buffer, allow_pickle=False, **{name: value.numpy() for name, value in arrays.items()})
        write_file(path, buffer.getvalue())


def _png(images: Tensor, run: Run) -> bytes:
    from matplotlib.image import imsave
    from torchvision.utils import make_grid

    levels = getattr(getattr(run.trainer.model, "likelihood", None), "levels", None)
    images = images.float() / (levels - 1) if levels else images
    low, high = run.data.test["x"].min(), run.data.test["x"].max()
    if low < 0 or high > 1:
        images = (images - low) / (high - low)
    images = images.reshape(len(images), -1, *run.data.shape[-2:]).clamp(0, 1)
    factor = math.ceil(SMALLEST_SIDE / min(images.shape[-2:]))
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    grid = make_grid(images, nrow=math.ceil(math.sqrt(len(images))), padding=4, pad_value=1.0)
    buffer = io.BytesIO()
    imsave(buffer, grid.movedim(0, -1).numpy(), format="png")
    return buffer.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in the place of what may be there; `StorageError` if it cannot be."""
    with storage_errors(path, "choose another --out", doing="write"):
        replace_file(path, content)


def write_arviz(run: Run, path: Path) -> str:
    """Writes 100 draws for test rows, evenly spaced if they are too many for one file; says what it wrote.

    Of a run that holds draws of a posterior, all of them are written, in their chains: they are those of train rows.

    Raises:
        CheckpointError: if a run that samples has no draws yet.
        ConfigError: if the run has no density for its data.
        StorageError: if the file cannot be written.
    """
    if isinstance(run.trainer, Sampler):
        arviz.to_netcdf(run.trainer.to_arviz(), path)
        sampling = run.trainer.sampling
        return f"{len(run.trainer.chains)} chains of {sampling.draws:,} draws of the posterior"
    test = run.data.test
    if missing := missing_density(run.trainer, test):
        raise ConfigError(
            f"an ArviZ file holds weighted draws, and this run has no density to weight them by: {missing}; take `ppgen"
            " sample`, or `ppgen embed` where there is an encoder"
        )
    rows = count_rows(test)
    values = max(column[0].numel() for column in test.values() if has_rows(column))
    count = max(1, min(rows, int(MOST_VALUES / (DRAWS * values))))
    chosen = [index * rows // count for index in range(count)]
    arviz.to_netcdf(arviz.to_arviz(run.trainer, test, draws=DRAWS, rows=chosen), path)
    return f"{DRAWS} draws for {count:,} test rows"
