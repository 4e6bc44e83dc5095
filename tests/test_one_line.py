"""What the machine and the user's own code do to a command ends in one line with the documented exit code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import ENVIRONMENT, QUICK, command
from run_helpers import outcome

from ppgen.configuration import LARGEST_SEED, Config, read_config
from ppgen.errors import ConfigError
from ppgen.places import LONGEST_PART, subject
from ppgen.randomness import seed_all

SHORT = ["--steps", 2, *QUICK]
LONG = "x" * 300


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def data(name: str, *, classes: int) -> Path:
    rows = np.random.default_rng(0).random((300, 6)).astype(np.float32)
    np.savez(name, x=rows, y=np.arange(300) % classes)
    return Path(name)


# Seeds


@pytest.mark.parametrize("seed", [2**32 - 1, 2**32, 2**40 + 7, LARGEST_SEED])
def test_a_seed_of_63_bits_seeds_every_stream(seed: int) -> None:
    seed_all(seed)
    first = np.random.random(), torch.rand(()).item()
    seed_all(seed)
    assert (np.random.random(), torch.rand(()).item()) == first
    seed_all(seed & 0xFFFFFFFF if seed >= 2**32 else seed - 1)
    assert np.random.random() != first[0]


def test_a_seed_beyond_32_bits_trains_and_samples() -> None:
    done = command("train", "vae", *SHORT, "--seed", LARGEST_SEED, "--out", "run", "--json")
    assert (done.code, done.document["seed"]) == (0, LARGEST_SEED)
    assert command("sample", "run", "--seed", LARGEST_SEED, "--out", "x.npz").code == 0
    assert outcome("run")["step"] == 2


@pytest.mark.parametrize("name", ["train", "compare", "estimators"])
def test_a_seed_out_of_range_names_the_range(name: str) -> None:
    done = command(name, "vae", "--seed", LARGEST_SEED + 1)
    assert done.code == 2
    assert str(LARGEST_SEED) in done.error


def test_a_seed_out_of_range_in_a_file_names_the_range() -> None:
    assert read_config({"recipe": "vae", "seed": LARGEST_SEED}, source="file").seed == LARGEST_SEED
    with pytest.raises(ConfigError, match=f"'seed': .*{LARGEST_SEED}"):
        read_config({"recipe": "vae", "seed": LARGEST_SEED + 1}, source="file")


# Output that is closed


@pytest.mark.parametrize(
    ("line", "code"),
    [("list | true", 141), ("list | head -1", None), ("list >&-", 0), ("list 2>&-", 0), ("list > /dev/full", 6)],
)
def test_output_that_goes_nowhere_is_no_traceback(line: str, code: int | None) -> None:
    ending = "exit ${PIPESTATUS[0]}"
    script = f"{sys.executable} -m ppgen {line}; {ending}"
    done = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode in ((0, 141) if code is None else (code,))
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


# Names that are too long


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "vae", *SHORT, "--out", LONG],
        ["train", "vae", *SHORT, "--out", "/".join(["y" * 200] * 30)],
        ["train", f"{LONG}.py:recipe", *SHORT],
        ["train", "vae", *SHORT, "--data", LONG],
        ["train", "vae", *SHORT, "--config", LONG],
        ["sweep", "vae", *SHORT, "--seeds", "0", "--out", LONG],
        ["evaluate", LONG],
    ],
)
def test_a_name_that_no_disk_takes_is_one_line(arguments: list[Any]) -> None:
    done = command(*arguments)
    assert done.code in (2, 4, 6)
    assert "bug" not in done.error
    assert os.listdir() == []


def test_a_folder_after_a_long_name_is_shortened() -> None:
    path = data(f"{'z' * 240}.npz", classes=3)
    done = command("train", "vae", *SHORT, "--data", path, "--json")
    assert done.code == 0, done.err
    (name,) = os.listdir("runs")
    assert name.startswith(f"vae-{'z' * LONGEST_PART}-")
    assert len(name) < 100
    done = command("sample", f"runs/{name}", "--out", f"{'s' * 300}.npz")
    assert done.code in (2, 6)
    assert "bug" not in done.error


@pytest.mark.parametrize(
    ("recipe", "name", "found"),
    [
        ("vae", "digits", "vae-digits"),
        ("my_model.py:recipe", "digits", "my_model-recipe-digits"),
        ("/home/me/other.py:recipe", "/data/mine.npz", "other-recipe-mine"),
        ("package.module:recipe", "digits", "module-recipe-digits"),
    ],
)
def test_a_folder_is_named_after_file_and_function(recipe: str, name: str, found: str) -> None:
    assert subject(Config.model_validate({"recipe": recipe, "data": {"name": name}})) == found


def test_names_that_are_shortened_stay_apart() -> None:
    one, other = (
        subject(Config.model_validate({"recipe": "vae", "data": {"name": "é" * 100 + end}})) for end in ("a", "b")
    )
    assert one != other
    assert len(one.encode()) < 120


# One class


def test_one_class_is_nothing_to_tell_apart() -> None:
    done = command("train", "m2", *SHORT, "--data", data("one.npz", classes=1), "--out", "run")
    assert done.code == 3
    assert "at least 2 classes to tell apart; got the class '0' only" in done.error
    assert not Path("run").exists()
    done = command("train", "m2", *SHORT, "--data", data("two.npz", classes=2), "--out", "run")
    assert done.code == 0, done.err


@pytest.mark.parametrize("recipe", ["acgan", "aae-semisupervised"])
def test_one_class_is_nothing_for_a_classifier_of_a_game(recipe: str) -> None:
    done = command("train", recipe, "--steps", "2", "--data", data("one.npz", classes=1), "--out", "run")
    assert done.code == 3
    assert "at least 2 classes to tell apart; got the class '0' only" in done.error
    assert not Path("run").exists()


def test_a_measure_that_needs_classes_refuses_one() -> None:
    assert command("train", "vae", *SHORT, "--data", data("one.npz", classes=1), "--out", "run").code == 0
    done = command("evaluate", "run", "--measure", "fid_classifier")
    assert done.code == 3
    assert "at least 2 classes" in done.error


# Failures of the user's own code

FAILURES = """
import sys
import numpy as np
from ppgen import ELBO


