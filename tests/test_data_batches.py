import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ppgen.data import Batches, Columns, Together, columns_to, load
from ppgen.errors import ConfigError, DataError


def equal(first: Columns, second: Columns) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def write_npy(path: Path, x: np.ndarray) -> Path:
    np.save(path, x)
    return path


# --- binarization ---------------------------------------------------------------------------------------------------


def test_static_binarization_is_one_draw_of_all_splits() -> None:
    data = load("digits")
    static = data.binarized("static", seed=1)
    for split, columns in static.splits.items():
        assert set(columns["x"].unique().tolist()) == {0.0, 1.0}
        p = data.splits[split]["x"]
        z = (columns["x"] - p).sum() / (p * (1 - p)).sum().sqrt()
        assert abs(z) < 4.5
        biased = (columns["x"] - p**1.1).sum() / (p * (1 - p)).sum().sqrt()
        assert abs(biased) > 4.5 or split == "validation"  # control: other intensities are noticed
    assert equal(static.test, data.binarized("static", seed=1).test)
    assert not equal(static.test, data.binarized("static", seed=2).test)
    assert static.fingerprint == data.fingerprint
    assert static.binarized("static") is static
    for how, wanted in (("none", "not yet binarized"), ("dynmic", "none, static or dynamic; got 'dynmic'")):
        with pytest.raises(ConfigError, match=wanted):
            static.binarized(how)


def test_dynamic_binarization_redraws_train_only() -> None:
    data = load("digits").binarized("dynamic", seed=1)
    assert set(data.test["x"].unique().tolist()) == {0.0, 1.0}
    assert len(data.train["x"].unique()) > 2
    batches = Batches(data.train, 1197, binarization=data.binarization)
    draws = 60
    total, variance = torch.zeros(10, 64), torch.zeros(10, 64)
    for _ in range(draws):  # rows differ in order: compare class by class
        batch = next(batches)
        assert set(batch["x"].unique().tolist()) == {0.0, 1.0}
        total.index_add_(0, batch["y"], batch["x"].flatten(1))
    p = data.train["x"].flatten(1)
    mean = torch.zeros(10, 64).index_add_(0, data.train["y"], p) * draws
    variance.index_add_(0, data.train["y"], p * (1 - p)).mul_(draws)
    z = ((total - mean) / variance.sqrt())[variance > 20]
    assert len(z) > 400
    assert z.abs().max() < 4.5
    shifted = ((total - mean * 1.03) / variance.sqrt())[variance > 20]
    assert shifted.abs().max() > 4.5  # control: 3 % off is noticed
    assert 0.8 < z.std() < 1.2  # draws of different batches are independent


def test_a_pixel_of_one_is_always_drawn_as_one_and_only_named_columns_are_drawn() -> None:
    columns = {"x": torch.tensor([[1.0, 0.0, 0.5]]).repeat(50, 1), "w": torch.full((50,), 0.5)}
    batches = Batches(columns, 50, binarization="dynamic")
    drawn = torch.stack([next(batches)["x"] for _ in range(200)])
    assert (drawn[..., 0] == 1).all()
    assert (drawn[..., 1] == 0).all()
    assert 0.45 < drawn[..., 2].mean() < 0.55
    assert (next(batches)["w"] == 0.5).all()
    both = next(Batches(columns, 50, binarization="dynamic", binarize=("x", "w")))
    assert set(both["w"].tolist()) == {0.0, 1.0}


def test_require_unit_interval_names_split_row_and_position(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 1, 4, 4)).astype(np.float32)
    load(write_npy(tmp_path / "good.npy", x)).require_unit_interval()
    x[42, 0, 2, 3] = 1.5
    data = load(write_npy(tmp_path / "bad.npy", x))
    for check in (data.require_unit_interval, lambda: data.binarized("dynamic")):
        with pytest.raises(DataError, match=r"got 1.5 at row 42, position \(0, 2, 3\)"):
            check()
    with pytest.raises(DataError, match="expected a column 'z'"):
        data.require_unit_interval("z")


# --- batches --------------------------------------------------------------------------------------------------------


def numbered(rows: int) -> Columns:
    return {"x": torch.arange(rows) / rows, "number": torch.arange(rows)}


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_batches_resume_exactly_at_any_position(binarization: str) -> None:
    def make(seed: int = 5) -> Batches:
        return Batches(numbered(103), 10, seed=seed, binarization=binarization)

    batches = make()
    drawn = [next(batches) for _ in range(35)]
    assert batches.position == 35
    for position in (0, 1, 9, 10, 11, 29, 34):
        resumed = make()
        resumed.position = position
        assert equal(next(resumed), drawn[position])
        assert resumed.position == position + 1
        batches.position = position  # going back in the same object
        assert equal(next(batches), drawn[position])
    other = make(seed=6)
    other.position = 34
    assert not equal(next(other), drawn[34])  # control: another seed is another order


