"""Two-sample tests whose p-values are uniform or larger under the null, and distances of features in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import kstest
from torch import Tensor

from ppgen.errors import DataError
from ppgen.evaluation.features import frechet_distance, kernel_distance, precision, recall
from ppgen.evaluation.parzen import WARNING, parzen
from ppgen.evaluation.two_sample import SCALES, TwoSample, classifier_test, kernel_test, neighbour_test


def normal(seed: int, rows: int, width: int = 2) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def mmd_by_loops(x: Tensor, y: Tensor) -> float:
    """The U-statistic of Gretton et al. term by term."""
    every = torch.cat([x, y]).double()
    distances = [float((a - b).norm()) for i, a in enumerate(every) for b in every[i + 1 :]]
    median = float(np.sort(distances)[(len(distances) - 1) // 2])

    def kernel(a: Tensor, b: Tensor) -> float:
        squared = float((a - b).double().square().sum())
        return sum(math.exp(-squared / (2 * (scale * median) ** 2)) for scale in SCALES) / len(SCALES)

    n, m = len(x), len(y)
    of_x = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (n * (n - 1))
    of_y = sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (m * (m - 1))
    return of_x + of_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_statistic_is_the_sum_over_pairs() -> None:
    x, y = normal(0, 9, 3), normal(1, 14, 3) + 0.5
    found = kernel_test(x, y, permutations=5)
    assert found.value == pytest.approx(mmd_by_loops(x, y), abs=1e-6)
    assert (found.samples, found.rows) == (9, 14)


def test_permutations_are_those_of_rows() -> None:
    """Every permuted statistic is a statistic of some split of the same rows: brute force over a small set."""
    from itertools import combinations

    x, y = normal(3, 8, 1) + 0.8, normal(4, 8, 1)
    every = torch.cat([x, y])
    splits = [list(chosen) for chosen in combinations(range(16), 8)][::40]
    values = []
    for chosen in splits:
        rest = [i for i in range(16) if i not in chosen]
        values.append(kernel_test(every[chosen], every[rest], permutations=1).value)
    observed = kernel_test(x, y, permutations=4_000)
    share = float((torch.tensor(values) >= observed.value - 1e-12).double().mean())
    error = math.sqrt(max(share * (1 - share), 1e-3) / len(values))
    assert abs(observed.p_value - share) < 4.5 * error


Test = Callable[[Tensor, Tensor, int], TwoSample]
TESTS: dict[str, tuple[Test, int, int]] = {
    "kernel": (lambda x, y, seed: kernel_test(x, y, permutations=199, seed=seed), 40, 300),
    "neighbour": (lambda x, y, seed: neighbour_test(x, y, permutations=199, seed=seed), 60, 300),
    "classifier": (lambda x, y, seed: classifier_test(x, y, seed=seed), 120, 50),
}


def p_values(name: str, *, shift: float) -> list[float]:
    test, rows, repeats = TESTS[name]
    return [test(normal(2 * i, rows) + shift, normal(2 * i + 1, rows), i).p_value for i in range(repeats)]


@pytest.mark.parametrize("name", TESTS)
def test_p_values_are_valid_where_there_is_no_difference(name: str) -> None:
    """Never too small; those of continuous statistics are uniform, with the mean that discreteness allows."""
    found = p_values(name, shift=0.0)
    # "greater": the distribution function lies above that of uniform numbers, so that p-values are too small
    assert kstest(found, "uniform", alternative="greater").pvalue > 1e-3
    error = math.sqrt(1 / 12 / len(found))
    assert float(np.mean(found)) - 0.5 > -4.5 * error
    if name == "kernel":
        assert kstest(found, "uniform").pvalue > 1e-3
        assert abs(float(np.mean(found)) - 0.5) < 4.5 * error


@pytest.mark.parametrize("name", TESTS)
def test_a_shift_is_found_and_its_p_values_are_not_uniform(name: str) -> None:
    found = p_values(name, shift=1.5)
    assert float(np.mean(np.array(found) < 0.05)) > 0.9
    assert kstest(found, "uniform", alternative="greater").pvalue < 1e-6


def test_a_test_that_ignores_dependence_would_be_caught() -> None:
    """Negative control of the calibration: rows that are counted twice make p-values too small."""
    found = []
    for i in range(100):
        x, y = normal(2 * i, 20), normal(2 * i + 1, 20)
        found.append(kernel_test(torch.cat([x, x]), torch.cat([y, y]), permutations=199, seed=i).p_value)
    assert kstest(found, "uniform", alternative="greater").pvalue < 1e-3


def test_a_difference_in_scale_or_within_modes_is_found() -> None:
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0]])
    x, y = (centres[torch.arange(400) % 2] + 0.05 * normal(i, 400) for i in (1, 2))
    assert kernel_test(x, y).p_value > 0.01
    assert kernel_test(x + 2.0 * (normal(3, 400)), y).p_value < 0.01


def test_copies_of_the_other_set_are_nearer_than_chance() -> None:
    x = normal(1, 100)
    assert neighbour_test(x + 1e-4, x).value < 0.05
    assert 0.35 < neighbour_test(normal(2, 100), x).value < 0.65


def test_nearest_neighbours_are_those_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(1, 50), normal(2, 50)
    whole = neighbour_test(x, y)
    monkeypatch.setattr("ppgen.evaluation.two_sample._CHUNK", 7)
    assert neighbour_test(x, y) == whole
    distances = torch.cdist(torch.cat([x, y]), torch.cat([x, y])).fill_diagonal_(math.inf)
    assert whole.value == float(((distances.argmin(1) < 50) == (torch.arange(100) < 50)).double().mean())


def test_no_random_stream_moves() -> None:
    before, state = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]
    for test in (kernel_test, classifier_test, neighbour_test):
        found = [test(normal(1, 30), normal(2, 30), seed=3) for _ in range(2)]  # type: ignore[operator]
        assert found[0] == found[1]
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])  # type: ignore[index]


BAD = [
    (normal(0, 4), normal(0, 30), "at least 8 samples"),
    (normal(0, 30), normal(0, 7), "at least 8 rows"),
    (normal(0, 30, 3), normal(0, 30), "2 values"),
    (normal(0, 30) / 0.0, normal(0, 30), "finite samples"),
]


@pytest.mark.parametrize(("x", "y", "words"), BAD)
@pytest.mark.parametrize("measure", [kernel_test, classifier_test, frechet_distance, precision, recall])
def test_what_cannot_be_compared_is_refused(measure: Callable[..., object], x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        measure(x, y)


# ----------------------------------------------------------------------------------------- distances of features


def with_moments(rows: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Rows whose empirical mean and covariance are exactly these."""
    x = normal(seed, rows, len(mean)).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (rows - 1))).T
    rows_found: Tensor = x @ torch.linalg.cholesky(covariance).T + mean
    return rows_found


