"""Every file is written by one way: whole or not at all, and never through a link. Read from the source, and tried."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from test_architecture import LIBRARY_SOURCES

from ppgen import exports, feature_files, monitoring
from ppgen.errors import CheckpointError, PpgenError
from ppgen.estimators import pictures as estimators_pictures
from ppgen.evaluation import arviz, figures
from ppgen.files import read_bytes, replace_file, replacing
from ppgen.storage import RunFolder

WRITERS = {"ppgen.files", "ppgen.storage", "ppgen.checkpoints"}
"""The modules that may open, rename and make files by themselves: the crash sweep covers each of their calls."""
SERIALISERS = {"save", "savefig", "savez", "savez_compressed", "savetxt", "imsave", "to_netcdf", "to_csv", "save_file"}
"""What writes to a path or into memory, by its first argument."""
MOVES = {"replace", "rename", "link", "symlink", "copyfile", "copytree", "move", "write_bytes", "truncate"}


def in_memory(function: ast.AST) -> set[str]:
    """The names in a function that stand for bytes in memory, or for a new file that takes the old one's place."""
    found = {"path_of_replacing"}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and "io.BytesIO()" in ast.unparse(node.value):
            found |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        if isinstance(node, ast.withitem) and "replacing(" in ast.unparse(node.context_expr):
            found |= {ast.unparse(node.optional_vars)} if node.optional_vars else set()
    return found


def other_ways_of_writing(module: str, source: str) -> list[str]:
    """Calls that write a file by other means than `ppgen.files`."""
    tree = ast.parse(source)
    memory = {name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for name in in_memory(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        texts = [ast.unparse(argument) for argument in node.args]
        first = texts[0].removeprefix("str(").removesuffix(")") if texts else ""
        modes = [text for text in [*texts, *(ast.unparse(word.value) for word in node.keywords)] if text[:1] in "'\""]
        wrong = (
            (name in SERIALISERS and owner and first not in memory and owner not in ("run", "self", "arviz"))
            or (name in MOVES and owner in ("os", "shutil", "temporary", "path", "file"))
            or (name == "write_text" and len(texts) == 1)
            or (called in ("open", "os.fdopen", "io.open") and any(set(mode) & set("wax+") for mode in modes))
            or (called == "os.open" and any("O_WRONLY" in text or "O_CREAT" in text for text in texts))
            or (name == "open" and owner not in ("os", "Run", "io", "") and any(m[1:2] in set("wax") for m in modes))
        )
        if wrong and "os.devnull" not in " ".join(texts):
            found.append(f"{module}:{node.lineno}: {called}({', '.join(texts)})")
    return found


@pytest.mark.parametrize("module", sorted(LIBRARY_SOURCES.keys() - WRITERS))
def test_there_is_no_other_way_of_writing(module: str) -> None:
    found = other_ways_of_writing(module, LIBRARY_SOURCES[module])
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "figure.savefig(path)",
        "numpy.savez(path, x=x)",
        "np.save(str(path), x)",
        "image.save(path)",
        "data.to_netcdf(path)",
        "path.write_text(text)",
        "path.write_bytes(data)",
        "open(path, 'w').write(text)",
        "open(path, mode='ab')",
        "path.open('w')",
        "os.replace(temporary, path)",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "shutil.move(one, other)",
    ],
)
def test_another_way_is_noticed(line: str) -> None:
    assert len(other_ways_of_writing("ppgen.novelty", f"def write():\n    {line}")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "file = io.BytesIO(); figure.savefig(file)",
        "with replacing(path) as temporary: data.to_netcdf(temporary)",
        "folder.write_text('config.toml', text)",
        "open(path)",
        "path.open('rb')",
        "text.replace('a', 'b')",
        "run.save()",
    ],
)
def test_what_writes_no_file_is_let_through(line: str) -> None:
    assert other_ways_of_writing("ppgen.novelty", f"def write():\n    {line}") == []


def a_figure(path: Path) -> None:
    figures.save(matplotlib.figure.Figure(figsize=(1, 1)), path)


def an_arviz_file(path: Path) -> None:
    variables = {"z": (("chain", "draw"), np.zeros((1, 2)))}
    xarray = pytest.importorskip("xarray")
    arviz.to_netcdf(arviz.container({"posterior": xarray.Dataset(variables)}), path)


def a_replaced_file(path: Path) -> None:
    replace_file(path, b"new")


def a_file_of_samples(path: Path) -> None:
    exports.write_file(path, b"new")


WRITE: list[Callable[[Path], None]] = [a_figure, an_arviz_file, a_replaced_file, a_file_of_samples]


@pytest.mark.parametrize("write", WRITE)
def test_a_link_in_the_place_of_a_file_is_replaced_and_never_followed(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    others = tmp_path / "others.txt"
    others.write_text("precious")
    target = tmp_path / "file.png"
    target.symlink_to(others)
    write(target)
    assert others.read_text() == "precious"
    assert not target.is_symlink()
    assert target.stat().st_size > 0
    assert sorted(os.listdir(tmp_path)) == ["file.png", "others.txt"]


@pytest.mark.parametrize("write", WRITE)
def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    target = tmp_path / "folder.png"
    (target / "inside").mkdir(parents=True)
    with pytest.raises((PpgenError, OSError), match="irectory"):
        write(target)
    assert os.listdir(tmp_path) == ["folder.png"]


def test_pictures_of_a_run_do_not_leave_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppgen.evaluation.pictures.snapshot", lambda *_, **__: b"picture")
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / monitoring.SAMPLES).symlink_to(elsewhere)
    nothing: Any = None
    with pytest.raises(CheckpointError, match="symbolic link"):
        monitoring.draw_samples(nothing, nothing, run, step=3)
    assert os.listdir(elsewhere) == []
    assert os.listdir(run) == [monitoring.SAMPLES]


def test_features_replace_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "embed", lambda *_, **__: {"z": torch.zeros(2, 1)})
    others = tmp_path / "others.csv"
    others.write_text("precious")
    (tmp_path / "z.csv").symlink_to(others)
    run: Any = SimpleNamespace(trainer=None, folder=SimpleNamespace(path=tmp_path))
    feature_files.write_features(run, feature_files.Rows({}, None), tmp_path / "z.csv")
    assert others.read_text() == "precious"
    assert (tmp_path / "z.csv").read_text() == "z_0\n0\n0\n"


def test_metrics_that_are_a_link_are_refused(tmp_path: Path) -> None:
    others = tmp_path / "others.jsonl"
    others.write_text("")
    folder = RunFolder.create(tmp_path / "run")
    (folder.path / "metrics.jsonl").symlink_to(others)
    with pytest.raises((CheckpointError, PpgenError)):
        folder.append_metrics({"step": 1})
    assert others.read_text() == ""


def test_what_writes_to_a_path_takes_the_place_of_a_file_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.nc"
    target.write_text("old")

    def write(*, fails: bool) -> None:
        with replacing(target) as temporary:
            temporary.write_text("new")
            if fails:
                raise KeyError("full")

    with pytest.raises(KeyError):
        write(fails=True)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.nc"]
    write(fails=False)
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.nc"]


def test_a_file_larger_than_expected_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", most=5) == b"12345"
    with pytest.raises(OSError, match="of 5 bytes"):
        read_bytes(tmp_path / "file", most=4)


def test_the_picture_of_estimators_goes_the_same_way() -> None:
    source = LIBRARY_SOURCES[estimators_pictures.__name__]
    assert "replace_file(path" in source
