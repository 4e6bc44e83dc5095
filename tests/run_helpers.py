"""Short runs on the digits, and what must come out the same however often they are stopped."""

import functools
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppgen import runs
from ppgen.configuration import Config
from ppgen.runs import Run
from ppgen.storage import RunFolder

OWN = Path(__file__).with_name("own_recipes.py")
TIMINGS = ("seconds", "images_per_second")
TINY: dict[str, dict[str, Any]] = {
    "vae": {"z_dim": 2, "hidden": (16,), "batch_size": 100, "average": 0.9},
    "iwae": {"layers": (4,), "widths": (16,), "batch_size": 100, "schedule": "constant"},
    "sbn": {"layers": (8, 4), "batch_size": 100, "average": 0.9},
    "categorical-vae": {"latents": 3, "classes": 4, "decoder_hidden": (16,), "average": 0.9},
    "structured": {"layers": (8,), "average": 0.9},
    "toy": {"target": 0.1, "replicas": 10, "average": 0.9},
    "m2": {"z_dim": 2, "hidden": (16,), "batch_size": 100, "labelled_batch_size": 50, "average": 0.9},
}
DENSE: dict[str, Any] = {"hidden": (8,), "critic_hidden": (8,)}
CONVOLUTIONS: dict[str, Any] = {"hidden": (2, 4), "critic_hidden": (2, 4)}
GAMES: dict[str, dict[str, Any]] = {
    "aae": {"z_dim": 2, **DENSE},
    "aae-semisupervised": {"z_dim": 2, **DENSE},
    "aae-clusters": {"z_dim": 2, "clusters": 3, **DENSE},
    "acgan": {"z_dim": 4, "network": "mlp", **DENSE},
    "ali": {"z_dim": 2, **DENSE},
    "avb": {"z_dim": 2, "noise_dim": 2, "contrast": 2, **DENSE},
    "bigan": {"z_dim": 2, **DENSE},
    "cgan": {"z_dim": 4, "network": "mlp", **DENSE},
    "dcgan": {"z_dim": 4, **CONVOLUTIONS},
    "gan": {"z_dim": 4, **DENSE},
    "infogan": {"z_dim": 4, "network": "mlp", "head": 4, **DENSE},
    "mad-gan": {"z_dim": 4, "generators": 2, **DENSE},
    "pacgan": {"z_dim": 4, **DENSE},
    "sn-gan": {"z_dim": 4, **DENSE},
    "unrolled-gan": {"z_dim": 4, "unroll": 2, **DENSE},
    "vae-gan": {"z_dim": 2, "hidden": (2, 4), "encoder_hidden": (2, 4)},
    "wgan": {"z_dim": 4, **DENSE},
    "wgan-gp": {"z_dim": 4, **DENSE},
}
"""The adversarial recipes, each with options that make it small."""

Work = Callable[[str, Config], None]


def tiny(recipe: str, **changes: Any) -> Config:
    """The configuration of a run of 40 eager steps."""
    known = TINY | GAMES
    options = known.get(recipe, {}) | changes.pop("options", {})
    name = f"{OWN}:{recipe}" if recipe not in known and recipe.isidentifier() else recipe
    return Config(**{"recipe": name, "steps": 40, "compile": "off", "device": "cpu", "options": options, **changes})


def reports_and_checkpoints(patch: pytest.MonkeyPatch, *, reports: int, checkpoints: int) -> None:
    """Sets how often a run reports and writes checkpoints, over its length."""
    patch.setattr(runs, "REPORTS", reports)
    patch.setattr(runs, "CHECKPOINTS", checkpoints)


def start_or_open(path: str | Path, config: Config) -> Run:
    """Does what a user does after a crash: resumes, or starts again where nothing had been saved yet."""
    if not (Path(path) / "config.toml").exists():
        return Run.create(config, path)
    return Run.open(path, recipe=config.recipe if ":" in config.recipe else None, untrained=True)


def go_on(path: str | Path, config: Config, until: int | None = None) -> Run:
    """Trains to the end, or until that step."""
    run = start_or_open(path, config)
    with run.folder.lock():
        for _ in run.train(lambda: until is not None and run.trainer.steps >= until):
            pass
    return run


def finish(path: str, config: Config) -> None:
    """What a process does that may be killed meanwhile."""
    go_on(path, config)


def outcome(path: str | Path) -> dict[str, Any]:
    """All that a finished run is: the bits of its tensors, every other value of its state, its records."""
    checkpoint = RunFolder.open(path).load_checkpoint()
    assert checkpoint.skipped == ()
    meta = {key: value for key, value in checkpoint.meta.items() if key not in ("seconds", "metrics_size")}
    tensors = {name: (str(x.dtype), tuple(x.shape), x.numpy().tobytes()) for name, x in checkpoint.tensors.items()}
    return {"step": checkpoint.step, "tensors": tensors, "meta": meta, "records": records(path)}


def records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a run without what depends on the clock."""
    found = RunFolder.open(path).metrics()
    return [{key: value for key, value in record.items() if key not in TIMINGS} for record in found]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compares two outcomes piece by piece, so that a failure says what differs."""
    assert one["step"] == other["step"]
    assert one["tensors"].keys() == other["tensors"].keys()
    assert [name for name, value in one["tensors"].items() if other["tensors"][name] != value] == []
    assert one["meta"] == other["meta"]
    assert one["records"] == other["records"]


def newest(path: str | Path) -> Path:
    """The folder of the newest checkpoint."""
    return sorted(Path(path).glob("step-*"))[-1]


# Crashes


class Photographer:
    """Copies a run folder before and after every call that changes what the disk holds.

    A copy is what a process killed there would have left behind. Equal ones are kept once.
    """

    CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "ftruncate")

    def __init__(self, folder: Path, album: Path) -> None:
        self.folder, self.album = folder, album
        self.calls = 0
        self.seen: set[Any] = set()
        self._busy = False

    def install(self, patch: pytest.MonkeyPatch) -> "Photographer":
        for name in self.CALLS:
            patch.setattr(os, name, self.wrap(getattr(os, name)))
        return self

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            self.calls += not self._busy
            self.photograph()
            try:
                return function(*args, **options)
            finally:
                self.photograph()

        return wrapped

    def photograph(self) -> None:
        if self._busy or not self.folder.exists():
            return
        self._busy = True
        files = {path.relative_to(self.folder): path for path in self.folder.rglob("*")}
        content = frozenset((str(name), path.read_bytes() if path.is_file() else b"") for name, path in files.items())
        if content not in self.seen:
            shutil.copytree(self.folder, self.album / f"{len(self.seen):04d}")
            self.seen.add(content)
        self._busy = False


def killed_after(work: Work, path: Path, config: Config, seconds: float | None) -> int | None:
    """Works in a process of its own, killed after that time; its exit status."""
    process = _processes().Process(target=work, args=(str(path), config))
    process.start()
    process.join(seconds)
    if seconds is not None:
        process.kill()
    process.join()
    status: int | None = process.exitcode
    return status


@functools.cache
def _processes() -> Any:
    """Children are forked from one process that has imported everything and run nothing."""
    context = multiprocessing.get_context("forkserver")
    slow_imports = ["sklearn.datasets", "sklearn.model_selection", "torch._dynamo", "pytest"]
    looks = ["ppgen.evaluation.validation", "ppgen.evaluation.pictures"]
    context.set_forkserver_preload(["ppgen.runs", *looks, *slow_imports])
    return context


def flip_a_bit(path: Path, *, seed: int = 0) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data))
    data[place] ^= 4
    path.write_bytes(bytes(data))
