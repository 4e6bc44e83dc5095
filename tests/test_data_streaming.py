"""Data larger than memory: a memory-mapped .npy is never held, and is drawn from as if it were."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppgen.data import (
    Batches,
    Columns,
    Dataset,
    Together,
    checking,
    columns_to,
    files,
    load,
    loading,
    streaming,
    surveys,
    windows,
)
from ppgen.data.streaming import Source, Streamed
from ppgen.errors import ConfigError, DataError

ROWS, WIDTH = 700, 5


@pytest.fixture(autouse=True)
def _small_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 100 rows of 5 float32, and a memory of surveys of one's own."""
    monkeypatch.setattr(streaming, "WINDOW", 100 * (WIDTH * 4 + 24))
    monkeypatch.setattr(windows, "STRETCHES", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def equal(first: Columns, second: Columns) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def numbered(folder: Path, rows: int = ROWS, classes: int = 0) -> Path:
    """A file in which the first number of a row tells which it is."""
    x = np.random.default_rng(0).random((rows, WIDTH)).astype(np.float32)
    x[:, 0] = np.arange(rows) / rows
    np.save(folder / "big.npy", x)
    if classes:
        np.save(folder / "big_y.npy", np.arange(rows) % classes)
    return folder / "big.npy"


def streamed(folder: Path, **options: Any) -> Dataset:
    return load(numbered(folder, **options), stream=True)


def numbers(batch: Columns) -> list[int]:
    return [round(value) for value in (batch["x"][:, 0] * ROWS).tolist()]


# --- the same data --------------------------------------------------------------------------------------------------

ARRAYS = {
    "grey levels": np.arange(600, dtype=np.uint8).reshape(50, 12),
    "bits": np.random.default_rng(0).integers(0, 2, (50, 12), dtype=np.uint8),
    "truth values": np.random.default_rng(0).random((50, 12)) < 0.3,
    "float64": np.random.default_rng(0).random((50, 12)),
    "float16": np.random.default_rng(0).random((50, 12)).astype(np.float16),
    "other byte order": np.random.default_rng(0).random((50, 12)).astype(">f4"),
    "uint16": np.arange(600, dtype=np.uint16).reshape(50, 12),
    "int64": np.arange(600).reshape(50, 12) - 300,
    "images": np.arange(600, dtype=np.uint8).reshape(50, 4, 3),
    "colour last": np.arange(1800, dtype=np.uint8).reshape(50, 6, 2, 3),
    "colour first": np.random.default_rng(0).random((50, 3, 4, 5)).astype(np.float32),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_streamed_rows_are_those_in_memory_bit_for_bit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "own.npy", ARRAYS[kind])
    held, on_disk = (load(tmp_path / "own.npy", stream=stream) for stream in (False, True))
    assert not held.streamed
    assert on_disk.streamed
    assert on_disk.shape == held.shape
    assert torch.equal(on_disk.train["x"][:], held.train["x"])
    assert all(equal(on_disk.splits[split], held.splits[split]) for split in ("validation", "test"))
    assert set(held.notes) <= set(on_disk.notes)
    monkeypatch.setattr(streaming, "WINDOW", 1)
    batches = Batches(on_disk.train, 35)
    row_sets = [{row.numpy().tobytes() for row in rows} for rows in (next(batches)["x"], held.train["x"])]
    assert row_sets[0] == row_sets[1]
    assert batches._windows is not None
    assert not torch.equal(on_disk.train["x"][:-1], held.train["x"][1:])  # control: the next row is another one


def test_a_streamed_column_reads_the_rows_it_is_indexed_by_and_refuses_the_rest(tmp_path: Path) -> None:
    held, on_disk = load(numbered(tmp_path)).train["x"], streamed(tmp_path).train["x"]
    assert isinstance(on_disk, Streamed)
    assert (len(on_disk), on_disk.dim(), on_disk.dtype, str(on_disk.device)) == (490, 2, torch.float32, "cpu")
    chosen = torch.tensor([5, 3, 3, -1])
    for rows in (3, -1, slice(10, 20), slice(0, 0), chosen, [4, 2], (7, 2), (slice(3, 5), 1)):
        assert torch.equal(on_disk[rows], held[rows])
    mask = held[:, 1] > 0.5
    assert isinstance(on_disk[mask], Streamed)  # a mask reads nothing
    assert torch.equal(on_disk[mask][:], held[mask])
    assert on_disk.max() >= held.max()
    assert "big.npy" in repr(on_disk)
    uses: list[Callable[[Any], Any]] = [
        lambda x: x.mean(), lambda x: x + 1, lambda x: x.flatten(1), lambda x: torch.stack([x]), lambda x: x.numpy()
    ]  # fmt: skip
    for use in uses:
        use(held)
        with pytest.raises(DataError, match="data streamed from disk"):
            use(on_disk)


def test_reading_more_rows_than_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = streamed(tmp_path).train["x"]
    monkeypatch.setattr("ppgen.data.streaming.memory_limit", lambda: 2000)
    assert len(x[:100]) == 100
    with pytest.raises(DataError, match="at most 2,000 bytes of rows at a time; got 9,800"):
        x[:]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_bad_number_is_found_wherever_it_is_and_named_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(checking, "_BLOCK", 700)
    x = np.zeros((100, 3))
    x[71, 2] = x[72, 1] = x[99, 0] = value
    np.save(tmp_path / "bad.npy", x)
    messages = []
    for stream in (False, True):
        with pytest.raises(DataError, match=r"at row 71, column 2 .*\(3 such values\)") as caught:
            load(tmp_path / "bad.npy", stream=stream)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    np.save(tmp_path / "bad.npy", np.where(x == 0, x, 1.0))
    load(tmp_path / "bad.npy", stream=True)  # control: the same file with good numbers


def test_a_value_outside_the_unit_interval_is_named_as_in_memory(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 4, 4)).astype(np.float32)
    np.save(tmp_path / "good.npy", x)
    load(tmp_path / "good.npy", stream=True).binarized("dynamic")
    x[42, 2, 3] = 1.5
    np.save(tmp_path / "bad.npy", x)
    for stream in (False, True):
        with pytest.raises(DataError, match=r"got 1.5 at row 42, position \(0, 2, 3\)"):
            load(tmp_path / "bad.npy", stream=stream).require_unit_interval()
    with pytest.raises(ConfigError, match=r"none or dynamic for data streamed from disk \(good.npy\); got static"):
        load(tmp_path / "good.npy", stream=True).binarized("static")


