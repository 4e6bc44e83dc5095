"""A run is made longer, as if it had been so from the start, or it says what differs; a lost one is refused."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import command, snapshot
from run_helpers import OWN, assert_same, go_on, newest, outcome, tiny

from ppgen.checkpoints import REPLACED, encode_checkpoint, write_checkpoint
from ppgen.errors import CheckpointError, ConfigError, DataError
from ppgen.progress import read_progress
from ppgen.runs import Run, load_run
from ppgen.storage import RunFolder, unpack

CONSTANT = tiny("iwae")


def longer(path: Path, recipe: str | None = None, until: int | None = None, **length: Any) -> Run:
    run = Run.open(path, recipe=recipe, **length)
    with run.folder.lock():
        for _ in run.train(lambda: until is not None and run.trainer.steps >= until):
            pass
    return run


def rate(path: Path) -> float:
    """The learning rate that the newest checkpoint goes on with."""
    checkpoint = RunFolder.open(path).load_checkpoint()
    (player,) = unpack(checkpoint.tensors, checkpoint.meta["state"])["players"].values()
    return float(player["optimizer"]["param_groups"][0]["lr"])


@pytest.mark.parametrize("done", [40, 13])
def test_a_longer_run_is_one_that_was_so_long_from_the_start(tmp_path: Path, done: int) -> None:
    asked = CONSTANT.model_copy(update={"steps": 60})
    go_on(tmp_path / "straight", asked)
    go_on(tmp_path / "longer", CONSTANT, until=done)
    longer(tmp_path / "longer", steps=60)
    assert_same(outcome(tmp_path / "longer"), outcome(tmp_path / "straight"))
    assert (tmp_path / "longer/config.toml").read_text() == (tmp_path / "straight/config.toml").read_text()


def test_epochs_make_a_run_of_steps_longer(tmp_path: Path) -> None:
    go_on(tmp_path / "run", CONSTANT.model_copy(update={"steps": 5}))
    opened = Run.open(tmp_path / "run", epochs=3)
    assert opened.steps == 3 * opened.batches.steps_per_epoch
    assert (opened.config.epochs, opened.config.steps, opened.config.options["epochs"]) == (3, None, 3)


def test_a_schedule_over_the_run_goes_over_the_longer_one_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = f"{OWN}:noisy"
    go_on(tmp_path / "run", tiny("noisy"))
    assert rate(tmp_path / "run") < 1e-8
    longer(tmp_path / "run", recipe, until=50, steps=80)
    assert rate(tmp_path / "run") == pytest.approx(1e-2 * (1 + math.cos(math.pi * 50 / 80)) / 2, rel=1e-5)
    assert "so far it was that of 40 steps, from here on it is that of 80" in caplog.text
    caplog.clear()
    go_on(tmp_path / "run", tiny("noisy"))  # the folder knows its length by now
    assert rate(tmp_path / "run") < 1e-8
    assert "learning rate" not in caplog.text


def test_a_run_without_a_schedule_over_its_length_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on(tmp_path / "run", CONSTANT, until=20)
    longer(tmp_path / "run", steps=50)
    assert "learning rate" not in caplog.text


def test_a_kill_before_the_first_longer_checkpoint_loses_nothing(tmp_path: Path) -> None:
    recipe = f"{OWN}:noisy"
    go_on(tmp_path / "run", tiny("noisy"))
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    longer(tmp_path / "run", recipe, steps=80)
    shutil.copy(tmp_path / "run/config.toml", tmp_path / "killed/config.toml")
    go_on(tmp_path / "killed", tiny("noisy"))
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "run"))


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ({"steps": 39}, "has taken 40 steps; got a length of 39"),
        ({"steps": 50, "epochs": 2}, "exclude each other"),
    ],
)
def test_a_length_that_cannot_be_is_refused(tmp_path: Path, length: Any, words: str) -> None:
    go_on(tmp_path / "run", CONSTANT)
    before = snapshot(tmp_path / "run")
    with pytest.raises(ConfigError, match=words):
        longer(tmp_path / "run", **length)
    assert snapshot(tmp_path / "run") == before


def test_resume_takes_a_length(tmp_path: Path) -> None:
    go_on(tmp_path / "run", CONSTANT)
    done = command("resume", tmp_path / "run", "--steps", 45, "--json")
    assert (done.code, done.document["steps"]) == (0, 45)
    done = command("resume", tmp_path / "run", "--json")
    assert done.document["steps"] == 45


# Checkpoints that are gone


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged") / "run"
    run = go_on(path, tiny("vae", steps=5))
    with run.folder.lock():
        run.judge()
    return path


def without_checkpoints(run: Path, path: Path) -> Path:
    return Path(shutil.copytree(run, path, ignore=shutil.ignore_patterns("step-*")))


@pytest.mark.parametrize("name", ["evaluate", "sample", "embed", "resume"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_left_as_it_is(judged: Path, tmp_path: Path, name: str) -> None:
    run = without_checkpoints(judged, tmp_path / "run")
    before = snapshot(run)
    done = command(name, run)
    assert done.code == 4
    assert "result.json and metrics.jsonl of a training but no checkpoint: bring its folders" in done.error
    assert snapshot(run) == before
    assert command("evaluate", judged).code == 0  # the control


@pytest.mark.parametrize("name", ["evaluate", "sample", "embed"])
def test_a_run_that_was_never_trained_is_refused_but_may_begin(tmp_path: Path, name: str, judged: Path) -> None:
    run = without_checkpoints(judged, tmp_path / "run")
    (run / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    done = command(name, run)
    assert done.code == 4
    assert "has no checkpoint yet: train it first, ppgen resume" in done.error
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_run(run)
    assert Run.open(run, untrained=True).trainer.steps == 0


def test_records_alone_are_not_overwritten(judged: Path, tmp_path: Path) -> None:
    run = without_checkpoints(judged, tmp_path / "run")
    (run / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"has metrics.jsonl of a training but no checkpoint"):
        Run.open(run, untrained=True)


def test_a_checkpoint_that_a_killed_process_had_moved_aside_is_found(judged: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(judged, tmp_path / "run"))
    last = newest(run)
    os.rename(last, run / f"{REPLACED}{last.name}")
    for other in run.glob("step-*"):
        shutil.rmtree(other)
    assert load_run(run).trainer.steps == 5


# What a checkpoint says

GOOD: dict[str, Any] = {
    "state": None,
    "position": 3,
    "seconds": 1.5,
    "identity": {"recipe": "vae"},
    "metrics_size": 0,
    "rollbacks": 0,
}


def test_what_a_run_writes_is_what_it_reads() -> None:
    found = read_progress(GOOD, source="checkpoint 3")
    assert (found.position, found.processes, found.length) == (3, 1, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": -1}, "'position': .*greater than or equal to 0"),
        ({"position": "3"}, "'position': .*valid integer"),
        ({"position": True}, "'position': .*valid integer"),
        ({"position": 2**60}, "'position': .*less than or equal"),
        ({"seconds": "1"}, "'seconds': .*valid number"),
        ({"identity": {"recipe": 3}}, "'identity.recipe': .*valid string"),
        ({"rollbacks": None}, "'rollbacks': .*valid integer"),
        ({"metrics_size": 1.5}, "'metrics_size'"),
        ({"command": "anything"}, "'command': .*not permitted"),
    ],
)
def test_a_description_against_its_schema_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"checkpoint 3 is not that of a run: {words}"):
        read_progress(GOOD | change, source="checkpoint 3")


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_description_that_lacks_a_part_is_refused(missing: str) -> None:
    values = {key: value for key, value in GOOD.items() if key != missing}
    with pytest.raises(CheckpointError, match=f"'{missing}': field required"):
        read_progress(values, source="checkpoint 3")


def test_a_checkpoint_with_right_checksums_and_a_wrong_description_is_one_line(judged: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(judged, tmp_path / "run"))
    checkpoint = RunFolder.open(run).load_checkpoint()
    meta = {**checkpoint.meta, "position": "far"}
    write_checkpoint(newest(run), encode_checkpoint(checkpoint.step, checkpoint.tensors, meta))
    done = command("evaluate", run)
    assert done.code == 4
    assert "'position': input should be a valid integer" in done.error


# Data that have moved


def test_data_that_have_moved_are_asked_for_by_the_option(tmp_path: Path) -> None:
    import numpy as np

    data = tmp_path / "data/mine.npz"
    data.parent.mkdir()
    np.savez(data, x=np.random.default_rng(0).random((300, 6)).astype(np.float32))
    go_on(tmp_path / "run", tiny("vae", steps=3, data={"name": str(data)}))
    os.rename(tmp_path / "data", tmp_path / "there")
    os.rename(tmp_path / "run", tmp_path / "moved")
    for name in ("evaluate", "resume", "sample", "embed"):
        done = command(name, tmp_path / "moved")
        assert done.code == DataError.exit_code
        assert "give --data-root DIR, the folder that holds mine.npz" in done.error
    done = command("evaluate", tmp_path / "moved", "--data-root", tmp_path)
    assert "--data-root" in done.error
    assert command("evaluate", tmp_path / "moved", "--data-root", tmp_path / "there").code == 0
