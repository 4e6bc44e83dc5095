"""Run folders: what is written comes back, and nothing is written where it should not be."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from storage_helpers import assert_whole, new_run, save, temporary_entries
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError, StorageError
from ppgen.storage import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=0)


@pytest.fixture
def two_steps(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=2)


# Round trips


@pytest.mark.parametrize(
    "dtype",
    [
        *[torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32],
        *[torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64],
    ],
)
def test_tensors_of_every_shape_and_layout_come_back_equal(folder: RunFolder, dtype: torch.dtype) -> None:
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tensors = {
        "base": base,
        "alias": base,
        "transposed": base.transpose(0, 2),
        "expanded": base[:1, :1].expand(5, 3, 4),
        "strided": base[:, ::2, 1:],
        "scalar": base[1, 1, 1],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base, requires_grad=dtype.is_floating_point),
        "../x/..": base[0],
        "": base[1],
    }
    folder.save_checkpoint(0, tensors, {})
    loaded = folder.load_checkpoint().tensors
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].is_contiguous()
        assert not loaded[name].requires_grad
        assert torch.equal(loaded[name], tensor.detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_come_back_on_the_cpu(folder: RunFolder) -> None:
    folder.save_checkpoint(0, {"x": torch.arange(6.0, device="cuda").reshape(2, 3).T}, {})
    loaded = folder.load_checkpoint().tensors["x"]
    assert loaded.device.type == "cpu"
    assert torch.equal(loaded, torch.arange(6.0).reshape(2, 3).T)


def test_non_finite_and_negative_zero_bits_survive(folder: RunFolder) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-45])
    folder.save_checkpoint(0, {"x": values}, {})
    assert torch.equal(folder.load_checkpoint().tensors["x"].view(torch.int32), values.view(torch.int32))


def test_meta_comes_back_equal_and_in_order(folder: RunFolder) -> None:
    meta = {"z": 0.1 + 0.2, "a": [1, None, True, "\u00e9\ud800"], "n": {"big": 2**200, "none": {}}}
    folder.save_checkpoint(0, {}, meta)
    loaded = folder.load_checkpoint()
    assert loaded.meta == meta
    assert list(loaded.meta) == ["z", "a", "n"]
    assert loaded.tensors == {}


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": float("inf")}, {"x": {1: 2}}, {"x": (1,)}, {"x": {1}}])
def test_meta_that_json_would_change_is_refused(two_steps: RunFolder, meta: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        two_steps.save_checkpoint(3, {}, meta)
    assert_whole(two_steps.load_checkpoint())


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": torch.ones(2).to_sparse()},
        {"x": torch.ones(2, device="meta")},
        {"x": torch.ones(2, dtype=torch.complex128)},
        {"__metadata__": torch.ones(2)},
        {"\ud800": torch.ones(2)},
    ],
)
def test_tensors_that_the_format_cannot_hold_are_refused(two_steps: RunFolder, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        two_steps.save_checkpoint(3, tensors, {})
    assert two_steps.checkpoints() == [1, 2]
    assert temporary_entries(two_steps) == []


def test_keep_limits_earlier_checkpoints_only(folder: RunFolder) -> None:
    for step in [1, 2, 3, 123456789]:
        save(folder, step)
    assert folder.checkpoints() == [3, 123456789]
    save(folder, 4, keep=1)
    assert folder.checkpoints() == [4, 123456789]
    assert temporary_entries(folder) == []


def test_wrong_steps_are_refused(two_steps: RunFolder) -> None:
    with pytest.raises(ConfigError, match="keep=0"):
        save(two_steps, 3, keep=0)
    with pytest.raises(ConfigError, match="step=-1"):
        two_steps.save_checkpoint(-1, {}, {})
    with pytest.raises(CheckpointError, match=r"\[1, 2\].*got 7"):
        two_steps.load_checkpoint(7)
    assert two_steps.load_checkpoint(1).step == 1


def test_saving_the_same_checkpoint_again_leaves_it(two_steps: RunFolder) -> None:
    before = os.stat(two_steps.path / "step-00000002").st_ino
    save(two_steps, 2)
    assert os.stat(two_steps.path / "step-00000002").st_ino == before
    save(two_steps, 2, note="other")
    assert os.stat(two_steps.path / "step-00000002").st_ino != before
    assert two_steps.load_checkpoint().meta["note"] == "other"
    assert temporary_entries(two_steps) == []


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(two_steps: RunFolder) -> None:
    (two_steps.path / "step-00000002/state.safetensors").write_bytes(b"")
    save(two_steps, 2)
    assert_whole(two_steps.load_checkpoint(2))


# Folders and texts


def test_create_refuses_what_holds_something(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"run folder .*full exists: choose another --out, or `ppgen resume"):
        RunFolder.create(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="got the file"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(StorageError, match=r"cannot use .*run: "):
        RunFolder.create(tmp_path / "file/run")
    assert (tmp_path / "full/thesis.tex").read_text() == "x"
    assert os.listdir(tmp_path / "full") == ["thesis.tex"]


def test_create_takes_an_empty_folder_a_link_to_one_and_one_killed_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    RunFolder.create(tmp_path / "run")
    (tmp_path / "run/.tmp-1").write_text("x")
    folder = RunFolder.create(tmp_path / "latest")
    with folder.lock():
        folder.write_text("config.toml", "x")
        save(folder, 1)
    assert_whole(RunFolder.open(tmp_path / "run").load_checkpoint())


def test_a_run_that_filled_the_folder_since_create_is_not_overwritten(tmp_path: Path) -> None:
    slow, quick = RunFolder.create(tmp_path / "run"), RunFolder.create(tmp_path / "run")
    with quick.lock():
        quick.write_text("config.toml", "quick")
    with pytest.raises(ConfigError, match="exists"), slow.lock():
        slow.write_text("config.toml", "slow")
    with quick.lock():
        assert quick.read_text("config.toml") == "quick"


def test_open_refuses_what_is_no_run(tmp_path: Path, folder: RunFolder) -> None:
    assert RunFolder.open(str(folder.path)).read_text("config.toml") == "seed = 0\n"
    for path in (tmp_path, tmp_path / "missing", folder.path / "config.toml"):
        with pytest.raises(CheckpointError, match="expected a run folder"):
            RunFolder.open(path)


def test_texts_are_replaced_whole(folder: RunFolder) -> None:
    folder.write_text("notes.txt", "\u00e9" * 1000)
    folder.write_text("notes.txt", "short")
    assert folder.read_text("notes.txt") == "short"
    (folder.path / "notes.txt").write_bytes(b"\xff")
    for name in ("notes.txt", "missing.txt"):
        with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
            folder.read_text(name)


def test_files_are_readable_by_others_as_the_umask_allows(two_steps: RunFolder) -> None:
    previous = os.umask(0o022)
    try:
        target = save(two_steps, 3)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "state.json").stat().st_mode) == 0o644


# Metrics


def test_metrics_append_truncate_and_read(folder: RunFolder) -> None:
    assert (folder.metrics(), folder.metrics_size) == ([], 0)
    folder.truncate_metrics(10)
    folder.append_metrics({"step": 1, "loss": 0.1 + 0.2, "text": "a\nb\u00e9"})
    size = folder.metrics_size
    folder.append_metrics({"step": 2, "loss": float("nan"), "nested": [{"x": float("-inf")}, (1.5,)]})
    assert folder.metrics() == [
        {"step": 1, "loss": 0.1 + 0.2, "text": "a\nb\u00e9"},
        {"step": 2, "loss": None, "nested": [{"x": None}, [1.5]]},
    ]
    folder.truncate_metrics(size)
    assert folder.metrics_size == size
    assert [record["step"] for record in folder.metrics()] == [1]
    with pytest.raises(ConfigError, match="JSON"):
        folder.append_metrics({"loss": torch.ones(1)})
    with pytest.raises(ConfigError, match="got -1"):
        folder.truncate_metrics(-1)
    assert folder.metrics_size == size


def test_a_torn_last_line_is_left_out_at_every_cut(folder: RunFolder) -> None:
    for step in (1, 2):
        folder.append_metrics({"step": step})
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:cut])
        assert folder.metrics() == [{"step": 1}]
        folder.truncate_metrics(len(whole))
        folder.append_metrics({"step": 3})
        assert folder.metrics() == [{"step": 1}, {"step": 3}]
    path.write_bytes(whole + b"\x00\x00\n")
    assert [record["step"] for record in folder.metrics()] == [1, 2]
    path.write_bytes(b"{torn\n" + whole)
    with pytest.raises(CheckpointError, match=r"line 1 of .*metrics\.jsonl"):
        folder.metrics()
