import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ppgen.data import Dataset, load
from ppgen.errors import DataError
from ppgen.evaluation.classifier import Classifier, StackedClassifier, classifier_of
from ppgen.evaluation.modes import NEAR, SHARE, Modes, has_known_modes, mode_coverage

real_data = pytest.mark.skipif(not os.environ.get("PPGEN_DATA"), reason="PPGEN_DATA is not set")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def of_digits(digits: Dataset) -> Classifier | StackedClassifier:
    return classifier_of(digits)


@pytest.fixture(scope="module")
def stacks() -> Dataset:
    return load("stacked-digits")


@pytest.fixture(scope="module")
def of_stacks(stacks: Dataset) -> Classifier | StackedClassifier:
    return classifier_of(stacks)


def z_of(modes: Modes) -> float:
    """2 n KL of n rows of the data is a chi-square of total - 1 degrees of freedom: in standard deviations."""
    free = modes.total - 1
    return (2 * modes.samples * modes.divergence - free) / math.sqrt(2 * free)


# --- vectors --------------------------------------------------------------------------------------------------------


def test_modes_are_counted_as_by_hand() -> None:
    ring = load("ring")
    angle = torch.pi / 4 * torch.arange(8)
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    samples = centres[[0, 0, 3, 5]]
    samples[2, 0] += 0.029  # 2.9 standard deviations off: still good
    samples[3, 1] -= 0.032  # 3.2: no longer good, but nearest to mode 5
    found = mode_coverage(samples, ring)
    assert (found.covered, found.total, found.samples) == (2, 8, 4)
    assert found.high_quality is not None
    assert found.high_quality.value == 0.75
    shares = (torch.bincount(ring.train["y"]) / 50_000).tolist()
    by_hand = sum(p * math.log(p / shares[k]) for k, p in [(0, 0.5), (3, 0.25), (5, 0.25)])
    assert found.divergence == pytest.approx(by_hand, rel=1e-6)
    assert found.divergence == pytest.approx(math.log(8) - 1.5 * math.log(2), abs=0.05)
    assert found.as_dict() == {
        "covered": 2,
        "covered_of_data": len(ring.test["y"][:4].unique()),
        "total": 8,
        "high_quality": found.high_quality.as_dict(),
        "high_quality_of_data": 1.0,
        "divergence": found.divergence,
        "divergence_of_data": 7 / 8,
        "samples": 4,
    }


