"""Objectives and estimators by name, for any recipe."""

from pathlib import Path
from typing import Any

import pytest
from run_helpers import OWN, tiny

from ppgen.errors import ConfigError
from ppgen.objectives import ELBO, IWAE, OBJECTIVES, SemiSupervised, named
from ppgen.objectives.named import options_of
from ppgen.recipes import find
from ppgen.recipes.methods import METHODS
from ppgen.runs import Run

# of a Gaussian latent vector and images; "enumerated-elbo" has nothing to enumerate there, and is an ELBO
NAMES = sorted(OBJECTIVES)


def trained(tmp_path: Path, recipe: str, **options: Any) -> Any:
    run = Run.create(tiny(recipe, steps=3, options=options), tmp_path / "run")
    with run.folder.lock():
        list(run.train())
    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains_a_vae_by_name(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "vae", objective=name)
    assert type(run.trainer.objective) is OBJECTIVES[name]
    assert run.trainer.steps == 3
    assert run.trainer.skipped == 0
    opened = Run.open(tmp_path / "run")
    assert type(opened.recipe.objective) is OBJECTIVES[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_an_objective_has_a_type_and_a_default(name: str) -> None:
    assert named(name, **{option: default for option, (_, default) in options_of(name).items()})
    assert METHODS[name].summary
    assert METHODS[name].reference


def test_options_of_an_objective_are_typed_like_those_of_a_recipe(tmp_path: Path) -> None:
    run = trained(tmp_path, "vae", objective="renyi", alpha="0.25", particles="3")
    assert (run.trainer.objective.reduction.alpha, run.trainer.objective.particles) == (0.25, 3)
    with pytest.raises(ConfigError, match="'alpha'"):
        find("vae").resolve("digits", {"objective": "renyi", "alpha": "much"})
    with pytest.raises(ConfigError, match="did you mean 'particles'"):
        find("vae").resolve("digits", {"objective": "renyi", "particels": 3})
    with pytest.raises(ConfigError, match="did you mean 'iwae'"):
        find("vae").resolve("digits", {"objective": "iwea"})


def test_a_users_recipe_takes_any_objective(tmp_path: Path) -> None:
    run = Run.create(tiny("noisy", steps=3, options={"objective": "iwae", "particles": 4}), tmp_path / "run")
    assert isinstance(run.recipe.objective, IWAE)
    assert run.recipe.objective.particles == 4
    assert f"{OWN}:noisy" in run.config.recipe


def test_a_penalty_is_not_the_scale_of_a_likelihood(tmp_path: Path) -> None:
    run = trained(tmp_path, "vae", objective="info-vae", penalty=7.0)
    assert run.trainer.objective.weight == 7.0  # alpha is 1
    assert run.config.options["scale"] == 0.1


def test_the_whole_size_of_the_data_is_told(tmp_path: Path) -> None:
    run = trained(tmp_path, "vae", objective="beta-tcvae")
    assert run.trainer.objective.data_size == len(run.data.train["x"])


def test_an_objective_of_the_recipe_itself_comes_first(tmp_path: Path) -> None:
    run = trained(tmp_path, "m2", objective="iwae", particles=2)
    assert isinstance(run.trainer.objective, SemiSupervised)
    assert isinstance(run.trainer.objective.unlabelled, IWAE)
    assert isinstance(run.trainer.objective.labelled, ELBO)
    with pytest.raises(ConfigError, match="labelled and unlabelled rows apart"):
        trained(tmp_path / "other", "m2", objective="wae-mmd")


@pytest.mark.parametrize("estimator", ["nvil", "vimco", "leave-one-out"])
def test_the_label_of_m2_may_be_drawn(estimator: str, tmp_path: Path) -> None:
    run = trained(tmp_path, "m2", estimator=estimator, particles=2)
    assert run.trainer.steps == 3


def test_an_estimator_that_treats_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finds no site to treat.*z:score"):
        trained(tmp_path, "vae", estimator="score")
    assert trained(tmp_path / "named", "vae", estimator="z:score").trainer.steps == 3
    with pytest.raises(ConfigError, match="did you mean 'score'"):
        trained(tmp_path / "wrong", "vae", estimator="z:scor")
    with pytest.raises(ConfigError, match="no guide site 'w'"):
        trained(tmp_path / "site", "vae", estimator="w:score")
