"""Files that no loader may accept: one line, exit code 3, and the place of the fault."""

import csv
import io
import pickle
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppgen.data import load
from ppgen.data.checking import require_memory
from ppgen.errors import DataError

Make = Callable[[Path], Path]
CASES: dict[str, tuple[Make, str, dict[str, Any]]] = {}


def case(message: str, **options: Any) -> Callable[[Make], Make]:
    """Register a maker of a bad file, the message it must meet and options of `load`."""

    def register(make: Make) -> Make:
        CASES[make.__name__] = (make, message, options)
        return make

    return register


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def npy(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "bad.npy", array)
    return folder / "bad.npy"


def text(folder: Path, content: str | bytes, name: str = "bad.csv") -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def image(path: Path, size: tuple[int, int] = (5, 4), mode: str = "L") -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new(mode, size).save(path)
    return path


def changed(value: float, at: tuple[int, ...], shape: tuple[int, ...] = (40, 3)) -> np.ndarray:
    x = np.zeros(shape)
    x[at] = value
    return x


# --- arrays: what the file holds, and what is said of it -----------------------------------------------------------

GOOD_X = np.linspace(0, 1, 120, dtype=np.float32).reshape(40, 3)
GOOD_Y = np.arange(40) % 2
GOOD = {"x": GOOD_X, "y": GOOD_Y}
TEST_X = np.zeros((3, 3), np.float32)

ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "nan": (
        {"x": changed(np.nan, (7, 2))},
        r"bad.npz: expected finite numbers in x .* got nan at row 7, column 2 .*1 such",
    ),
    "infinity in images": (
        {"x": changed(-np.inf, (39, 1, 2), (40, 4, 4))},
        r"got -inf at row 39, position \(1, 2\)",
    ),
    "too large for float32": (
        {"x": changed(1e300, (3, 0))},
        r"finite numbers in x that fit float32; got 1e\+300 at row 3, column 0",
    ),
    "nan in a further column": (
        {**GOOD, "w": changed(np.nan, (5,), (40,))},
        r"finite numbers in w .* got nan at row 5 ",
    ),
    "nan in the test split": (
        {"x": GOOD_X, "x_test": changed(np.nan, (1, 1), (3, 3)).astype(np.float32)},
        r"finite numbers in x_test .* got nan at row 1, column 1",
    ),
    "nan in a column named like labels": (
        {**GOOD, "yield": changed(np.nan, (5,), (40,))},
        r"finite numbers in yield .* got nan at row 5 ",
    ),
    "complex numbers": ({"x": np.zeros((9, 2), complex)}, "expected numbers in x; got dtype complex128"),
    "strings": ({"x": np.array([["abc"]] * 9)}, "expected numbers in x; got dtype <U3"),
    "rank one": ({"x": np.zeros(9)}, r"expected x of shape .* got shape \(9,\)"),
    "rank five": ({"x": np.zeros((9, 1, 1, 1, 1))}, r"expected x of shape .* got shape \(9, 1, 1, 1, 1\)"),
    "no rows": ({"x": np.zeros((0, 3))}, r"empty array of shape \(0, 3\)"),
    "no columns": ({"x": np.zeros((9, 0))}, r"empty array of shape \(9, 0\)"),
    "lengths that differ": ({"x": GOOD_X, "y": GOOD_Y[1:]}, "columns of one length; got x: 40, y: 39"),
    "lengths that differ in test": (
        {**GOOD, "x_test": TEST_X, "y_test": GOOD_Y[:5]},
        "columns of one length; got x_test: 3, y_test: 5",
    ),
    "a scalar column": (
        {**GOOD, "scale": np.float32(3)},
        r"expected scale of one entry for each row; got shape \(\)",
    ),
    "shapes that differ by split": (
        {"x": GOOD_X, "x_test": TEST_X[:, :2]},
        r"rows of one shape; got x: \(3,\), x_test: \(2,\)",
    ),
    "dtypes that differ by split": (
        {"x": GOOD_X, "x_test": TEST_X.astype(np.uint8)},
        "one dtype in every split; got x: float32, x_test: uint8",
    ),
    "no labels of the test split": ({**GOOD, "x_test": TEST_X}, "same columns in every split; got y without y_test"),
    "no x": ({"images": GOOD_X, "y": GOOD_Y}, "expected an array named 'x'; got images, y"),
    "no x of the test split": ({**GOOD, "y_test": GOOD_Y}, "expected an array named 'x_test'; got y_test"),
    "two rows": ({"x": GOOD_X[:2]}, "at least 3 rows, to split into train and validation and test; got 2"),
    "label below -1": (
        {"x": GOOD_X, "y": np.where(np.arange(40) == 4, -2, 0)},
        r"labels in y to be -1 \(missing\) or more; got -2 at row 4 .*1 of 40",
    ),
    "labels with fractions": (
        {"x": GOOD_X, "y": np.where(np.arange(40) < 4, 0, 0.5)},
        r"labels in y to be whole numbers; got 0.5 at row 4 .*36 of 40",
    ),
    "a y that is nan": ({"x": GOOD_X, "y": np.full(40, np.nan)}, r"expected finite numbers in y .* got nan at row 0"),
    "label gap": (
        {"x": GOOD_X, "y": np.repeat([0, 1, 1, 3], 10)},
        r"every class 0 to 3; got none of class 2 \(rows by class: 0: 10, 1: 20, 3: 10\)",
    ),
    "label far out of range": (
        {"x": GOOD_X, "y": np.repeat([0, 1, 1, 10**12], 10)},
        r"every class 0 to 1000000000000; got none of class 2 ",
    ),
    "labels beyond int64": (
        {"x": GOOD_X, "y": np.where(np.arange(40) == 4, np.uint64(2**63), np.uint64(0))},
        r"to be class numbers; got 9223372036854775808 at row 4",
    ),
    "one-hot labels": (
        {"x": GOOD_X, "y": np.eye(2)[GOOD_Y]},
        r"one class number a row in y, shape \(n,\); got shape \(40, 2\)",
    ),
    "labels as text": ({"x": GOOD_X, "y": np.array(list("ab" * 20))}, "expected numbers in y; got dtype <U1"),
    "label missing in test": (
        {**GOOD, "x_test": TEST_X, "y_test": np.array([0, 1, -1])},
        "a label in every row of y_test; got -1 at row 2",
    ),
    "a class of one row": (
        {"x": GOOD_X, "y": (np.arange(40) == 3).astype(int)},
        "at least 3 labelled rows of class 1, .* got 1",
    ),
}
for name, (arrays, message) in ARRAYS.items():
    CASES[name] = (lambda folder, arrays=arrays: npz(folder, **arrays), message, {})  # type: ignore[misc]