# --- what is streamed -----------------------------------------------------------------------------------------------


def test_a_file_that_would_take_too_much_memory_is_streamed_and_others_are_not(tmp_path: Path) -> None:
    path = numbered(tmp_path)
    needed = ROWS * WIDTH * (4 + 4)  # as in the file, and as float32
    assert not load(path).streamed
    assert not load(path, max_bytes=needed).streamed
    assert load(path, max_bytes=needed - 1).streamed
    with pytest.raises(DataError, match="at most 100 bytes once unpacked; got 14,000"):
        load(path, max_bytes=100, stream=False)


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((40, 3)))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.random.default_rng(0).random((40, 3))))
    (tmp_path / "cut.npy").write_bytes(numbered(tmp_path).read_bytes()[:-9])
    cases: list[tuple[Any, type[Exception], str]] = [
        ("digits", ConfigError, "expected a .npy file to stream from disk; got data set 'digits'"),
        (tmp_path / "own.npz", ConfigError, "expected a .npy file to stream from disk; got .*own.npz"),
        (tmp_path / "fortran.npy", DataError, r"C order\) to stream; got Fortran order"),
        (tmp_path / "cut.npy", DataError, "expected 14,000 bytes for shape .*; got 13,991: truncated"),
    ]
    for name, error, message in cases:
        with pytest.raises(error, match=message):
            load(name, stream=True)
    load(tmp_path / "fortran.npy", stream=False)


