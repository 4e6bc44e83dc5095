"""Every adversarial recipe: trains, moves only its players' parameters, compiled as eager, resumes in mid-game."""

import functools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import GAMES, TINY, assert_same, go_on, outcome, tiny

from ppgen import programs
from ppgen.objectives import AAE, AVB, GAN, VAEGAN, Objective, SemiSupervised
from ppgen.players import gradients_of
from ppgen.recipes import RECIPES
from ppgen.runs import Run, load_run

OFFSET_IS_FREE = {"wgan", "wgan-gp", "sn-gan"}
"""Their losses are differences of the critic's mean outputs, on which a constant has no influence."""

UNLIKE = {"gan", "wgan-gp", "aae", "bigan", "avb", "unrolled-gan"}
"""Games whose steps are of another make each: the others' are compiled with `--slow`, half a minute or more each."""


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_adversarial_recipe_is_here() -> None:
    assert set(GAMES) == set(RECIPES) - set(TINY)


def game_of(objective: Objective) -> Objective:
    return objective.unlabelled if isinstance(objective, SemiSupervised) else objective


@pytest.mark.parametrize("recipe", sorted(GAMES.keys() & RECIPES.keys()))
def test_a_game_trains_is_kept_judged_and_drawn_from(tmp_path: Path, recipe: str) -> None:
    run = Run.create(tiny(recipe, steps=12), tmp_path / "run")
    assert isinstance(game_of(run.recipe.objective), (GAN, AAE, AVB, VAEGAN))
    before = {name: leaf.detach().clone() for name, leaf in run.trainer.leaves.items()}
    with run.folder.lock():
        for record in run.train():
            losses = [value for name, value in record.items() if name.startswith(("loss/", "gradient_norm/"))]
            assert len(losses) >= 4
            assert np.isfinite(losses).all()
        document = run.judge()
    still = {name for name, leaf in run.trainer.leaves.items() if torch.equal(leaf, before[name])}
    assert still <= ({"objective.critic.head.bias"} if recipe in OFFSET_IS_FREE else set())
    assert document["test"]
    assert (tmp_path / "run" / "samples.png").is_file()
    loaded = load_run(tmp_path / "run")
    for name, leaf in run.trainer.leaves.items():
        assert torch.equal(leaf, loaded.trainer.leaves[name])
    with loaded.trainer.evaluating():
        drawn = programs.generate(loaded.trainer.model, {"x": torch.zeros(4, *loaded.data.shape)})
    assert drawn["x"].shape == (4, *loaded.data.shape)
    assert drawn["x"].isfinite().all()


@pytest.mark.parametrize("recipe", sorted(GAMES.keys() & RECIPES.keys()))
def test_no_players_loss_moves_anothers_parameters(tmp_path: Path, recipe: str) -> None:
    """Players share no tensor; a step with only one player's loss changes that player's tensors, and no others."""
    run = Run.create(tiny(recipe), tmp_path / "run")
    trainer, batch = run.trainer, next(run.batches)
    players = trainer._players  # type: ignore[union-attr]
    owned = [id(leaf) for player in players.values() for leaf in player.leaves.values()]
    assert len(owned) == len(set(owned))
    assert len(players) >= 2
    moved = set()
    for phase in dict.fromkeys(trainer.objective.phases()):  # type: ignore[union-attr]
        with trainer._ready():  # type: ignore[union-attr]
            for name in phase(trainer.model, trainer.guide, batch)[0]:
                # a graph of its own for each: the one before was freed, and its parameters have moved
                losses, _ = phase(trainer.model, trainer.guide, batch)
                before = {k: v.detach().clone() for k, v in trainer.leaves.items()}
                gradients = gradients_of({name: losses[name]}, players)
                with torch.no_grad():
                    players[name].update(gradients[name], torch.ones(()))
                changed = {k for k, v in trainer.leaves.items() if not torch.equal(v, before[k])}
                assert changed
                assert changed <= players[name].leaves.keys()
                moved.add(name)
    assert moved == players.keys()


@pytest.fixture
def _empty_is_nan() -> Iterator[None]:
    """Memory that nothing has written yet holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        assert torch.empty(1).isnan().all()
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_empty_is_nan")
def test_nothing_is_read_before_it_is_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 2, 2), dtype=np.uint8)
    np.savez(tmp_path / "tiny.npz", x=pixels)
    options = {"z_dim": 4, "head": 4}
    config = tiny("infogan", steps=5, data={"name": str(tmp_path / "tiny.npz")}, options=options)
    run = go_on(tmp_path / "run", config)
    assert all(leaf.isfinite().all() for leaf in run.trainer.leaves.values())


@pytest.mark.parametrize("recipe", sorted(GAMES.keys() & RECIPES.keys()))
def test_a_game_stopped_in_the_middle_goes_on_bit_for_bit(tmp_path: Path, recipe: str) -> None:
    config = tiny(recipe, steps=12)
    go_on(tmp_path / "straight", config)
    for stop in (1, 7):
        go_on(tmp_path / f"stopped-{stop}", config, until=stop)
        go_on(tmp_path / f"stopped-{stop}", config)
        assert_same(outcome(tmp_path / f"stopped-{stop}"), outcome(tmp_path / "straight"))


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=() if name in UNLIKE else pytest.mark.slow) for name in sorted(GAMES.keys() & RECIPES)],
)
def test_a_compiled_game_equals_an_eager_one(tmp_path: Path, recipe: str) -> None:
    """Beside the comparison at steps 2, 3 and 10, which ``compile=on`` makes an error: twelve steps end alike."""

    def leaves(compile: str) -> dict[str, torch.Tensor]:
        run = go_on(tmp_path / compile, tiny(recipe, steps=12, compile=compile))
        assert run.trainer.compiled is (compile == "on")
        return {name: leaf.detach().clone() for name, leaf in run.trainer.leaves.items()}

    eager, compiled = leaves("off"), leaves("on")
    start = Run.create(tiny(recipe), tmp_path / "start").trainer.leaves
    distance = functools.partial(_distance, names=eager.keys())
    assert distance(eager, compiled) < 0.05 * distance(eager, start)


def _distance(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor], *, names: Any) -> float:
    squares = [(ones[name] - others[name]).detach().double().square().sum() for name in names]
    return math.sqrt(float(torch.stack(squares).sum()))
