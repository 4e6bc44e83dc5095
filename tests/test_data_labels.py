import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ppgen.data import Columns, load
from ppgen.errors import DataError


def equal(first: Columns, second: Columns) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("labels", [10, 100, 103, 999])
def test_labels_are_balanced_and_right(labels: int) -> None:
    full, data = load("digits"), load("digits", labels=labels, seed=3)
    y = data.train["y"]
    counts = torch.bincount(y[y >= 0], minlength=10)
    assert counts.sum() == labels
    assert counts.max() - counts.min() <= 1
    assert torch.equal(y[y >= 0], full.train["y"][y >= 0])
    assert (y == -1).sum() == 1197 - labels
    assert equal(data.test, full.test)
    generator = np.random.default_rng(0)
    chosen = generator.choice(1197, labels, replace=False)
    unbalanced = torch.bincount(full.train["y"][chosen], minlength=10)
    assert unbalanced.max() - unbalanced.min() > 1  # control: a plain draw is not balanced


@pytest.mark.parametrize("labels", [9, 0, -5, 1198])
def test_impossible_numbers_of_labels_say_what_there_is(labels: int) -> None:
    with pytest.raises(DataError, match=rf"between 10 .* and 1197 .* got {labels} \(there are 0: 118"):
        load("digits", labels=labels)


def test_a_class_with_too_few_labels_for_the_wanted_number_is_named(tmp_path: Path) -> None:
    y = np.array([0] * 60 + [1] * 6)
    path = write_npz(tmp_path / "uneven.npz", x=np.zeros((66, 2), np.float32), y=y)
    with pytest.raises(DataError, match=r"expected 10 labels a class .* 0: 42, 1: 4"):
        load(path, labels=20)
    counts = torch.bincount(load(path, labels=9).labelled()["y"])
    assert counts.tolist() == [5, 4]  # the odd one comes from the class that has another


def test_require_labels() -> None:
    data = load("digits", labels=10)
    data.require_labels()
    assert any("fewer than 5" in note for note in data.notes)
    assert not any("fewer than 5" in note for note in load("digits", labels=100).notes)
    y = data.train["y"].clone()
    y[y == 4] = -1
    without_four = dataclasses.replace(data, train={**data.train, "y": y})
    with pytest.raises(DataError, match=r"of every class; got .*4: 0"):
        without_four.require_labels()
    without = dataclasses.replace(data, classes=None, train={"x": data.train["x"]})
    for call in (without.require_labels, without.labelled):
        with pytest.raises(DataError, match="expected labels; got none"):
            call()
    assert equal(without.unlabelled(), without.train)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64, np.int64])
def test_labels_of_any_number_type_become_int64(tmp_path: Path, dtype: type) -> None:
    y = np.arange(40) % 2
    data = load(write_npz(tmp_path / "own.npz", x=np.arange(40.0)[:, None], y=y.astype(dtype)))
    assert data.test["y"].dtype == torch.int64
    assert torch.equal(data.test["y"], data.test["x"][:, 0].long() % 2)
    noted = any(note.startswith("y: ") and "cast to int64" in note for note in data.notes)
    assert noted == (np.dtype(dtype).kind in "bf")
