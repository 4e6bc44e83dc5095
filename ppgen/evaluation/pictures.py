"""Pictures of a trained pair: what it dreams, what it reconstructs, how it learnt."""

import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ppgen import programs
from ppgen.data import Columns, Dataset
from ppgen.errors import ConfigError, PpgenError, StorageError
from ppgen.evaluation.measures import Trained
from ppgen.evaluation.slices import few, seeded, without

logger = logging.getLogger("ppgen")

DPI = 120
MOST_CLASSES = 50
_NOT_DRAWN = {"step", "seconds", "epoch", "images_per_second"}
_INK, _ACCENT = "#33475b", "#d1495b"
Path_ = str | os.PathLike[str]


def draw_all(trained: Trained, data: Dataset, metrics: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Draws ``samples.png``, ``reconstructions.png`` and ``training.png`` into a folder; returns those drawn.

    A picture that makes no sense for the model is left out with a warning.
    """
    drawings: dict[str, Callable[[Path], None]] = {
        "samples.png": functools.partial(samples, trained, data),
        "reconstructions.png": functools.partial(reconstructions, trained, data),
        "training.png": functools.partial(training, metrics),
    }
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


def samples(trained: Trained, data: Dataset, path: Path_, *, rows: int = 8, label: str = "y", seed: int = 0) -> None:
    """Draws what the model generates.

    Images are shown as their means given the latents: a column a class if the model has the label, each row from the
    same noise so that it keeps its style; a square of 100 otherwise. Vectors are drawn beside test rows: two values as
    points, one as a histogram, more as lines. Global latents come from the guide.

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
    batch = without(few(data.test, 2, trained.device), label)
    with seeded(seed), trained.evaluating():
        given = _global_draws(trained, batch)
        first = programs.generate(trained.model, batch, given=given)
        labelled = data.classes is not None and label in first and first[label].shape == (2,)
        if not _is_image(data.shape):
            rest = without(few(data.test, min(500, len(data.test["x"])), trained.device), label)
            drawn = _data_of(programs.generate(trained.model, rest, given=given), trained)
            figure = _vectors(rest["x"].cpu(), drawn)
        elif labelled:
            classes = (data.classes or ())[:MOST_CLASSES]
            columns = [_of_class(trained, batch, given, label, c, rows=rows, seed=seed) for c in range(len(classes))]
            figure = _mosaic(_displayed(torch.stack(columns, 1), data), columns=classes)
        else:
            images = _data_of(programs.generate(trained.model, batch, 100, given=given, mean=["x"]), trained)
            figure = _mosaic(_displayed(images.unflatten(0, (10, 10)), data))
    _save(figure, path)


def reconstructions(
    trained: Trained, data: Dataset, path: Path_, *, columns: int = 12, label: str = "y", seed: int = 0
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
    with seeded(seed), trained.evaluating():
        chosen = torch.randperm(len(data.test["x"]))[:columns]
        batch = {name: column[chosen].to(trained.device) for name, column in without(data.test, label).items()}
        found = _data_of(programs.reconstruct(trained.model, trained.guide, batch, mean=["x"]), trained)
    originals = batch["x"].cpu()
    if _is_image(data.shape):
        images = _displayed(torch.stack([originals, found.reshape(originals.shape)]), data)
        _save(_mosaic(images, rows=("test row", "reconstruction")), path)
    else:
        _save(_vector_reconstructions(originals.reshape(len(originals), -1), found.reshape(len(found), -1)), path)


def training(metrics: Sequence[Mapping[str, Any]], path: Path_) -> None:
    """Draws how every number of the records developed over the steps, a panel each.

    Args:
        metrics: records with "step", as in ``metrics.jsonl``; a key may be missing from some.
        path: of the picture; its suffix is the format.

    Raises:
        StorageError: if the picture cannot be written.
    """
    curves = _curves(metrics)
    if not curves:
        figure = Figure(figsize=(4, 3))
        figure.text(0.5, 0.5, "no steps recorded yet", ha="center", va="center", color=_INK)
        return _save(figure, path)
    across = min(3, len(curves))
    down = math.ceil(len(curves) / across)
    figure = Figure(figsize=(4.0 * across, 2.7 * down))
    figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.12)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        _tidy(panel)
        held_out = name.startswith(("validation", "test"))
        marker = "o" if len(points) < 40 else ""
        panel.plot(*zip(*points, strict=True), color=_ACCENT if held_out else _INK, marker=marker, markersize=3)
        panel.set_title(name.replace("_", " "), fontsize=11, color=_INK, parse_math=False)
        panel.ticklabel_format(axis="y", useOffset=False)
    for index, panel in enumerate(panels):
        if index >= len(curves):
            panel.set_visible(False)
        elif index + across >= len(curves):
            panel.set_xlabel("step", color=_INK)
    return _save(figure, path)


# ------------------------------------------------------------------------------------------------------ draws


def _of_class(
    trained: Trained, batch: Columns, given: Mapping[str, Tensor], label: str, state: int, *, rows: int, seed: int
) -> Tensor:
    torch.manual_seed(seed)  # the same noise for each class, also where latents depend on the class
    labels = torch.full((rows,), state, device=trained.device)
    return _data_of(programs.generate(trained.model, batch, rows, given={**given, label: labels}, mean=["x"]), trained)


def _global_draws(trained: Trained, batch: Columns) -> dict[str, Tensor]:
    """Draws the global latents from the guide: the model alone would draw them from their prior."""
    joint = programs.run(trained.model, trained.guide, batch, check=False)
    if joint.plate is None:
        return {}
    names = [name for name in joint.latents if name in joint.model.nodes and not joint.is_local(name)]
    return {name: joint.guide.nodes[name]["value"] for name in names}


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


def _mosaic(images: Tensor, *, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Figure:
    """Lays out images ``(rows, columns, height, width, channels)`` with white gaps, and names of columns or rows."""
    down, across, height, width, channels = images.shape
    gap = max(1, round(max(height, width) / 14))
    canvas = torch.ones(down, across, height + gap, width + gap, 3)
    canvas[:, :, :height, :width] = images.expand(-1, -1, -1, -1, 3 if channels == 1 else channels)
    flat = canvas.movedim(1, 2).reshape(down * (height + gap), across * (width + gap), 3)[:-gap, :-gap]
    inches = 0.62 / max(height, width)
    figure = Figure(figsize=(flat.shape[1] * inches + (1.3 if rows else 0.3), flat.shape[0] * inches + 0.5))
    figure.set_layout_engine("constrained")
    panel = figure.subplots()
    panel.imshow(flat.numpy(), interpolation="nearest", vmin=0, vmax=1)
    for spine in panel.spines.values():
        spine.set_visible(False)
    long = any(len(name) > 5 for name in columns)
    style: dict[str, Any] = {"fontsize": 11, "color": _INK, "parse_math": False}
    leaning: dict[str, Any] = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if long else {}
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.set_xticks([i * (width + gap) + width / 2 - 0.5 for i in range(len(columns))], columns, **style, **leaning)
    panel.set_yticks([i * (height + gap) + height / 2 - 0.5 for i in range(len(rows))], rows, **style)
    return figure


# ------------------------------------------------------------------------------------------------------ vectors


def _vectors(test: Tensor, drawn: Tensor) -> Figure:
    test, drawn = test.reshape(len(test), -1), drawn.reshape(len(drawn), -1)
    figure = Figure(figsize=(8, 4), layout="constrained")
    if test.shape[1] == 1:
        panel = figure.subplots()
        edges = torch.linspace(float(min(test.min(), drawn.min())), float(max(test.max(), drawn.max())), 41).tolist()
        for values, colour, name in ((test, _INK, "test rows"), (drawn, _ACCENT, "generated")):
            panel.hist(values[:, 0].numpy(), bins=edges, density=True, color=colour, alpha=0.5, label=name)
        panel.legend(frameon=False)
        _tidy(panel)
        return figure
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    named = ((test, _INK, "test rows"), (drawn, _ACCENT, "generated"))
    for panel, (values, colour, name) in zip(panels, named, strict=True):
        _tidy(panel)
        panel.set_title(name, fontsize=11, color=_INK)
        if values.shape[1] == 2:
            panel.scatter(values[:, 0], values[:, 1], s=8, color=colour, alpha=0.6, linewidths=0)
        else:
            panel.plot(values[:20].T.numpy(), color=colour, alpha=0.4, linewidth=1)
            panel.set_xlabel("position in the vector", color=_INK)
    return figure


def _vector_reconstructions(originals: Tensor, found: Tensor) -> Figure:
    if originals.shape[1] > 2:
        return _line_reconstructions(originals, found)
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    panel = figure.subplots()
    _tidy(panel)
    if originals.shape[1] == 1:
        panel.axline((float(originals[0]), float(originals[0])), slope=1, color="#b8c4ce", linewidth=1, zorder=0)
        panel.scatter(originals[:, 0], found[:, 0], s=22, color=_ACCENT)
        panel.set_xlabel("test row", color=_INK)
        panel.set_ylabel("reconstruction", color=_INK)
        return figure
    for a, b in zip(originals.tolist(), found.tolist(), strict=True):
        panel.plot(*zip(a, b, strict=True), color="#b8c4ce", linewidth=1, zorder=0)
    panel.scatter(originals[:, 0], originals[:, 1], s=22, color=_INK, label="test row")
    panel.scatter(found[:, 0], found[:, 1], s=22, color=_ACCENT, label="reconstruction")
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
        _tidy(panel)
        panel.plot(original.numpy(), color=_INK, linewidth=1.5, marker=marker, markersize=3, label="test row")
        panel.plot(
            reconstruction.numpy(), color=_ACCENT, linewidth=1.2, marker=marker, markersize=3, label="reconstruction"
        )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


# ------------------------------------------------------------------------------------------------------ figures


def _curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Returns the finite points ``(step, value)`` of every numeric key, the loss first, then held-out ones."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for index, record in enumerate(metrics):
        for name, value in record.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and name not in _NOT_DRAWN and math.isfinite(value):
                curves.setdefault(name, []).append((record.get("step", index), value))
    return dict(sorted(curves.items(), key=lambda item: (not item[0].startswith("loss"), "validation" not in item[0])))


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#b8c4ce")
    panel.tick_params(colors=_INK, labelsize=9)
    panel.grid(color="#e6ebef", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_locator(MaxNLocator(5))


def _save(figure: Figure, path: Path_) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a class name in a script that the font lacks
        try:
            figure.savefig(Path(path), dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
        except OSError as error:
            raise StorageError(f"cannot write the picture {path}: {error.strerror or error}") from error
