"""What the adversarial recipes refuse, with advice that can be followed; and the smallest images they take."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import CONVOLUTIONS, GAMES
from torch import Tensor

from ppgen import Trainer, models, nn
from ppgen.data import Dataset, load
from ppgen.errors import ConfigError, DataError
from ppgen.guides import Nothing
from ppgen.objectives import GAN
from ppgen.objectives.adversarial.penalties import GradientPenalty
from ppgen.recipes import RECIPES, find

LAYER = "take layer normalisation \\(critic_normalization=layer\\)"


def trainer_of(recipe: str, data: Dataset, options: Mapping[str, Any]) -> tuple[Trainer, Any]:
    torch.manual_seed(0)
    entry = find(recipe)
    built = entry.build(data, entry.resolve(given=options))
    parts: Any = (built.model, built.guide, built.objective, built.optimizer(3))
    trainer = Trainer(*parts, total_steps=3, average=built.average, device="cpu", compile="off")
    return trainer, built.batches(0, torch.device("cpu"))


def taken(recipe: str, data: Dataset, steps: int = 1, **options: Any) -> dict[str, Tensor]:
    """Trains, and returns every tensor that was trained."""
    trainer, batches = trainer_of(recipe, data, options)
    list(trainer.fit(batches, steps=steps))
    return {name: leaf.detach().clone() for name, leaf in trainer.leaves.items()}


# ------------------------------------------------------------------------------------------------ gradient penalties


@pytest.mark.parametrize(
    ("recipe", "options", "layers"),
    [
        ("dcgan", {"loss": "wasserstein"}, "(BatchNorm2d)"),
        ("dcgan", {"critic_normalization": "layer", "minibatch": 4}, "(MinibatchDiscrimination)"),
        ("gan", {"critic_normalization": "batch"}, "(BatchNorm1d)"),
        ("gan", {"critic_normalization": "batch", "pack": 2}, "(BatchNorm1d)"),
        ("wgan-gp", {"minibatch": 4, "critic_hidden": (8,)}, "(MinibatchDiscrimination)"),
        ("mad-gan", {"critic_normalization": "batch"}, "(BatchNorm1d)"),
        ("cgan", {}, "(BatchNorm2d, BatchNorm1d)"),
        ("acgan", {}, "(BatchNorm2d)"),
    ],
)
def test_a_penalty_needs_rows_that_are_judged_alone(recipe: str, options: dict[str, Any], layers: str) -> None:
    networks = {"network": "dcgan", **CONVOLUTIONS} if recipe in ("dcgan", "cgan", "acgan") else {"network": "mlp"}
    options = {**GAMES[recipe], **networks, **options}
    with pytest.raises(ConfigError, match=LAYER) as caught:
        taken(recipe, load("digits"), penalty=10.0, **options)
    assert layers in str(caught.value)
    assert "\n" not in str(caught.value)
    taken(recipe, load("digits"), penalty=0.0, **options)  # control


@pytest.mark.parametrize("normalization", ["none", "layer", "spectral", "virtual"])
@pytest.mark.parametrize("recipe", ["gan", "dcgan"])
def test_a_penalty_of_single_rows_is_taken(recipe: str, normalization: str) -> None:
    options = {**GAMES[recipe], "critic_normalization": normalization, "dropout": 0.5}
    taken(recipe, load("digits"), penalty=10.0, **options)


class Beside(torch.nn.Module):
    """A critic of whose layers no name tells that rows see each other."""

    def __init__(self, *, centred: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.centred = centred

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x - x.mean(0) if self.centred else x).tanh()
        return found


@pytest.mark.parametrize("centred", [False, True])
def test_how_rows_see_each_other_does_not_matter(centred: bool) -> None:
    model = models.Generator(nn.generator([2], (2,), hidden=(4,)), (2,), 2)
    trainer = Trainer(model, Nothing(), GAN(Beside(centred=centred), penalty=1.0), device="cpu", compile="off")
    before = torch.get_rng_state()
    if centred:
        with pytest.raises(ConfigError, match="whose output of a row depends on other rows: take layer normalisation"):
            trainer.setup({"x": torch.randn(10, 2)})
    else:
        trainer.setup({"x": torch.randn(10, 2)})
        assert not torch.equal(before, torch.get_rng_state())  # the programs draw


def test_a_critic_in_evaluation_mode_may_normalise() -> None:
    critic = nn.critic((2,), hidden=(4,), normalization="batch").eval()
    model = models.Generator(nn.generator([2], (2,), hidden=(4,)), (2,), 2)
    Trainer(model, Nothing(), GAN(critic, penalty=1.0), device="cpu", compile="off").setup({"x": torch.randn(10, 2)})


def test_behind_batch_normalisation_a_penalty_is_not_of_a_row() -> None:
    """What is refused: the gradient of all outputs together has another norm than that of each row's own."""
    torch.manual_seed(0)
    for normalization, same in (("batch", False), ("layer", True)):
        critic = nn.critic((3,), hidden=(16,), normalization=normalization)  # type: ignore[arg-type]
        data, fake = torch.randn(2, 20, 3)
        torch.manual_seed(1)
        penalty = float(GradientPenalty(1.0).of(critic, (data,), (fake,)).detach())
        torch.manual_seed(1)
        between = torch.lerp(fake, data, torch.rand(20)[:, None])
        jacobian: Any = torch.autograd.functional.jacobian(lambda x, c=critic: c(x)[:, 0], between)  # type: ignore[misc]
        norms = torch.stack([jacobian[row, row].norm() for row in range(20)])
        assert (abs(float((norms - 1).square().mean()) - penalty) < 1e-4) == same


