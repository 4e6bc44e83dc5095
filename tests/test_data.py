import bz2
import dataclasses
import os
import subprocess
import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ppgen.data import Columns, Dataset, load, names
from ppgen.errors import ConfigError, DataError

real_data = pytest.mark.skipif(not os.environ.get("PPGEN_DATA"), reason="PPGEN_DATA is not set")


def equal(first: Columns, second: Columns) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def own(path: Path, rows: int = 200, classes: int = 4, **more: np.ndarray) -> Path:
    """A file in which the first pixel of a row is its number."""
    x = np.random.default_rng(0).random((rows, 6)).astype(np.float32)
    x[:, 0] = np.arange(rows)
    return write_npz(path, x=x, y=np.arange(rows) % classes, **more)


# --- built-in data sets ---------------------------------------------------------------------------------------------


def test_digits_has_the_published_test_set() -> None:
    bunch = load_digits()
    _, x_test, _, y_test = train_test_split(
        bunch.images / 16, bunch.target, test_size=500, stratify=bunch.target, random_state=0
    )
    digits = load("digits")
    assert digits.shape == (1, 8, 8)
    assert [len(columns["x"]) for columns in digits.splits.values()] == [1197, 100, 500]
    np.testing.assert_array_equal(digits.test["x"].squeeze(1), x_test.astype(np.float32))
    np.testing.assert_array_equal(digits.test["y"], y_test)
    assert {column.dtype for column in digits.test.values()} == {torch.float32, torch.int64}
    _, other = train_test_split(np.arange(1797), test_size=500, stratify=bunch.target, random_state=1)
    assert not np.array_equal(other, digits.rows["test"])  # control: another random_state is another test set


def test_splits_are_disjoint_and_complete_and_never_depend_on_the_seed(tmp_path: Path) -> None:
    for name, total in (("digits", 1797), (own(tmp_path / "own.npz"), 200)):
        first, second = load(name, seed=0, labels=20), load(name, seed=1, labels=20)
        rows = torch.cat([first.rows[split] for split in ("train", "validation", "test")])
        assert sorted(rows.tolist()) == list(range(total))
        assert equal(first.test, second.test)
        assert equal(first.validation, second.validation)
        assert torch.equal(first.train["x"], second.train["x"])
        assert not torch.equal(first.train["y"], second.train["y"])  # control: the seed does choose the labels
        assert first.fingerprint == second.fingerprint == load(name).fingerprint


