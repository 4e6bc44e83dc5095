"""The built-in data sets, as published, with fixed splits."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.checking import Array, Raw, reading
from ppgen.data.files import arrays_of
from ppgen.data.stacking import stacked
from ppgen.data.synthetic import four_points, grid, ring, swiss_roll
from ppgen.errors import DataError

_DIGITS = tuple("0123456789")


@dataclasses.dataclass(frozen=True)
class Source:
    """A built-in data set.

    Attributes:
        description: One line for `ppgen list`.
        read: Reads it, given its name, the data root and whether it may be downloaded.
        signs: Files below the data root of which one shows that it is there; none where it needs no files.
    """

    description: str
    read: Callable[[str, Path, bool], Raw]
    signs: tuple[str, ...] = ()


def data_root(given: str | Path | None) -> Path:
    """Where data sets lie: the argument, else `PPGEN_DATA`, else a cache folder of the user."""
    chosen = given or os.environ.get("PPGEN_DATA")
    if chosen:
        return Path(os.path.expanduser(chosen))
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ppgen"


def _digits(name: str, root: Path, download: bool) -> Raw:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[:, None]
    notes = ("x: 0..16 divided by 16, float64 cast to float32",)
    columns = {"x": x, "y": bunch.target}
    return Raw(name, {"train": columns}, _DIGITS, notes, {"test": 500, "validation": 100})


def _idx_reader(
    class_name: str, classes: tuple[str, ...] | None = None, *, prefix: str = "", **options: Any
) -> Callable[[str, Path, bool], Raw]:
    """Make a reader for MNIST and its relatives, which share a format; options go to torchvision's class."""
    stems = {"train": f"{prefix}train", "test": f"{prefix}test" if prefix else "t10k"}
    kinds = {"x": "images-idx3-ubyte", "y": "labels-idx1-ubyte"}
    files = {
        split: {column: f"{class_name}/raw/{stem}-{kind}" for column, kind in kinds.items()}
        for split, stem in stems.items()
    }

    def read(name: str, root: Path, download: bool) -> Raw:
        from torchvision import datasets
        from torchvision.datasets.mnist import read_image_file, read_label_file

        kind = getattr(datasets, class_name)
        needed = [file for columns in files.values() for file in columns.values()]
        _require_files(name, root, needed, download, lambda: kind(root, train=True, download=True, **options))
        readers = {"x": read_image_file, "y": read_label_file}
        splits: dict[str, dict[str, Array]] = {}
        for split, columns in files.items():
            splits[split] = {}
            for column, file in columns.items():
                with reading(root / file):
                    splits[split][column] = readers[column](str(root / file)).numpy()
        names = classes or tuple(_classes_of(kind, options))
        return Raw(f"{name} below {root}", splits, names, holdouts={"validation": 1000})

    return read


def _classes_of(kind: Any, options: Mapping[str, Any]) -> list[str]:
    if "split" in options:
        return list(kind.classes_split_dict[options["split"]])
    return list(kind.classes)


def _emnist(name: str, root: Path, download: bool) -> Raw:
    raw = _idx_reader("EMNIST", prefix="emnist-balanced-", split="balanced")(name, root, download)
    splits = {split: {**columns, "x": columns["x"].transpose(0, 2, 1)} for split, columns in raw.splits.items()}
    return dataclasses.replace(raw, splits=splits, notes=("x: images transposed to stand upright",))


def _usps(name: str, root: Path, download: bool) -> Raw:
    for file in (root / "USPS" / "usps_16x16.npz", root / "usps_16x16.npz"):
        if file.is_file():
            arrays = arrays_of(file)
            missing = [f"{s}_{k}" for s in ("train", "test") for k in ("images", "labels") if f"{s}_{k}" not in arrays]
            if missing:
                raise DataError(f"{file}: expected an array {missing[0]!r}; got {', '.join(arrays)}")
            splits = {s: {"x": arrays[f"{s}_images"], "y": arrays[f"{s}_labels"]} for s in ("train", "test")}
            return Raw(str(file), splits, _DIGITS, holdouts={"validation": 1000})
    from torchvision.datasets import USPS

    needed = [files[1] for files in USPS.split_list.values()]
    parts = _train_and_test(name, root, needed, download, lambda train, fetch: USPS(root, train=train, download=fetch))
    splits = {s: {"x": part.data, "y": np.asarray(part.targets)} for s, part in parts.items()}
    return Raw(f"{name} below {root}", splits, _DIGITS, holdouts={"validation": 1000})


def _svhn(name: str, root: Path, download: bool) -> Raw:
    from torchvision.datasets import SVHN

    needed = ["train_32x32.mat", "test_32x32.mat"]
    parts = _train_and_test(
        name,
        root,
        needed,
        download,
        lambda train, fetch: SVHN(root, split="train" if train else "test", download=fetch),
    )
    splits = {s: {"x": part.data, "y": part.labels} for s, part in parts.items()}
    return Raw(f"{name} below {root}", splits, _DIGITS, holdouts={"validation": 1000})


def _cifar10(name: str, root: Path, download: bool) -> Raw:
    """Read CIFAR-10; its files are pickles, which torchvision opens only if they have the published checksums."""
    from torchvision.datasets import CIFAR10

    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    needed = [f"cifar-10-batches-py/{batch}" for batch in batches]
    parts = _train_and_test(
        name, root, needed, download, lambda train, fetch: CIFAR10(root, train=train, download=fetch)
    )
    splits = {s: {"x": part.data, "y": np.asarray(part.targets)} for s, part in parts.items()}
    return Raw(f"{name} below {root}", splits, tuple(parts["train"].classes), holdouts={"validation": 1000})


