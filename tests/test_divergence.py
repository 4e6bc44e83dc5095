"""Losses and parameters that are not finite: stopped, skipped or rolled back, and never kept."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from run_helpers import assert_same, go_on, outcome, records, reports_and_checkpoints, start_or_open, tiny

from ppgen.errors import DivergedError
from ppgen.runs import MOST_ROLLBACKS
from ppgen.storage import RunFolder, unpack


@pytest.fixture(autouse=True)
def _of_40_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Windows of 5 steps, checkpoints every 10."""
    reports_and_checkpoints(monkeypatch, reports=8, checkpoints=4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def checkpoints_of(path: Path) -> list[int]:
    return RunFolder.open(path).checkpoints()


def non_finite_tensors(path: Path) -> list[str]:
    """Names of tensors with a value that is not finite, in any checkpoint."""
    folder = RunFolder.open(path)
    loaded = [folder.load_checkpoint(step) for step in folder.checkpoints()]
    return [name for c in loaded for name, tensor in c.tensors.items() if not tensor.isfinite().all()]


@pytest.mark.parametrize("bad_step", [2, 5, 10, 11, 23, 39, 40])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, bad_step: int) -> None:
    config = tiny("fragile", options={"bad_step": bad_step})
    for _ in range(2):  # resumed, it meets the same loss
        with pytest.raises(DivergedError, match=rf"not finite at step {bad_step}: .*'fragile'") as caught:
            go_on(tmp_path / "run", config)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    last = (bad_step - 1) // 10 * 10
    assert checkpoints_of(tmp_path / "run")[-1] == last
    assert non_finite_tensors(tmp_path / "run") == []
    run = start_or_open(tmp_path / "run", config)
    assert run.trainer.steps == last
    assert np.isfinite(run.result(particles=2)["test"]["nll"]["value"])


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny("fragile", on_nan="skip")
    assert go_on(tmp_path / "straight", config).trainer.skipped == 1
    assert "step 23 was skipped" in caplog.text
    assert non_finite_tensors(tmp_path / "straight") == []
    assert [r["loss"] is None for r in records(tmp_path / "straight")] == [False] * 4 + [True] + [False] * 3
    for step in (22, 23, 24):
        path = tmp_path / f"stopped-{step}"
        go_on(path, config, until=step)
        assert go_on(path, config).trainer.skipped == 1
        assert outcome(path)["tensors"] == outcome(tmp_path / "straight")["tensors"]


def learning_rates(path: Path) -> dict[int, float]:
    folder = RunFolder.open(path)
    loaded = {step: folder.load_checkpoint(step) for step in folder.checkpoints()}
    states = {step: unpack(c.tensors, c.meta["state"]) for step, c in loaded.items()}
    return {step: float(s["players"]["all"]["optimizer"]["param_groups"][0]["lr"]) for step, s in states.items()}


def test_a_rollback_halves_the_learning_rate_and_the_run_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It falls off the cliff at steps 28, 35 and 39: once after checkpoint 20, twice after checkpoint 30."""
    config = tiny("cliff", on_nan="rollback")
    run = go_on(tmp_path / "straight", config)
    assert run.trainer.steps == 40
    backs = [message for message in caplog.messages if "back to step" in message]
    assert [int(message.split("back to step ")[1].split()[0]) for message in backs] == [20, 30, 30]
    assert learning_rates(tmp_path / "straight") == pytest.approx({30: 0.05, 40: 0.0125})
    assert [record["step"] for record in records(tmp_path / "straight")] == list(range(5, 41, 5))
    expected = outcome(tmp_path / "straight")
    for step in (10, 20, 30):
        path = tmp_path / f"stopped-{step}"
        go_on(path, config, until=step)
        go_on(path, config)
        assert_same(outcome(path), expected)


def test_rollbacks_end_after_three(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny("fragile", on_nan="rollback")
    with pytest.raises(DivergedError, match="step 23") as caught:
        go_on(tmp_path / "run", config)
    assert caught.value.exit_code == 5
    assert sum("back to step 20" in message for message in caplog.messages) == MOST_ROLLBACKS
    assert learning_rates(tmp_path / "run") == pytest.approx({10: 1e-3, 20: 1e-3})


def test_a_rollback_before_the_first_checkpoint_goes_back_to_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny("cliff", on_nan="rollback", options={"limit": 0.55, "learning_rate": 0.08})
    go_on(tmp_path / "run", config, until=10)
    assert "back to step 0 with half the learning rate" in caplog.text
    assert learning_rates(tmp_path / "run")[10] == pytest.approx(0.04)


@pytest.mark.parametrize("on_nan", ["stop", "skip", "rollback"])
def test_parameters_that_overflow_never_reach_a_checkpoint(tmp_path: Path, on_nan: str) -> None:
    """After one step the loss was finite, and the parameters are not."""
    config = tiny("leap", on_nan=on_nan, steps=1)
    with pytest.raises(
        DivergedError, match=r"'model\.height' is not finite after step 1: lower the learning"
    ) as caught:
        go_on(tmp_path / "run", config)
    assert caught.value.exit_code == 5
    assert checkpoints_of(tmp_path / "run") == [0]
    assert non_finite_tensors(tmp_path / "run") == []


def test_the_test_of_checkpoints_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a trainer that hides its state gets infinite parameters into a checkpoint."""
    run = go_on(tmp_path / "run", tiny("fragile", steps=1, options={"bad_step": 99}))
    next(iter(run.trainer.leaves.values())).data.fill_(torch.inf)
    state = run.trainer.state_dict()
    monkeypatch.setattr(run.trainer, "state_dict", lambda: {"hidden": state})
    with run.folder.lock():
        run.save()
    assert non_finite_tensors(tmp_path / "run") != []