def test_fingerprint_changes_with_one_value_a_name_or_a_dtype(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((30, 2)).astype(np.float32)
    changed = x.copy()
    changed[17, 1] += 1e-6
    variants: list[dict[str, np.ndarray]] = [
        {"x": x, "a": np.arange(30)},
        {"x": changed, "a": np.arange(30)},
        {"x": x, "b": np.arange(30)},
        {"x": x, "a": np.arange(30.0, dtype=np.float32)},
    ]
    found = [load(write_npz(tmp_path / f"{n}.npz", **arrays)).fingerprint for n, arrays in enumerate(variants)]
    assert len(set(found)) == 4
    again = write_npz(tmp_path / "again.npz", **variants[0])
    assert load(again).fingerprint == found[0]


@pytest.mark.parametrize(
    ("name", "folder", "train", "test", "classes"),
    [
        ("mnist", "MNIST", "train", "t10k", 10),
        ("fashion-mnist", "FashionMNIST", "train", "t10k", 10),
        ("kmnist", "KMNIST", "train", "t10k", 10),
        ("emnist", "EMNIST", "emnist-balanced-train", "emnist-balanced-test", 47),
    ],
)
def test_idx_files_are_read_and_a_read_only_data_root_stays_as_it_is(
    tmp_path: Path, name: str, folder: str, train: str, test: str, classes: int
) -> None:
    arrays = write_idx(tmp_path / folder / "raw", {train: 2000, test: 300}, classes)
    before = sorted(tmp_path.rglob("*"))
    data = load(name, data_root=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert [len(columns["x"]) for columns in data.splits.values()] == [1000, 1000, 300]
    assert data.shape == (1, 28, 28)
    assert data.classes is not None
    assert len(data.classes) == classes
    images, labels = arrays[train]
    expected = images.transpose(0, 2, 1) if name == "emnist" else images
    rows = data.rows["train"].numpy()
    np.testing.assert_array_equal(data.train["x"][:, 0], expected[rows].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.train["y"], labels[rows])
    assert not set(rows.tolist()) & set(data.rows["validation"].tolist())
    assert any("divided by 255" in note for note in data.notes)


def write_idx(folder: Path, sizes: dict[str, int], classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for stem, rows in sizes.items():
        images = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = (np.arange(rows) % classes).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())
        arrays[stem] = images, labels
    return arrays


def test_usps_is_read_from_either_of_its_formats(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (1200, 16, 16), dtype=np.uint8)
    labels = np.arange(1200) % 10
    lines = [
        f"{label + 1} " + " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(image.ravel() / 255 * 2 - 1 + 1e-5))
        for label, image in zip(labels, levels, strict=True)
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "USPS").mkdir(parents=True)
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / "a" / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    scaled = (levels / np.float32(255)).astype(np.float32)
    write_npz(
        tmp_path / "b" / "USPS" / "usps_16x16.npz",
        train_images=scaled, train_labels=labels, test_images=scaled, test_labels=labels,
    )  # fmt: skip
    first, second = load("usps", data_root=tmp_path / "a"), load("usps", data_root=tmp_path / "b")
    assert first.shape == (1, 16, 16)
    assert torch.equal(first.train["y"], second.train["y"])
    torch.testing.assert_close(first.test["x"], second.test["x"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["svhn", "cifar10"])
def test_colour_images_come_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1500, 32, 32, 3), dtype=np.uint8)
    y = np.arange(1500) % 10
    fetched = []

    def fake(root: Path, *, download: bool, train: bool = True, split: str = "train") -> types.SimpleNamespace:
        fetched.append(download)
        data = x if name == "cifar10" else x.transpose(0, 3, 1, 2)
        return types.SimpleNamespace(data=data, targets=y.tolist(), labels=y, classes=tuple("abcdefghij"))

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", fake)
    data = load(name, data_root=tmp_path)
    assert data.shape == (3, 32, 32)
    expected = x[data.rows["train"]].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(data.train["x"], expected)
    assert fetched == [True, True, False, False]  # nothing lay there: fetched once, then only read


def test_missing_files_without_a_network_say_what_where_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    for download, reason in ((True, "no route to host"), (False, "switched off")):
        with pytest.raises(DataError) as caught:
            load("kmnist", data_root=tmp_path, download=download)
        message = str(caught.value)
        for part in ("KMNIST/raw/train-images-idx3-ubyte", str(tmp_path), "--data-root", reason):
            assert part in message
        assert "\n" not in message


def test_data_root_is_the_argument_then_the_environment_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def where(**options: Any) -> str:
        with pytest.raises(DataError) as caught:
            load("binarized-mnist", **options)
        return str(caught.value)

    monkeypatch.setenv("PPGEN_DATA", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert str(tmp_path / "argument") in where(data_root=tmp_path / "argument")
    assert str(tmp_path / "environment") in where()
    monkeypatch.delenv("PPGEN_DATA")
    assert str(tmp_path / "cache" / "ppgen") in where()


def test_binarized_mnist_is_read_packed_or_as_text(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (3, 20, 784), dtype=np.uint8)
    (tmp_path / "a" / "BinarizedMNIST").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    parts = dict(zip(("train", "valid", "test"), pixels, strict=True))
    packed = {key: np.packbits(part, axis=1) for key, part in parts.items()}
    write_npz(tmp_path / "a" / "BinarizedMNIST" / "binarized_mnist_larochelle.npz", **packed)
    for key, part in parts.items():
        text = "".join(" ".join(map(str, row)) + " \n" for row in part)
        (tmp_path / "b" / f"binarized_mnist_{key}.amat").write_text(text)
    for folder in ("a", "b"):
        data = load("binarized-mnist", data_root=tmp_path / folder)
        assert data.classes is None
        for columns, part in zip(data.splits.values(), pixels, strict=True):
            np.testing.assert_array_equal(columns["x"], part.reshape(-1, 1, 28, 28))


def test_damaged_files_of_built_in_data_sets_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", {"train": 1500, "t10k": 20}, 10)
    assert len(load("mnist", data_root=tmp_path).train["x"]) == 500  # control
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="train-images-idx3-ubyte: could not be read"):
        load("mnist", data_root=tmp_path)
    for part in ("train", "valid", "test"):
        (tmp_path / f"binarized_mnist_{part}.amat").write_text("0 1 " * 392 + "\n" + "0 1 ")
    with pytest.raises(DataError, match=r"binarized_mnist_train.amat: expected rows of 784 .* got 786"):
        load("binarized-mnist", data_root=tmp_path)
    write_npz(tmp_path / "usps_16x16.npz", train_images=np.zeros((3, 16, 16)))
    with pytest.raises(DataError, match="expected an array 'train_labels'; got train_images"):
        load("usps", data_root=tmp_path)


@real_data
@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("mnist", [59000, 1000, 10000], (1, 28, 28)),
        ("fashion-mnist", [59000, 1000, 10000], (1, 28, 28)),
        ("usps", [6291, 1000, 2007], (1, 16, 16)),
        ("binarized-mnist", [50000, 10000, 10000], (1, 28, 28)),
    ],
)
def test_real_data(name: str, sizes: list[int], shape: tuple[int, ...]) -> None:
    data = load(name, download=False)
    assert [len(columns["x"]) for columns in data.splits.values()] == sizes
    assert data.shape == shape
    data.require_unit_interval()
    if name == "binarized-mnist":
        assert set(data.train["x"].unique().tolist()) == {0.0, 1.0}
        assert "y" not in data.train
    else:
        assert len(set(data.train["y"].tolist())) == 10
        assert not set(data.rows["train"].tolist()) & set(data.rows["validation"].tolist())


