"""A run that is stopped, killed or crashes at any moment and is resumed ends as one that went through, bit for bit."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import (
    Photographer,
    assert_same,
    finish,
    go_on,
    killed_after,
    newest,
    outcome,
    reports_and_checkpoints,
    start_or_open,
    tiny,
)

from ppgen.errors import CheckpointError
from ppgen.randomness import all_random_states
from ppgen.runs import Run
from ppgen.storage import RunFolder
from ppgen.training import Trainer

STOPS = (1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 15, 19, 20, 21, 22, 23, 30, 33, 38, 39)
"""Among them edges of windows (5), checkpoints (10) and epochs (11), each with its neighbours."""


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _few_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 steps: windows of 5, checkpoints every 10."""
    reports_and_checkpoints(monkeypatch, reports=8, checkpoints=4)


# Killed


@pytest.mark.parametrize(
    "recipe",
    ["vae", "m2", "wgan-gp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("noisy", "aae-semisupervised"))],
)
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, recipe: str) -> None:
    config = tiny(recipe)
    assert killed_after(finish, tmp_path / "first", config, None) == 0  # warms up
    start = time.monotonic()
    assert killed_after(finish, tmp_path / "straight", config, None) == 0
    duration = time.monotonic() - start
    expected = outcome(tmp_path / "straight")
    assert_same(outcome(tmp_path / "first"), expected)
    chooser, kills, midway, number = random.Random(recipe), 0, 0, 0
    while kills < 10 or not midway:
        path = tmp_path / f"killed-{number}"
        status = killed_after(finish, path, config, chooser.uniform(0, duration))
        assert status in (0, -9)
        kills += status == -9
        midway += status == -9 and any(path.glob("step-*"))
        number += status == 0
    assert killed_after(finish, path, config, None) == 0
    for path in tmp_path.glob("killed-*"):
        assert_same(outcome(path), expected)


def photographed(tmp_path: Path, recipe: str) -> tuple[list[Path], dict[str, Any]]:
    """Every state of the disk that a crash of a run of 20 steps and five checkpoints can leave, and its outcome."""
    album = tmp_path / "album"
    album.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        photographer = Photographer(tmp_path / "run", album).install(patch)
        go_on(tmp_path / "run", tiny(recipe, steps=20))
    assert photographer.calls >= 35
    return sorted(album.iterdir()), outcome(tmp_path / "run")


@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_a_crash_at_every_fsync_and_rename_changes_nothing(tmp_path: Path, recipe: str) -> None:
    pictures, expected = photographed(tmp_path, recipe)
    assert len(pictures) >= 30
    steps = set()
    for path in pictures:
        run = start_or_open(path, tiny(recipe, steps=20))
        steps.add(run.trainer.steps)
        go_on(path, tiny(recipe, steps=20))
        assert_same(outcome(path), expected)
        assert list(path.glob(".tmp-*")) == []
        shutil.rmtree(path)
    assert steps == {0, 5, 10, 15, 20}


