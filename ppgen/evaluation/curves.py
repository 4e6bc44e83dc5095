"""The picture of how a training went: every number of its reports over the steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppgen.evaluation.figures import ACCENT, INK, PALE, SECOND, PathLike, save, tidy

Points = list[tuple[float, float]]

_NOT_DRAWN = {"step", "seconds", "epoch", "images_per_second"}
_HELD_OUT = ("validation", "test", "spread", "mmd", "modes")
_TOGETHER = {
    "critic_real": ("critic output", "data"),
    "critic_fake": ("critic output", "model"),
    "modes": ("modes", "modes"),
    "modes_of_data": ("modes", "of data"),
}
"""Panel and line of what shares a panel with something else."""
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
_NOTE: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 8, "color": ACCENT, "bbox": _BEHIND}
_COLOURS = (INK, ACCENT, SECOND, "#e0a030")
_LARGE = 20.0
"""Ratio of the largest value to the smallest from which gradient norms are drawn on a logarithmic axis."""


def training(metrics: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Draws how every number of the records developed over the steps.

    Each has a panel of its own, but for the gradient norms of several players, a critic's outputs on data and on
    samples, and the modes that samples and data cover, which share one. Where a collapse was noticed, a line says so.

    Args:
        metrics: records with "step", as in ``metrics.jsonl``; a key may be missing from some.
        path: of the picture; its suffix is the format.

    Raises:
        StorageError: if the picture cannot be written.
    """
    groups = grouped(curves_of(metrics))
    if not groups:
        figure = Figure(figsize=(4, 3))
        figure.text(0.5, 0.5, "no steps recorded yet", ha="center", va="center", color=INK)
        return save(figure, path)
    across = min(3, len(groups))
    down = math.ceil(len(groups) / across)
    figure = Figure(figsize=(4.0 * across, 2.7 * down))
    figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.12)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, (title, curves) in zip(panels, groups.items(), strict=False):
        _draw(panel, title, curves)
        for step, kind in collapses(metrics):
            panel.axvline(step, color=ACCENT, linewidth=1, linestyle=":")
            if panel is panels[0]:
                panel.text(step, 0.98, f"{kind} ", transform=panel.get_xaxis_transform(), **_NOTE)
    for index, panel in enumerate(panels):
        if index >= len(groups):
            panel.set_visible(False)
        elif index + across >= len(groups):
            panel.set_xlabel("step", color=INK)
    return save(figure, path)


def _draw(panel: Axes, title: str, curves: Mapping[str, Points]) -> None:
    tidy(panel)
    panel.set_title(title, fontsize=11, color=INK, parse_math=False)
    for colour, (name, points) in zip(_colours(curves), curves.items(), strict=False):
        marker = "o" if len(points) < 40 else ""
        panel.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=name)
    values = [value for points in curves.values() for _, value in points]
    if len(curves) > 1:
        panel.legend(frameon=True, edgecolor="none", framealpha=0.8, fontsize=9)
    if title.startswith("gradient norm") and min(values) > 0 and max(values) > _LARGE * min(values):
        panel.set_yscale("log")
    else:
        panel.ticklabel_format(axis="y", useOffset=False)
    if title == "modes":
        panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _colours(curves: Mapping[str, Points]) -> Sequence[str]:
    if len(curves) > 1:
        return [*_COLOURS, *[PALE] * len(curves)]
    return [ACCENT if next(iter(curves)).startswith(_HELD_OUT) else INK]


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Returns the finite points ``(step, value)`` of every numeric key, the loss first, then held-out ones."""
    curves: dict[str, Points] = {}
    for index, record in enumerate(metrics):
        for name, value in record.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and name not in _NOT_DRAWN and math.isfinite(value):
                curves.setdefault(name, []).append((record.get("step", index), value))
    order = {"loss": 0, **dict.fromkeys(_HELD_OUT, 1)}
    first = {name: next((order[start] for start in order if name.startswith(start)), 2) for name in curves}
    return dict(sorted(curves.items(), key=lambda item: first[item[0]]))


def grouped(curves: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """Returns what shares a panel, by its title: gradient norms of several players, a critic's outputs on two sides."""
    players = sum(name.startswith("gradient_norm/") for name in curves)
    groups: dict[str, dict[str, Points]] = {}
    for name, points in curves.items():
        measure, _, player = name.partition("/")
        if name in _TOGETHER:
            panel, line = _TOGETHER[name]
            groups.setdefault(panel, {})[line] = points
        elif measure == "gradient_norm" and players > 1:
            groups.setdefault("gradient norm", {})[player] = points
        else:
            title = f"{measure} of the {player}" if player else name
            groups[title.replace("_", " ")] = {name: points}
    return groups


def collapses(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Returns the step and name of every collapse that was noticed."""
    return [(record["step"], record["collapse"]) for record in metrics if "collapse" in record]