# --- the user's own data --------------------------------------------------------------------------------------------


def test_own_data_is_split_70_10_20_by_class_and_unlabelled_rows_train(tmp_path: Path) -> None:
    x = np.arange(400, dtype=np.float32)[:, None]
    y = np.arange(400) % 4
    y[300:] = -1
    data = load(write_npz(tmp_path / "own.npz", x=x, y=y, weight=x[:, 0] / 512))
    assert [len(columns["x"]) for columns in data.splits.values()] == [308, 32, 60]
    for split, share in (("validation", 0.1), ("test", 0.2)):
        counts = torch.bincount(data.splits[split]["y"], minlength=4)
        assert counts.tolist() == [round(75 * share)] * 4
        assert data.splits[split]["x"].max() < 300
    assert set(range(300, 400)) <= set(data.train["x"][:, 0].int().tolist())
    assert torch.equal(data.test["weight"] * 512, data.test["x"][:, 0])  # further columns follow their rows
    assert len(data.unlabelled()["x"]) == 100
    assert "y" not in data.unlabelled()
    assert (data.labelled()["y"] >= 0).all()
    assert len(data.labelled()["x"]) + 100 == len(data.train["x"])


def test_own_splits_are_taken_as_given(tmp_path: Path) -> None:
    arrays = {f"x{suffix}": np.full((n, 2), n, np.float32) for suffix, n in (("", 9), ("_validation", 4), ("_test", 5))}
    data = load(write_npz(tmp_path / "all.npz", **arrays))
    assert [len(columns["x"]) for columns in data.splits.values()] == [9, 4, 5]
    assert (data.test["x"] == 5).all()
    del arrays["x_validation"]
    data = load(write_npz(tmp_path / "two.npz", **arrays))
    assert [len(columns["x"]) for columns in data.splits.values()] == [8, 1, 5]


@pytest.mark.parametrize(
    ("array", "shape", "note"),
    [
        (np.full((10, 4, 5), 51, np.uint8), (1, 4, 5), "uint8 0..255 divided by 255"),
        (np.full((10, 6, 5, 3), 51, np.uint8), (3, 6, 5), "moved from last to first"),
        (np.full((10, 3, 5, 7), 0.2), (3, 5, 7), "float64 cast to float32"),
        (np.full((10, 7), 0.2, np.float32), (7,), None),
        (np.full((10, 7), True), (7,), "bool cast to float32"),
        (np.full((10, 7), 3, np.int16), (7,), "int16 cast to float32"),
        (np.full((10, 7), 1, np.uint8), (7,), "uint8 cast to float32"),
        (np.full((10, 7), 0.2, ">f4"), (7,), None),
    ],
)
def test_casts_and_layouts_are_noted(
    tmp_path: Path, array: np.ndarray, shape: tuple[int, ...], note: str | None
) -> None:
    np.save(tmp_path / "x.npy", array)
    data = load(tmp_path / "x.npy")
    assert data.shape == shape
    assert data.train["x"].dtype == torch.float32
    scale = 255 if array.dtype == np.uint8 and array.max() > 1 else 1
    assert data.train["x"].unique().tolist() == pytest.approx([array.max() / scale])
    assert (note in " ".join(data.notes)) if note else not data.notes or "cast" in data.notes[0]


