import os

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.data import Dataset, found, load
from ppgen.data.stacking import letters, separated
from ppgen.errors import ConfigError, DataError
from ppgen.models.priors import LabelledPrior, RingOfGaussians, SwissRoll

real_data = pytest.mark.skipif(not os.environ.get("PPGEN_DATA"), reason="PPGEN_DATA is not set")
RING = [(np.cos(angle), np.sin(angle)) for angle in np.pi / 4 * np.arange(8)]
GRID = [(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)]


@pytest.fixture(scope="module")
def stacks() -> Dataset:
    return load("stacked-digits")


# --- mixtures, spiral, points ---------------------------------------------------------------------------------------


def worst_z(data: Dataset, centres: list[tuple[float, float]], deviation: float) -> float:
    """How far the means and variances of the components are from what they should be, in standard errors."""
    x, y = data.train["x"].double(), data.train["y"]
    worst = 0.0
    for label, centre in enumerate(centres):
        noise = (x[y == label] - torch.tensor(centre)) / deviation
        rows = len(noise)
        of_means = noise.mean(0) * rows**0.5
        of_variances = (noise.square().mean(0) - 1) * (rows / 2) ** 0.5
        worst = max(worst, of_means.abs().max().item(), of_variances.abs().max().item())
    return worst


@pytest.mark.parametrize(("name", "centres", "deviation"), [("ring", RING, 0.01), ("grid", GRID, 0.05)])
def test_mixtures_are_those_of_the_papers(name: str, centres: list[tuple[float, float]], deviation: float) -> None:
    data = load(name)
    assert [len(columns["x"]) for columns in data.splits.values()] == [50_000, 1_000, 10_000]
    assert data.classes is not None
    assert len(data.classes) == len(centres) == len(set(data.classes))
    assert worst_z(data, centres, deviation) < 4.5
    shifted = [(x + 0.1 * deviation, y) for x, y in centres]
    assert worst_z(data, shifted, deviation) > 4.5  # control
    assert worst_z(data, centres, 1.1 * deviation) > 4.5  # control
    counts = torch.bincount(data.train["y"]).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.chisquare(counts + np.eye(len(counts), dtype=int)[0] * 500).pvalue < 1e-4  # control


@pytest.mark.parametrize("name", ["ring", "grid", "swiss-roll", "four-points", "stacked-digits"])
def test_they_need_no_files_and_are_always_the_same(name: str, stacks: Dataset) -> None:
    assert name in found("no/such/folder")
    np.random.seed(1)
    first = load(name)
    np.random.seed(2)
    second = load(name, seed=3)
    assert first.fingerprint == second.fingerprint
    assert np.random.random() == np.random.RandomState(2).random()  # numpy's own stream is left alone
    assert name == "stacked-digits" or first.fingerprint != stacks.fingerprint  # control
    assert {str(column.dtype) for column in first.train.values()} == {"torch.float32", "torch.int64"}
    shared = {row.tobytes() for row in first.train["x"].numpy()} & {row.tobytes() for row in first.test["x"].numpy()}
    assert bool(shared) == (name == "four-points")


def test_fingerprints_without_rounding_are_those_of_every_machine(stacks: Dataset) -> None:
    assert load("four-points").fingerprint.startswith("00699b2637e4")
    assert stacks.fingerprint.startswith("967eafc8ca69")


def test_four_points_are_equally_often_in_every_split() -> None:
    data = load("four-points")
    for columns in data.splits.values():
        rows, counts = columns["x"].unique(dim=0, return_counts=True)
        assert torch.equal(rows.flip(0), torch.eye(4))
        assert len(set(counts.tolist())) == 1
        assert torch.equal(columns["x"].argmax(1), columns["y"])


def test_the_swiss_roll_data_have_the_distribution_of_the_prior() -> None:
    data = load("swiss-roll").test
    prior = SwissRoll()
    grid = density_on_a_grid(prior)
    assert misfit(data["x"][:4000], grid, prior) < 4.5
    assert misfit(SwissRoll(noise=0.07).sample((4000,)), grid, prior) > 4.5  # control
    segments = prior.log_densities(data["x"][:4000]).argmax(-1)
    assert (segments == data["y"][:4000]).float().mean() > 0.95
    assert (segments == data["y"][1:4001]).float().mean() < 0.2  # control


