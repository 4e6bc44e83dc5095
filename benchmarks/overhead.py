"""What an epoch of `ppgen train` costs beside its steps: batches, validation, metrics, checkpoints."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppgen.configuration import Config, DataConfig
from ppgen.errors import ConfigError
from ppgen.runs import Run

OPTIONS: dict[str, Any] = {
    "network": "mlp",
    "decoder_network": None,
    "decoder_hidden": None,
    "hidden": (400,),
    "z_dim": 20,
    "average": None,
    "schedule": "constant",
    "binarization": "none",
}
LENGTH = 70
"""Epochs of the whole run, of which only the first are trained: it decides how often is validated and saved."""
STEPS = 200
"""Steps between two epochs of the run, taken on batches that are there already."""


def measure(threads: int, *, epochs: int = 6, say: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """Trains a VAE 784-400-20 on MNIST as `ppgen train` does, its bare steps timed after every epoch.

    Returns:
        "epoch", the seconds of the fastest epoch after the first; "steps", those of as many bare steps (the median of
        each block, the fastest block); and the "ratio" of the two.

    Raises:
        ConfigError: if there are fewer than two epochs.
    """
    if epochs < 2:
        raise ConfigError(f"expected at least 2 epochs; got {epochs}")
    config = Config(
        recipe="vae", epochs=LENGTH, compile="on", threads=threads, options=OPTIONS, data=DataConfig(name="mnist")
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(config, Path(folder, "run"))
        whole, bare = [], []
        with run.folder.lock():
            for epoch in range(1, epochs + 1):
                say(f"epoch {epoch} of {epochs}")
                whole.append(_epoch(run, epoch * run.batches.steps_per_epoch))
                bare.append(_bare_step(run))
    steps = min(bare[1:]) * run.batches.steps_per_epoch
    return {"epoch": min(whole[1:]), "steps": steps, "ratio": min(whole[1:]) / steps}


def _epoch(run: Run, end: int) -> float:
    start = time.perf_counter()
    for _ in run.train(lambda: run.trainer.steps >= end):
        pass
    return time.perf_counter() - start


def _bare_step(run: Run) -> float:
    """Returns the median seconds of a step on batches that are there; the run does not count these steps."""
    trainer: Any = run.trainer
    steps, position = trainer.steps, run.batches.position
    drawn = [next(run.batches) for _ in range(STEPS)]
    seconds = []
    for batch in drawn:
        start = time.perf_counter()
        trainer.step(iter([batch]))
        seconds.append(time.perf_counter() - start)
    trainer.steps, run.batches.position = steps, position
    return statistics.median(seconds)
