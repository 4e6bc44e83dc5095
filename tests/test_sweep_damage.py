"""A sweep knows its runs by their configuration, and one that is damaged stops no other."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import QUICK, Done, command
from storage_helpers import new_run

from ppgen import jobs
from ppgen.runs import Run
from ppgen.storage import RunFolder

ARGUMENTS = ["vae", "--steps", 2, *QUICK, "--set", "learning_rate=1e-3,1e-2", "--seeds", "0", "--out", "out", "--json"]
ONE, TWO = Path("out/learning_rate=0.001/seed-0"), Path("out/learning_rate=0.01/seed-0")


def swept(*arguments: object) -> Done:
    return command("sweep", *(arguments or ARGUMENTS), "--jobs", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(Run, "write_pictures", lambda self: [])
        done = swept()
        assert done.code == 0, done.err
        Path("document.json").write_text(done.out)
    return folder


@pytest.fixture
def sweep(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A finished sweep of two runs in a folder of its own, which the test is in; its document."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(Run, "write_pictures", lambda self: [])
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    document: dict[str, Any] = json.loads(Path("document.json").read_text())
    return document


def measured(document: dict[str, Any]) -> list[Any]:
    return [run["result"]["test"] if "result" in run else run["exit_code"] for run in document["runs"]]


def result_of_the_other() -> None:
    shutil.copy(TWO / "result.json", ONE / "result.json")


def truncated_result() -> None:
    (ONE / "result.json").write_bytes((ONE / "result.json").read_bytes()[:40])


def no_result() -> None:
    (ONE / "result.json").unlink()


def result_of_wrong_types() -> None:
    found = json.loads((ONE / "result.json").read_text())
    (ONE / "result.json").write_text(json.dumps({**found, "test": {"nll": 3}}))


def result_of_another_length() -> None:
    found = json.loads((ONE / "result.json").read_text())
    (ONE / "result.json").write_text(json.dumps({**found, "steps": 1}))


@pytest.mark.parametrize(
    "damage", [result_of_the_other, truncated_result, no_result, result_of_wrong_types, result_of_another_length]
)
def test_a_result_that_is_not_that_of_the_run_is_made_again(sweep: dict[str, Any], damage: Callable[[], None]) -> None:
    damage()
    done = swept()
    assert done.code == 0, done.err
    assert measured(done.document) == measured(sweep)
    assert json.loads((ONE / "result.json").read_text())["test"] == measured(sweep)[0]


def copied_folder() -> None:
    shutil.rmtree(ONE)
    shutil.copytree(TWO, ONE)


def changed_option() -> None:
    text = (ONE / "config.toml").read_text()
    (ONE / "config.toml").write_text(text.replace("learning_rate = 0.001", "learning_rate = 0.5"))


def unreadable_configuration() -> None:
    (ONE / "config.toml").write_bytes(b"\xff\xfe")


def no_configuration() -> None:
    (ONE / "config.toml").unlink()


def configuration_that_is_no_toml() -> None:
    (ONE / "config.toml").write_text("recipe = ")


def linked_folder() -> None:
    os.rename(ONE, "elsewhere")
    ONE.symlink_to(Path("elsewhere").resolve())


def a_file() -> None:
    shutil.rmtree(ONE)
    ONE.write_text("")


def no_checkpoints() -> None:
    (ONE / "result.json").unlink()
    for folder in ONE.glob("step-*"):
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (copied_folder, 4, "holds another run: option learning_rate is 0.01; expected 0.001: move it away"),
        (changed_option, 4, "holds another run: option learning_rate is 0.5; expected 0.001"),
        (unreadable_configuration, 4, "cannot read"),
        (no_configuration, 2, "exists"),
        (configuration_that_is_no_toml, 2, "is no TOML"),
        (linked_folder, 4, "a symbolic link"),
        (a_file, 6, "Not a directory"),
        (no_checkpoints, 4, "but no checkpoint"),
    ],
)
def test_a_damaged_run_is_reported_and_stops_no_other(
    sweep: dict[str, Any], damage: Callable[[], None], code: int, words: str
) -> None:
    damage()
    (TWO / "result.json").unlink()
    done = swept()
    assert done.code == code
    assert measured(done.document) == [code, measured(sweep)[1]]
    assert words in done.document["runs"][0]["error"]
    assert "\n" not in done.document["runs"][0]["error"]
    assert [(row["runs"], row["failed"]) for row in done.document["settings"]] == [(0, 1), (1, 0)]


def test_a_run_in_use_is_reported_and_stops_no_other(sweep: dict[str, Any]) -> None:
    (ONE / "result.json").unlink()
    (TWO / "result.json").unlink()
    with RunFolder(ONE).lock():
        done = swept()
    assert done.code == 75
    assert measured(done.document) == [75, measured(sweep)[1]]
    assert measured(swept().document) == measured(sweep)


def test_a_sweep_that_nothing_happened_to_trains_nothing(
    sweep: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_train", None)
    done = swept()
    assert done.code == 0
    assert measured(done.document) == measured(sweep)


def test_a_folder_that_is_no_run_of_a_sweep_is_not_finished(tmp_path: Path) -> None:
    from ppgen.configuration import Config

    folder = new_run(tmp_path / "run", 1)
    assert jobs.finished(folder.path, Config(recipe="vae")) is None
