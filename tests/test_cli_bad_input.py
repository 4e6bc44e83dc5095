"""Bad input gets one clear line, the documented exit code, no traceback, and nothing is lost or left behind."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import MY_MODEL, QUICK, Done, command, snapshot

from ppgen.checkpoints import write_checkpoint
from ppgen.storage import RunFolder

rng = np.random.default_rng(0)
X = rng.random((60, 8, 8)).astype(np.float32)
Y = np.arange(60) % 3


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPGEN_DEBUG", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of vae with two checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = command("train", "vae", "--steps", 12, *QUICK, "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(done: Done, code: int, *words: str) -> None:
    """Checks that a command failed as documented, in one line that has the words."""
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert all(word in done.error for word in words), done.error
    assert len(done.error) < 400


# --------------------------------------------------------------------------------------------------- usage

NAMES = [
    (["trian", "m2"], "'train'"),
    (["train", "m22"], "'m2'"),
    (["show", "vea"], "'vae'"),
    (["train", "m2", "--data", "mnits"], "'mnist'"),
    (["train", "m2", "--lables", "5"], "'--labels'"),
    (["train", "m2", "--set", "z_dmi=3"], "'z_dim'"),
    (["show", "m2", "--set", "alhpa=3"], "'alpha'"),
    (["train", "m2", "--config", "misspelt.toml"], "'labels'"),
    (["train", "m2", "--compile", "maybe"], "'auto'"),
    (["train", "m2", "--on-nan", "stp"], "'stop'"),
    (["evaluate", "run", "--measure", "nil"], "'nll'"),
]


@pytest.mark.parametrize(("arguments", "nearest"), NAMES)
def test_a_wrong_name_is_answered_with_the_right_one(arguments: list[str], nearest: str, tmp_path: Path) -> None:
    (tmp_path / "misspelt.toml").write_text("[data]\nlables = 5\n")
    before = snapshot(tmp_path)
    refused(command(*arguments), 2, nearest)
    assert snapshot(tmp_path) == before


USAGE = [
    (["train"], "RECIPE"),
    (["train", "m2", "--epochs", "3", "--steps", "4"], "--epochs and --steps"),
    (["train", "m2", "--seed", "-1"], "--seed"),
    (["train", "m2", "--steps", "0"], "--steps"),
    (["train", "m2", "--steps", "many"], "--steps"),
    (["train", "m2", "--device", "gpu"], "cuda:N"),
    (["train", "m2", "--device", "cuda:99"], "cuda:99"),
    (["train", "m2", "--set", "z_dim"], "KEY=VALUE"),
    (["train", "m2", "--set", "z_dim=many"], "z_dim"),
    (["train", "m2", "--set", "network=rnn"], "network"),
    (["train", "m2", "--config", "missing.toml"], "missing.toml"),
    (["train", "m2", "--config", "broken.toml"], "broken.toml is no TOML"),
    (["train", "m2", "--config", "newer.toml"], "format 99"),
    (["train", "m2", "--config", "binary.toml"], "binary.toml"),
    (["train", "missing.py:recipe"], "missing.py"),
    (["train", "my_model.py:missing"], "'missing'"),
    (["train", "no.such.module:recipe"], "no.such.module"),
    (["train", "my_model.py:small_vae", "--set", "z_dim=3"], "z_dim"),
    (["sample", "run", "--out", "x.jpg"], ".png"),
    (["sample", "run", "--out", "no/such/folder/x.png"], "existing folder"),
    (["sample", "run", "-n", "0"], "--number"),
    (["evaluate", "run", "--arviz", "file.txt"], ".nc"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE)
def test_wrong_usage(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    (tmp_path / "broken.toml").write_text("seed = = 3")
    (tmp_path / "newer.toml").write_text("format = 99")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    before = set(tmp_path.iterdir())
    refused(command(*arguments), 2, words)
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "__pycache__"}


def test_a_label_that_there_is_not(run: Path, tmp_path: Path) -> None:
    refused(command("sample", run, "--label", 3), 2, "vae", "no labels")
    assert command("train", "m2", "--steps", 2, *QUICK, "--out", "m2").code == 0
    refused(command("sample", "m2", "--label", "10"), 2, "'10'", "0, 1, 2")
    assert not list(tmp_path.glob("*samples*"))


# ---------------------------------------------------------------------------------------------------- data


def _at(array: Any, row: int, value: float) -> Any:
    changed = array.astype(np.float64)
    changed[(row, *[0] * (array.ndim - 1))] = value
    return changed


DATA: list[tuple[str, dict[str, Any], str]] = [
    ("not a number", {"x": _at(X, 7, np.nan), "y": Y}, "nan at row 7"),
    ("infinite", {"x": _at(X, 9, np.inf), "y": Y}, "inf at row 9"),
    ("a pixel over 1", {"x": _at(X, 3, 1.5), "y": Y}, "got 1.5 at row 3"),
    ("a class is missing", {"x": X, "y": np.where(Y == 1, 3, Y)}, "none of class 1"),
    ("a label is negative", {"x": X, "y": _at(Y, 5, -7)}, "-7"),
    ("a label is no integer", {"x": X, "y": _at(Y, 5, 0.5)}, "0.5 at row 5"),
    ("lengths differ", {"x": X, "y": Y[:50]}, "x: 60, y: 50"),
    ("wrong rank", {"x": np.zeros(()), "y": Y}, "shape"),
    ("no rows", {"x": X[:0], "y": Y[:0]}, "d.npz"),
    ("no x", {"z": X, "y": Y}, "'x'"),
    ("objects", {"x": np.array([{}] * 60, dtype=object), "y": Y}, "object array"),
    ("no labels", {"x": X}, "labels"),
]


@pytest.mark.parametrize(("arrays", "words"), [pytest.param(a, w, id=name) for name, a, w in DATA])
def test_data_that_cannot_be_meant(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    before = snapshot(tmp_path)
    refused(command("train", "m2", "--data", path.name, "--steps", 2, *QUICK), 3, words)
    assert snapshot(tmp_path) == before


def test_the_same_data_without_the_fault_train() -> None:
    np.savez("d.npz", x=X, y=Y)
    assert command("train", "m2", "--data", "d.npz", "--steps", 2, *QUICK).code == 0


def _truncated(path: Path) -> None:
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:3000])


def _images(folder: Path) -> None:
    from PIL import Image

    for kind, sizes in {"a": (8, 8, 8), "b": (8, 9, 8)}.items():
        (folder / kind).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("L", (size, 8)).save(folder / kind / f"{number}.png")


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty.npz", Path.touch, "empty"),
    ("empty.csv", Path.touch, "empty"),
    ("empty.npy", Path.touch, "empty"),
    ("truncated.npz", _truncated, "truncated"),
    ("text.npy", lambda path: path.write_text("hello"), "text.npy"),
    ("words.csv", lambda path: path.write_text("a,b\n1,2\n3,four\n"), "four"),
    ("other.xyz", Path.touch, ".npz, .npy or .csv"),
    ("folder", Path.mkdir, "images"),
    ("images", _images, "9"),
]


@pytest.mark.parametrize(("name", "make", "words"), FILES, ids=[name for name, _, _ in FILES])
def test_files_that_cannot_be_read(name: str, make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    before = snapshot(tmp_path)
    refused(command("train", "vae", "--data", f"./{name}", "--steps", 2, *QUICK), 3, words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("labels", "words"), [(5000, "1197"), (5, "10")])
def test_more_labels_than_there_are_and_fewer_than_classes(labels: int, words: str, tmp_path: Path) -> None:
    refused(command("train", "m2", "--labels", labels), 3, str(labels), words)
    refused(command("train", "m2", "--data", "./missing.npz"), 3, "missing.npz")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- run folders


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for name in ("resume", "evaluate", "sample"):
        refused(command(name, "missing"), 4, "missing")
        refused(command(name, tmp_path), 4, "config.toml")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    refused(command("train", "vae", "--steps", 2, "--out", run), 2, str(run), "ppgen resume")
    (tmp_path / "file").touch()
    refused(command("train", "vae", "--steps", 2, "--out", "file"), 2, "file")
    (tmp_path / "file").unlink()
    assert snapshot(tmp_path).items() - before.items() <= {(str(tmp_path), before.get(str(tmp_path)))}


def test_a_folder_in_use(run: Path) -> None:
    with RunFolder.open(run).lock():
        refused(command("resume", run), 75, "in use")
        assert command("evaluate", run, "--particles", 1).code == 0  # reading disturbs nobody
    assert command("resume", run).code == 0


def _damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "bit-flipped"])
@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run: Path, file: str, how: str, finished: Path) -> None:
    older, newest = sorted(run.glob("step-*"))[-2:]
    _damage(newest / file, how)
    done = command("resume", run, "--json")
    assert done.code == 0, done.err
    warnings = [line for line in done.err.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert older.name.lstrip("step-0") in warnings[0]
    assert (newest / "state.safetensors").read_bytes() == (finished / newest.name / "state.safetensors").read_bytes()
    for path in run.glob("step-*"):
        _damage(path / file, how)
    before = snapshot(run)
    refused(command("resume", run), 4, newest.name)
    refused(command("evaluate", run), 4, newest.name)
    assert snapshot(run) == before


def test_a_checkpoint_of_another_recipe(run: Path) -> None:
    assert command("train", "m2", "--steps", 2, *QUICK, "--out", "m2").code == 0
    for path in run.glob("step-*"):
        shutil.rmtree(path)
    shutil.copytree(max(Path("m2").glob("step-*")), run / max(Path("m2").glob("step-*")).name)
    refused(command("resume", run), 4, "expected recipe vae; got m2")


def test_a_checkpoint_of_other_options(run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("z_dim = 16", "z_dim = 8"))
    refused(command("evaluate", run), 4)


def test_a_checkpoint_and_a_configuration_of_a_newer_format(run: Path) -> None:
    from ppgen.checkpoints import _with_digest as with_digest

    newest = max(run.glob("step-*")) / "state.json"
    state = json.loads(newest.read_text())
    del state["digest"]
    newest.write_bytes(with_digest({**state, "format": 99}))
    refused(command("resume", run), 4, "format 99", "newer ppgen")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("format = 1", "format = 99"))
    refused(command("resume", run), 2, "format 99")


def test_data_that_changed_since(tmp_path: Path) -> None:
    np.savez("d.npz", x=X, y=Y)
    assert command("train", "vae", "--data", "d.npz", "--steps", 2, *QUICK, "--out", "out").code == 0
    np.savez("d.npz", x=X[::-1], y=Y)
    refused(command("resume", "out"), 4, "changed")
    refused(command("evaluate", "out"), 4, "changed")


# ---------------------------------------------------------------------------------------- disk, memory, numbers


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(number: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ppgen.files

    def refuse(*_: object) -> None:
        raise OSError(number, "the disk refuses")

    with monkeypatch.context() as patch:
        patch.setattr(ppgen.files, "write_all", refuse)
        refused(command("train", "vae", "--steps", 2, *QUICK, "--out", "out"), 6, "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("step-*"))
    monkeypatch.setattr(ppgen.files, "write_all", refuse)
    refused(command("sample", run, "--out", "s.npz"), 6, "s.npz")
    assert not list(tmp_path.glob("*.npz"))


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = write_checkpoint, 0

    def third_time(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    options = ["--steps", 40, *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr("ppgen.storage.write_checkpoint", third_time)
        refused(command("train", "vae", *options, "--out", "out"), 6, "out", "ppgen resume")
    assert list(Path("out").glob("step-*"))
    assert command("resume", "out").code == 0
    assert command("train", "vae", *options, "--out", "straight").code == 0
    last = "step-00000040/state.safetensors"
    assert Path("out", last).read_bytes() == Path("straight", last).read_bytes()


DIVERGING = (
    MY_MODEL
    + '''
def diverging(data):
    """Its likelihood is not finite from the sixth training step on."""
    model, guide, objective = small_vae(data)
    calls = 0

    def wrapped(x):
        nonlocal calls
        calls += torch.is_grad_enabled()
        pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.tensor(float("nan") if calls > 9 else 0.0))
        model(x)

    return wrapped, guide, objective
'''
)


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(DIVERGING)
    done = command("train", "my_model.py:diverging", "--steps", 40, "--compile", "off", "--out", "out")
    refused(done, 5, "not finite at step", "'extra'")
    assert list(Path("out").glob("step-*"))


def test_a_learning_rate_that_is_much_too_large() -> None:
    done = command("train", "vae", "--steps", 40, *QUICK, "--set", "learning_rate=1e30", "--out", "out")
    refused(done, 5, "not finite at step")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out(error: Exception, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppgen.runs import Run

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", fail)
        done = command("train", "vae", "--steps", 2, *QUICK, "--set", "batch_size=80", "--out", "out")
        refused(done, 1, "batch_size = 80", "particles = 1", "--set batch_size=40")
    monkeypatch.setattr(Run, "result", fail)
    refused(command("evaluate", run, "--particles", 500), 1, "particles = 500", "--particles 250")


def test_a_failure_of_ppgen_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import ppgen.catalogue

    def fail(data_root: str | None) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr(ppgen.catalogue, "show_list", fail)
    monkeypatch.setattr("ppgen.failures._is_users", lambda filename: False)  # this file is not the user's
    refused(command("list"), 1, "KeyError", "bug", "PPGEN_DEBUG=1")
    monkeypatch.setenv("PPGEN_DEBUG", "1")
    assert "Traceback" in command("list").err