def test_csv_takes_numbers_labels_and_says_what_it_left_out(tmp_path: Path) -> None:
    rows = [f"id{n},{n},{'' if n == 39 else ('cat', 'ape')[n % 2]},{n / 40}" for n in range(40)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["key,a,kind,b", *rows]), encoding="utf-8")
    data = load(str(path), label_column="kind")
    assert data.classes == ("ape", "cat")
    assert data.shape == (2,)
    assert any("key" in note for note in data.notes)
    for columns in data.splits.values():
        number = columns["x"][:, 0]
        assert torch.allclose(columns["x"][:, 1], number / 40)
        expected = torch.where(number == 39, -1, 1 - number.long() % 2)
        assert torch.equal(columns["y"], expected)
    assert 39 in data.train["x"][:, 0].tolist()
    assert load(path).classes is None  # control: without the option the labels are text that is left out


def test_csv_class_numbers_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,label\n" + "\n".join(f"{n}.5,{n % 11}" for n in range(88)))
    data = load(path, label_column="label")
    assert data.classes == tuple(str(n) for n in range(11))  # not sorted as text
    assert torch.equal(data.test["y"], (data.test["x"][:, 0] - 0.5).long() % 11)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("1", 1), ("RGBA", 4)])
def test_a_folder_of_images(tmp_path: Path, mode: str, channels: int) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("b", 5), ("a", 6), ("_unlabelled", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (7, 9, 4), dtype=np.uint8)
            Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / name / f"{number}.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert data.shape == (channels, 7, 9)
    assert data.classes == ("a", "b")
    assert len(data.unlabelled()["x"]) == 4
    assert any("notes.txt" in note for note in data.notes)
    row = data.rows["test"].tolist()[0]
    files = [f"_unlabelled/{n}.png" for n in range(4)] + [f"a/{n}.png" for n in range(6)]
    pixels = np.asarray(Image.open(tmp_path / files[row])).reshape(7, 9, -1).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_allclose(data.test["x"][0], pixels / (1 if mode == "1" else 255), rtol=1e-6)
    flat = load(tmp_path / "a")
    assert flat.classes is None
    assert sum(len(columns["x"]) for columns in flat.splits.values()) == 6


# --- what a data set says of itself ---


def test_the_card_says_what_there_is() -> None:
    card = load("digits", labels=103).card()
    for part in ("1197 rows", "100 rows", "500 rows", "float32 (1, 8, 8), 0 to 1", "0: 10", "unlabelled: 1094", "16"):
        assert part in card
    assert max(len(line) for line in card.splitlines()) <= 120


def test_unknown_names_are_configuration_errors_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown data set 'MNITS': did you mean 'mnist'\?") as caught:
        load("MNITS")
    assert caught.value.exit_code == 2
    for nonsense in ("", "zzz", "a" * 300):
        with pytest.raises(ConfigError, match=r"unknown data set .*: there are digits, mnist"):
            load(nonsense)
    with pytest.raises(ConfigError, match=r"--label-column with a \.csv"):
        load("digits", label_column="y")
    with pytest.raises(ConfigError, match="seed of at least 0; got -1"):
        load("digits", seed=-1)
    assert set(names()) >= {"digits", "mnist", "fashion-mnist", "kmnist", "emnist", "usps", "svhn", "cifar10"}


def test_importing_the_package_loads_neither_torchvision_nor_sklearn() -> None:
    code = "import sys, ppgen.data; sys.exit(bool({'torchvision', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_data_set_cannot_be_changed_by_mistake() -> None:
    data: Dataset = load("digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
