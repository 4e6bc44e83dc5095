"""Runs that meet damage, strangers, full disks and losses that are not finite."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import (
    OWN,
    assert_same,
    flip_a_bit,
    go_on,
    newest,
    outcome,
    records,
    reports_and_checkpoints,
    tiny,
)

from ppgen.configuration import Config, DataConfig
from ppgen.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FolderInUseError,
    PpgenError,
    StorageError,
)
from ppgen.runs import Run, load_run
from ppgen.storage import RunFolder


@pytest.fixture(autouse=True)
def _of_40_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Windows of 5 steps, checkpoints every 10."""
    reports_and_checkpoints(monkeypatch, reports=8, checkpoints=4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unfinished run with checkpoints 20 and 30, to be copied."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        reports_and_checkpoints(patch, reports=8, checkpoints=4)
        go_on(path, tiny("vae"), until=30)
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `stopped` comes to at its end."""
    path = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        reports_and_checkpoints(patch, reports=8, checkpoints=4)
        go_on(path, tiny("vae"))
    return outcome(path)


@pytest.fixture
def run_folder(tmp_path: Path, stopped: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def checkpoints_of(path: Path) -> list[int]:
    return RunFolder.open(path).checkpoints()


# What a run folder holds


def test_a_run_keeps_what_it_came_to(tmp_path: Path) -> None:
    run = go_on(tmp_path / "run", tiny("m2", options={"evaluation_particles": 2}))
    with run.folder.lock():
        document = run.judge()
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    pictures = {"samples.png", "reconstructions.png", "training.png"}
    steps = {"step-00000030", "step-00000040"}
    assert names == {"config.toml", "metrics.jsonl", "result.json", "samples"} | pictures | steps
    drawn = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert drawn == [f"step-000000{step}.png" for step in (10, 20, 30, 40)]
    assert json.loads((tmp_path / "run/result.json").read_text()) == json.loads(json.dumps(document))
    keys = ["run", "recipe", "data", "labels", "seed", "configuration", "steps", "seconds", "compiled"]
    assert list(document) == [*keys, "test", "baselines"]
    assert document["steps"] == 40
    first = run.folder.metrics()[0]
    assert {"step", "epoch", "loss", "validation_bound", "validation_accuracy", "seconds"} <= first.keys()
    assert [record["step"] for record in run.folder.metrics()] == list(range(5, 41, 5))
    assert [record["epoch"] for record in run.folder.metrics()][:2] == [5 / 10, 10 / 10]  # 1,097 rows


def test_the_data_root_is_kept_only_if_it_was_given(
    tmp_path: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "root" not in (stopped / "config.toml").read_text()
    monkeypatch.chdir(tmp_path)
    go_on(tmp_path / "run", tiny("vae", data={"root": "somewhere"}), until=0)
    assert f'root = "{tmp_path}/somewhere"' in (tmp_path / "run/config.toml").read_text()


def test_a_run_folder_may_be_moved(tmp_path: Path, run_folder: Path, straight: dict[str, Any]) -> None:
    os.rename(run_folder, tmp_path / "elsewhere")
    go_on(tmp_path / "elsewhere", tiny("vae"))
    assert_same(outcome(tmp_path / "elsewhere"), straight)


def test_nothing_is_written_unless_the_run_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for config in (tiny("vae", options={"z_dim": 0}), tiny("m2", data={"labels": 3}), tiny("vae", device="cuda:99")):
        with pytest.raises((ConfigError, DataError)):
            Run.create(config)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_and_a_new_name_is_found(
    tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"exists: choose another --out, or `ppgen resume"):
        Run.create(tiny("vae"), run_folder)
    monkeypatch.chdir(tmp_path)
    first = go_on(Run.create(tiny("vae")).folder.path, tiny("vae"), until=0)
    assert first.folder.path == tmp_path / "runs/vae-digits-0"
    assert Run.create(tiny("vae")).folder.path == tmp_path / "runs/vae-digits-0-2"


def test_a_folder_in_use_is_refused(run_folder: Path) -> None:
    with RunFolder.open(run_folder).lock(), pytest.raises(FolderInUseError) as caught:
        go_on(run_folder, tiny("vae"))
    assert caught.value.exit_code == 75


def test_a_run_folder_that_cannot_be_written_can_be_judged(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_open = os.open

    def read_only(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(run_folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return system_open(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert load_run(run_folder).result(particles=2)["steps"] == 30
    with pytest.raises(StorageError, match="Read-only"):
        go_on(run_folder, tiny("vae"))


# Damage


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(
    run_folder: Path, straight: dict[str, Any], caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    path = newest(run_folder) / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        flip_a_bit(path)
    with caplog.at_level(logging.WARNING, logger="ppgen"):
        run = load_run(run_folder)
    assert run.trainer.steps == 20
    assert "step-00000030 is not usable" in caplog.text
    assert "step 20 is used" in caplog.text
    go_on(run_folder, tiny("vae"))
    assert_same(outcome(run_folder), straight)


def test_without_a_usable_checkpoint_nothing_is_loaded_or_overwritten(run_folder: Path) -> None:
    for folder in run_folder.glob("step-*"):
        flip_a_bit(folder / "state.safetensors")
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"step-00000030 .*; step-00000020") as caught:
        go_on(run_folder, tiny("vae"))
    assert caught.value.exit_code == 4
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_a_torn_line_of_metrics_is_mended(run_folder: Path, straight: dict[str, Any]) -> None:
    with open(run_folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 35, "loss": 1')
    go_on(run_folder, tiny("vae"))
    assert_same(outcome(run_folder), straight)


# Checkpoints and configurations that do not belong together


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (tiny("m2"), "expected recipe vae; got m2"),
        (tiny("vae", seed=1), "expected seed 0; got 1"),
        (tiny("vae", options={"learning_rate": 0.5}), "expected option learning_rate .*; got 0.5"),
        (tiny("vae", options={"z_dim": 3}), "expected option z_dim 2; got 3"),
        (tiny("vae", data={"labels": 20}), "expected labels None; got 20"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, run_folder: Path, other: Any, message: str) -> None:
    go_on(tmp_path / "other", other, until=30)
    for folder in run_folder.glob("step-*"):
        shutil.rmtree(folder)
    shutil.copytree(newest(tmp_path / "other"), run_folder / "step-00000030")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_run(run_folder)
    assert caught.value.exit_code == 4


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    """As of a recipe whose code has changed, where the configuration tells nothing."""
    source = OWN.read_text()
    own = tmp_path / "mine.py"
    own.write_text(source)
    config = tiny(f"{own}:noisy")
    go_on(tmp_path / "run", config, until=10)
    own.write_text(source.replace("nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, pixels)", "nn.Linear(2, pixels)"))
    with pytest.raises(CheckpointError, match="another program"):
        go_on(tmp_path / "run", config)


def edit(path: Path, old: str, new: str) -> None:
    text = (path / "config.toml").read_text()
    assert old in text
    (path / "config.toml").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("format = 1", "format = 2", ConfigError, "format 2; this version of ppgen reads up to 1"),
        ("format = 1", "format = 0", ConfigError, "'format'"),
        ("format = 1", "format = true", ConfigError, "'format'"),
        ("seed = 0", "sed = 0", ConfigError, "no key 'sed': did you mean 'seed'"),
        ("seed = 0", "seed = -1", ConfigError, "'seed'"),
        ("seed = 0", 'seed = "often"', ConfigError, "'seed'"),
        ("seed = 0", "seed = = 0", ConfigError, "is no TOML"),
        ("seed = 0", "seed = 1", CheckpointError, "expected seed 1; got 0"),
        ("z_dim = 2", "z_dim = 3", CheckpointError, "expected option z_dim 3; got 2"),
        ("z_dim = 2", "zdim = 2", ConfigError, "no option 'zdim': did you mean 'z_dim'"),
        ("z_dim = 2", 'z_dim = "two"', ConfigError, "'z_dim'"),
        ('name = "digits"', 'nam = "digits"', ConfigError, "no key 'data.nam': did you mean 'name'"),
        ('name = "digits"', 'name = "digit"', ConfigError, "did you mean 'digits'"),
        ('recipe = "vae"', 'recipe = "vea"', ConfigError, "did you mean 'vae'"),
        ('recipe = "vae"', 'recipe = "m2"', ConfigError, "no option"),
        ("steps = 40", "steps = 40\nepochs = 2", ConfigError, "both epochs and steps"),
        ("[resolved]", "[unresolved]", ConfigError, r"'resolved\.steps' is missing$"),
    ],
)
def test_a_changed_configuration_is_refused(
    run_folder: Path, old: str, new: str, error: type[PpgenError], message: str
) -> None:
    edit(run_folder, old, new)
    with pytest.raises(error, match=message) as caught:
        load_run(run_folder)
    assert caught.value.exit_code == {ConfigError: 2, CheckpointError: 4}[error]
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a run folder"):
        load_run(tmp_path)
    (tmp_path / "config.toml").write_text('recipe = "vae"\n')
    with pytest.raises(CheckpointError, match=r"no \[resolved\] part"):
        load_run(tmp_path)


def test_a_finished_run_may_be_made_longer(run_folder: Path) -> None:
    go_on(run_folder, tiny("vae"))
    edit(run_folder, "steps = 40", "steps = 50")
    assert go_on(run_folder, tiny("vae")).trainer.steps == 50


def test_other_versions_are_said(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(run_folder, f'torch = "{torch.__version__}"', 'torch = "1.0"')
    load_run(run_folder)
    assert f"torch 1.0 became {torch.__version__}" in caplog.text
    assert "not bit for bit" in caplog.text


# Data


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "data/mine.npz"
    path.parent.mkdir()
    np.savez(path, x=generator.random((300, 6)).astype(np.float32), y=np.arange(300) % 3)
    return path


def test_a_run_on_own_data_resumes_from_another_folder(
    tmp_path: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_data.parent)
    config = tiny("m2", data={"name": "mine.npz"})
    run = go_on(tmp_path / "run", config, until=10)
    assert run.config.data.labels is None
    monkeypatch.chdir(tmp_path)
    assert go_on(tmp_path / "run", config).trainer.steps == 40


def test_own_data_that_have_moved_are_found_below_the_data_root(tmp_path: Path, own_data: Path) -> None:
    go_on(tmp_path / "run", tiny("vae", data={"name": str(own_data)}), until=10)
    (tmp_path / "there").mkdir()
    os.rename(own_data, tmp_path / "there/mine.npz")
    with pytest.raises(DataError, match="no such file"):
        load_run(tmp_path / "run")
    assert load_run(tmp_path / "run", data_root=tmp_path / "there").trainer.steps == 10


def test_changed_data_are_refused(tmp_path: Path, own_data: Path) -> None:
    go_on(tmp_path / "run", tiny("vae", data={"name": str(own_data)}), until=10)
    columns = dict(np.load(own_data))
    columns["x"][17, 3] += 1e-4
    np.savez(own_data, **columns)
    with pytest.raises(CheckpointError, match="the data have changed since the run began") as caught:
        load_run(tmp_path / "run")
    assert caught.value.exit_code == 4


# The user's own code


def test_the_code_that_a_folder_names_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = OWN.read_text() + "\nfrom pathlib import Path\nPath('executed').touch()\n"
    own = tmp_path / "mine.py"
    own.write_text(source)
    config = tiny(f"{own}:noisy")
    go_on(tmp_path / "run", config, until=10)
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    with pytest.raises(ConfigError, match=r"name it again with --recipe .*mine\.py:noisy"):
        load_run(tmp_path / "run")
    edit(tmp_path / "run", f'recipe = "{own}:noisy"', f'recipe = "{own.name}:noisy"')
    with pytest.raises(ConfigError, match="your own code"):
        load_run(tmp_path / "run")
    assert not (tmp_path / "executed").exists()
    edit(tmp_path / "run", 'recipe = "mine.py:noisy"', f'recipe = "{own}:noisy"')
    assert load_run(tmp_path / "run", recipe="mine.py:noisy").trainer.steps == 10
    assert (tmp_path / "executed").exists()


def test_another_recipe_than_the_runs_is_refused(run_folder: Path) -> None:
    for named in ("m2", f"{OWN}:noisy"):
        with pytest.raises(ConfigError, match="this run's recipe is 'vae'"):
            load_run(run_folder, recipe=named)
    assert load_run(run_folder, recipe="vae").trainer.steps == 30


# Full disks


def fail_writes_of_tensors(patch: pytest.MonkeyPatch, *, after: int) -> None:
    """The disk is full from the tensors of one checkpoint on; a first part of them is written."""
    system_write, seen = os.write, []

    def write(descriptor: int, data: Any) -> int:
        if len(data) > 5_000:
            seen.append(len(data))
        if len(seen) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return system_write(descriptor, data)

    patch.setattr(os, "write", write)


@pytest.mark.parametrize("after", [0, 2, 3, 5, 7, 12])
def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, straight: dict[str, Any], after: int) -> None:
    """A checkpoint has two large files, and samples come before all but the first: they, or it, find the disk full."""
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fail_writes_of_tensors(patch, after=after)
        with pytest.raises(StorageError, match=r"No space left.*ppgen resume") as caught:
            go_on(path, tiny("vae"))
    assert caught.value.exit_code == 6
    assert checkpoints_of(path)[-1:] == ([10 * ((after - 2) // 3)] if after > 1 else [])
    assert list(path.glob(".tmp-*")) == []
    go_on(path, tiny("vae"))
    assert_same(outcome(path), straight)


def test_a_disk_without_room_for_checkpoints_is_noticed_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: Callable[[Any], Any] = lambda path: type("usage", (), {"free": 1000})  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", free)
    with pytest.raises(StorageError, match="got 1000"):
        go_on(tmp_path / "run", tiny("vae"))
    assert records(tmp_path / "run") == []


def test_a_program_without_a_data_plate_ends_well_but_unjudged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mean.py").write_text(
        "import pyro, torch\n"
        "import pyro.distributions as dist\n"
        "from ppgen import ELBO\n"
        "def model(x):\n"
        "    mean = pyro.sample('mean', dist.Normal(torch.zeros(3), 1.0).to_event(1))\n"
        "    pyro.sample('x', dist.Normal(mean, 1.0).expand(x.shape).to_event(2), obs=x)\n"
        "def guide(x):\n"
        "    pyro.sample('mean', dist.Normal(pyro.param('loc', torch.zeros(3)), 1.0).to_event(1))\n"
        "def recipe(data):\n"
        "    return model, guide, ELBO()\n"
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 3), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    config = Config(recipe="mean.py:recipe", steps=3, data=DataConfig(name="data.npz"))
    run = Run.create(config, tmp_path / "run")
    with run.folder.lock():
        list(run.train())
        assert run.judge()["test"] == {}
    assert "not judged on test rows" in caplog.text
    with pytest.raises(ConfigError, match="data plate"):  # asked for by name, it is an error
        run.result()