def test_frechet_distance_of_known_moments() -> None:
    root, other = normal(1, 4, 4).double(), normal(2, 4, 4).double()
    one, two = root @ root.T + torch.eye(4), other @ other.T + 0.1 * torch.eye(4)
    mean = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    found = frechet_distance(with_moments(50, mean, one, 3), with_moments(80, -mean, two, 4))
    crossed = sqrtm((one @ two).numpy())
    expected = 4 * float(mean.square().sum()) + float(one.trace() + two.trace()) - 2 * float(np.trace(crossed).real)
    assert found == pytest.approx(expected, rel=1e-6)
    without_means = expected - 4 * float(mean.square().sum())
    assert found != pytest.approx(without_means, rel=1e-2)


def test_frechet_distance_of_fewer_rows_than_dimensions() -> None:
    x = normal(1, 20, 64)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(x, x + 1) == pytest.approx(64.0, rel=1e-5)


def features(rows: int, shift: float, seed: int) -> Tensor:
    """As a classifier's last layer has them: 32 numbers, none below 0, of 8 that vary."""
    weights = normal(0, 8, 32)
    return torch.relu((normal(seed, rows, 8) + shift) @ weights) / 4


def test_kernel_distance_is_that_of_brute_force() -> None:
    x, y = features(12, 0.0, 1).double(), features(9, 0.5, 2).double()

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 32 + 1) ** 3)

    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rows", "others", "shift"), [(60, 60, 0.0), (100, 40, 0.0), (60, 60, 0.5), (40, 100, 0.5)])
def test_kernel_distance_is_unbiased_and_its_error_is_honest(rows: int, others: int, shift: float) -> None:
    """Where the sets are equal the error comes from the second order alone, where they are not from the first."""
    pairs = [(features(rows, 0.0, 2 * i + 1), features(others, shift, 2 * i + 2)) for i in range(300)]
    found = [kernel_distance(x, y, permutations=0) for x, y in pairs]
    values = np.array([each.value for each in found])
    errors = np.array([each.stderr for each in found])
    assert 0.85 < np.sqrt(np.mean(errors**2)) / values.std() < 1.35
    if not shift:
        assert abs(values.mean()) < 4.5 * values.std() / math.sqrt(len(found))
        assert np.mean(values > 3 * errors) < 0.02
        # negative control: the biased statistic, with the diagonal, is far from zero
        biased = [_biased(x, y) for x, y in pairs[:100]]
        assert np.mean(biased) > 4.5 * np.std(biased) / math.sqrt(100)