@case("expected labels to keep 10 of; got none", labels=10)
def labels_asked_of_data_without_any(folder: Path) -> Path:
    return npy(folder, GOOD_X)


# --- damaged, hostile and foreign files -----------------------------------------------------------------------------


@case("bad.npz: expected data; got an empty file")
def empty_npz(folder: Path) -> Path:
    return text(folder, b"", "bad.npz")


@case("bad.npy: expected data; got an empty file")
def empty_npy(folder: Path) -> Path:
    return text(folder, b"", "bad.npy")


@case("bad.npz: could not be read")
def truncated_npz(folder: Path) -> Path:
    path = npz(folder, **GOOD)
    path.write_bytes(path.read_bytes()[:300])
    return path


@case(r"bad.npz: could not be read ")
def flipped_bit_in_npz(folder: Path) -> Path:
    path = npz(folder, **GOOD)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    return path


@case(r"bad.npy: expected 480 bytes for shape \(40, 3\); got 380: truncated")
def truncated_npy(folder: Path) -> Path:
    path = npy(folder, GOOD_X)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@case("bad.npz: could not be read ")
def text_called_npz(folder: Path) -> Path:
    return text(folder, "hello", "bad.npz")


@case("array 'x': expected numbers; got an object array")
def object_array_in_npz(folder: Path) -> Path:
    return npz(folder, x=np.array([Bomb(folder)] * 9, dtype=object))


