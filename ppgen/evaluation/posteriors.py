"""A picture of several posteriors of the same latents."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ppgen.evaluation.diagnostics import element
from ppgen.evaluation.figures import PathLike, save, tidy

_COLOURS = ("#33475b", "#d1495b", "#2a9d8f", "#e9a23b", "#7a5195", "#8a8a8a")
_STYLES = ("-", "--", "-.", ":", "-", "--")
_INK = "#33475b"
_MOST_DRAWS = 4_000
_POINTS = 200

Posteriors = Mapping[str, Mapping[str, Tensor]]
"""Draws ``(chains, draws, ...)`` by latent, of each way to fit a model by name."""


def densities(posteriors: Posteriors, path: PathLike, *, most: int = 12) -> None:
    """Draws the density of each number of the latents, a panel each; what has one draw only, as a vertical line.

    Args:
        posteriors: draws of each way by name.
        path: of the picture; its suffix is the format.
        most: how many numbers; the first ones.

    Raises:
        StorageError: if the picture cannot be written.
    """
    shapes = {site: tuple(draws.shape[2:]) for way in posteriors.values() for site, draws in way.items()}
    numbers = [(site, index) for site, shape in shapes.items() for index in itertools.product(*map(range, shape))]
    shown = numbers[:most]
    across = min(3, max(1, len(shown)))
    down = math.ceil(max(1, len(shown)) / across)
    figure = Figure(figsize=(4.0 * across, 2.6 * down + 0.5))
    figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.12)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, (site, index) in zip(panels, shown, strict=False):
        tidy(panel)
        panel.set_title(element(site, index), fontsize=11, color=_INK, parse_math=False)
        panel.set_yticks([])
        own = {name: _numbers(way[site], index) for name, way in posteriors.items() if site in way}
        _panel(panel, own, list(posteriors))
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    entries = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if entries:
        columns = min(len(entries), 2 * across)
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=columns, frameon=False, labelcolor=_INK
        )
    if len(numbers) > most:
        figure.supxlabel(f"the first {most} of {len(numbers):,} numbers", fontsize=9, color=_INK)
    save(figure, path)


def _numbers(draws: Tensor, index: tuple[int, ...]) -> np.ndarray[Any, Any]:
    place: tuple[Any, ...] = (slice(None), slice(None), *index)
    chosen = draws[place].detach().double().flatten().cpu().numpy()
    return np.asarray(chosen[:: max(1, len(chosen) // _MOST_DRAWS)])


def _panel(panel: Axes, own: Mapping[str, np.ndarray[Any, Any]], names: list[str]) -> None:
    from scipy.stats import gaussian_kde

    for name, draws in own.items():
        place = names.index(name)
        style: dict[str, Any] = {
            "color": _COLOURS[place % 6],
            "linestyle": _STYLES[place % 6],
            "label": name,
            "linewidth": 1.6,
        }
        if len(draws) < 2 or np.ptp(draws) < 1e-9 * max(1.0, abs(draws[0])):
            panel.axvline(draws[0], **style)
            continue
        low, high = np.quantile(draws, [0.002, 0.998])
        grid = np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), _POINTS)
        panel.plot(grid, gaussian_kde(draws)(grid), **style)
    panel.set_ylim(bottom=0)