def test_the_sweep_notices_records_that_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without cutting the records back, some crash leaves some of them twice."""
    pictures, expected = photographed(tmp_path, "vae")
    monkeypatch.setattr(RunFolder, "truncate_metrics", lambda self, size: None)
    different = 0
    for path in pictures:
        go_on(path, tiny("vae", steps=20))
        different += outcome(path)["records"] != expected["records"]
    assert different > 0


@pytest.mark.slow
def test_a_compiled_run_killed_and_resumed_is_the_same(tmp_path: Path) -> None:
    config = tiny("m2", compile="on", steps=400)
    finish(str(tmp_path / "straight"), config)
    expected = outcome(tmp_path / "straight")
    status = killed_after(finish_but_for_a_kill, tmp_path / "killed", config, None)
    assert status == -9
    assert outcome(tmp_path / "killed")["step"] == 120
    assert killed_after(finish, tmp_path / "killed", config, None) == 0
    assert_same(outcome(tmp_path / "killed"), expected)


def finish_but_for_a_kill(path: str, config: Any) -> None:
    """Trains until step 130 and is killed there, by itself."""
    run = start_or_open(path, config)
    with run.folder.lock():
        for record in run.train():
            if record["step"] >= 130:
                os.kill(os.getpid(), signal.SIGKILL)


# Stopped


@pytest.mark.usefixtures("_few_checkpoints")
@pytest.mark.parametrize(
    ("recipe", "options", "stops"),
    [
        ("m2", {"dropout": 0.3, "binarization": "dynamic", "warmup": 20, "schedule": "cosine", "clip": 5.0}, STOPS),
        ("vae", {"particles": 2, "free_bits": 0.1, "schedule": "constant", "average": None}, STOPS[::4]),
        ("noisy", {}, STOPS),
        ("baseline", {}, STOPS[::4]),
    ],
)
def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not_been(
    tmp_path: Path, recipe: str, options: dict[str, Any], stops: tuple[int, ...]
) -> None:
    config = tiny(recipe, options=options)
    go_on(tmp_path / "straight", config)
    expected = outcome(tmp_path / "straight")
    for step in stops:
        path = tmp_path / f"stopped-{step}"
        assert go_on(path, config, until=step).trainer.steps == step
        assert newest(path).name == f"step-{step:08d}"
        go_on(path, config)
        found = outcome(path)
        # a stop within a window reports the part before it on its own
        assert [r["step"] for r in found["records"]] == sorted({*range(5, 41, 5), step})
        assert_same({**found, "records": []}, {**expected, "records": []})
        if step % 5 == 0:
            assert found["records"] == expected["records"]


@pytest.mark.usefixtures("_few_checkpoints")
def test_a_run_stopped_at_every_step_in_turn_is_the_same(tmp_path: Path) -> None:
    config = tiny("noisy", steps=25)
    go_on(tmp_path / "straight", config)
    for step in range(26):
        go_on(tmp_path / "stopped", config, until=step)
    expected = outcome(tmp_path / "straight")
    assert_same({**outcome(tmp_path / "stopped"), "records": []}, {**expected, "records": []})


def forget_random_streams(state: dict[str, Any]) -> None:
    state["random"] = all_random_states()


def forget_numpy(state: dict[str, Any]) -> None:
    state["random"]["numpy"] = all_random_states()["numpy"]


def forget_python(state: dict[str, Any]) -> None:
    state["random"]["python"] = all_random_states()["python"]


def forget_moments(state: dict[str, Any]) -> None:
    state["players"]["all"]["optimizer"]["state"].clear()


def forget_schedule(state: dict[str, Any]) -> None:
    state["players"]["all"]["optimizer"]["param_groups"][0]["lr"] = torch.tensor(1e-2)


def forget_average(state: dict[str, Any]) -> None:
    state["average"] = state["players"]["all"]["leaves"]


def forget_buffers(state: dict[str, Any]) -> None:
    for tensor in state["buffers"].values():
        tensor.zero_()


@pytest.mark.usefixtures("_few_checkpoints")
@pytest.mark.parametrize(
    "forget",
    [
        *[forget_random_streams, forget_numpy, forget_python, forget_moments, forget_schedule, forget_average],
        forget_buffers,
    ],
)
def test_a_state_that_is_not_wholly_restored_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[dict[str, Any]], None]
) -> None:
    """Negative controls: the comparison fails as soon as one part of the state is left out."""
    config = tiny("noisy")
    go_on(tmp_path / "straight", config)
    go_on(tmp_path / "stopped", config, until=14)
    restore = Trainer.load_state_dict

    def forgetful(self: Trainer, state: dict[str, Any]) -> None:
        forget(state)
        restore(self, state)

    monkeypatch.setattr(Trainer, "load_state_dict", forgetful)
    go_on(tmp_path / "stopped", config)
    monkeypatch.undo()
    assert outcome(tmp_path / "stopped")["tensors"] != outcome(tmp_path / "straight")["tensors"]


@pytest.mark.usefixtures("_few_checkpoints")
def test_a_step_that_is_not_restored_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("noisy")
    go_on(tmp_path / "stopped", config, until=14)
    restore = Trainer.load_state_dict

    def forgetful(self: Trainer, state: dict[str, Any]) -> None:
        restore(self, {**state, "steps": state["steps"] - 1})

    monkeypatch.setattr(Trainer, "load_state_dict", forgetful)
    with pytest.raises(CheckpointError, match=r"checkpoint 14 of .* holds the state after 13 steps"):
        go_on(tmp_path / "stopped", config)


@pytest.mark.usefixtures("_few_checkpoints")
@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_a_position_in_the_data_that_is_not_restored_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    config = tiny(recipe)
    go_on(tmp_path / "straight", config)
    go_on(tmp_path / "stopped", config, until=14)
    restore = Run._restore

    def forgetful(self: Run, checkpoint: Any) -> None:
        checkpoint.meta["position"] = 0
        restore(self, checkpoint)

    monkeypatch.setattr(Run, "_restore", forgetful)
    go_on(tmp_path / "stopped", config)
    monkeypatch.undo()
    assert outcome(tmp_path / "stopped")["tensors"] != outcome(tmp_path / "straight")["tensors"]


@pytest.mark.usefixtures("_few_checkpoints")
def test_a_running_baseline_of_pyro_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the recipe `baseline`: what Pyro keeps in the parameter store matters."""
    config = tiny("baseline")
    go_on(tmp_path / "straight", config)
    go_on(tmp_path / "stopped", config, until=14)
    kept = [name for name in RunFolder.open(tmp_path / "stopped").load_checkpoint().tensors if "store/" in name]
    assert len(kept) == 1
    restore = Trainer.load_state_dict

    def forgetful(self: Trainer, state: dict[str, Any]) -> None:
        restore(self, {**state, "store": {}})

    monkeypatch.setattr(Trainer, "load_state_dict", forgetful)
    go_on(tmp_path / "stopped", config)
    monkeypatch.undo()
    assert outcome(tmp_path / "stopped")["tensors"] != outcome(tmp_path / "straight")["tensors"]


# Finished


@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_to_train_a_finished_run_changes_nothing(tmp_path: Path, recipe: str) -> None:
    def bytes_of_run() -> dict[str, bytes]:
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}

    config = tiny(recipe, options={"evaluation_particles": 2})
    run = go_on(tmp_path / "run", config)
    with run.folder.lock():
        run.judge()
    before = bytes_of_run()
    for _ in range(2):
        run = go_on(tmp_path / "run", config)
        assert run.trainer.steps == 40
    with run.folder.lock():
        run.judge()
    assert {name for name, data in bytes_of_run().items() if before.get(name) != data} == set()
    assert before.keys() == bytes_of_run().keys()