def test_kernel_distance_has_size_and_power() -> None:
    """The mean over ten blocks, as the papers have it, sees less of 500 rows that differ."""

    def of_blocks(x: Tensor, y: Tensor) -> float:
        pairs = zip(x.tensor_split(10), y.tensor_split(10), strict=True)
        values = np.array([kernel_distance(a, b, permutations=0).value for a, b in pairs])
        return float(values.mean() / (values.std(ddof=1) / math.sqrt(10)))

    equal = [kernel_distance(features(100, 0.0, 2 * i + 1), features(100, 0.0, 2 * i + 2)) for i in range(200)]
    rejected = np.mean([each.p_value is not None and each.p_value <= 0.05 for each in equal])
    assert abs(rejected - 0.05) < 4.5 * math.sqrt(0.05 * 0.95 / 200)
    apart = [(features(500, 0.0, 2 * i + 1), features(500, 0.13, 2 * i + 2)) for i in range(40)]
    found = [kernel_distance(x, y) for x, y in apart]
    assert np.mean([each.p_value is not None and each.p_value <= 0.05 for each in found]) > 0.9
    assert np.mean([of_blocks(x, y) > 1.645 for x, y in apart]) < 0.7  # control


def test_kernel_distance_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(60, 0.0, 1), features(50, 0.3, 2)
    whole = kernel_distance(x, y)
    monkeypatch.setattr("ppgen.evaluation.features._CHUNK", 17)
    parts = kernel_distance(x, y)
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    assert parts.stderr == pytest.approx(whole.stderr, rel=1e-9)
    assert parts.p_value == whole.p_value
    assert kernel_distance(x, y, seed=1).value == pytest.approx(whole.value, rel=1e-9)
    assert "p_value" not in kernel_distance(x, y, permutations=0).as_dict()


def _biased(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ b.T / a.shape[1] + 1) ** 3).mean()

    return float(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def test_precision_and_recall() -> None:
    rows = normal(1, 400)
    assert (precision(rows, rows), recall(rows, rows)) == (1.0, 1.0)
    assert min(precision(normal(2, 400), rows), recall(normal(2, 400), rows)) > 0.85
    # a generator of one kind of good samples
    few = 0.05 * normal(3, 400)
    assert precision(few, rows) > 0.9
    assert recall(few, rows) < 0.1
    # noise all over the place is seldom data
    assert precision(10 * normal(4, 400), rows) < 0.2


def test_precision_is_that_of_brute_force() -> None:
    samples, rows = normal(1, 30), normal(2, 20) + 0.5
    inside = 0
    for sample in samples:
        for row in rows:
            radius = float((rows - row).norm(dim=1).sort().values[3])
            if float((sample - row).norm()) <= radius:
                inside += 1
                break
    assert precision(samples, rows) == pytest.approx(inside / 30)


# -------------------------------------------------------------------------------------------- Parzen's estimate


def test_parzen_estimate_is_a_mixture_of_gaussians() -> None:
    samples, test = normal(1, 50, 3), normal(2, 20, 3)
    found = parzen(samples, normal(3, 40, 3), test)
    bandwidth = float(found["bandwidth"])  # type: ignore[arg-type]
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(50)),
        torch.distributions.Independent(torch.distributions.Normal(samples, bandwidth), 1),
    )
    assert found["value"] == pytest.approx(float(mixture.log_prob(test).mean()), abs=1e-4)
    assert found["warning"] == WARNING
    assert "misleads" in WARNING


def test_parzen_bandwidth_is_the_best_of_the_validation_rows() -> None:
    """Of one row held out from many samples of a Gaussian, the estimate nears the true log density."""
    exact = float(torch.distributions.Normal(0.0, 1.0).log_prob(normal(3, 2_000, 1)).mean())
    found = parzen(normal(1, 1_000, 1), normal(2, 1_000, 1), normal(3, 2_000, 1))
    assert found["value"] == pytest.approx(exact, abs=0.02)
    copied = parzen(normal(1, 1_000, 1), normal(1, 1_000, 1), normal(3, 2_000, 1))
    # control: validation rows among the samples choose a bandwidth that is too small
    assert copied["bandwidth"] < 0.1 * found["bandwidth"]  # type: ignore[operator]
