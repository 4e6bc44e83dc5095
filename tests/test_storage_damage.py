"""Damaged and crafted run folders: never loaded silently, never executed, never followed outside."""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from storage_helpers import assert_whole, new_run, save, temporary_entries

from ppgen import checkpoints
from ppgen.errors import CheckpointError, ConfigError, StorageError
from ppgen.storage import FORMAT, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=0)


@pytest.fixture
def two_steps(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=2)


# Damage


def damaged_files(run: RunFolder) -> list[Path]:
    return [run.path / "step-00000002" / name for name in ("state.safetensors", "state.json")]


def flips(path: Path, count: int) -> Iterator[bytes]:
    original = path.read_bytes()
    chooser = random.Random(path.name)
    for _ in range(count):
        data = bytearray(original)
        data[chooser.randrange(len(data))] ^= 1 << chooser.randrange(8)
        yield bytes(data)


def assert_falls_back(run: RunFolder) -> None:
    loaded = run.load_checkpoint()
    assert loaded.step == 1
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith("step-00000002 is not usable: ")
    assert_whole(loaded)


def test_every_truncation_falls_back(two_steps: RunFolder) -> None:
    for path in damaged_files(two_steps):
        original = path.read_bytes()
        for cut in np.linspace(0, len(original) - 1, 64).astype(int):
            path.write_bytes(original[:cut])
            assert_falls_back(two_steps)
        path.write_bytes(original)
    assert two_steps.load_checkpoint().step == 2


def test_every_flipped_bit_falls_back(two_steps: RunFolder) -> None:
    for path in damaged_files(two_steps):
        original = path.read_bytes()
        for data in flips(path, 500):
            path.write_bytes(data)
            assert_falls_back(two_steps)
        path.write_bytes(original)
    assert two_steps.load_checkpoint().step == 2


def test_without_checksums_flipped_bits_load_silently(two_steps: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: it is the checksum that catches them, in both files."""
    monkeypatch.setattr(checkpoints, "_same", lambda actual, recorded: True)
    for path in damaged_files(two_steps):
        original = path.read_bytes()
        silent = 0
        for data in flips(path, 100):
            path.write_bytes(data)
            with contextlib.suppress(CheckpointError):
                silent += two_steps.load_checkpoint().step == 2
        path.write_bytes(original)
        assert silent > 10


def test_a_checkpoint_under_another_name_is_not_usable(two_steps: RunFolder) -> None:
    os.rename(two_steps.path / "step-00000002", two_steps.path / "step-00000009")
    loaded = two_steps.load_checkpoint()
    assert loaded.step == 1
    assert "is of step 2" in loaded.skipped[0]


def test_without_any_usable_checkpoint_every_reason_is_named(two_steps: RunFolder) -> None:
    for step in (1, 2):
        (two_steps.path / f"step-0000000{step}/state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002 is not usable: .*; step-00000001"):
        two_steps.load_checkpoint()
    shutil.rmtree(two_steps.path / "step-00000001")
    shutil.rmtree(two_steps.path / "step-00000002")
    with pytest.raises(CheckpointError, match="none was saved"):
        two_steps.load_checkpoint()


# Crafted checkpoints


ABSENT: Any = object()


class Payload:
    """Pickles into a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def forge(run: RunFolder, blob: bytes, **changes: Any) -> None:
    """Writes step 2 with right checksums, as an attacker would."""
    body = {"format": FORMAT, "step": 2, "sha256": checkpoints._sha256(blob), "meta": {}, **changes}
    body = {key: value for key, value in body.items() if value is not ABSENT}
    target = run.path / "step-00000002"
    (target / "state.safetensors").write_bytes(blob)
    (target / "state.json").write_bytes(checkpoints._with_digest(body))


def entry(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MALFORMED = {
    "empty": b"",
    "huge header length": b"\xff" * 8,
    "header bomb": (2**40).to_bytes(8, "little") + b"{}",
    "deep list": safetensors_file(b"[" * 10_000 + b"]" * 10_000),
    "deep object": safetensors_file(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "overflowing shape": safetensors_file({"a": entry("F32", [2**62, 4], [0, 0])}),
    "shape beyond the data": safetensors_file({"a": entry("F32", [2**40], [0, 4])}, b"1234"),
    "empty with a huge side": safetensors_file({"a": entry("F32", [0, 2**63], [0, 0])}),
    "empty with huge sides": safetensors_file({"a": entry("F32", [0, 2**62, 2**62], [0, 0])}),
    "backward offsets": safetensors_file({"a": entry("F32", [1], [4, 0])}, b"1234"),
    "offsets beyond the data": safetensors_file({"a": entry("F32", [1], [2**40, 2**40 + 4])}, b"1234"),
    "overlap": safetensors_file({"a": entry("F32", [1], [0, 4]), "b": entry("F32", [1], [0, 4])}, b"1234"),
    "unknown dtype": safetensors_file({"a": entry("OBJECT", [1], [0, 4])}, b"1234"),
    "dtype unknown to torch": safetensors_file({"a": entry("F4", [8], [0, 4])}, b"1234"),
    "a hole": safetensors_file({"a": entry("F32", [1], [4, 8])}, b"12345678"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tensor_files_with_right_checksums_fall_back(two_steps: RunFolder, name: str) -> None:
    forge(two_steps, MALFORMED[name])
    assert_falls_back(two_steps)


def test_pickles_are_never_executed(two_steps: RunFolder, tmp_path: Path) -> None:
    payload = Payload(tmp_path / "executed")
    zipped, array = io.BytesIO(), io.BytesIO()
    torch.save(payload, zipped)
    np.save(array, np.array([payload], dtype=object), allow_pickle=True)
    for blob in [pickle.dumps(payload), pickle.dumps(payload, protocol=0), zipped.getvalue(), array.getvalue()]:
        forge(two_steps, blob)
        assert_falls_back(two_steps)
        (two_steps.path / "step-00000002/state.json").write_bytes(blob)
        assert_falls_back(two_steps)
        assert not payload.marker.exists()
    pickle.loads(pickle.dumps(payload))  # negative control: the payload does work
    assert payload.marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        *["", "null", "[]", "{", '{"format": NaN}', '{"format": Infinity}', '{"format": 1e999}'],
        *["[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000, '{"a": ' + "9" * 10_000 + "}"],
        *["\u00e9", "\x00" * 100],
    ],
)
def test_malformed_state_falls_back(two_steps: RunFolder, text: str) -> None:
    (two_steps.path / "step-00000002/state.json").write_text(text)
    assert_falls_back(two_steps)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("format", wrong) for wrong in ("1", True, 0, -1, None, ABSENT, 1.5)],
        *[("step", wrong) for wrong in ("../../2", 3, None, ABSENT)],
        *[("meta", []), ("meta", None), ("meta", ABSENT)],
        *[("sha256", wrong) for wrong in (None, 0, ABSENT)],
    ],
)
def test_malformed_state_with_a_right_digest_falls_back(two_steps: RunFolder, field: str, value: Any) -> None:
    blob = (two_steps.path / "step-00000002/state.safetensors").read_bytes()
    forge(two_steps, blob)
    assert two_steps.load_checkpoint().step == 2
    forge(two_steps, blob, **{field: value})
    assert_falls_back(two_steps)