# --- stacked images -------------------------------------------------------------------------------------------------


def wrong_images(stack: Tensor, y: Tensor, single: dict[bytes, int]) -> int:
    """How many images of stacks are unknown or have another label than the number says."""
    wrong = 0
    for images, label in zip(stack.numpy(), y.tolist(), strict=True):
        told = [single.get(image.tobytes(), -1) for image in images]
        wrong += sum(digit != int(letter) for digit, letter in zip(told, f"{label:03}", strict=True))
    return wrong


def test_stacks_are_images_of_their_own_split_with_their_labels_side_by_side(stacks: Dataset) -> None:
    digits = load("digits")
    assert stacks.shape == (3, 8, 8)
    assert stacks.classes == tuple(f"{number:03}" for number in range(1000))
    for split, columns in stacks.splits.items():
        images = digits.splits[split]
        single = {x.numpy().tobytes(): int(y) for x, y in zip(images["x"][:, 0], images["y"], strict=True)}
        few = {name: column[:500] for name, column in columns.items()}
        assert wrong_images(few["x"], few["y"], single) == 0
        assert wrong_images(few["x"].flip(1), few["y"], single) > 500  # control: the other order
        other = stacks.splits["test" if split == "train" else "train"]
        assert wrong_images(other["x"][:500], other["y"][:500], single) == 1500  # control: another split's images


def test_stacks_come_apart_again(stacks: Dataset) -> None:
    assert letters(stacks) == tuple("0123456789")
    y = stacks.test["y"][:4].clone()
    y[2] = -1
    single = separated({"x": stacks.test["x"][:4], "y": y}, 10)
    assert torch.equal(single["x"].view(3, 3, 8, 8), stacks.test["x"][[0, 1, 3]])
    assert "".join(str(digit) for digit in single["y"].tolist()) == "".join(f"{y[row]:03}" for row in (0, 1, 3))
    assert [letters(load(name)) for name in ("digits", "ring")] == [None, None]


def test_the_card_does_not_list_a_thousand_classes(stacks: Dataset) -> None:
    assert "1000 classes; kept in train: 28 to 73 of each, 50000 in all; unlabelled: 0" in stacks.card()
    assert len(stacks.card().splitlines()) < 10
    assert "180 degrees: " in load("ring").card()


def test_stacked_mnist_needs_the_files_of_mnist() -> None:
    assert "stacked-mnist" not in found("no/such/folder")
    with pytest.raises(DataError, match=r"data set 'stacked-mnist': expected MNIST/raw/.* below no/such/folder"):
        load("stacked-mnist", data_root="no/such/folder", download=False)


@real_data
@pytest.mark.slow
def test_stacked_mnist() -> None:
    stacked, mnist = load("stacked-mnist", download=False), load("mnist", download=False)
    assert stacked.shape == (3, 28, 28)
    assert (stacked.train["x"].min().item(), stacked.train["x"].max().item()) == (0, 1)
    single = {x.numpy().tobytes(): int(y) for x, y in zip(mnist.test["x"][:, 0], mnist.test["y"], strict=True)}
    assert wrong_images(stacked.test["x"][:500], stacked.test["y"][:500], single) == 0
    assert len(stacked.test["y"].unique()) == 1000


# --- priors ---------------------------------------------------------------------------------------------------------