@case("bad.npy: expected numbers; got an object array")
def object_array_in_npy(folder: Path) -> Path:
    return npy(folder, np.array([Bomb(folder)] * 9, dtype=object))


@case("bad.npy: could not be read")
def pickle_called_npy(folder: Path) -> Path:
    return text(folder, pickle.dumps(Bomb(folder)), "bad.npy")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.folder / "exploded",)


@case(r"expected at most 1,000,000 bytes once unpacked; got 8,000,128", max_bytes=10**6)
def zip_bomb(folder: Path) -> Path:
    np.savez_compressed(folder / "bad.npz", x=np.zeros((1000, 1000)))
    return folder / "bad.npz"


def announce(rows: int) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 3)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@case("array 'x': expected at most .* bytes once unpacked; got 12,000,000,000,000")
def header_bomb_in_npz(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("x.npy", announce(10**12))
    return folder / "bad.npz"


@case(r"array 'x': expected 1,200 bytes for shape \(100, 3\); got 0")
def header_without_content(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("x.npy", announce(100))
    return folder / "bad.npz"


@case("bad.npz: could not be read")
def a_zip_of_other_things(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("../outside.txt", "x" * 200)
    return folder / "bad.npz"


@case("expected a .npz, .npy or .csv file, or a folder of images; got a file ending in '.parquet'")
def unsupported_extension(folder: Path) -> Path:
    return text(folder, "x", "bad.parquet")


@case("bad.npz: no such file or folder")
def no_such_file(folder: Path) -> Path:
    return folder / "bad.npz"


# --- tables: what the file holds, what is said of it, and the column of labels ---------------------------------------

TABLES: dict[str, tuple[str | bytes, str, str | None]] = {
    "nan in csv": ("a,b\n0,2\n0,nan\n", "line 3, column 'b': expected a finite number .* got 'nan'", None),
    "too large in csv": ("a,b\n0,2\n0,1\n1e99,0\n", "line 4, column 'a': expected a finite .* got '1e99'", None),
    "text among numbers": ("a,b\n0,2\n0,blue\n", "line 3, column 'b': expected a finite .* got 'blue'", None),
    "number among text": ("a,b\n0,l\n0,3\n", "line 3, column 'b': expected text, as in the lines .* got '3'", None),
    "empty cell": ("a,b\n0,\n", "line 2, column 'b': expected a finite number .* got ''", None),
    "ragged csv": ("a,b\n1,2\n1,2,3\n", "line 3: expected 2 cells; got 3", None),
    "header alone": ("a,b\n", "expected rows below the header line; got none", None),
    "no header": ("1,2\n3,4\n5,6\n", "expected a header line with the names of the columns; got '1,2'", None),
    "doubled header": ("a,a\n3,4\n5,6\n", "columns of different names; got 'a' more than once", None),
    "unknown label column": (
        "a,label\n3,4\n",
        r"column 'lable' \(--label-column\); got none: did you mean 'label'\?",
        "lable",
    ),
    "labels with fractions in csv": ("a,label\n3,0\n3,0.5\n3,1\n", r"whole numbers; got 0.5 at row 1", "label"),
    "labels from one in csv": ("a,label\n" + "3,1\n3,2\n" * 5, "0 to 2; got none of class 0", "label"),
    "only text": ("a,b\nx,y\n", "expected a column of numbers; got a, b", None),
    "latin-1 csv": ("a,b\n1,é\n".encode("latin-1"), "bad.csv: could not be read ", None),
    "empty csv": ("", "bad.csv: expected data; got an empty file", None),
    "a cell without end": (
        'a,b\n1,"' + "x" * (csv.field_size_limit() + 10),
        "bad.csv: could not be read ",
        None,
    ),
}
for name, (content, message, column) in TABLES.items():
    options = {"label_column": column}
    CASES[name] = (lambda folder, content=content: text(folder, content), message, options)  # type: ignore[misc]


# --- folders of images ----------------------------------------------------------------------------------------------


@case(r"one size and mode; got .*0.png \(5 x 4, L\) and .*1.png \(4 x 5, L\)")
def mixed_sizes(folder: Path) -> Path:
    image(folder / "bad" / "cat" / "0.png")
    image(folder / "bad" / "dog" / "1.png", (4, 5))
    return folder / "bad"


@case(r"one size and mode; got .*0.png \(5 x 4, L\) and .*1.png \(5 x 4, RGB\)")
def mixed_modes(folder: Path) -> Path:
    image(folder / "bad" / "0.png")
    return image(folder / "bad" / "1.png", mode="RGB").parent


@case("0.png: expected an image of mode 1, L, RGB, RGBA; got mode P")
def palette_images(folder: Path) -> Path:
    return image(folder / "bad" / "0.png", mode="P").parent


@case("1.png: could not be read ")
def text_called_png(folder: Path) -> Path:
    return text(image(folder / "bad" / "0.png").parent, "hello", "1.png").parent


@case("0.png: could not be read .*truncated")
def truncated_image(folder: Path) -> Path:
    path = folder / "bad" / "0.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path.parent


@case(r"bad: expected images \(.bmp")
def empty_folder(folder: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


@case(r"dog: expected images \(.bmp.*got none")
def empty_class(folder: Path) -> Path:
    image(folder / "bad" / "cat" / "0.png")
    (folder / "bad" / "dog").mkdir()
    return folder / "bad"


@case(r"images or sub-folders of images; got both \(0.png, cat/\)")
def images_beside_classes(folder: Path) -> Path:
    image(folder / "bad" / "cat" / "0.png")
    return image(folder / "bad" / "0.png").parent


@case("expected images; got a folder small/")
def nested_folders(folder: Path) -> Path:
    return image(folder / "bad" / "cat" / "small" / "0.png").parents[2]


@case("0.png: could not be read ")
def too_many_pixels(folder: Path) -> Path:
    path = image(folder / "bad" / "0.png", mode="1")
    content = bytearray(path.read_bytes())
    content[16:24] = (20000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return path.parent


@case("bad: expected at most 50 bytes once unpacked; got 60", max_bytes=50)
def images_that_do_not_fit(folder: Path) -> Path:
    for number in range(3):
        image(folder / "bad" / f"{number}.png")
    return folder / "bad"


# --- the corpus -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_bad_file(tmp_path: Path, name: str) -> None:
    make, message, options = CASES[name]
    path = make(tmp_path)
    start = time.perf_counter()
    with pytest.raises(DataError, match=message) as caught:
        load(path, **options).require_labels()
    assert time.perf_counter() - start < 5
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_the_corpus_is_large_and_its_pickle_bomb_is_live(tmp_path: Path) -> None:
    assert len(CASES) >= 25
    np.load(object_array_in_npy(tmp_path), allow_pickle=True)
    assert (tmp_path / "exploded").exists()  # control: whoever unpickles sets it off


@pytest.mark.parametrize("rows", [np.s_[:], np.s_[:, :2]])
def test_good_files_pass(tmp_path: Path, rows: Any) -> None:
    np.savez(tmp_path / "good.npz", x=GOOD_X[rows], y=GOOD_Y)
    assert load(tmp_path / "good.npz").classes == ("0", "1")
    (tmp_path / "good.csv").write_text("a,b\n" + "1,2\n" * 5)
    assert load(tmp_path / "good.csv").shape == (2,)


def test_checks_hold_without_assertions(tmp_path: Path) -> None:
    path = npz(tmp_path, **ARRAYS["nan"][0])
    code = f"from ppgen.data import load; load({str(path)!r})"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "row 7, column 2" in done.stderr


def test_the_default_memory_limit_is_finite_and_generous(tmp_path: Path) -> None:
    require_memory(10**6, None, "a small file")
    with pytest.raises(DataError, match="a large file: expected at most"):
        require_memory(2**60, None, "a large file")