def test_few_rows_are_held_out_of_a_large_file_in_the_proportions_of_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "big_y.npy", np.where(np.arange(ROWS) % 10 < 8, 0, 1))
    path = numbered(tmp_path)
    assert [len(columns["x"]) for columns in load(path, stream=True).splits.values()] == [490, 70, 140]
    monkeypatch.setattr(loading, "_MOST_HELD_OUT", 20)
    data = load(path, stream=True)
    for split in ("validation", "test"):
        assert torch.bincount(data.splits[split]["y"]).tolist() == [16, 4]
    assert sorted(torch.cat(list(data.rows.values())).tolist()) == list(range(ROWS))
    assert "streamed from disk (14,000 bytes); at most 20 rows each in validation and test" in data.card()
    assert [len(columns["x"]) for columns in load(path, stream=False).splits.values()] == [490, 70, 140]  # control
    monkeypatch.setattr(loading, "_MOST_BYTES_HELD_OUT", 3 * WIDTH * 4)
    assert len(load(path, stream=True).test["x"]) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_labels_lie_in_a_file_beside(tmp_path: Path, stream: bool) -> None:
    path = numbered(tmp_path, classes=4)
    data = load(path, stream=stream, labels=100)
    rows = torch.cat([data.rows["test"], data.rows["validation"]])
    assert torch.equal(torch.cat([data.test["y"], data.validation["y"]]), rows % 4)
    assert "y: read from big_y.npy" in data.notes
    labelled, unlabelled = data.labelled(), data.unlabelled()
    assert (len(labelled["x"]), len(unlabelled["x"])) == (100, 388)
    assert isinstance(labelled["x"], Streamed) is False  # few rows are held
    assert isinstance(unlabelled["x"], Streamed) is stream
    both = Together(labelled=Batches(labelled, 10), unlabelled=Batches(unlabelled, 50))
    drawn = [next(both) for _ in range(20)]
    for batch in drawn:
        rows = (batch["labelled"]["x"][:, 0] * ROWS).round().long()
        assert torch.equal(batch["labelled"]["y"], rows % 4)
    seen = {int(n) for batch in drawn[:7] for n in numbers(batch["unlabelled"])}
    assert len(seen) == 350
    known = {int(n) for batch in drawn for n in numbers(batch["labelled"])}
    assert len(known) == 100
    assert not seen & known
    np.save(tmp_path / "big_y.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"\(y: big_y.npy\): expected columns of one length; got x: 700, y: 3"):
        load(path, stream=stream)


# --- the same run ---------------------------------------------------------------------------------------------------


def test_an_epoch_draws_each_row_once_in_another_order(tmp_path: Path) -> None:
    data = streamed(tmp_path)
    batches = Batches(data.train, 20)
    assert batches._windows is not None
    assert (batches.steps_per_epoch, batches._windows.steps) == (24, 5)
    epochs = [[numbers(next(batches)) for _ in range(24)] for _ in range(3)]
    train = set(data.rows["train"].tolist())
    for epoch in epochs:
        drawn = [number for batch in epoch for number in batch]
        assert len(set(drawn)) == len(drawn) == 480
        assert set(drawn) <= train
    assert epochs[0] != epochs[1]
    dropped = [train - {number for batch in epoch for number in batch} for epoch in epochs]
    assert dropped[0] != dropped[1]  # nor are the same rows left out each time


def test_rows_that_fit_into_one_window_come_in_a_new_order_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x: Any = np.random.default_rng(0).integers(0, 256, (60, 12), dtype=np.uint8)
    np.save(tmp_path / "own.npy", x)
    monkeypatch.setattr(streaming, "WINDOW", 42 * (12 + 24))  # less than as float32
    batches = Batches(load(tmp_path / "own.npy", stream=True).train, 42)
    assert batches._windows is not None
    assert batches._windows.steps == batches.steps_per_epoch == 1
    first, second = next(batches)["x"], next(batches)["x"]
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


def test_rows_of_a_window_come_from_all_over_the_file(tmp_path: Path) -> None:
    places = [numbers(batch) for batch in _first(Batches(streamed(tmp_path).train, 20), 24)]
    window = np.sort(np.concatenate(places[:5]))
    stretches = 1 + (np.diff(window) > 14).sum()  # of 10 train rows each, with rows that were held out between them
    assert 6 <= stretches <= 11
    assert all(np.ptp(batch) > 0.4 * ROWS for batch in places)
    assert max(np.mean(batch) for batch in places) - min(np.mean(batch) for batch in places) < 0.8 * ROWS
    order = np.concatenate(places)
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.3
    assert np.corrcoef(np.sort(order), np.arange(len(order)))[0, 1] > 0.99  # control: the order of the file


def _first(batches: Iterator[Columns], count: int) -> list[Columns]:
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_streamed_batches_resume_exactly_whatever_the_disk_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binarization: str
) -> None:
    data = streamed(tmp_path)

    def make(seed: int = 5) -> Batches:
        return Batches(data.train, 20, seed=seed, binarization=binarization)

    batches = make()
    drawn = _first(batches, 60)
    quick, delays = Source.read, iter(np.random.default_rng(0).random(10**6) / 100)

    def slow(self: Source, *arguments: Any) -> Any:
        time.sleep(next(delays))
        return quick(self, *arguments)

    monkeypatch.setattr(Source, "read", slow)
    assert all(equal(*pair) for pair in zip(_first(make(), 60), drawn, strict=True))
    for position in (0, 4, 5, 6, 23, 24, 47, 59):
        resumed = make()
        resumed.position = position
        assert equal(next(resumed), drawn[position])
        batches.position = position  # going back in the same object
        assert equal(next(batches), drawn[position])
        assert batches.position == position + 1
        if position < 59:
            assert equal(next(batches), drawn[position + 1])
    assert not equal(next(make(seed=6)), drawn[0])  # control: another seed is another order