# ----------------------------------------------------------------------------------------------------- the remedies


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images whose values do not lie in [0, 1]."""
    path = tmp_path_factory.mktemp("loud") / "loud.npz"
    x = np.random.default_rng(0).standard_normal((60, 1, 8, 8)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(60) % 3)
    return load(path)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("toy",)])
def test_the_advice_on_values_out_of_range_can_be_followed(recipe: str, loud: Dataset) -> None:
    entry = find(recipe)
    options: dict[str, Any] = {"batch_size": 10}
    try:
        entry.build(loud, options)
    except DataError as error:
        said = str(error)
    else:
        assert recipe.startswith("aae")  # its likelihood is Gaussian
        return
    assert "expected x in [0, 1] for" in said
    named, option = said.rpartition("rescale the data or take ")[2].removeprefix("recipe ").rpartition(" with ")[::2]
    chosen = find(named or recipe)
    key, _, value = option.partition("=")
    assert key in chosen.defaults()
    chosen.build(loud, {key: value})
    if key == "output":
        taken(recipe, loud, **GAMES.get(recipe, {}), output=value)


# ------------------------------------------------------------------------------------------------------ batches of one


def test_a_critic_that_normalises_one_row_is_refused_in_a_sentence() -> None:
    critic = nn.critic((3,), hidden=(4,), normalization="batch")
    model = models.Generator(nn.generator([2], (3,), hidden=(4,)), (3,), 2)
    trainer = Trainer(model, Nothing(), GAN(critic), device="cpu", compile="off")
    with pytest.raises(ConfigError, match=r"two rows or more for the critic's batch norm.*batch_size") as caught:
        trainer.setup({"x": torch.randn(1, 3)})
    assert "\n" not in str(caught.value)
    trainer.setup({"x": torch.randn(2, 3)})  # control


# ------------------------------------------------------------------------------------------------------ small images


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Dataset]:
    folder = tmp_path_factory.mktemp("small")
    found: dict[tuple[int, ...], Dataset] = {}
    for shape in ((1, 2, 2), (1, 3, 3), (1, 5, 7), (3, 2, 2)):
        path = folder / f"{'x'.join(map(str, shape))}.npz"
        x = np.random.default_rng(0).random((60, *shape)).astype(np.float32)
        np.savez(path, x=x, y=np.arange(60) % 3)
        found[shape] = load(path)
    return found


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 3, 3), (1, 5, 7), (3, 2, 2)])
@pytest.mark.parametrize("recipe", [*GAMES])
def test_recipes_take_small_images_and_repeat_themselves(
    recipe: str, shape: tuple[int, ...], small: dict[tuple[int, ...], Dataset]
) -> None:
    """Nothing is read that was not written: what memory held before makes no difference."""
    first = taken(recipe, small[shape], 2, batch_size=20)
    held = [torch.full((size,), torch.nan) for size in range(1, 4_000, 3) for _ in range(2)]
    del held
    second = taken(recipe, small[shape], 2, batch_size=20)
    assert all(value.isfinite().all() for value in first.values())
    assert all(torch.equal(value, second[name]) for name, value in first.items())
