"""Parts of recipes that people write: an optimizer in any form that a trainer takes, and points of latents."""

import functools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cli_helpers import command
from test_mcmc import no_guide, table
from torch import Tensor, nn

from ppgen import ELBO
from ppgen.errors import ConfigError
from ppgen.players import Optimizer, Player
from ppgen.recipes import Recipe, adam
from ppgen.recipes.methods import METHODS

FACTORY = functools.partial(torch.optim.Adam, lr=0.25)


def rate(made: Any) -> float:
    optimizer = made if isinstance(made, Optimizer) else Optimizer(made)
    return float(Player("all", {"w": torch.zeros(1, requires_grad=True)}, optimizer).optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "given",
    [
        FACTORY,
        functools.partial(FACTORY),
        Optimizer(FACTORY),
        adam(0.25),
        lambda steps: FACTORY,
        {"all": FACTORY},
        {"all": Optimizer(FACTORY)},
    ],
)
def test_an_optimizer_is_what_a_trainer_takes_or_a_function_of_the_steps(given: Any) -> None:
    made = Recipe(no_guide, no_guide, ELBO(), optimizer=given).optimizer(10)
    assert rate(made["all"] if isinstance(made, dict) else made) == 0.25


def test_a_class_of_optimizers_and_none_are_left_to_the_trainer() -> None:
    assert Recipe(no_guide, no_guide, ELBO(), optimizer=torch.optim.Adam).optimizer(10) is torch.optim.Adam
    assert Recipe(no_guide, no_guide, ELBO(), optimizer=None).optimizer(10) is None


def test_a_recipe_with_a_partial_trains(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import functools, torch\nfrom ppgen.recipes import Recipe, RECIPES\nimport dataclasses\n\n"
        "def recipe(data):\n"
        "    built = RECIPES['vae'].function(data, z_dim=2, hidden=(8,))\n"
        "    return dataclasses.replace(built, optimizer=functools.partial(torch.optim.Adam, lr=1e-3))\n"
    )
    done = command("train", f"{file}:recipe", "--steps", 2, "--compile", "off", "--out", tmp_path / "run")
    assert done.code == 0, done.err


# Points

Y = torch.tensor([[0.5], [-1.0], [2.0]])


def own_points(x: Tensor, trained: bool) -> None:
    shift = pyro.param("shift", torch.zeros(())) if trained else torch.zeros(())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + shift, 0.5), obs=x[:, 0])


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


def shared(x: Tensor) -> None:
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x[:, 0])


def pointed(model: Any) -> Recipe:
    recipe = Recipe(model, no_guide, ELBO(), table(x=Y))
    return METHODS["map"].apply(recipe, METHODS["map"].defaults({}))


@pytest.mark.parametrize(
    ("model", "name"), [(functools.partial(own_points, trained=True), "shift"), (Decoder(), "decoder.weight")]
)
def test_points_of_single_rows_beside_trained_parameters_are_refused(model: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"a point of 'z' for each row, .* such as '{name}': .* leave objective out"):
        pointed(model)


@pytest.mark.parametrize("model", [functools.partial(own_points, trained=False), shared])
def test_points_of_single_rows_alone_and_shared_ones_beside_parameters_are_found(model: Any) -> None:
    assert pointed(model).whole


def test_a_vae_is_not_ruined(tmp_path: Path) -> None:
    done = command("train", "vae", "--set", "objective=map", "--set", "epochs=3", "--out", tmp_path / "run")
    assert done.code == 2
    assert "objective=map keeps a point of 'z' for each row" in done.error
    assert not (tmp_path / "run").exists()
