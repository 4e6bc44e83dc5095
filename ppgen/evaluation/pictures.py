"""Pictures of a trained pair: what it dreams, what it reconstructs, how it learnt."""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppgen import programs
from ppgen.data import Columns, Dataset
from ppgen.errors import ConfigError, PpgenError
from ppgen.evaluation.curves import training
from ppgen.evaluation.figures import ACCENT, INK, PALE, PathLike, png, save, tidy
from ppgen.evaluation.measures import Trained
from ppgen.evaluation.simulated import global_draws
from ppgen.evaluation.slices import few, taken, without
from ppgen.randomness import forked

__all__ = ["draw_all", "reconstructions", "samples", "snapshot", "training"]

logger = logging.getLogger("ppgen")

MOST_CLASSES = 50
TILE = 48
"""Least pixels across an image of a snapshot."""


def draw_all(trained: Trained, data: Dataset, metrics: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Draws ``samples.png``, ``reconstructions.png`` and ``training.png`` into a folder; returns those drawn.

    A picture that makes no sense for the model is left out with a warning; without one where the guide is empty.
    """
    drawings: dict[str, Callable[[Path], None]] = {
        "samples.png": functools.partial(samples, trained, data),
        "reconstructions.png": functools.partial(reconstructions, trained, data),
        "training.png": functools.partial(training, metrics),
    }
    if not _infers(trained, data):
        del drawings["reconstructions.png"]
    drawn = []
    for name, draw in drawings.items():
        try:
            draw(folder / name)
        except ConfigError as error:  # a model of other data than x has nothing to show
            logger.warning("no %s: %s", name, error)
        except PpgenError:
            raise
        except Exception as error:  # a user's program, which trains, need not generate
            logger.warning("no %s: the model cannot be drawn from (%s: %s)", name, type(error).__name__, _line(error))
        else:
            drawn.append(folder / name)
    return drawn


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _infers(trained: Trained, data: Dataset, *, label: str = "y") -> bool:
    """Whether the guide draws anything: that of a generator without an encoder does not."""
    try:
        with forked(0), trained.evaluating():
            batch = _without_labels(few(data.test, 2, trained.device), data, label)
            return bool(programs.posterior(trained.guide, batch))
    except Exception:  # as the picture will say
        return True


def _without_labels(columns: Mapping[str, Tensor], data: Dataset, label: str) -> Columns:
    """Withholds labels; values that only bear their name are a column like others."""
    return dict(columns) if data.classes is None else without(columns, label)


def samples(trained: Trained, data: Dataset, path: PathLike, *, rows: int = 8, label: str = "y", seed: int = 0) -> None:
    """Draws what the model generates.

    Images are shown as their means given the latents: a column a class if the model has the label, each row from the
    same noise so that it keeps its style; a square of 100 otherwise. Vectors are drawn with test rows: two values as
    points over theirs, one as a histogram, more as lines. Global latents come from the guide.

    Args:
        trained: the pair.
        data: what it was trained on.
        path: of the picture; its suffix is the format.
        rows: images of each class.
        label: name of the label's site.
        seed: of the draws; no random stream moves.

    Raises:
        ConfigError: if the model has no site ``x``.
        StorageError: if the picture cannot be written.
    """
    with forked(seed), trained.evaluating():
        if _is_image(data.shape):
            images, classes = _image_samples(trained, data, rows=rows, across=10, label=label, seed=seed)
            figure = _mosaic(images, columns=classes)
        else:
            figure = _vectors(*_vector_samples(trained, data, label=label))
    save(figure, path)


def snapshot(trained: Trained, data: Dataset, *, title: str, label: str = "y", seed: int = 0) -> bytes:
    """Draws what the model generates now, small and quick, to be compared with other steps: a PNG file.

    Latents are the same each time, and so are the axes of two values, which are drawn over test rows.

    Args:
        trained: the pair.
        data: what it is trained on.
        title: shown above vectors.
        label: name of the label's site.
        seed: of the draws; no random stream moves.

    Raises:
        ConfigError: if the model has no site ``x``.
    """
    with forked(seed), trained.evaluating():
        if _is_image(data.shape):
            images, _ = _image_samples(trained, data, rows=8, across=8, label=label, seed=seed)
            return png(_canvas(_enlarged(images)))
        test, drawn = _vector_samples(trained, data, label=label)
    return png(_vectors(test, drawn, title=title, steady=True))


def reconstructions(
    trained: Trained, data: Dataset, path: PathLike, *, columns: int = 12, label: str = "y", seed: int = 0
) -> None:
    """Draws test rows above what the pair makes of them: latents from the guide, then the mean of the data.

    Args:
        trained: the pair.
        data: what it was trained on.
        path: of the picture; its suffix is the format.
        columns: how many test rows, chosen at random.
        label: the column that is withheld.
        seed: of the choice and the draws; no random stream moves.

    Raises:
        ConfigError: if the model has no site ``x``.
        StorageError: if the picture cannot be written.
    """
    with forked(seed), trained.evaluating():
        chosen = torch.randperm(len(data.test["x"]))[:columns]
        batch = taken(_without_labels(data.test, data, label), chosen, trained.device)
        found = _data_of(programs.reconstruct(trained.model, trained.guide, batch, mean=["x"]), trained)
    originals = batch["x"].cpu()
    if _is_image(data.shape):
        images = _displayed(torch.stack([originals, found.reshape(originals.shape)]), data)
        save(_mosaic(images, rows=("test row", "reconstruction")), path)
    else:
        save(_vector_reconstructions(originals.reshape(len(originals), -1), found.reshape(len(found), -1)), path)


# ------------------------------------------------------------------------------------------------------ draws


def _image_samples(
    trained: Trained, data: Dataset, *, rows: int, across: int, label: str, seed: int
) -> tuple[Tensor, Sequence[str]]:
    """Returns images ``(rows, columns, height, width, channels)`` and names of the columns, if those are classes."""
    batch = _without_labels(few(data.test, 2, trained.device), data, label)
    given = global_draws(trained, batch)
    first = programs.generate(trained.model, batch, given=given)
    if data.classes is not None and label in first and first[label].shape == (2,):
        classes = data.classes[:MOST_CLASSES]
        columns = [_of_class(trained, batch, given, label, c, rows=rows, seed=seed) for c in range(len(classes))]
        return _displayed(torch.stack(columns, 1), data), classes
    images = _data_of(programs.generate(trained.model, batch, across**2, given=given, mean=["x"]), trained)
    return _displayed(images.unflatten(0, (across, across)), data), ()


def _vector_samples(trained: Trained, data: Dataset, *, label: str) -> tuple[Tensor, Tensor]:
    """Returns test rows and as many samples, ``(rows, values)`` each."""
    batch = _without_labels(few(data.test, 2, trained.device), data, label)
    given = global_draws(trained, batch)
    rest = _without_labels(few(data.test, min(500, len(data.test["x"])), trained.device), data, label)
    drawn = _data_of(programs.generate(trained.model, rest, given=given), trained)
    return rest["x"].cpu().reshape(len(drawn), -1), drawn.reshape(len(drawn), -1)


def _of_class(
    trained: Trained, batch: Columns, given: Mapping[str, Tensor], label: str, state: int, *, rows: int, seed: int
) -> Tensor:
    torch.manual_seed(seed)  # the same noise for each class, also where latents depend on the class
    labels = torch.full((rows,), state, device=trained.device)
    return _data_of(programs.generate(trained.model, batch, rows, given={**given, label: labels}, mean=["x"]), trained)


def _data_of(draws: Mapping[str, Tensor], trained: Trained) -> Tensor:
    if "x" not in draws:
        raise ConfigError(f"expected a model with a data site 'x' to draw; got sites {', '.join(draws)}")
    levels = getattr(getattr(trained.model, "likelihood", None), "levels", None)
    x = draws["x"].detach().float().cpu()
    return x / (levels - 1) if levels else x


# ------------------------------------------------------------------------------------------------------ images


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def _displayed(images: Tensor, data: Dataset) -> Tensor:
    """Brings images ``(rows, columns, ...)`` to ``(rows, columns, height, width, 1 or 3)`` in [0, 1]."""
    images = images.reshape(*images.shape[:2], *data.shape)  # a model may observe them flattened
    images = images.unsqueeze(-3) if len(data.shape) == 2 else images
    low, high = data.test["x"].min(), data.test["x"].max()
    if low < 0 or high > 1:
        images = (images - low) / (high - low)
    return images.movedim(-3, -1).nan_to_num(0.0).clamp(0, 1)


def _gap(height: int, width: int) -> int:
    return max(1, round(max(height, width) / 14))


def _canvas(images: Tensor) -> Tensor:
    """Lays out images ``(rows, columns, height, width, channels)`` with white gaps: ``(height, width, 3)``."""
    down, across, height, width, channels = images.shape
    gap = _gap(height, width)
    canvas = torch.ones(down, across, height + gap, width + gap, 3)
    canvas[:, :, :height, :width] = images.expand(-1, -1, -1, -1, 3 if channels == 1 else channels)
    return canvas.movedim(1, 2).reshape(down * (height + gap), across * (width + gap), 3)[:-gap, :-gap]


def _enlarged(images: Tensor) -> Tensor:
    """Repeats pixels of ``(rows, columns, height, width, channels)`` until an image is large enough to look at."""
    factor = math.ceil(TILE / max(images.shape[2:4]))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _mosaic(images: Tensor, *, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Figure:
    """Lays out images ``(rows, columns, height, width, channels)`` with white gaps, and names of columns or rows."""
    height, width = images.shape[2:4]
    gap, flat = _gap(height, width), _canvas(images)
    inches = 0.62 / max(height, width)
    figure = Figure(figsize=(flat.shape[1] * inches + (1.3 if rows else 0.3), flat.shape[0] * inches + 0.5))
    figure.set_layout_engine("constrained")
    panel = figure.subplots()
    panel.imshow(flat.numpy(), interpolation="nearest", vmin=0, vmax=1)
    for spine in panel.spines.values():
        spine.set_visible(False)
    long = any(len(name) > 5 for name in columns)
    style: dict[str, Any] = {"fontsize": 11, "color": INK, "parse_math": False}
    leaning: dict[str, Any] = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if long else {}
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.set_xticks([i * (width + gap) + width / 2 - 0.5 for i in range(len(columns))], columns, **style, **leaning)
    panel.set_yticks([i * (height + gap) + height / 2 - 0.5 for i in range(len(rows))], rows, **style)
    return figure


# ------------------------------------------------------------------------------------------------------ vectors


def _vectors(test: Tensor, drawn: Tensor, *, title: str = "", steady: bool = False) -> Figure:
    """Draws test rows and samples, ``(rows, values)`` each; with axes that do not depend on the samples if steady."""
    if test.shape[1] == 2:
        return _points(test, drawn, title=title, steady=steady)
    figure = Figure(figsize=(8, 4), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    if test.shape[1] == 1:
        panel = figure.subplots()
        edges = torch.linspace(float(min(test.min(), drawn.min())), float(max(test.max(), drawn.max())), 41).tolist()
        for values, colour, name in ((test, INK, "test rows"), (drawn, ACCENT, "generated")):
            panel.hist(values[:, 0].numpy(), bins=edges, density=True, color=colour, alpha=0.5, label=name)
        panel.legend(frameon=False)
        tidy(panel)
        return figure
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    named = ((test, INK, "test rows"), (drawn, ACCENT, "generated"))
    for panel, (values, colour, name) in zip(panels, named, strict=True):
        tidy(panel)
        panel.set_title(name, fontsize=11, color=INK)
        panel.plot(values[:20].T.numpy(), color=colour, alpha=0.4, linewidth=1)
        panel.set_xlabel("position in the vector", color=INK)
    return figure


def _points(test: Tensor, drawn: Tensor, *, title: str, steady: bool) -> Figure:
    """Draws samples of two values over test rows."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    panel = figure.subplots()
    tidy(panel)
    panel.set_title(title, fontsize=11, color=INK)
    panel.scatter(test[:, 0], test[:, 1], s=26, color=PALE, linewidths=0, label="test rows")
    panel.scatter(drawn[:, 0], drawn[:, 1], s=8, color=ACCENT, alpha=0.6, linewidths=0, label="generated")
    if steady:
        middle, reach = (test.amax(0) + test.amin(0)) / 2, 0.75 * (test.amax(0) - test.amin(0)).clamp(min=1e-6)
        panel.set_xlim(float((middle - reach)[0]), float((middle + reach)[0]))
        panel.set_ylim(float((middle - reach)[1]), float((middle + reach)[1]))
        outside = int(((drawn - middle).abs() > reach).any(1).sum())
        panel.set_xlabel(f"{outside} of {len(drawn)} generated lie outside" if outside else "", color=INK)
    else:
        panel.axis("equal")
    panel.legend(edgecolor="none", loc="upper right")
    return figure


def _vector_reconstructions(originals: Tensor, found: Tensor) -> Figure:
    if originals.shape[1] > 2:
        return _line_reconstructions(originals, found)
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    panel = figure.subplots()
    tidy(panel)
    if originals.shape[1] == 1:
        panel.axline((float(originals[0]), float(originals[0])), slope=1, color=PALE, linewidth=1, zorder=0)
        panel.scatter(originals[:, 0], found[:, 0], s=22, color=ACCENT)
        panel.set_xlabel("test row", color=INK)
        panel.set_ylabel("reconstruction", color=INK)
        return figure
    for a, b in zip(originals.tolist(), found.tolist(), strict=True):
        panel.plot(*zip(a, b, strict=True), color=PALE, linewidth=1, zorder=0)
    panel.scatter(originals[:, 0], originals[:, 1], s=22, color=INK, label="test row")
    panel.scatter(found[:, 0], found[:, 1], s=22, color=ACCENT, label="reconstruction")
    panel.legend(frameon=False)
    return figure


def _line_reconstructions(originals: Tensor, found: Tensor) -> Figure:
    across = min(4, len(originals))
    down = math.ceil(len(originals) / across)
    figure = Figure(figsize=(2.6 * across, 1.7 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    marker = "o" if originals.shape[1] < 20 else ""
    for panel in panels[len(originals) :]:
        panel.set_visible(False)
    for panel, original, reconstruction in zip(panels, originals, found, strict=False):
        tidy(panel)
        panel.plot(original.numpy(), color=INK, linewidth=1.5, marker=marker, markersize=3, label="test row")
        panel.plot(
            reconstruction.numpy(), color=ACCENT, linewidth=1.2, marker=marker, markersize=3, label="reconstruction"
        )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
