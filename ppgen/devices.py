"""Devices, threads, and the state of every random stream."""

import contextlib
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.state import numpy_stream, plain, python_stream


def choose_device(device: str | torch.device) -> torch.device:
    """Returns the device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: if the machine has no such device.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"expected device auto, cpu, cuda or cuda:N; got '{device}'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{device}' is not there: this machine has {torch.cuda.device_count()} GPUs")
    return chosen


def random_state(device: torch.device) -> Tensor:
    """Returns the state of torch's random stream on a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Restores `random_state`."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def all_random_states() -> dict[str, Any]:
    """Returns the state of every random stream: torch's on CPU and each GPU, numpy's, Python's."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in _gpus()] if torch.cuda.is_initialized() else [],
        "numpy": plain(np.random.get_state()),
        "python": random.getstate(),
    }


def set_all_random_states(state: dict[str, Any]) -> None:
    """Restores `all_random_states`."""
    torch.set_rng_state(state["torch"])
    for device, found in zip(_gpus(), state["cuda"], strict=False):
        torch.cuda.set_rng_state(found, device)
    np.random.set_state(numpy_stream(state["numpy"]))
    random.setstate(python_stream(state["python"]))


def draws_elsewhere(before: dict[str, Any]) -> bool:
    """Whether NumPy's or Python's random stream has moved since `all_random_states`."""
    now = all_random_states()
    return now["python"] != before["python"] or any(
        not torch.equal(one, other) if isinstance(one, Tensor) else one != other
        for one, other in zip(now["numpy"], before["numpy"], strict=True)
    )


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """Restores every random stream at the end."""
    before = all_random_states()
    try:
        yield
    finally:
        set_all_random_states(before)


def _gpus() -> list[int]:
    # of processes that train together each has one of its own, and its stream is the same in all of them
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.cuda.device_count()
    return [torch.cuda.current_device()] if together and count else list(range(count))


def seed_all(seed: int) -> None:
    """Starts every random stream anew: torch's, numpy's, Python's."""
    torch.manual_seed(seed)
    # numpy's takes 32 bits at a time
    np.random.seed(seed if seed < 2**32 else [seed & 0xFFFFFFFF, seed >> 32])
    random.seed(seed)


def free_cores() -> int:
    """Returns how many cores this process may really use now: allowed by affinity and quota, and not busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.floor(int(quota) / int(period)))) if quota != "max" else cores
    except (OSError, ValueError):
        pass
    try:
        busy = round(os.getloadavg()[0])
    except OSError:
        busy = 0
    return max(1, cores - busy)


def threads_for(parameters: int, batch_size: int) -> int:
    """Returns how many threads suit a step: small ones lose more by waiting for each other than they win."""
    work = parameters * batch_size
    suited = 1 if work < 2_000_000 else 2 if work < 50_000_000 else 8
    return _asked_threads() or min(suited, free_cores())


def threads_for_judging() -> int:
    """Returns how many threads suit large batches without gradients: one for every free core."""
    return _asked_threads() or free_cores()


def _asked_threads() -> int | None:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else None


def use_free_cores() -> None:
    """Spreads what follows over every free core: for judging, since training depends on its number of threads."""
    torch.set_num_threads(threads_for_judging())