def test_an_epoch_draws_each_row_once_and_drops_the_remainder() -> None:
    batches = Batches(numbered(103), 10)
    assert batches.steps_per_epoch == 10
    epochs = [torch.cat([next(batches)["number"] for _ in range(10)]) for _ in range(2)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 100
    assert not torch.equal(epochs[0], epochs[1])
    small = Batches(numbered(7), 100)
    assert (small.batch_size, small.steps_per_epoch) == (7, 1)
    assert sorted(next(small)["number"].tolist()) == list(range(7))


def test_seed_and_position_are_not_interchangeable() -> None:
    half = {"x": torch.full((64,), 0.5)}
    streams = {}
    for seed in range(4):
        order, noise = Batches(numbered(64), 64, seed=seed), Batches(half, 64, seed=seed, binarization="dynamic")
        for position in range(4):
            streams[f"order {seed} {position}"] = next(order)["number"].tolist()
            streams[f"noise {seed} {position}"] = next(noise)["x"].tolist()
    assert len({tuple(stream) for stream in streams.values()}) == len(streams) == 32


def test_batches_never_touch_the_global_random_state() -> None:
    before = torch.random.get_rng_state(), np.random.get_state(legacy=False)
    data = load("digits", labels=50).binarized("dynamic")
    batches = Batches(data.train, 100, binarization="dynamic")
    for _ in range(30):
        next(batches)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert str(before[1]) == str(np.random.get_state(legacy=False))
    torch.manual_seed(123)
    first = next(batches)
    batches.position -= 1
    torch.manual_seed(456)
    assert equal(first, next(batches))


def test_together_draws_from_each_and_resumes() -> None:
    data = load("digits", labels=100)

    def make() -> Together:
        parts = {"labelled": data.labelled(), "unlabelled": data.unlabelled()}
        return Together(**{name: Batches(columns, 50, seed=2) for name, columns in parts.items()})

    both = make()
    assert both.steps_per_epoch == 1097 // 50
    drawn = [next(both) for _ in range(30)]
    assert set(drawn[0]) == {"labelled", "unlabelled"}
    assert set(drawn[0]["labelled"]) == {"x", "y"}
    assert set(drawn[0]["unlabelled"]) == {"x"}
    resumed = make()
    resumed.position = 25
    again = next(resumed)
    assert all(equal(again[name], drawn[25][name]) for name in again)
    assert both.position == 30
    assert resumed.position == 26


def test_wrong_batches_are_refused() -> None:
    ahead = Batches(numbered(10), 2)
    next(ahead)
    cases = [
        (lambda: Batches(numbered(10), 0), ConfigError, "batch size of at least 1; got 0"),
        (lambda: Batches(numbered(10), 2, seed=-1), ConfigError, "seed of at least 0"),
        (lambda: Batches(numbered(10), 2, binarization="fast"), ConfigError, "got 'fast'"),
        (lambda: Batches(numbered(10), 2, binarization="dynamic", binarize=("z",)), ConfigError, "column 'z'"),
        (lambda: Batches({}, 2), DataError, "got none"),
        (lambda: Batches({"x": torch.zeros(0, 3)}, 2), DataError, "got none in x"),
        (lambda: Batches({"x": torch.zeros(3), "y": torch.zeros(4)}, 2), DataError, "x: 3, y: 4"),
        (lambda: Batches({"x": torch.full((3,), 1.5)}, 2, binarization="dynamic"), DataError, "got 1.5 to 1.5"),
        (lambda: Together(), ConfigError, "got none"),
        (lambda: Together(a=ahead, b=Batches(numbered(10), 2)), ConfigError, "a: 1, b: 0"),
        (lambda: setattr(ahead, "position", -1), ConfigError, "position of at least 0"),
    ]
    for make, error, message in cases:
        with pytest.raises(error, match=message):
            make()


def test_drawing_a_batch_is_cheap() -> None:
    batches = Batches({"x": torch.rand(1197, 64)}, 100)
    next(batches)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            next(batches)
        times.append((time.perf_counter() - start) / 100)
    assert min(times) < 60e-6


def test_columns_move_to_a_device() -> None:
    moved = columns_to({"x": torch.zeros(3)}, "meta")
    assert moved["x"].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_order_does_not_depend_on_the_device_and_noise_is_reproducible_on_it() -> None:
    here, there = Batches(numbered(103), 10), Batches(numbered(103), 10, device="cuda")
    for _ in range(12):
        assert equal(next(here), columns_to(next(there), "cpu"))
    noisy = Batches(numbered(103), 10, device="cuda", binarization="dynamic")
    drawn = [next(noisy) for _ in range(12)]
    noisy.position = 7
    assert equal(next(noisy), drawn[7])
