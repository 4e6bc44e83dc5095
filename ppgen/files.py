"""File operations that survive a crash and follow no symbolic link."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ppgen.errors import StorageError

TEMPORARY = ".tmp-"
"""How the names of unfinished files and folders begin."""

SAFE_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Flags under which a symbolic link is refused and a named pipe does not hang."""


@contextlib.contextmanager
def storage_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the path and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot use {path}: {reason(error)}: {remedy}") from error


def replace_file(path: Path, data: bytes) -> Path:
    """Writes a file at once: temporary file, fsync, rename, fsync of the folder. Returns the path."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        write_new(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    sync_folder(path.parent)
    return path


def write_new(path: Path, data: bytes) -> None:
    """Creates a file that must not exist yet, and waits until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_OPEN, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all bytes, however few the system takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync(path: Path) -> None:
    """Waits until the disk has a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY | SAFE_OPEN)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Does `sync` for a folder, where the file system can."""
    try:
        sync(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of folders
            raise


def read_bytes(path: Path) -> bytes:
    """Reads a regular file; anything else, a symbolic link included, is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | SAFE_OPEN)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Removes a file or a folder as far as possible, following no link."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def reason(error: BaseException) -> str:
    """One line on what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(error.filename).name})" if error.filename else error.strerror
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0] if text else type(error).__name__