def test_a_newer_format_is_refused_rather_than_passed_over(two_steps: RunFolder) -> None:
    forge(two_steps, b"unknown to us", format=FORMAT + 1, chunks=["a"])
    with pytest.raises(CheckpointError, match=rf"format {FORMAT} or older; got format {FORMAT + 1}"):
        two_steps.load_checkpoint()
    assert two_steps.load_checkpoint(1).step == 1


def test_the_first_format_still_loads(tmp_path: Path) -> None:
    """A checkpoint as release 0.1 wrote it, byte by byte: the format must not drift without a new number."""
    blob = safetensors_file(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  ', b"\x00\x00\x80?")
    tensors_digest = "ec6f05d3e082d3dc0d2741828de8a84da96433d6f5664670a37dd114536f75ad"
    state_digest = "9bb4594caadc75d9103ba84f9876af3d97624d323c89b8a6c4f911e465d9a53c"
    state = '{"format": 1, "step": 7, "sha256": "%s", "meta": {"seed": 0}, "digest": "%s"}'
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-00000007/state.safetensors").write_bytes(blob)
    (tmp_path / "step-00000007/state.json").write_text(state % (tensors_digest, state_digest))
    loaded = RunFolder(tmp_path).load_checkpoint()
    assert torch.equal(loaded.tensors["x"], torch.ones(1))
    assert loaded.meta == {"seed": 0}


# Links and names


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", ""])
def test_a_symbolic_link_is_no_checkpoint(two_steps: RunFolder, tmp_path: Path, name: str) -> None:
    original = two_steps.path / "step-00000002" / name
    os.rename(original, tmp_path / "elsewhere")
    original.symlink_to(tmp_path / "elsewhere")
    assert_falls_back(two_steps)
    save(two_steps, 2)
    assert_whole(two_steps.load_checkpoint(2))
    assert not original.is_symlink()
    assert (tmp_path / "elsewhere").exists()


def test_a_named_pipe_or_folder_in_place_of_a_file_does_not_hang(two_steps: RunFolder) -> None:
    for path in damaged_files(two_steps):
        original = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert_falls_back(two_steps)
        path.unlink()
        path.mkdir()
        assert_falls_back(two_steps)
        path.rmdir()
        path.write_bytes(original)


def test_cleaning_and_pruning_follow_no_link(two_steps: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (two_steps.path / ".tmp-link").symlink_to(outside)
    (two_steps.path / ".tmp-replaced-..").symlink_to(outside)
    (two_steps.path / "step-00000000").symlink_to(outside)
    (two_steps.path / ".tmp-folder").mkdir()
    (two_steps.path / ".tmp-folder/link").symlink_to(outside)
    with two_steps.lock():
        save(two_steps, 3)
    assert temporary_entries(two_steps) == []
    assert two_steps.checkpoints() == [2, 3]
    assert (outside / "precious").read_text() == "x"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".", "", ".lock", "a\x00b", "a\nb", "\\x"])
def test_names_that_leave_the_folder_are_refused(folder: RunFolder, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="plain file name"):
        folder.write_text(name, "x")
    with pytest.raises(ConfigError, match="plain file name"):
        folder.read_text(name)
    assert os.listdir(tmp_path) == ["run"]


def test_files_that_are_links_are_refused(folder: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    for name in ("notes.txt", "metrics.jsonl"):
        (folder.path / name).symlink_to(outside)
    for attempt in (
        lambda: folder.write_text("notes.txt", "x"),
        lambda: folder.read_text("notes.txt"),
        lambda: folder.append_metrics({}),
        lambda: folder.truncate_metrics(0),
        lambda: folder.metrics(),
        lambda: folder.metrics_size,
    ):
        with pytest.raises((CheckpointError, StorageError), match=r"link|symbolic"):
            attempt()
    assert outside.read_text() == "secret"
