"""A run folder of somebody else: sizes are looked at before anything is read, and no text of it steers a terminal."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import command, snapshot
from run_helpers import go_on, newest, tiny
from storage_helpers import new_run

from ppgen import checkpoints, configuration, display, storage
from ppgen.checkpoints import read_checkpoint
from ppgen.configuration import DEEPEST, LARGEST, from_toml, read_request
from ppgen.errors import CheckpointError, ConfigError
from ppgen.packing import pack, unpack

ESCAPES = "\x1b]0;title\x07\x1b[2Jname\x9b31m\u202e\r"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    run = go_on(path, tiny("vae", steps=3))
    with run.folder.lock():
        run.judge()
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# Sizes


@pytest.mark.parametrize(
    ("module", "limit", "change"),
    [
        (checkpoints, "LARGEST_STATE", lambda run: run / "step-00000003/state.json"),
        (checkpoints, "LARGEST_HEADER", lambda run: run / "step-00000003/state.safetensors"),
        (storage, "LARGEST_TEXT", lambda run: run / "config.toml"),
        (configuration, "LARGEST", lambda run: run / "config.toml"),
    ],
)
def test_what_is_larger_than_it_can_be_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, module: Any, limit: str, change: Any
) -> None:
    assert change(run).stat().st_size > 50
    for folder in sorted(run.glob("step-*"))[:-1]:
        shutil.rmtree(folder)
    monkeypatch.setattr(module, limit, 50)
    if limit == "LARGEST":
        monkeypatch.setattr("ppgen.configuration.from_toml.__kwdefaults__", {"most": 50})
    done = command("evaluate", run)
    assert done.code == (2 if limit == "LARGEST" else 4)
    assert "expected" in done.error


def test_a_header_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", 1).path / "step-00000001"
    blob = bytearray((folder / "state.safetensors").read_bytes())
    blob[:8] = (2**40).to_bytes(8, "little")
    (folder / "state.safetensors").write_bytes(bytes(blob))
    with pytest.raises(ValueError, match="a header of 1,099,511,627,776 bytes"):
        read_checkpoint(folder, 1)


def test_records_of_an_impossible_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_run(tmp_path / "run", 1)
    folder.append_metrics({"step": 1, "note": "x" * 100})
    assert len(folder.metrics()) == 1
    monkeypatch.setattr(storage, "LARGEST_LINE", 50)
    with pytest.raises(CheckpointError, match="lines of at most 50 bytes"):
        folder.metrics()
    monkeypatch.setattr(storage, "LARGEST_METRICS", 60)
    with pytest.raises(CheckpointError, match="at most 60"):
        folder.metrics()


def test_a_description_with_more_than_there_is_in_one_is_not_usable(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", 1).path / "step-00000001"
    body = json.loads((folder / "state.json").read_text())
    body.pop("digest")
    changes: dict[str, Any] = {"extra": 1, "sha256": "0", "step": True}
    for key, value in changes.items():
        (folder / "state.json").write_bytes(checkpoints._with_digest({**body, key: value}))
        with pytest.raises(ValueError, match=f"state.json: '{key}'"):
            read_checkpoint(folder, 1)
    (folder / "state.json").write_bytes(checkpoints._with_digest(body))
    read_checkpoint(folder, 1)


# Depth


@pytest.mark.parametrize("opens", ["x = " + "[" * 8 + "]" * 8, "a.b.c.d = 1", "[a.b]\nc = {d = [1, 2.5]}", "x = '[[['"])
def test_a_configuration_of_modest_depth_is_read(opens: str) -> None:
    assert from_toml(opens, source="file.toml")


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
        "x = " + "{y = " * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1),
        ".".join("a" * (DEEPEST + 2)) + " = 1",
        ".".join(['"a"'] * (DEEPEST + 2)) + " = 1",
        "[" + ".".join("a" * (DEEPEST + 2)) + "]",
    ],
)
def test_a_configuration_deeper_than_any_is_refused_before_it_is_parsed(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tomllib.loads", None)
    with pytest.raises(ConfigError, match=rf"file.toml is more than {DEEPEST} levels deep"):
        from_toml(text, source="file.toml")


def test_a_configuration_larger_than_any_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'recipe = "vae"\n# ' + "x" * LARGEST
    monkeypatch.setattr("tomllib.loads", None)
    with pytest.raises(ConfigError, match=r"characters; at most"):
        from_toml(text, source="file.toml")
    (tmp_path / "file.toml").write_text(text * 5)
    with pytest.raises(ConfigError, match="which no configuration has"):
        read_request(tmp_path / "file.toml", {}, ())


def test_a_number_of_too_many_digits_is_no_toml() -> None:
    with pytest.raises(ConfigError, match=r"file.toml is no TOML"):
        from_toml("seed = " + "1" * 5000, source="file.toml")


def test_a_state_deeper_than_any_is_refused() -> None:
    nested: Any = 1
    for _ in range(101):
        nested = [nested]
    with pytest.raises(CheckpointError, match="more than 100 levels deep"):
        unpack({}, nested)
    assert unpack(*pack({"a": [[1]]})) == {"a": [[1]]}


# Terminals


def steers(text: str) -> bool:
    return any(character in text for character in ESCAPES if not character.isprintable())


@pytest.mark.parametrize("show", [display.warn, display.write, display.say])
def test_what_steers_a_terminal_is_not_printed(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show(f"before {ESCAPES} after")
    out, err = capsys.readouterr()
    assert "name" in out + err
    assert "after" in out + err
    assert not steers(out + err)


def test_tables_print_names_as_they_are_but_for_what_steers(capsys: pytest.CaptureFixture[str]) -> None:
    display.show_table(
        f"[red]{ESCAPES}", (f"column {ESCAPES}", "[bold]"), [(f"cell {ESCAPES}", "[x]")], caption=ESCAPES
    )
    out, _ = capsys.readouterr()
    assert "[red]" in out
    assert "[bold]" in out
    assert not steers(out)


def test_names_in_a_folder_of_somebody_else_do_not_reach_the_terminal(run: Path, tmp_path: Path) -> None:
    hostile = json.dumps(f"mine{ESCAPES}.npz")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('name = "digits"', f"name = {hostile}"))
    for name in ("evaluate", "sample", "resume"):
        done = command(name, run)
        assert done.code in (2, 3)
        assert "mine" in done.error
        assert not steers(done.out + done.err)
    (run / "config.toml").write_text(f'recipe = "vae"\n{hostile} = 1\n')
    done = command("evaluate", run)
    assert done.code == 2
    assert not steers(done.err)


def test_names_of_columns_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = "\n".join("1,2" for _ in range(40))
    path.write_text(f"{ESCAPES[:-1]},x\n{rows}\nwrong,2\n")
    done = command("train", "vae", "--data", path, "--out", tmp_path / "run")
    assert done.code == 3
    assert not steers(done.err)


# Links


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "config.toml"])
def test_a_file_that_is_a_link_is_never_written_through(run: Path, tmp_path: Path, name: str) -> None:
    others = tmp_path / "others"
    shutil.copy(run / name, others)
    (run / name).unlink()
    (run / name).symlink_to(others)
    before = others.read_bytes()
    done = command("resume", run, "--steps", 5)
    assert done.code == 4
    assert "link" in done.error
    assert others.read_bytes() == before


@pytest.mark.parametrize("name", ["samples.png", "reconstructions.png", "training.png"])
def test_a_picture_that_is_a_link_is_replaced(run: Path, tmp_path: Path, name: str) -> None:
    others = tmp_path / "others"
    others.write_bytes(b"precious")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(others)
    assert command("resume", run).code == 0
    assert others.read_bytes() == b"precious"
    assert not (run / name).is_symlink()


def test_a_checkpoint_that_is_a_link_is_none(run: Path, tmp_path: Path) -> None:
    last = newest(run)
    os.rename(last, tmp_path / "elsewhere")
    for folder in run.glob("step-*"):
        shutil.rmtree(folder)
    last.symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    done = command("resume", run)
    assert done.code == 4
    assert "it is a symbolic link" in done.error
    assert snapshot(tmp_path / "elsewhere") == before
