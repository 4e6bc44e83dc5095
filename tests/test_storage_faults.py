"""Failing disks and crashes at any moment: nothing is lost."""

import errno
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import assert_whole, new_run, save, temporary_entries, tensors_of

from ppgen import checkpoints
from ppgen.errors import CheckpointError, PpgenError, StorageError
from ppgen.storage import RunFolder

FAULTS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS]
WRITING_CALLS = ["mkdir", "open", "write", "fsync", "rename", "replace"]
Save = Callable[[RunFolder], object]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=0)


@pytest.fixture
def two_steps(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=2)


# A failing disk


class CallCounter:
    """Stands in for the writing calls of `os`; runs `act` before or after call number `target`, and after it too."""

    def __init__(self, target: int, act: Callable[[str], None], *, before: bool = True, lasting: bool = False) -> None:
        self.target, self.act, self.before, self.lasting = target, act, before, lasting
        self.count = 0

    def install(self, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> "CallCounter":
        for name in names:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        return self

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            number, self.count = self.count, self.count + 1
            hit = number == self.target or (self.lasting and number > self.target)
            if hit and self.before:
                self.act(name)
            try:
                return function(*args, **options)
            finally:
                if hit and not self.before:
                    self.act(name)

        return wrapped


def count_calls(run: RunFolder, save_it: Save, names: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        counter = CallCounter(-1, lambda name: None).install(patch, names)
        save_it(run)
    return counter.count


def fresh_copy(run: RunFolder, number: int) -> RunFolder:
    copy = run.path.with_name(f"copy-{number}")
    shutil.copytree(run.path, copy)
    return RunFolder(copy)


def save_next(run: RunFolder) -> object:
    return save(run, 3)


def save_again_differently(run: RunFolder) -> object:
    return save(run, 2, keep=1, note="other")


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("save_it", [save_next, save_again_differently])
@pytest.mark.parametrize("fault", FAULTS, ids=errno.errorcode.get)
def test_a_fault_at_any_call_leaves_a_whole_checkpoint(
    two_steps: RunFolder, monkeypatch: pytest.MonkeyPatch, fault: int, save_it: Save, lasting: bool
) -> None:
    two_steps.append_metrics({"step": 2})
    total = count_calls(fresh_copy(two_steps, 999), save_it, WRITING_CALLS)
    assert total >= 12
    messages: list[str] = []
    left: list[str] = []
    refused = 0
    for number in range(total):
        run = fresh_copy(two_steps, number)

        def fail(name: str) -> None:
            raise OSError(fault, os.strerror(fault))

        with monkeypatch.context() as patch:
            CallCounter(number, fail, lasting=lasting).install(patch, WRITING_CALLS)
            try:
                save_it(run)
            except StorageError as error:
                messages.append(str(error))
                left = temporary_entries(run)
        if not lasting and len(messages) > refused:
            assert run.load_checkpoint().step >= 2
            assert all(name.startswith(checkpoints.REPLACED) for name in left)
        refused = len(messages)
        with run.lock():
            assert temporary_entries(run) == []
        assert run.load_checkpoint().step >= 2
        assert_whole(run.load_checkpoint())
        save_it(run)
        assert_whole(run.load_checkpoint())
        shutil.rmtree(run.path)
    assert len(messages) >= 10
    assert all(os.strerror(fault) in message and "/copy-" in message for message in messages)


@pytest.mark.parametrize("fault", FAULTS, ids=errno.errorcode.get)
def test_a_fault_at_any_call_leaves_texts_and_metrics_whole(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    folder.append_metrics({"step": 1})

    def fail(name: str) -> None:
        raise OSError(fault, os.strerror(fault))

    attempts: list[tuple[Save, int]] = [
        (lambda run: run.write_text("config.toml", "seed = 1\n"), 6),
        (lambda run: run.append_metrics({"step": 2}), 2),
    ]
    for attempt, calls in attempts:
        for number in range(calls):
            with monkeypatch.context() as patch:
                CallCounter(number, fail).install(patch, WRITING_CALLS)
                with pytest.raises(StorageError, match=os.strerror(fault)):
                    attempt(folder)
            assert folder.read_text("config.toml") in ("seed = 0\n", "seed = 1\n")
            assert folder.metrics() == [{"step": 1}]
            assert temporary_entries(folder) == []


def test_a_line_of_metrics_half_written_on_a_full_disk_is_taken_back(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.append_metrics({"step": 1})
    system_write, calls = os.write, []

    def half(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return system_write(descriptor, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(StorageError, match="No space left"):
            folder.append_metrics({"step": 2})
    folder.append_metrics({"step": 3})
    assert folder.metrics() == [{"step": 1}, {"step": 3}]


def test_short_writes_are_continued(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    system_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: system_write(descriptor, data[:7]))
    save(folder, 1)
    assert_whole(folder.load_checkpoint())


def test_a_nearly_full_disk_is_noticed_before_anything_is_written(
    two_steps: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 3 * sum(path.stat().st_size for path in (two_steps.path / "step-00000002").iterdir())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed - 1))
    with pytest.raises(StorageError, match=rf"expected {needed} bytes free .*{two_steps.path}.*; got {needed - 1}"):
        save(two_steps, 3)
    assert two_steps.checkpoints() == [1, 2]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed))
    save(two_steps, 3)
    assert_whole(two_steps.load_checkpoint(3))


def test_files_reach_the_disk_before_their_names(two_steps: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was fsynced: each file, the folder of both, then the rename, then its parent."""
    two_steps.append_metrics({"step": 3})
    names: list[str] = []
    CallCounter(0, names.append, lasting=True).install(monkeypatch, ["mkdir", "write", "fsync", "rename"])
    save(two_steps, 3, keep=3)
    metrics, file, folder = ["fsync"], ["write", "fsync"], ["fsync"]
    assert names == [*metrics, "mkdir", *file, *file, *folder, "rename", *folder]


def refuse_writing(monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    system_open = os.open

    def read_only(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(fault, os.strerror(fault), str(path))
        return system_open(path, flags, *args, **options)

    def refused(path: Any, *args: Any, **options: Any) -> None:
        raise OSError(fault, os.strerror(fault), str(path))

    monkeypatch.setattr(os, "open", read_only)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refused)


@pytest.mark.parametrize("fault", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_can_be_read_but_not_written(
    two_steps: RunFolder, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    two_steps.append_metrics({"step": 2})
    refuse_writing(monkeypatch, fault)
    run = RunFolder.open(two_steps.path)
    assert_whole(run.load_checkpoint())
    assert run.metrics() == [{"step": 2}]
    assert run.read_text("config.toml") == "seed = 0\n"
    for attempt in (
        lambda: save(run, 3),
        lambda: run.write_text("config.toml", ""),
        lambda: run.append_metrics({}),
        lambda: run.truncate_metrics(0),
        lambda: run.lock().__enter__(),
        lambda: RunFolder.create(two_steps.path.with_name("new")),
    ):
        with pytest.raises(StorageError, match=os.strerror(fault)) as caught:
            attempt()
        assert caught.value.exit_code == 6
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS, ids=errno.errorcode.get)
def test_create_probes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    def fail(name: str) -> None:
        raise OSError(fault, os.strerror(fault))

    total = count_calls(RunFolder(tmp_path / "sound"), lambda run: RunFolder.create(run.path), WRITING_CALLS)
    for number in range(total):
        with monkeypatch.context() as patch:
            CallCounter(number, fail).install(patch, WRITING_CALLS)
            with pytest.raises(StorageError, match=f"run-{number}.*{os.strerror(fault)}"):
                RunFolder.create(tmp_path / f"run-{number}")
    assert total >= 7


# Killed at any moment


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked child; its exit status, 0 when it finished."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except PpgenError as error:
            status = error.exit_code
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_sweep(start: RunFolder, save_it: Save) -> Iterator[RunFolder]:
    """The run folder after a crash before and after every call that changes the disk."""
    names = [*WRITING_CALLS, "unlink", "rmdir", "ftruncate"]
    total = count_calls(fresh_copy(start, 999), save_it, names)
    assert total >= 8
    for number in range(total):
        for before in (True, False):
            run = fresh_copy(start, number)

            def work(run: RunFolder = run, number: int = number, before: bool = before) -> None:
                patch = pytest.MonkeyPatch()
                CallCounter(number, lambda name: os._exit(99), before=before).install(patch, names)
                save_it(run)

            assert in_child(work) == 99
            yield run
            shutil.rmtree(run.path)


@pytest.mark.parametrize("save_it", [save_next, save_again_differently])
def test_a_crash_at_any_call_leaves_the_old_or_the_new_checkpoint(two_steps: RunFolder, save_it: Save) -> None:
    two_steps.append_metrics({"step": 2})
    shutil.rmtree(two_steps.path / "step-00000001")
    seen = set()
    for run in crash_sweep(two_steps, save_it):
        with run.lock():
            loaded = run.load_checkpoint()
        assert_whole(loaded)
        assert loaded.skipped == ()
        assert temporary_entries(run) == []
        seen.add((loaded.step, loaded.meta["note"]))
        save_it(run)
        assert_whole(run.load_checkpoint())
        assert set(run.checkpoints()) <= {2, 3}
    assert len(seen) == 2, "the sweep must meet both the old and the new checkpoint"


def test_writing_in_place_fails_the_crash_sweep(two_steps: RunFolder) -> None:
    """Negative control: the sweep notices a save that is not atomic."""

    def save_in_place(run: RunFolder) -> object:
        for name, data in checkpoints.encode_checkpoint(2, tensors_of(2), {"step": 2, "note": "other"}).items():
            descriptor = os.open(run.path / "step-00000002" / name, os.O_WRONLY | os.O_TRUNC)
            os.write(descriptor, data[:10])
            os.write(descriptor, data[10:])
            os.fsync(descriptor)
            os.close(descriptor)
        return None

    shutil.rmtree(two_steps.path / "step-00000001")
    lost = 0
    for run in crash_sweep(two_steps, save_in_place):
        try:
            assert_whole(run.load_checkpoint())
        except CheckpointError:
            lost += 1
    assert lost > 0
