"""Packing of nested training state: an exact inverse, and a clear error for the rest."""

import random
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from storage_helpers import new_run
from torch import Tensor

from ppgen.errors import CheckpointError, ConfigError
from ppgen.storage import RunFolder, pack, unpack


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_run(tmp_path / "run", steps=0)


def random_state(chooser: random.Random, depth: int = 0) -> Any:
    leaves: list[Callable[[], Any]] = [
        lambda: None,
        lambda: chooser.random() < 0.5,
        lambda: chooser.choice([0, -1, 2**63, -(2**200)]),
        lambda: chooser.choice([0.0, -0.0, 0.1, 1e-320, float("inf"), float("-inf"), float("nan"), 1.0]),
        lambda: chooser.choice(["", "a/b", "tensor", "\ud800\u00e9", "nan"]),
        lambda: torch.randn(chooser.randrange(3), 2).T,
        lambda: torch.tensor(chooser.random() < 0.5),
        lambda: np.arange(6).astype(chooser.choice(["u4", "f8", "?", "i2"])).reshape(2, 3)[:, ::-1],
        lambda: np.array(chooser.random()),
        lambda: chooser.choice([np.float64(0.1), np.float32("nan"), np.uint32(7), np.bool_(True)]),
    ]
    if depth == 4 or (depth and chooser.random() < 0.4):
        return chooser.choice(leaves)()
    items = [random_state(chooser, depth + 1) for _ in range(chooser.randrange(4))]
    if depth == 0 or chooser.random() < 0.5:
        keys = chooser.sample(["a", "a/b", "b", "0", 0, 1, -1, "", "dict", "tensor", "__metadata__"], len(items))
        return dict(zip(keys, items, strict=True))
    return chooser.choice([list, tuple])(items)


def identical(left: Any, right: Any) -> bool:
    """Equal in type, order, shape and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return identical(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and bool(left.tobytes() == right.tobytes())
    return repr(left) == repr(right)


def test_packing_and_saving_any_state_gives_it_back(folder: RunFolder) -> None:
    chooser = random.Random(0)
    for step in range(150):
        state = random_state(chooser)
        tensors, rest = pack(state)
        folder.save_checkpoint(step, tensors, {"rest": rest}, keep=1)
        loaded = folder.load_checkpoint()
        assert identical(unpack(loaded.tensors, loaded.meta["rest"]), state)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *[([1], (1,)), (1, True), (1, 1.0), ({0: 1}, {"0": 1}), (0.0, -0.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1})],
        *[(np.float64(1), 1.0), (np.zeros(()), np.float64(0)), (torch.zeros(1), torch.zeros(1).double())],
    ],
)
def test_the_comparison_tells_apart_what_packing_must(left: Any, right: Any) -> None:
    """Negative control of `identical`, and the same distinctions through pack."""
    assert not identical(left, right)
    assert not identical(unpack(*pack({"x": left})), unpack(*pack({"x": right})))


def test_names_of_packed_tensors_are_readable_and_distinct() -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(1)}}}
    assert list(pack({"optimizers": {"all": optimizer}})[0]) == ["optimizers/all/state/0/exp_avg"]
    clash: dict[Any, Any] = {
        "a/b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        0: torch.tensor(3),
        "0": torch.tensor(4),
    }
    tensors, rest = pack(clash)
    assert len(tensors) == 4
    assert identical(unpack(tensors, rest), clash)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_schedules_and_generators_continue_exactly(folder: RunFolder, optimizer_class: Any) -> None:
    def build() -> tuple[torch.nn.Linear, Any, Any]:
        network = torch.nn.Linear(3, 2)
        optimizer = optimizer_class(network.parameters(), lr=0.1)
        return network, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)

    def train(network: torch.nn.Linear, optimizer: Any, schedule: Any) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.randn(4, 3) + random.random() + np.random.rand()).square().sum().backward()
            optimizer.step()
            schedule.step()

    def generators() -> dict[str, Any]:
        return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}

    first = build()
    train(*first)
    state = {"parts": [part.state_dict() for part in first], "generators": generators()}
    tensors, rest = pack(state)
    folder.save_checkpoint(3, tensors, {"rest": rest})
    train(*first)
    checkpoint = folder.load_checkpoint()
    restored = unpack(checkpoint.tensors, checkpoint.meta["rest"])
    second = build()
    for part, part_state in zip(second, restored["parts"], strict=True):
        part.load_state_dict(part_state)
    torch.set_rng_state(restored["generators"]["torch"])
    np.random.set_state(restored["generators"]["numpy"])
    random.setstate(restored["generators"]["python"])
    train(*second)
    assert torch.equal(first[0].weight, second[0].weight)


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "value",
    [
        *[lambda: 0, object(), {1}, b"x", 1j, Pair(1, 2), {(1, 2): 3}, {True: 1}, {None: 1}, {1.0: 1}],
        *[torch.ones(2).to_sparse(), torch.ones(2, device="meta"), np.array(["x"]), np.array([object()])],
        *[np.arange(3, dtype=">i4"), np.datetime64("2020"), np.ma.array([1], mask=[True]), torch.Generator()],
    ],
)
def test_anything_else_is_refused_by_its_place(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"in the state at optimizer/groups/1/extra; got "):
        pack({"optimizer": {"groups": [{}, {"extra": value}]}})


def test_a_state_that_holds_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["me"] = state
    with pytest.raises(ConfigError, match="levels deep"):
        pack(state)


@pytest.mark.parametrize(
    "rest",
    [
        *[{"tensor": "missing"}, {"tensor": []}, {"array": "missing"}, {"float": "1"}, {"unknown": 1}, {}],
        *[{"dict": [[1]]}, {"dict": 3}, {"dict": [[[], 1]]}, {"tuple": None}, {"tuple": [], "dict": []}],
    ],
)
def test_a_damaged_rest_is_a_checkpoint_error(rest: Any) -> None:
    with pytest.raises(CheckpointError, match="expected state written by pack"):
        unpack({}, [rest])


def test_a_deep_rest_is_a_checkpoint_error() -> None:
    rest: Any = []
    for _ in range(100_000):
        rest = [rest]
    with pytest.raises(CheckpointError, match="levels deep"):
        unpack({}, rest)
