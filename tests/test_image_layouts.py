"""Where the channels of an array of images are: told by its shape, or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppgen.data import Dataset, load
from ppgen.errors import DataError

ROWS = 20


def images(*shape: int) -> np.ndarray:
    found: np.ndarray = np.random.default_rng(0).integers(0, 256, (ROWS, *shape), dtype=np.uint8)
    return found


def in_order(data: Dataset) -> Tensor:
    """The rows of all splits, as they were in the source."""
    numbers = torch.cat([data.rows[split] for split in data.splits])
    return torch.cat([columns["x"][:] for columns in data.splits.values()])[numbers.argsort()]


def written(folder: Path, array: np.ndarray, suffix: str) -> Path:
    path = folder / f"images{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, x=array)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("sides", [(7, 9), (28, 28), (2, 2), (5, 5)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_found_first_and_last(channels: int, sides: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    last = images(*sides, channels)
    expected = torch.from_numpy(last.transpose(0, 3, 1, 2) / np.float32(255))
    for array in (last, np.ascontiguousarray(last.transpose(0, 3, 1, 2))):
        data = load(written(tmp_path, array, suffix))
        assert data.shape == (channels, *sides)
        assert torch.equal(in_order(data), expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 3, 3), (1, 3, 3)),
        ((3, 3, 1), (1, 3, 3)),
        ((1, 4, 4), (1, 4, 4)),
        ((4, 4, 1), (1, 4, 4)),
        ((1, 5, 3), (1, 5, 3)),
        ((4, 5, 1), (1, 4, 5)),
        ((2, 2, 1), (1, 2, 2)),
        ((3, 2, 2), (3, 2, 2)),
        ((10, 6, 7), (10, 6, 7)),
    ],
)
def test_a_picture_has_no_side_of_one_pixel(shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
    assert load(written(tmp_path, images(*shape), ".npy")).shape == expected


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (3, 5, 3), (4, 32, 3), (3, 4, 4), (1, 28, 1), (1, 1, 1)])
def test_what_may_be_either_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    words = rf"images\.npy: expected images whose shape tells .*; got {' x '.join(map(str, shape))}, which may be"
    with pytest.raises(DataError, match=words) as caught:
        load(written(tmp_path, images(*shape), ".npy"))
    assert "\n" not in str(caught.value)
    assert "a folder of images or with sides padded to 5 or more" in str(caught.value)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
@pytest.mark.parametrize("sides", [(6, 8), (5, 3), (4, 4)])
def test_an_array_is_what_a_folder_of_the_same_images_is(
    mode: str, channels: int, sides: tuple[int, int], tmp_path: Path
) -> None:
    pixels = images(*sides, channels)
    (tmp_path / "folder").mkdir()
    for number, one in enumerate(pixels):
        Image.fromarray(one.squeeze(-1) if channels == 1 else one, mode).save(tmp_path / "folder" / f"{number:02}.png")
    folder = load(tmp_path / "folder")
    assert folder.shape == (channels, *sides)
    assert torch.equal(in_order(folder), torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(255)))
    if sides == (6, 8) or channels == 1:
        array = load(written(tmp_path, pixels, ".npy"))
        assert torch.equal(in_order(array), in_order(folder))


@pytest.mark.parametrize("channels", [3, 4])
def test_channels_at_the_end_of_a_streamed_file(channels: int, tmp_path: Path) -> None:
    path = written(tmp_path, images(6, 8, channels), ".npy")
    held, streamed = load(path), load(path, stream=True)
    assert streamed.shape == held.shape == (channels, 6, 8)
    rows = {split: columns["x"][:] for split, columns in streamed.splits.items()}
    assert all(torch.equal(found, held.splits[split]["x"]) for split, found in rows.items())