def density_on_a_grid(prior: LabelledPrior) -> tuple[Tensor, Tensor]:
    """Points of the plane, and the probability of the square around each."""
    line = torch.linspace(-4.5, 4.5, 201, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    density = torch.cat([prior.log_prob(part).exp() for part in points.split(1000)])
    return points, density * (line[1] - line[0]) ** 2


def misfit(x: Tensor, grid: tuple[Tensor, Tensor], prior: LabelledPrior) -> float:
    """How far means over rows are from integrals, in standard errors: of log density and of the coordinates' powers."""

    def statistics(z: Tensor, log_density: Tensor) -> Tensor:
        return torch.stack([log_density, *z.unbind(-1), *z.square().unbind(-1), z.prod(-1)], -1)

    points, weights = grid
    expected = weights @ statistics(points, weights.clamp(min=1e-300).log())
    area = (points[1, 1] - points[0, 1]) ** 2
    expected[0] -= area.log()
    values = statistics(x.double(), prior.log_prob(x.double()))
    return float(((values.mean(0) - expected) / (values.std(0) / len(x) ** 0.5)).abs().max())


@pytest.mark.parametrize("label", [None, 0, 9])
@pytest.mark.parametrize("kind", [SwissRoll, RingOfGaussians])
def test_priors_have_a_density_and_draw_from_it(kind: type[LabelledPrior], label: int | None) -> None:
    prior = kind(None if label is None else torch.tensor(label))
    grid = density_on_a_grid(prior)
    assert float(grid[1].sum()) == pytest.approx(1, abs=1e-5)
    z = prior.sample((4000,))
    assert misfit(z, grid, prior) < 4.5
    assert misfit(1.05 * z, grid, prior) > 4.5  # control
    assert misfit(kind(torch.tensor(1)).sample((4000,)), grid, prior) > 4.5  # control


@pytest.mark.parametrize("kind", [SwissRoll, RingOfGaussians])
def test_a_missing_label_means_any_part(kind: type[LabelledPrior]) -> None:
    y = torch.arange(-1, 10).repeat(1000)
    prior = kind(y)
    z = prior.rsample()
    assert z.shape == (11_000, 2)
    assert prior.batch_shape == (11_000,)
    parts = prior.log_densities(z).argmax(-1)
    right = (parts == y)[y >= 0].float().mean()
    assert right > 0.9
    counts = torch.bincount(parts[y < 0], minlength=10).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4
    each = prior.log_densities(z)
    torch.testing.assert_close(prior.log_prob(z)[y == 4], each[y == 4, 4])
    torch.testing.assert_close(prior.log_prob(z)[y < 0], each[y < 0].logsumexp(-1) - torch.tensor(10.0).log())


def test_ring_of_gaussians_is_the_mixture_that_pyro_has() -> None:
    angles = torch.arange(7) * (2 * torch.pi / 7)
    turn = torch.stack(
        [torch.stack([angles.cos(), -angles.sin()], -1), torch.stack([angles.sin(), angles.cos()], -1)], -2
    )
    covariance = turn @ torch.diag(torch.tensor([0.25, 0.01])) @ turn.transpose(-1, -2)
    parts = dist.MultivariateNormal(1.4 * turn[..., 0], covariance)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(7)), parts)
    z = mixture.sample((100,))
    torch.testing.assert_close(RingOfGaussians(classes=7).log_prob(z), mixture.log_prob(z), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(RingOfGaussians(classes=8).log_prob(z), mixture.log_prob(z), rtol=0.1)  # control


@pytest.mark.parametrize("kind", [SwissRoll, RingOfGaussians])
def test_priors_stand_in_a_program(kind: type[LabelledPrior]) -> None:
    def program(y: Tensor | None) -> Tensor:
        with pyro.plate("particles", 3, dim=-2), pyro.plate("data", 5):
            z: Tensor = pyro.sample("z", kind(y))
        return z

    for y in (None, torch.tensor([0, 1, -1, 9, 9])):
        trace = poutine.trace(program).get_trace(y)
        assert trace.nodes["z"]["value"].shape == (3, 5, 2)
        trace.compute_log_prob()
        assert trace.nodes["z"]["log_prob"].shape == (3, 5)
    with pytest.raises(ValueError, match="y"):
        kind(torch.tensor([10]), validate_args=True)


@pytest.mark.parametrize("kind", [SwissRoll, RingOfGaussians])
def test_priors_can_be_traced(kind: type[LabelledPrior]) -> None:
    def draw(y: Tensor) -> Tensor:
        prior = kind(y, validate_args=False)
        return prior.log_prob(prior.rsample())

    y, others = torch.arange(10), torch.full((10,), -1)
    traced = make_fx(draw)(y)
    for labels in (y, others):
        torch.manual_seed(1)
        expected = draw(labels)
        torch.manual_seed(1)
        torch.testing.assert_close(traced(labels), expected)


def test_bad_priors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected noise above 0 around the swiss roll.*; got 0"):
        SwissRoll(noise=0)
    with pytest.raises(ConfigError, match="expected at least 1 class in a labelled prior; got 0"):
        RingOfGaussians(classes=0)
