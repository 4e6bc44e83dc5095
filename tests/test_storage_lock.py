"""Two runs in one folder: exactly one holds the lock, and its death frees it."""

import os
import signal
from pathlib import Path

import pytest
from storage_helpers import new_run

from ppgen.errors import FolderInUseError, PpgenError, StorageError
from ppgen.storage import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=0)


def test_ten_processes_race_for_the_lock_and_a_killed_winner_frees_it(folder: RunFolder) -> None:
    start_read, start_write = os.pipe()
    won_read, won_write = os.pipe()
    children = []
    for _ in range(10):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(start_write)
                os.read(start_read, 1)  # returns when the parent closes its end
                with folder.lock():
                    os.write(won_write, os.getpid().to_bytes(8, "little"))
                    signal.pause()
            except FolderInUseError as error:
                status = error.exit_code
            finally:
                os._exit(status)
        children.append(child)
    os.close(start_write)
    os.close(won_write)
    winner = int.from_bytes(os.read(won_read, 8), "little")
    losers = [child for child in children if child != winner]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in losers] == [75] * 9
    with pytest.raises(FolderInUseError, match="in use by another process"), folder.lock():
        pass
    os.kill(winner, signal.SIGKILL)
    os.waitpid(winner, 0)
    with folder.lock():
        assert (folder.path / ".lock").exists()
    for descriptor in (start_read, won_read):
        os.close(descriptor)


def test_ten_starts_in_one_new_folder_leave_one_run(tmp_path: Path) -> None:
    start_read, start_write = os.pipe()
    children = []
    for number in range(10):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(start_write)
                os.read(start_read, 1)
                made = RunFolder.create(tmp_path / "run")
                with made.lock():
                    made.write_text("config.toml", str(number))
                    status = 0
            except PpgenError as error:
                status = error.exit_code
            finally:
                os._exit(status)
        children.append(child)
    os.close(start_write)
    os.close(start_read)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses.count(0) == 1
    assert set(statuses) <= {0, 2, 75}
    assert RunFolder.open(tmp_path / "run").read_text("config.toml") == str(statuses.index(0))


def test_the_lock_is_freed_after_an_error_and_does_not_swallow_it(folder: RunFolder) -> None:
    with pytest.raises(OSError, match="mine") as caught, folder.lock():
        raise OSError("mine")
    assert not isinstance(caught.value, StorageError)
    with folder.lock():
        pass
