"""Small run folders with known content, shared by the tests of storage."""

import os
from pathlib import Path

import torch
from torch import Tensor

from ppgen.storage import Checkpoint, RunFolder


def tensors_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"layer/weight": torch.randn(4, 3, generator=generator), "count": torch.tensor(step)}


def save(folder: RunFolder, step: int, *, keep: int = 2, note: str = "") -> Path:
    return folder.save_checkpoint(step, tensors_of(step), {"step": step, "note": note}, keep=keep)


def assert_whole(loaded: Checkpoint) -> None:
    expected = tensors_of(loaded.step)
    assert loaded.tensors.keys() == expected.keys()
    assert all(torch.equal(loaded.tensors[name], expected[name]) for name in expected)
    assert loaded.meta["step"] == loaded.step


def temporary_entries(folder: RunFolder) -> list[str]:
    return [name for name in os.listdir(folder.path) if name.startswith(".tmp-")]


def new_run(path: Path, steps: int) -> RunFolder:
    made = RunFolder.create(path)
    made.write_text("config.toml", "seed = 0\n")
    for step in range(1, steps + 1):
        save(made, step)
    return made