def test_the_next_window_is_read_while_batches_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(streamed(tmp_path).train, 20)
    readers: list[str] = []
    quick = Source.read

    def noting(self: Source, *arguments: Any) -> Any:
        readers.append(threading.current_thread().name)
        return quick(self, *arguments)

    monkeypatch.setattr(Source, "read", noting)
    _first(batches, 30)
    assert readers[0] == "MainThread"
    assert set(readers[1:]) == {"ppgen-read-ahead"}
    assert len(readers) in (6, 7, 8)  # five windows an epoch, and what is ahead
    batches.position = 11
    next(batches)
    assert readers.count("MainThread") == 2  # control: nobody could know of that jump


def test_the_random_state_is_never_touched(tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), str(np.random.get_state(legacy=False))
    _first(Batches(streamed(tmp_path).binarized("dynamic").train, 20, binarization="dynamic"), 30)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == str(np.random.get_state(legacy=False))


def test_a_trained_run_resumes_bit_for_bit_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppgen.configuration import Config, DataConfig
    from ppgen.runs import Run

    monkeypatch.setattr(files, "memory_limit", lambda _: 0)
    path = numbered(tmp_path)
    options = {"hidden": (8,), "z_dim": 2, "batch_size": 20, "binarization": "dynamic", "evaluation_particles": 2}
    config = Config(
        recipe="vae", data=DataConfig(name=str(path)), steps=40, options=options, compile="off", threads=1, device="cpu"
    )

    def weights(run: Run) -> dict[str, torch.Tensor]:
        return {name: leaf.detach().clone() for name, leaf in run.trainer.leaves.items()}

    straight = Run.create(config, tmp_path / "straight")
    assert straight.data.streamed
    for _ in straight.train():
        pass
    assert straight.judge()["test"]["nll"]
    broken = Run.create(config, tmp_path / "broken")
    for _ in broken.train(until=lambda: broken.trainer.steps >= 13):
        pass
    assert broken.trainer.steps == 13
    assert not equal(weights(broken), weights(straight))  # control: the rest of the run changes the weights
    resumed = Run.open(tmp_path / "broken")
    assert resumed.batches.position == 13
    for _ in resumed.train():
        pass
    assert equal(weights(resumed), weights(straight))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_streamed_batches_are_the_same_on_a_gpu(tmp_path: Path, dtype: type) -> None:
    x: Any = np.random.default_rng(0).integers(0, 256, (ROWS, WIDTH)).astype(dtype)
    np.save(tmp_path / "own.npy", x)
    data = load(tmp_path / "own.npy", stream=True)
    here, there = Batches(data.train, 20), Batches(data.train, 20, device="cuda")
    for _ in range(60):
        batch = next(there)
        assert batch["x"].is_cuda
        assert equal(next(here), columns_to(batch, "cpu"))


# --- when things go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["cut", "written over", "removed"])
def test_a_file_that_changes_while_it_is_read_stops_the_step(tmp_path: Path, harm: str) -> None:
    path = numbered(tmp_path)
    batches = Batches(load(path, stream=True).train, 20)
    _first(batches, 3)
    if harm == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif harm == "written over":
        with path.open("r+b") as file:
            file.seek(500)
            file.write(b"1234")
    else:
        path.unlink()
    with pytest.raises(DataError, match=rf"big.npy: .*(has changed while being used|{os.strerror(errno.ENOENT)})"):
        _first(batches, 30)
    with pytest.raises(DataError, match=r"big.npy"):  # and the next one
        _first(batches, 30)


def test_an_error_of_the_disk_is_raised_in_the_step_that_needs_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = streamed(tmp_path)
    batches, drawn = Batches(data.train, 20), _first(Batches(data.train, 20), 11)
    quick = Source.read

    def failing(self: Source, *arguments: Any) -> Any:
        raise OSError(5, "Input/output error")

    next(batches)
    batches._windows._ahead._thread.join()  # type: ignore[union-attr]
    monkeypatch.setattr(Source, "read", failing)
    assert len(_first(batches, 9)) == 9  # the window that was read ahead is good
    with pytest.raises(OSError, match="Input/output error"):
        next(batches)
    assert batches.position == 10
    monkeypatch.setattr(Source, "read", quick)
    assert equal(next(batches), drawn[10])  # once the disk is well again


