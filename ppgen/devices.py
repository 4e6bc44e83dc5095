"""Devices and threads."""

import math
import os
from pathlib import Path

import torch

from ppgen.errors import ConfigError


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