@pytest.mark.parametrize(("name", "total"), [("ring", 8), ("grid", 25)])
def test_the_data_cover_their_modes_and_a_collapsed_generator_does_not(name: str, total: int) -> None:
    data = load(name)
    x, y = data.test["x"], data.test["y"]
    whole = mode_coverage(x[:2500], data)
    assert (whole.covered, whole.total) == (total, total)
    assert whole.high_quality is not None
    within = 1 - math.exp(-4.5)  # of a Gaussian in the plane, three standard deviations
    assert abs(whole.high_quality.value - within) / math.sqrt(within * (1 - within) / 2500) < 4.5
    assert abs(z_of(whole)) < 4.5
    collapsed = mode_coverage(x[y < total // 2], data)
    assert collapsed.covered == total // 2
    assert z_of(collapsed) > 100
    uneven = mode_coverage(torch.cat([x[:2500], x[y == 0][:250]]), data)
    assert uneven.covered == total
    assert z_of(uneven) > 4.5
    blurred = mode_coverage(x[:2500] + 0.05 * torch.randn(2500, 2), data)
    assert blurred.high_quality is not None
    assert blurred.high_quality.high < whole.high_quality.low


def three_gaussians(folder: Path, size: int, *, rows: int = 6_000, units: float = 1.0) -> Dataset:
    """Three classes of unit Gaussians, 14 apart, in columns whose units differ by up to so much."""
    random = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = random.standard_normal((rows, size))
    x[:, :2] += np.array([[0.0, 0.0], [14.0, 0.0], [0.0, 14.0]])[y]
    np.savez(folder / "own.npz", x=(x * np.geomspace(1, units, size)).astype(np.float32), y=y)
    return load(folder / "own.npz")


@pytest.mark.parametrize("units", [1.0, 1e4])
@pytest.mark.parametrize("size", [2, 9, 20, 50])
def test_as_many_rows_of_the_data_lie_near_in_any_number_of_dimensions(size: int, units: float, tmp_path: Path) -> None:
    data = three_gaussians(tmp_path, size, units=units)
    x, y = data.test["x"], data.test["y"]
    assert has_known_modes(data)
    whole = mode_coverage(x, data)
    assert whole.high_quality is not None
    assert whole.covered == whole.covered_of_data == whole.total == 3
    assert whole.high_quality.value == whole.high_quality_of_data
    assert abs(whole.high_quality.value - SHARE) / math.sqrt(SHARE * (1 - SHARE) / len(x)) < 4.5
    # controls: a mode that is missing, draws that are wider, and draws of nothing
    lost = mode_coverage(x[y != 1], data)
    assert lost.covered == 2
    assert lost.covered_of_data == 3
    assert z_of(lost) > 100
    centres = torch.stack([x[y == label].mean(0) for label in range(3)])[y]
    wider = mode_coverage(centres + 2 * (x - centres), data)
    assert wider.high_quality is not None
    assert wider.high_quality.high < 0.75
    assert mode_coverage(1e3 * x.abs() + 1e6 * x.std(0), data).covered == 0


def test_the_rule_of_one_dimension_finds_no_row_of_the_data_in_many(tmp_path: Path) -> None:
    """Control: three standard deviations of one dimension, about the centres of Gaussians of fifty."""
    data = three_gaussians(tmp_path, 50)
    x, y = data.test["x"], data.test["y"]
    distances = torch.cat([(x[y == label] - x[y == label].mean(0)).norm(dim=1) for label in range(3)])
    assert not (distances <= NEAR).any()


@pytest.mark.parametrize(("name", "deviation"), [("ring", 0.01), ("grid", 0.05)])
def test_in_the_plane_the_rule_is_that_of_three_deviations(name: str, deviation: float) -> None:
    data = load(name)
    x, y = data.train["x"].double(), data.train["y"]
    centres = torch.stack([x[y == label].mean(0) for label in y.unique()])
    for noise in (0.0, 0.5, 1.0, 2.0):
        samples = data.test["x"][:2500] + noise * deviation * torch.randn(2500, 2)
        found = mode_coverage(samples, data)
        distances, nearest = torch.cdist(samples.double(), centres).min(1)
        near = distances <= NEAR * deviation
        assert found.high_quality is not None
        assert found.high_quality.value == pytest.approx(float(near.double().mean()), abs=0.01)
        assert found.covered == len(nearest[near].unique())


def test_a_class_of_few_rows_takes_the_radius_of_all(tmp_path: Path) -> None:
    few = load("ring", labels=80)
    found = mode_coverage(few.test["x"][:2500], few)
    assert found.covered == 8
    assert found.high_quality is not None
    assert 0.9 < found.high_quality.value == found.high_quality_of_data
    one = three_gaussians(tmp_path, 2, rows=12)
    assert mode_coverage(one.test["x"], one).total == 3


def test_a_column_that_names_the_class_leaves_the_others_their_say(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = np.arange(3_000) % 3
    x = np.concatenate([random.standard_normal((3_000, 4)), np.eye(3)[y], np.full((3_000, 1), 0.1)], 1)
    np.savez(tmp_path / "own.npz", x=x.astype(np.float32), y=y)
    data = load(tmp_path / "own.npz")
    found = mode_coverage(data.test["x"], data)
    assert found.covered == 3
    assert found.high_quality_of_data == pytest.approx(SHARE, abs=0.02)
    off = data.test["x"].clone()
    off[:, 4:7] += 0.1
    assert mode_coverage(off, data).covered == 0


def test_points_without_spread_are_modes_too() -> None:
    points = load("four-points")
    found = mode_coverage(torch.eye(4)[:3], points)
    assert found.covered == 3
    assert found.high_quality is not None
    assert found.high_quality.value == 1
    assert mode_coverage(0.99 * torch.eye(4), points).covered == 0  # control


def test_which_data_have_known_modes(digits: Dataset, stacks: Dataset) -> None:
    swiss_roll, ring = load("swiss-roll"), load("ring")
    known = [has_known_modes(data) for data in (ring, load("grid"), load("four-points"), stacks, digits, swiss_roll)]
    assert known == [True, True, True, True, False, False]
    unlabelled = {name: column for name, column in ring.train.items() if name == "x"}
    assert not has_known_modes(dataclasses.replace(ring, train=unlabelled, classes=None))
    some = torch.where(ring.train["y"] == 2, -1, ring.train["y"])
    assert not has_known_modes(dataclasses.replace(ring, train={**ring.train, "y": some}))
    assert has_known_modes(load("ring", labels=80))


def test_modes_that_cannot_be_counted_are_refused() -> None:
    ring, swiss_roll = load("ring"), load("swiss-roll")
    with pytest.raises(DataError, match=r"swiss-roll: expected well separated classes.* 'segment 0' and 'segment 1'"):
        mode_coverage(swiss_roll.test["x"], swiss_roll)
    with pytest.raises(DataError, match=r"ring: expected samples of shape \('n', 2\); got \(4, 3\)"):
        mode_coverage(torch.zeros(4, 3), ring)
    with pytest.raises(DataError, match=r"expected samples of shape .*; got \(0, 2\)"):
        mode_coverage(torch.zeros(0, 2), ring)
    bad = ring.test["x"][:10].clone()
    bad[[4, 7], 1] = torch.nan
    with pytest.raises(DataError, match=r"expected finite samples; got row 4 that is not \(2 of 10 rows\)"):
        mode_coverage(bad, ring)
    with pytest.raises(DataError, match="expected labels; got none"):
        mode_coverage(bad[:4], dataclasses.replace(ring, classes=None))


# --- images ---------------------------------------------------------------------------------------------------------


def test_stacked_images_cover_a_thousand_modes(stacks: Dataset, of_stacks: StackedClassifier) -> None:
    x, y = stacks.test["x"], stacks.test["y"]
    whole = mode_coverage(x, stacks, classifier=of_stacks)
    assert (whole.covered, whole.total, whole.high_quality) == (1000, 1000, None)
    assert (whole.covered_of_data, whole.high_quality_of_data) == (1000, None)
    assert whole.divergence < 1.2 * whole.floor  # a little more: the classifier errs, and 500 images are few
    collapsed = mode_coverage(x[y // 100 == 7], stacks, classifier=of_stacks)
    assert collapsed.covered < 150
    assert collapsed.divergence > math.log(10) - 0.2
    seven = mode_coverage(x[y == 777], stacks, classifier=of_stacks)
    assert seven.covered <= 3
    assert seven.divergence > 6


def test_shares_of_stacked_images_are_products(stacks: Dataset, of_stacks: StackedClassifier) -> None:
    y = stacks.train["y"]
    shares = [torch.bincount(y // weight % 10) / len(y) for weight in (100, 10, 1)]
    one = stacks.test["x"][:1]
    number = int(of_stacks.log_probs(one).argmax())
    by_hand = -sum(math.log(share[int(digit)]) for share, digit in zip(shares, f"{number:03}", strict=True))
    assert mode_coverage(one, stacks, classifier=of_stacks).divergence == pytest.approx(by_hand, rel=1e-5)
    assert by_hand != pytest.approx(-math.log((y == number).float().mean()), rel=1e-3)  # control: of the stacks


def test_classes_of_single_images_are_modes_if_asked_for(digits: Dataset, of_digits: Classifier) -> None:
    found = mode_coverage(digits.test["x"], digits, classifier=of_digits)
    assert (found.covered, found.total) == (10, 10)
    assert abs(z_of(found)) < 4.5
    some = digits.test["x"][digits.test["y"] < 3]
    assert mode_coverage(some, digits, classifier=of_digits).covered < 8


# --- classifiers ----------------------------------------------------------------------------------------------------


def test_the_classifier_tells_the_classes(digits: Dataset, of_digits: Classifier, of_stacks: StackedClassifier) -> None:
    log_probs = of_digits.log_probs(digits.test["x"])
    assert of_digits.accuracy == (log_probs.argmax(1) == digits.test["y"]).double().mean()
    assert of_digits.accuracy > 0.97
    assert abs(of_stacks.accuracy - of_digits.accuracy**3) < 0.03
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(500))
    untrained = Classifier((1, 8, 8), 10)
    assert math.isnan(untrained.accuracy)
    assert (untrained.log_probs(digits.test["x"]).argmax(1) == digits.test["y"]).double().mean() < 0.4  # control


def test_features_are_what_the_last_layer_sees(digits: Dataset, of_digits: Classifier) -> None:
    x = digits.test["x"]
    features = of_digits.features(x)
    assert features.shape == (500, of_digits.width)
    assert not features.requires_grad
    torch.testing.assert_close(of_digits.last(features).log_softmax(1), of_digits.log_probs(x))
    torch.testing.assert_close(of_digits.features(x[:3]), features[:3])  # rows do not depend on each other


def test_stacks_are_told_one_by_one(stacks: Dataset, of_stacks: StackedClassifier) -> None:
    x = stacks.test["x"][:20]
    one, two, three = (of_stacks.single.log_probs(x[:, [channel]]) for channel in range(3))
    log_probs = of_stacks.log_probs(x)
    for label in (0, 7, 70, 700, 123, 999):
        a, b, c = (int(letter) for letter in f"{label:03}")
        torch.testing.assert_close(log_probs[:, label], one[:, a] + two[:, b] + three[:, c])
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(20))
    assert of_stacks.features(x).shape == (20, of_stacks.width)
    torch.testing.assert_close(of_stacks.features(x)[:, 128:256], of_stacks.single.features(x[:, [1]]))


def test_training_is_a_function_of_data_and_seed() -> None:
    ring = load("ring")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = classifier_of(ring)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    second, other = classifier_of(ring), classifier_of(ring, seed=1)
    x = ring.test["x"]
    assert torch.equal(first.log_probs(x), second.log_probs(x))
    assert not torch.equal(first.log_probs(x), other.log_probs(x))  # control
    assert first.accuracy == other.accuracy == 1


def test_it_learns_from_labelled_rows_only_and_from_disk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = np.arange(400) % 3
    x = random.standard_normal((400, 5)) * 0.1 + y[:, None] * 100
    x[:, 4] = 7  # a constant column has no scale to divide by
    np.save(tmp_path / "own.npy", x.astype(np.float32))
    np.save(tmp_path / "own_y.npy", np.where(np.arange(400) < 100, -1, y))
    held, streamed = load(tmp_path / "own.npy"), load(tmp_path / "own.npy", stream=True)
    assert streamed.streamed
    assert not held.streamed
    assert classifier_of(held).accuracy == classifier_of(streamed).accuracy == 1


def test_what_no_classifier_can_be_trained_on_is_refused(digits: Dataset, of_digits: Classifier) -> None:
    with pytest.raises(DataError, match=r"digits: expected labels of at least 2 classes.*; got no labels"):
        classifier_of(dataclasses.replace(digits, classes=None))
    with pytest.raises(DataError, match=r"expected labels of at least 2 classes.*; got one class, a"):
        classifier_of(dataclasses.replace(digits, classes=("a",)))
    for wrong in (torch.zeros(2, 8, 8), torch.zeros(0, 1, 8, 8), torch.zeros(2, 1, 28, 28)):
        with pytest.raises(DataError, match=r"expected rows of shape \(1, 8, 8\), as the classifier's data; got shape"):
            of_digits.features(wrong)


@real_data
@pytest.mark.slow
def test_mnist_is_told_well() -> None:
    assert classifier_of(load("mnist", download=False)).accuracy >= 0.985
