"""What ``torchrun`` tells the processes that it starts; no torch is needed to read it."""

import os
import time

_PATIENCE = 30.0  # seconds


class ElsewhereError(BaseException):
    """Another process of this run failed first, and says why; no Exception, so that nothing takes it for its own.

    Attributes:
        exit_code: that of the other process.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process failed")
        self.exit_code = exit_code


def world_size() -> int:
    """Returns how many processes were started together; 1 without ``torchrun``."""
    return _number("WORLD_SIZE", 1)


def leads() -> bool:
    """Whether this process is the one that speaks for all."""
    return world_size() == 1 or _number("RANK", 0) == 0


def leave_to_leader() -> None:
    """Waits until the leading process has told a failure that is the same in all: what started them then ends this one.

    Where nothing does, the first process has met no such failure, and it is this one that has to tell its own.
    """
    if not leads():
        time.sleep(_PATIENCE)


def local_rank() -> int:
    """Returns the number of this process among those of its machine."""
    return _number("LOCAL_RANK", 0)


def local_size() -> int:
    """Returns how many of the processes are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def attempt() -> int:
    """Returns how often the processes have been started again after one of them failed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else otherwise
