"""Ctrl-C and SIGTERM, at moments that are chosen and at moments that are not: nothing is lost."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_helpers import MY_MODEL, QUICK, command, process

from ppgen.interruption import heeded

INTERRUPTING = (
    MY_MODEL
    + '''
import signal
import subprocess
from pathlib import Path

def interrupting(data, *, at: int = 7, number: int = 2, again: bool = False):
    """A VAE that has a signal come in the middle of its step `at`, unless a file `quiet` lies beside it."""
    model, guide, objective = small_vae(data)
    calls = 0

    def wrapped(x):
        nonlocal calls
        if torch.is_grad_enabled():
            calls += 1
            if calls == at and not Path("quiet").exists():
                signal.raise_signal(number)
                if again:
                    signal.raise_signal(number)
        model(x)

    return wrapped, guide, objective
'''
)


def parameters(run: Path | str) -> bytes:
    """The tensors of the last checkpoint."""
    return (max(Path(run).glob("step-*")) / "state.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoints(run: Path | str) -> list[int]:
    """Steps of the checkpoints after the start."""
    return sorted(step for path in Path(run).glob("step-*") if (step := int(path.name[5:])))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_end_and_keeps_a_checkpoint(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "my_model.py").write_text(INTERRUPTING)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    recipe = "my_model.py:interrupting"
    options = [recipe, "--steps", 300, "--compile", "off", "--set", f"number={int(number)}"]
    stopped = command("train", *options, "--out", "stopped")
    assert stopped.code == code
    last = stopped.err.splitlines()[-1]
    assert "Go on with: ppgen resume stopped" in last
    assert "Error" not in stopped.err
    assert stopped.out == ""
    assert len(checkpoints("stopped")) == 1
    assert checkpoints("stopped")[0] < 10
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    Path("quiet").touch()
    assert command("resume", "stopped", "--recipe", recipe).code == 0
    assert command("train", *options, "--out", "straight").code == 0
    assert parameters("stopped") == parameters("straight")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(INTERRUPTING)
    options = ["--steps", 300, "--compile", "off", "--set", "again=true", "--out", "out"]
    assert command("train", "my_model.py:interrupting", *options).code == 130
    assert checkpoints("out") == []


def test_a_signal_while_judging_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppgen.runs import Run

    with monkeypatch.context() as patch:
        patch.setattr(Run, "judge", lambda self: signal.raise_signal(signal.SIGTERM))
        done = command("train", "vae", "--steps", 4, *QUICK, "--out", "out")
    assert done.code == 143
    assert "Stopped at step 4 of 4. Go on with: ppgen resume out" in done.err
    assert command("resume", "out", "--json").document["steps"] == 4


def test_a_signal_before_there_is_a_run_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ppgen.places

    monkeypatch.setattr(ppgen.places, "load_data", lambda config: signal.raise_signal(signal.SIGINT))
    done = command("train", "vae", "--out", "out")
    assert (done.code, done.err) == (130, "Stopped; nothing was saved.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.number is None
    finally:
        signal.signal(signal.SIGINT, before)


# --------------------------------------------------------------------------------------- moments at random


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = command("train", "m2", "--steps", 1000, *QUICK, "--out", folder, "--json")
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT, signal.SIGINT]])
def test_a_run_interrupted_at_random_moments_ends_as_one_that_was_not(signals: list[int], straight: Path) -> None:
    """The signals go to the whole process group, as a terminal sends them."""
    moments = random.Random(time.time_ns())
    start = ["train", "m2", "--steps", 1000, *QUICK, "--out", "run"]
    for number in signals:
        running = process(*(start if not Path("run/config.toml").exists() else ["resume", "run"]))
        wait_for_training(running, Path("run"))
        pause = moments.uniform(0, 0.8)
        time.sleep(pause)
        os.killpg(running.pid, number)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 128 + number, f"{pause}: {err}"
        assert out == ""
        assert "Go on with: ppgen resume run" in err.splitlines()[-1]
    done = command("resume", "run", "--json")
    assert done.code == 0, done.err
    assert parameters("run") == parameters(straight)
    first = json.loads((straight / "result.json").read_text())
    assert done.document["test"] == first["test"]


def test_another_seed_gives_other_parameters(straight: Path) -> None:
    """So that the comparison above can fail."""
    assert command("train", "m2", "--steps", 1000, *QUICK, "--out", "run", "--seed", 1).code == 0
    assert parameters("run") != parameters(straight)


def test_two_ctrl_c_end_a_process_quietly() -> None:
    running = process("train", "m2", "--steps", 100_000, *QUICK, "--out", "run")
    wait_for_training(running, Path("run"))
    os.killpg(running.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err


def wait_for_training(running: "subprocess.Popen[str]", run: Path) -> None:
    """Waits until a process writes metrics that it finds, or adds to those that it found."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.stat().st_mtime_ns == before:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
