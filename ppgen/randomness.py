"""The state of every random stream."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.state import numpy_stream, plain, python_stream


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
def forked(seed: int | None = None) -> Iterator[None]:
    """Restores every random stream at its end; with a seed, all start anew within it."""
    before = all_random_states()
    try:
        if seed is not None:
            seed_all(seed)
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
