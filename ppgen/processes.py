"""The processes that train one run together, as ``torchrun`` starts them."""

import contextlib
import datetime
import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives  # defines operations that can be a part of a compiled graph
from torch import Tensor

from ppgen import launching
from ppgen.errors import PpgenError
from ppgen.launching import ElsewhereError

PATIENCE = datetime.timedelta(hours=2)
"""How long processes wait for each other, while one of them compiles, say."""


class Processes:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: the number of this one.
        size: how many there are.

    >>> alone = Processes()
    >>> alone.size, alone.first("a reason")
    (1, 'a reason')
    """

    def __init__(self, *, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._last, self._steps, self._between = time.monotonic(), 0, 1
        self._signal: int | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, prints and judges."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """Returns the device of this process: where GPUs are chosen, the one that is its own."""
        if self.size == 1 or chosen.type != "cuda":
            return chosen
        return torch.device("cuda", torch.cuda.current_device())

    def total(self, tensor: Tensor) -> Tensor:
        """Returns the sum over all processes; every one gets the same bits."""
        if self.size == 1:
            return tensor
        sum_ = torch.ops._c10d_functional.all_reduce(tensor.contiguous(), "sum", _group())
        return _arrived(sum_)

    def join(self, rows: Tensor) -> Tensor:
        """Returns the rows of all processes along the first dimension, in the order of their ranks."""
        if self.size == 1:
            return rows
        joined = torch.ops._c10d_functional.all_gather_into_tensor(rows.contiguous(), self.size, _group())
        return _arrived(joined)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the means over all processes, in one message."""
        if self.size == 1 or not tensors:
            return list(tensors)
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
        flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])
        parts = (self.total(flat) / self.size).split([tensor.numel() for tensor in tensors])
        kinds = [tensor.dtype if tensor.dtype.is_floating_point else dtype for tensor in tensors]
        return [p.view(tensor.shape).to(kind) for p, tensor, kind in zip(parts, tensors, kinds, strict=True)]

    def largest(self, *values: float) -> list[float]:
        """Returns the largest value of any process, for each of these."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]

    def leading(self, value: float) -> float:
        """Returns the value of the process that leads."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def first(self, text: str | None) -> str | None:
        """Returns the text of the first process that has one; None if none has."""
        if self.size == 1:
            return text
        rank = -self.largest(-(self.rank if text is not None else math.inf))[0]
        if rank == math.inf:
            return None
        code = torch.tensor(list((text or "").encode()) or [0], dtype=torch.uint8)
        length = torch.tensor([len(code)])
        dist.broadcast(length, int(rank))
        code = code if self.rank == rank else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(code, int(rank))
        return bytes(code.tolist()).decode().strip("\0")

    def wait(self) -> None:
        """Returns once every process has come here."""
        self.largest(0.0)

    def signal(self, number: int | None) -> int | None:
        """Returns the number of a signal once all processes know of it; asked before every step by all of them.

        They ask each other about once a second, always at the same step.
        """
        if self.size == 1 or self._signal is not None:
            return number if self.size == 1 else self._signal
        self._steps += 1
        if self._steps % self._between == 0:
            found, seconds = self.largest(number or 0, time.monotonic() - self._last)
            self._signal = int(found) or None
            self._last, self._steps = time.monotonic(), 0
            self._between = max(1, min(2 * self._between, round(self._between / max(seconds, 1e-3))))
        return self._signal

    def require_equal(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Compares tensors of all processes bit by bit.

        Raises:
            PpgenError: if they differ.
        """
        if self.size == 1:
            return
        sums = [float(_checksum(tensor)) for tensor in tensors.values()]
        highest, lowest = self.largest(*sums), self.largest(*(-value for value in sums))
        if differing := [name for name, a, b in zip(tensors, highest, lowest, strict=True) if a != -b]:
            raise PpgenError(
                f"the processes hold different values of '{differing[0]}' after step {step}, where all should be"
                " equal: resume from the last checkpoint"
            )

    def note(self, name: str, text: str) -> None:
        """Notes a text for later attempts of the same launch."""
        if self._store is not None and self.leads:
            self._store.set(f"ppgen/{name}", text)

    def noted(self, name: str) -> str | None:
        """Returns what was noted by an earlier attempt, or this one."""
        key = f"ppgen/{name}"
        return self._store.get(key).decode() if self._store is not None and self._store.check([key]) else None

    def is_first_to_fail(self, exit_code: int) -> bool:
        """Notes that this process fails; returns whether no other has failed before it."""
        if self._store is None:
            return True
        with contextlib.suppress(RuntimeError):  # the launcher has ended
            if self._store.add(f"ppgen/failures/{launching.attempt()}", 1) > 1:
                return False
            self._store.set(f"ppgen/failure/{launching.attempt()}", str(exit_code))
        return True

    def first_exit_code(self) -> int:
        """Returns the exit code of the process that failed first; 1 if it did not say."""
        code = self.noted(f"failure/{launching.attempt()}")
        return int(code) if code else 1


def _group() -> str:
    name: str = dist.group.WORLD.group_name  # type: ignore[union-attr]
    return name


def _arrived(tensor: Tensor) -> Tensor:
    arrived: Tensor = torch.ops._c10d_functional.wait_tensor(tensor)
    return arrived


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextlib.contextmanager
def joined(exit_code: Callable[[BaseException], int] = lambda error: 1) -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` has started; without it there is one.

    Args:
        exit_code: what a failure makes this process end with.

    Raises:
        ElsewhereError: in the place of a failure, if another process has failed before this one.
    """
    if launching.world_size() == 1:
        yield Processes()
        return
    processes = _start()
    try:
        yield processes
    except BaseException as error:
        failure = _lost() if _is_of_connection(error) else error
        if processes.is_first_to_fail(exit_code(failure)):
            raise failure from None if failure is error else error
        raise ElsewhereError(processes.first_exit_code()) from error
    finally:
        dist.destroy_process_group()
        # gloo's threads let go of their last tensors a little later; an interpreter that ended before would abort
        time.sleep(0.3)


def _is_of_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _lost() -> PpgenError:
    return PpgenError("the connection to another process of this run was lost: it was killed, or its machine failed")


def _start() -> Processes:
    rank, size = int(os.environ["RANK"]), launching.world_size()
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(launching.local_rank() % gpus)
    # NCCL wants a GPU for each process
    backend = "cpu:gloo,cuda:nccl" if gpus >= launching.local_size() else "gloo"
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=hosts, timeout=PATIENCE)  # type: ignore[attr-defined]
    # the launcher's store outlives an attempt, and with it the addresses of processes that have ended
    own = dist.PrefixStore(f"ppgen/attempt/{launching.attempt()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=PATIENCE)
    return Processes(rank=rank, size=size, store=store)
