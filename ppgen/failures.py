"""Every failure becomes one line and an exit code."""

import contextlib
import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ppgen import launching
from ppgen.errors import OWN, PpgenError

_NO_FILE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_STORAGE = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EIO}
_INTERRUPTED, _STORAGE_FAILED, _USAGE = 130, 6, 2
LONGEST_PATH = 200
"""Characters of a path that a message shows."""
BROKEN_PIPE = 141
"""What shells make of SIGPIPE."""


class Interrupted(BaseException):
    """A signal ended the work; no Exception, so that nothing on the way takes it for a failure.

    Attributes:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def explain(error: BaseException) -> tuple[int, str]:
    """Returns the exit code of a failure and the line that says it, empty if there is nothing to say.

    >>> explain(PpgenError("expected 1; got 2"))
    (1, 'Error: expected 1; got 2')
    """
    if isinstance(error, launching.ElsewhereError):
        return error.exit_code, ""
    if isinstance(error, Interrupted):
        return error.exit_code, str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _INTERRUPTED, "Stopped."
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE, ""
    code, message = _described(error)
    return code, "Error: " + " ".join(message.split())


def _described(error: BaseException) -> tuple[int, str]:
    if isinstance(error, PpgenError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        return error.exit_code, _usage(error)
    if _is_out_of_memory(error):
        return 1, "out of memory: try smaller batches or fewer particles"
    if place := place_in_users_code(error):
        return _USAGE, f"{place}: {_named(error)} (PPGEN_DEBUG=1 shows the traceback)"
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return _STORAGE_FAILED, _of_file(error)
    if isinstance(error, OSError) and error.errno in _NO_FILE:
        return _USAGE, _of_file(error)
    return 1, f"{_named(error)}; this is a bug in ppgen: run again with PPGEN_DEBUG=1 for the traceback"


def open_closed_outputs() -> None:
    """Lets output go nowhere that the caller has closed: ``>&-``."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def exit_code(error: BaseException) -> int:
    """Returns the exit code of a failure.

    >>> exit_code(PpgenError("expected 1; got 2"))
    1
    """
    return explain(error)[0]


def close_broken_output(error: BaseException) -> None:
    """After output that failed, lets the rest of it go nowhere, so that Python does not complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_traceback(error: BaseException) -> None:
    """Prints the traceback of a failure if PPGEN_DEBUG is set."""
    if os.environ.get("PPGEN_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)


@contextlib.contextmanager
def memory_of(options: Mapping[str, Any], *, prefix: str) -> Iterator[None]:
    """Within it, running out of memory names the sizes in ``options`` and smaller ones to try.

    Args:
        options: those that memory depends on are chosen by name.
        prefix: how the user types an option: "--set " or "--".

    Raises:
        PpgenError: in the place of what torch or numpy raise.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        names = ("batch_size", "labelled_batch_size", "particles", "evaluation_particles")
        sizes = {name: options[name] for name in names if isinstance(options.get(name), int)}
        found = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        separator = "=" if prefix == "--set " else " "
        smaller = [f"{prefix}{name}{separator}{size // 2}" for name, size in sizes.items() if size > 1]
        remedy = f": try {' or '.join(smaller[:2])}" if smaller else ""
        raise PpgenError(f"out of memory with {found or 'the sizes given'}{remedy}") from error


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path} --help)" if context else message


def _of_file(error: OSError) -> str:
    name = str(error.filename or "")
    short = name if len(name) <= LONGEST_PATH else f"{name[:LONGEST_PATH]}..."
    return f"{short}: {error.strerror}" if name else str(error.strerror or error)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's own class is not imported here; on a CPU it raises a plain RuntimeError
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def place_in_users_code(error: BaseException) -> str | None:
    """Returns file and line of the user's code that a failure went through, innermost first."""
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f"{_short(error.filename)}, line {error.lineno}"
    packages = {name.partition(".")[0] for name, module in list(sys.modules.items()) if OWN in _names(module)}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        filename = frame.f_code.co_filename
        if _is_users(filename) or str(frame.f_globals.get("__name__")).partition(".")[0] in packages:
            return f"{_short(filename)}, line {line}"
    return None


def _names(module: object) -> dict[str, Any]:
    found: dict[str, Any] = getattr(module, "__dict__", {})
    return found


def _is_users(filename: str) -> bool:
    if not os.path.isfile(filename):  # typed in, or compiled from a source that is not there
        return False
    package = Path(__file__).parent
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [package, package / "models", package / "guides", *libraries]
    path = Path(filename).resolve()
    return not any(path.is_relative_to(folder.resolve()) for folder in folders)


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