def _binarized_mnist(name: str, root: Path, download: bool) -> Raw:
    """Read Larochelle's fixed binarization of MNIST, packed or as its three text files; it has no labels.

    Its test rows are grouped by digit: shuffle before taking a slice of them.
    """
    folders = (root / "BinarizedMNIST", root)
    parts = {"train": "train", "validation": "valid", "test": "test"}
    notes = ("x: fixed binarization as published, without labels; test rows are grouped by digit",)
    for folder in folders:
        packed = folder / "binarized_mnist_larochelle.npz"
        if packed.is_file():
            arrays = arrays_of(packed)
            with reading(packed):
                bits = {split: np.unpackbits(arrays[key], axis=1) for split, key in parts.items()}
                splits = {split: {"x": part.reshape(-1, 28, 28)} for split, part in bits.items()}
            return Raw(str(packed), splits, notes=notes)
        texts = {split: folder / f"binarized_mnist_{key}.amat" for split, key in parts.items()}
        if all(file.is_file() for file in texts.values()):
            return Raw(str(folder), {split: {"x": _amat(file)} for split, file in texts.items()}, notes=notes)
    raise DataError(
        f"data set {name!r}: expected BinarizedMNIST/binarized_mnist_larochelle.npz or binarized_mnist_train.amat, "
        f"_valid.amat and _test.amat below {root}; found neither: name their folder by --data-root or PPGEN_DATA"
    )


def _amat(file: Path) -> Array:
    with reading(file):
        text = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    is_pixel = (text == ord("0")) | (text == ord("1"))
    pixels: Array = text[is_pixel] - ord("0")
    if not np.isin(text[~is_pixel], list(b" \r\n")).all() or pixels.size == 0 or pixels.size % 784:
        raise DataError(f"{file}: expected rows of 784 zeros and ones; got {pixels.size} of them: truncated?")
    images: Array = pixels.reshape(-1, 28, 28)
    return images


def _train_and_test(
    name: str, root: Path, needed: list[str], download: bool, make: Callable[[bool, bool], Any]
) -> dict[str, Any]:
    """Build torchvision's two halves; a complete data root is only read."""

    def fetch() -> None:
        make(True, True)
        make(False, True)

    _require_files(name, root, needed, download, fetch)
    with reading(f"data set {name!r} below {root}"):
        return {"train": make(True, False), "test": make(False, False)}


def _require_files(name: str, root: Path, needed: list[str], download: bool, fetch: Callable[[], object]) -> None:
    missing = next((file for file in needed if not (root / file).is_file()), None)
    if missing is None:
        return
    reason = "downloading is switched off"
    if download:
        try:
            fetch()
        except Exception as error:  # a network fails in many ways
            lines = str(error).splitlines()
            reason = f"downloading failed: {lines[-1] if lines else type(error).__name__}"
        else:
            return
    raise DataError(
        f"data set {name!r}: expected {missing} below {root}; found no such file, and {reason}: "
        "name the folder that holds it by --data-root or PPGEN_DATA"
    )


_IDX = "raw/t10k-images-idx3-ubyte"

SOURCES: Mapping[str, Source] = {
    "digits": Source("1,797 handwritten digits, 8 x 8 (UCI, inside scikit-learn: offline)", _digits),
    "mnist": Source("70,000 handwritten digits, 28 x 28", _idx_reader("MNIST", _DIGITS), (f"MNIST/{_IDX}",)),
    "fashion-mnist": Source(
        "70,000 pieces of clothing in 10 classes, 28 x 28", _idx_reader("FashionMNIST"), (f"FashionMNIST/{_IDX}",)
    ),
    "kmnist": Source(
        "70,000 cursive Japanese characters in 10 classes, 28 x 28", _idx_reader("KMNIST"), (f"KMNIST/{_IDX}",)
    ),
    "emnist": Source(
        "131,600 handwritten letters and digits in 47 classes, 28 x 28 (balanced split)",
        _emnist,
        ("EMNIST/raw/emnist-balanced-test-images-idx3-ubyte",),
    ),
    "usps": Source(
        "9,298 handwritten digits from envelopes, 16 x 16",
        _usps,
        ("USPS/usps_16x16.npz", "usps_16x16.npz", "usps.t.bz2"),
    ),
    "svhn": Source("99,289 digits of house numbers in colour, 32 x 32", _svhn, ("test_32x32.mat",)),
    "cifar10": Source(
        "60,000 photographs in 10 classes in colour, 32 x 32", _cifar10, ("cifar-10-batches-py/test_batch",)
    ),
    "binarized-mnist": Source(
        "MNIST as binarized once by Larochelle, without labels, 28 x 28",
        _binarized_mnist,
        (
            "BinarizedMNIST/binarized_mnist_larochelle.npz",
            "binarized_mnist_larochelle.npz",
            "BinarizedMNIST/binarized_mnist_train.amat",
            "binarized_mnist_train.amat",
        ),
    ),
    "stacked-mnist": Source(
        "50,000 stacks of three handwritten digits as colours: 1,000 modes, 28 x 28",
        stacked(_idx_reader("MNIST", _DIGITS)),
        (f"MNIST/{_IDX}",),
    ),
    "stacked-digits": Source(
        "50,000 stacks of three small digits as colours: 1,000 modes, 8 x 8 (offline)", stacked(_digits)
    ),
    "ring": Source("8 narrow Gaussians on the unit circle, 2-D", ring),
    "grid": Source("25 narrow Gaussians on a 5 x 5 grid, 2-D", grid),
    "swiss-roll": Source("a spiral in 10 segments, 2-D", swiss_roll),
    "four-points": Source("4 one-hot vectors of length 4, equally often", four_points),
}