def test_what_was_found_in_a_file_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path)
    reads: list[Path] = []
    really = surveys._read

    def noting(path: Path, *more: Any) -> Any:
        reads.append(path)
        return really(path, *more)

    monkeypatch.setattr(surveys, "_read", noting)
    first = load(path, stream=True).fingerprint
    load(path, stream=True)
    assert len(reads) == 2  # written a moment ago: it might change again without another time of change
    monkeypatch.setattr(surveys, "_RACE", -1.0)
    assert [load(path, stream=True).fingerprint for _ in range(3)] == [first] * 3
    assert len(reads) == 3
    times = path.stat()
    with path.open("r+b") as file:  # one bit, and the time of change put back
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(path, stream=True).fingerprint != first
    assert len(reads) == 4
    memory = next((tmp_path / "cache").rglob("*.json"))
    for text in ("", "[]", "null", "{}", json.dumps({"stamp": "x"})):
        memory.write_text(text)
        load(path, stream=True)
    assert len(reads) == 9


def test_a_home_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "_RACE", -1.0)
    (tmp_path / "cache").write_text("a file where a folder should be")
    first = streamed(tmp_path)
    assert load(tmp_path / "big.npy", stream=True).fingerprint == first.fingerprint


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    path = numbered(tmp_path)
    first = load(path, stream=True).fingerprint
    shutil.copy(path, tmp_path / "other.npy")
    assert load(tmp_path / "other.npy", stream=True).fingerprint == first
    x: Any = np.load(path)
    variants = [x.reshape(ROWS, 1, WIDTH), x.astype(np.float64), x[:-1], x + np.float32(1e-7)]
    found = {first}
    for number, variant in enumerate(variants):
        np.save(tmp_path / f"{number}.npy", variant)
        found.add(load(tmp_path / f"{number}.npy", stream=True).fingerprint)
    assert len(found) == 5


def test_a_large_file_says_that_it_is_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    streamed(tmp_path)
    assert not caplog.messages
    monkeypatch.setattr(surveys, "LARGE", 1000)
    streamed(tmp_path)
    assert any("big.npy: reading 0.0 GB once" in message for message in caplog.messages)


# --- processes of their own -----------------------------------------------------------------------------------------


def run(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


LIMITED = """
import re, resource, sys
import torch
from ppgen.data import Batches, load
used = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 500 * 2**20, resource.RLIM_INFINITY))
data = load(sys.argv[1], stream=sys.argv[2] == "True")
batches = Batches(data.train, 100)
for _ in range(600):
    batch = next(batches)
print(batches.position, tuple(batch["x"].shape), len(data.test["x"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory so")
def test_a_file_larger_than_memory_is_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "sparse.npy"  # it takes no disk
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(330_000, 784))
    done = run(LIMITED, path, True)
    assert done.stdout.split() == ["600", "(100,", "784)", "10000"], done.stderr
    done = run(LIMITED, path, False)  # control: the limit is less than the file
    assert "DataError" in done.stderr
    assert "sparse.npy: could not be read" in done.stderr


SLOW = """
import sys, threading, time
from ppgen.data import Batches, load, streaming
from ppgen.data.streaming import Source
streaming.WINDOW = 4400
streaming.PIECE = 20  # a row
batches = Batches(load(sys.argv[1], stream=True).train, 20)
quick = Source._require_unchanged
def slow(self):
    if threading.current_thread().name != "MainThread":
        time.sleep(0.3)  # half a minute for the window
    return quick(self)
Source._require_unchanged = slow
next(batches)
print("drawn", threading.active_count(), flush=True)
"""


def test_a_process_does_not_wait_for_a_window_that_nobody_will_use(tmp_path: Path) -> None:
    start = time.perf_counter()
    done = run(SLOW, numbered(tmp_path))
    assert (done.stdout.split(), done.stderr, done.returncode) == (["drawn", "2"], "", 0)
    assert time.perf_counter() - start < 25


FORKED = """
import os, sys, warnings
import torch
from ppgen.data import Batches, load, streaming
streaming.WINDOW = 4400
data = load(sys.argv[1], stream=True)
batches = Batches(data.train, 20)
for _ in range(3):
    next(batches)
warnings.simplefilter("ignore")
child = os.fork()
rows = [next(batches)["x"] for _ in range(10)]
os.write(1, f"{torch.cat(rows).double().sum().item()}\\n".encode())  # at once: both write here
if child:
    os.waitpid(child, 0)
else:
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_draws_the_same(tmp_path: Path) -> None:
    done = run(FORKED, numbered(tmp_path))
    first, second = done.stdout.split()
    assert first == second
