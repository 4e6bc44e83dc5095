"""Run folders on disk: a lock, atomic checkpoints that notice a flipped bit, a metrics file; no pickle anywhere."""

import contextlib
import fcntl
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen.checkpoints import (
    FORMAT,
    REPLACED,
    STEP_NAME,
    Checkpoint,
    encode_checkpoint,
    holds,
    parse_object,
    read_checkpoint,
    step_name,
    to_json,
    write_checkpoint,
)
from ppgen.errors import CheckpointError, ConfigError, FolderInUseError, StorageError
from ppgen.files import (
    SAFE_OPEN,
    TEMPORARY,
    discard,
    read_bytes,
    reason,
    replace_file,
    storage_errors,
    sync,
    sync_folder,
    write_all,
)
from ppgen.packing import pack, unpack

__all__ = ["FORMAT", "Checkpoint", "RunFolder", "pack", "unpack"]

_METRICS, _CONFIG, _RESULT, _LOCK = "metrics.jsonl", "config.toml", "result.json", ".lock"
LARGEST_TEXT = 16 * 2**20
"""Bytes of a text in a run folder; those that ppgen writes have some thousands."""
LARGEST_LINE, LARGEST_METRICS = 2**20, 2**30
"""Bytes of a record in metrics.jsonl, and of all of them."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class RunFolder:
    """The folder of one run; make it with `create` or `open`.

    >>> import tempfile, torch
    >>> folder = RunFolder.create(tempfile.mkdtemp())
    >>> with folder.lock():
    ...     folder.write_text("config.toml", "seed = 0")
    ...     _ = folder.save_checkpoint(3, {"weight": torch.ones(2)}, {"seed": 0})
    >>> RunFolder.open(folder.path).load_checkpoint()
    Checkpoint(step=3, tensors={'weight': tensor([1., 1.])}, meta={'seed': 0}, skipped=())
    """

    def __init__(self, path: str | Path, *, fresh: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self._fresh = fresh

    @classmethod
    def create(cls, path: str | Path) -> "RunFolder":
        """Makes the folder and proves that it can be written.

        Raises:
            ConfigError: it exists and is not empty, or is a file.
            StorageError: it cannot be written.
            FolderInUseError: another process starts a run there.
        """
        folder = cls(path)
        remedy = "choose another --out"
        with storage_errors(folder.path, remedy):
            folder.refuse_content()
            folder.path.mkdir(parents=True, exist_ok=True)
        with folder.lock(), storage_errors(folder.path, remedy):
            replace_file(folder.path / f"{TEMPORARY}probe", b"probe").unlink()
            sync_folder(folder.path.parent)
        return cls(path, fresh=True)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Opens an existing run folder, which may be read-only.

        Raises:
            CheckpointError: it is no run folder.
        """
        folder = cls(path)
        if not os.path.lexists(folder.path / _CONFIG):
            raise CheckpointError(f"expected a run folder (one with {_CONFIG}); got {path}")
        return folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process, and removes what a killed one left half-written.

        Whatever writes into the folder holds the lock; reading needs none. The kernel frees it when the process ends,
        however it ends.

        Raises:
            FolderInUseError: another process holds it.
            ConfigError: another process filled the folder between `create` and now.
        """
        remedy = "make the folder writable, or choose another"
        with storage_errors(self.path, remedy):
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | SAFE_OPEN, 0o666)
        try:
            with storage_errors(self.path, remedy):
                _flock(descriptor, self.path)
                if self._fresh:
                    self.refuse_content()
                self._fresh = False
                self._clean()
            yield
        finally:
            os.close(descriptor)

    def write_text(self, name: str, text: str) -> None:
        """Replaces the file `name` at once: a reader, or a crash, sees the old text or the new one.

        Raises:
            ConfigError: `name` is not a plain file name.
            CheckpointError: `name` is a symbolic link.
            StorageError: the disk refuses.
        """
        path = self._file(name)
        with storage_errors(path, self._mend()):
            replace_file(path, text.encode())
        self._fresh = False

    def read_text(self, name: str) -> str:
        """Reads the file `name`.

        Raises:
            ConfigError: `name` is not a plain file name.
            CheckpointError: it is missing, a symbolic link, unreadable or not UTF-8.
        """
        try:
            return read_bytes(self._file(name), most=LARGEST_TEXT).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {self.path / name}: {reason(error)}") from error

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2
    ) -> Path:
        """Writes checkpoint `step` so that a crash at any moment leaves the old ones or the new one whole.

        Args:
            step: number of training steps done.
            tensors: dense tensors by name, any shape, device and strides.
            meta: plain JSON values (see `pack`).
            keep: how many checkpoints stay: this one and those before it. Later ones are not touched.

        Returns:
            The folder of the checkpoint.

        Raises:
            ConfigError: a value that the files cannot hold.
            StorageError: the disk is full, read-only or failing; the earlier checkpoints are intact.
        """
        if step < 0 or keep < 1:
            raise ConfigError(f"expected step >= 0 and keep >= 1; got step={step}, keep={keep}")
        target = self.path / step_name(step)
        with storage_errors(target, f"earlier checkpoints are intact; {self._mend()}"):
            files = encode_checkpoint(step, tensors, meta)
            self._require_space(3 * sum(len(content) for content in files.values()))
            self._sync_metrics()
            if not holds(target, files):
                write_checkpoint(target, files)
        self._prune(step, keep)
        return target

    def checkpoints(self, *, recover: bool = False) -> list[int]:
        """Steps of the checkpoints, valid or not, ascending.

        Args:
            recover: whether one that a killed process had moved aside gets its name back, where there is no other.
        """
        with storage_errors(self.path, "make the folder readable"):
            names = os.listdir(self.path)
        steps = sorted(int(match[1]) for match in map(STEP_NAME.fullmatch, names) if match)
        if not steps and recover and any(name.startswith(REPLACED) for name in names):
            with self.lock():
                return self.checkpoints()
        return steps

    def refuse_remains(self, *, untrained: bool) -> None:
        """Checks, where there is no checkpoint, that none was lost.

        Args:
            untrained: whether a run that never had one is let through.

        Raises:
            CheckpointError: if records or results of a training are there, or it is not.
        """
        left = [name for name in (_RESULT, _METRICS) if os.path.lexists(self.path / name)]
        left = [name for name in left if name != _METRICS or self.metrics_size]
        remedy = "bring its folders step-* back, or train anew elsewhere: ppgen train --config"
        if left:
            raise CheckpointError(
                f"{self.path} has {' and '.join(left)} of a training but no checkpoint: {remedy} {self.path / _CONFIG}"
            )
        if not untrained:
            raise CheckpointError(f"{self.path} has no checkpoint yet: train it first, ppgen resume {self.path}")

    def load_checkpoint(self, step: int | None = None) -> Checkpoint:
        """Reads checkpoint `step`, or the newest valid one.

        Raises:
            CheckpointError: none is valid (says why of each), or one was written by a newer release.
        """
        steps = self.checkpoints()
        if step is not None and step not in steps:
            raise CheckpointError(f"expected one of the checkpoints {steps} of {self.path}; got {step}")
        skipped: list[str] = []
        for candidate in reversed(steps) if step is None else [step]:
            try:
                tensors, meta = read_checkpoint(self.path / step_name(candidate), candidate)
            except (OSError, ValueError, RecursionError, MemoryError) as error:
                skipped.append(f"{step_name(candidate)} is not usable: {reason(error)}")
            else:
                return Checkpoint(candidate, tensors, meta, tuple(skipped))
        reasons = "; ".join(skipped) or "none was saved"
        raise CheckpointError(f"expected a usable checkpoint in {self.path}; got none: {reasons}")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one JSON line to `metrics.jsonl`; floats that are not finite become null.

        Raises:
            ConfigError: a value that is no JSON.
            StorageError: the disk refuses; the file is as before.
        """
        line = to_json(_finite_or_null(record)).encode() + b"\n"
        path = self.path / _METRICS
        with storage_errors(path, self._mend()):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | SAFE_OPEN, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    write_all(descriptor, line)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)

    @property
    def metrics_size(self) -> int:
        """Bytes in `metrics.jsonl`, to be kept in a checkpoint and given to `truncate_metrics` on resume."""
        try:
            return self._file(_METRICS).stat().st_size
        except FileNotFoundError:
            return 0

    def truncate_metrics(self, size: int) -> None:
        """Drops the lines after byte `size`, and a last line that a crash tore.

        Raises:
            StorageError: the disk refuses.
        """
        if size < 0:
            raise ConfigError(f"expected a size >= 0; got {size}")
        data = self._metrics_bytes()
        end = data.rfind(b"\n", 0, size) + 1
        if end == len(data):
            return
        path = self.path / _METRICS
        with storage_errors(path, "make the folder writable"):
            descriptor = os.open(path, os.O_WRONLY | SAFE_OPEN)
            try:
                os.ftruncate(descriptor, end)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def metrics(self) -> list[dict[str, Any]]:
        """All records of `metrics.jsonl`; a last line torn by a crash is left out.

        Raises:
            CheckpointError: another line is damaged.
        """
        lines = self._metrics_bytes().split(b"\n")[:-1]
        if any(len(line) > LARGEST_LINE for line in lines):
            raise CheckpointError(f"expected lines of at most {LARGEST_LINE:,} bytes in {self.path / _METRICS}")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(parse_object(line))
            except (ValueError, RecursionError) as error:
                if number < len(lines):
                    where = f"line {number} of {self.path / _METRICS}"
                    raise CheckpointError(f"expected a JSON object in {where}; got {reason(error)}") from error
        return records

    def _mend(self) -> str:
        return f"free some space or mend the disk, then `ppgen resume {self.path}`"

    def _file(self, name: str) -> Path:
        if not _FILE_NAME.fullmatch(name):
            raise ConfigError(f"expected a plain file name such as 'config.toml'; got {name!r}")
        path = self.path / name
        if path.is_symlink():
            raise CheckpointError(f"expected a regular file at {path}; got a symbolic link, which is refused")
        return path

    def _metrics_bytes(self) -> bytes:
        try:
            return read_bytes(self._file(_METRICS), most=LARGEST_METRICS)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path / _METRICS}: {reason(error)}") from error

    def _sync_metrics(self) -> None:
        """The offset kept in the checkpoint must not outlive the lines before it."""
        with contextlib.suppress(FileNotFoundError):
            sync(self.path / _METRICS)

    def refuse_content(self) -> None:
        """Checks that no run, and nothing else, is in the folder.

        Raises:
            ConfigError: it exists and is not empty, or is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"expected a folder for the run; got the file {self.path}: choose another --out")
        names = os.listdir(self.path) if self.path.exists() else []
        # A run that was killed before its configuration was written leaves only these; it is no run yet.
        if any(name != _LOCK and not name.startswith(TEMPORARY) for name in names):
            raise ConfigError(f"run folder {self.path} exists: choose another --out, or `ppgen resume {self.path}`")

    def _clean(self) -> None:
        for name in os.listdir(self.path):
            target = self.path / name.removeprefix(REPLACED)
            if name.startswith(REPLACED) and STEP_NAME.fullmatch(target.name) and not os.path.lexists(target):
                os.rename(self.path / name, target)
            elif name.startswith(TEMPORARY):
                discard(self.path / name)

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < needed:
            got = f"expected {needed} bytes free (3 times the tensors) for {self.path}; got {free}"
            raise StorageError(f"{got}: {self._mend()}")

    def _prune(self, step: int, keep: int) -> None:
        """Never raises: the new checkpoint is safe, and what cannot be removed now goes with a later one."""
        with contextlib.suppress(OSError):
            older = [other for other in self.checkpoints() if other < step]
            for other in older[: max(0, len(older) - keep + 1)]:
                doomed = self.path / f"{TEMPORARY}old-{secrets.token_hex(8)}"
                os.rename(self.path / step_name(other), doomed)
                discard(doomed)


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUseError(f"run folder {path} is in use by another process: wait for it to end") from error
