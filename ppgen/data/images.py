"""A folder of images: a sub-folder is a class, `_unlabelled/` beside them holds images without a label."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ppgen.data.checking import Array, Raw, reading, require_memory
from ppgen.errors import DataError

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "RGBA": 4}
_UNLABELLED = "_unlabelled"


def read_images(path: Path, *, max_bytes: int | None) -> Raw:
    """Read all images of a folder; they must be of one size and mode.

    Raises:
        DataError: naming the file at fault, or two files whose sizes or modes differ.
    """
    with reading(path):
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        flat, skipped = _images_in(path)
    if flat and names:
        raise DataError(f"{path}: expected images or sub-folders of images; got both ({flat[0].name}, {names[0]}/)")
    classes = [name for name in names if name != _UNLABELLED]
    files, labels = flat, [-1] * len(flat)
    for name in names:
        with reading(path / name):
            found, others = _images_in(path / name)
            nested = next((entry for entry in (path / name).iterdir() if entry.is_dir()), None)
        if nested is not None:
            raise DataError(f"{path / name}: expected images; got a folder {nested.name}/")
        files, skipped = files + found, skipped + others
        labels += [classes.index(name) if name in classes else -1] * len(found)
        if not found:
            raise DataError(f"{path / name}: expected images ({', '.join(sorted(_SUFFIXES))}); got none")
    if not files:
        raise DataError(f"{path}: expected images ({', '.join(sorted(_SUFFIXES))}); got none")
    notes = (f"left out, not images: {len(skipped)} files such as {skipped[0].name}",) if skipped else ()
    columns = {"x": _read_all(files, max_bytes)}
    if classes:
        columns["y"] = np.array(labels, dtype=np.int64)
    return Raw(str(path), {"train": columns}, tuple(classes) or None, notes, channels_first=True)


def _images_in(folder: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in _SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in _SUFFIXES]


def _read_all(files: Sequence[Path], max_bytes: int | None) -> Array:
    """Read images into (n, channels, height, width), uint8 or bool."""
    first = _size_and_mode(files[0])
    (width, height), mode = first
    if mode not in _CHANNELS:
        raise DataError(f"{files[0]}: expected an image of mode {', '.join(_CHANNELS)}; got mode {mode}")
    require_memory(len(files) * width * height * _CHANNELS[mode], max_bytes, files[0].parent)
    images = np.empty((len(files), height, width, _CHANNELS[mode]), dtype=bool if mode == "1" else np.uint8)
    for number, file in enumerate(files):
        size_and_mode = _size_and_mode(file)
        if size_and_mode != first:
            one, other = _describe(files[0], first), _describe(file, size_and_mode)
            raise DataError(f"expected images of one size and mode; got {one} and {other}")
        with reading(file), Image.open(file) as image:
            images[number] = np.asarray(image).reshape(height, width, -1)
    return images.transpose(0, 3, 1, 2)


def _size_and_mode(file: Path) -> tuple[tuple[int, int], str]:
    with reading(file), warnings.catch_warnings():
        # Pillow only warns at its pixel limit, and raises at twice that
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            return image.size, image.mode


def _describe(file: Path, size_and_mode: tuple[tuple[int, int], str]) -> str:
    (width, height), mode = size_and_mode
    return f"{file} ({width} x {height}, {mode})"