class Mine(BaseException):
    pass


def of_a_library(data):
    np.zeros(3).reshape(2)


def of_a_file(data):
    open("missing.csv")


def of_a_disk(data):
    raise OSError(28, "No space left on device")


def ends(data):
    sys.exit("all done")


def ends_well(data):
    sys.exit(0)


def unusual(data):
    raise Mine("mine")


def model(x):
    raise KeyError("weights")


def in_the_model(data):
    return model, lambda x: None, ELBO()
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("of_a_library", "line 12: ValueError"),
        ("of_a_file", "line 16: FileNotFoundError: [Errno 2] No such file or directory: 'missing.csv'"),
        ("of_a_disk", "line 20: OSError: [Errno 28] No space left on device"),
        ("ends", "line 24: SystemExit: all done"),
        ("ends_well", "line 28: SystemExit: 0"),
        ("unusual", "line 32: Mine: mine"),
        ("in_the_model", "line 36: KeyError: 'weights'"),
    ],
)
@pytest.mark.parametrize("installed", [False, True])
def test_what_the_users_code_raises_is_placed_there(
    name: str, words: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"theirs_{name}"
    if installed:  # beside the libraries
        monkeypatch.setattr("sysconfig.get_path", lambda _: str(Path.cwd()))
        monkeypatch.syspath_prepend(Path.cwd())
    Path(package).mkdir()
    Path(package, "__init__.py").write_text("")
    file = Path(package, "recipes.py")
    file.write_text(FAILURES)
    done = command("train", f"{package}.recipes:{name}" if installed else f"{file}:{name}", *SHORT[:2], "--out", "run")
    assert done.code == 2
    assert f"{file}, {words}" in done.error
    assert "bug" not in done.error


def test_what_ppgen_raises_is_its_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppgen.runs.monitoring", None)
    done = command("train", "vae", *SHORT, "--out", "run")
    assert done.code == 1
    assert "this is a bug in ppgen" in done.error
