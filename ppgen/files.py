"""File operations that survive a crash and follow no symbolic link."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ppgen.errors import StorageError

TEMPORARY = ".tmp-"
"""How the names of unfinished files and folders begin."""

SAFE_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Flags under which a symbolic link is refused and a named pipe does not hang."""


@contextlib.contextmanager
def storage_errors(path: Path, remedy: str, *, doing: str = "use") -> Iterator[None]:
    """Turns an OSError into a StorageError that names the path and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {doing} {path}: {reason(error)}: {remedy}") from error


def replace_file(path: Path, data: bytes, *, beside: Path | None = None) -> Path:
    """Writes a file at once: temporary file, fsync, rename, fsync of the folder. A link that is there is replaced.

    Args:
        path: of the file.
        data: its content.
        beside: the folder of the temporary file, on the same disk; that of the file unless told.

    Returns:
        The path.
    """
    with _renamed(path, beside or path.parent) as temporary:
        write_new(temporary, data)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a new file to write, which takes the place of ``path`` when it is whole.

    It serves those who write to a path only; whoever has the bytes takes `replace_file`.
    """
    with _renamed(path, path.parent) as temporary:
        yield temporary
        sync(temporary)


@contextlib.contextmanager
def _renamed(path: Path, folder: Path) -> Iterator[Path]:
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    sync_folder(path.parent)


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


def read_bytes(path: Path, *, most: int | None = None) -> bytes:
    """Reads a regular file; anything else, a symbolic link included, is an OSError.

    Args:
        path: of the file.
        most: bytes that it may have, looked at before any is read; those that memory holds unless told.
    """
    most = _memory() if most is None else most
    with _opened(path) as (file, size):
        if size > most:
            raise OSError(errno.EFBIG, f"of {size:,} bytes, where at most {most:,} are expected", str(path))
        return file.read(size)


def read_start(path: Path, count: int) -> bytes:
    """Reads the first bytes of a regular file."""
    with _opened(path) as (file, _):
        return file.read(count)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    descriptor = os.open(path, os.O_RDONLY | SAFE_OPEN)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            yield file, found.st_size
    finally:
        os.close(descriptor)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
        name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes | Path) else ""
        return error.strerror if not name or name.startswith(TEMPORARY) else f"{error.strerror} ({name})"
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0] if text else type(error).__name__
