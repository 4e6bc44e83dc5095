"""What all pictures have in common: colours, plain axes, and how they are written."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ppgen.files import replace_file, storage_errors

DPI = 120
INK, ACCENT, SECOND, PALE = "#33475b", "#d1495b", "#3a86a8", "#b8c4ce"
PathLike = str | os.PathLike[str]


def tidy(panel: Axes) -> None:
    """Gives a panel few ticks, a pale grid and two spines."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(PALE)
    panel.tick_params(colors=INK, labelsize=9)
    panel.grid(color="#e6ebef", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_locator(MaxNLocator(5))


def save(figure: Figure, path: PathLike) -> None:
    """Writes a figure.

    Raises:
        StorageError: if it cannot be written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a class name in a script that the font lacks
        file, path = io.BytesIO(), Path(path)
        kind = path.suffix.removeprefix(".") or "png"
        figure.savefig(file, format=kind, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    with storage_errors(path, "free some space, or choose another folder", doing="write"):
        replace_file(path, file.getvalue())


def png(picture: Figure | Tensor) -> bytes:
    """Returns a figure, or pixels ``(height, width, 3)`` in [0, 1], as a PNG file."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(file, format="png", dpi=DPI, facecolor="white")
    else:
        pixels = (255 * picture).round().byte().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="png")
    return file.getvalue()
