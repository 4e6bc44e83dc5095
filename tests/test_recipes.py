"""Every recipe trains, is kept, judged and drawn from; users' own recipes are found, or it is said why not."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import OWN, TINY, tiny

from ppgen import data as datasets
from ppgen import programs
from ppgen.errors import ConfigError, DataError
from ppgen.objectives import ELBO
from ppgen.recipes import Entry, Recipe, adam, find
from ppgen.runs import Run, load_run

LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-fixed", "gaussian-full", "categorical")
# in nats, within 60 steps: some start at the mean of the data, and one has no data
LEAST_GAIN = {"iwae": 0.4, "sbn": 2, "categorical-vae": 0.4, "structured": 0.7, "toy": 0.15}
SMALL = {"conv": (4, 8, 16), "mlp": (16,)}


@pytest.fixture(autouse=True)
def _threads_and_modules_as_before() -> Iterator[None]:
    threads, path, modules = torch.get_num_threads(), list(sys.path), set(sys.modules)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in sys.modules.keys() - modules:
        if name.startswith(("ppgen_user_", "my_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data sets by name: the digits, vectors and small colour images with some labels missing."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    y = np.where(np.arange(200) % 10 < 7, np.arange(200) % 3, -1)
    np.savez(folder / "vectors.npz", x=generator.random((200, 5)).astype(np.float32), y=y)
    np.savez(folder / "images.npz", x=generator.integers(0, 256, (200, 6, 7, 3), dtype=np.uint8), y=y)
    return {"digits": "digits", "vectors": str(folder / "vectors.npz"), "images": str(folder / "images.npz")}


def trained(path: Path, recipe: str, data: str, *, steps: int = 3, **options: Any) -> Run:
    small = {"evaluation_particles": 2} if recipe in TINY else {}
    run = Run.create(tiny(recipe, steps=steps, data={"name": data}, options={**small, **options}), path)
    with run.folder.lock():
        for record in run.train():
            assert np.isfinite(record["loss"])
    return run


# Conformance


@pytest.mark.parametrize("recipe", TINY)
@pytest.mark.parametrize("data", ["digits", "vectors", "images"])
def test_a_recipe_trains_is_kept_judged_and_drawn_from(
    tmp_path: Path, files: dict[str, str], recipe: str, data: str
) -> None:
    config = tiny(recipe, steps=20, data={"name": files[data]}, options={"evaluation_particles": 2})
    run = Run.create(config, tmp_path / "run")
    before = {name: leaf.detach().clone() for name, leaf in run.trainer.leaves.items()}
    with run.folder.lock():
        losses = [record["loss"] for record in run.train()]
        assert np.isfinite(losses).all()
        document = run.judge()
    assert [name for name, leaf in run.trainer.leaves.items() if torch.equal(leaf, before[name])] == []
    nll = document["test"]["nll"]
    assert np.isfinite([nll["value"], nll["stderr"]]).all()
    assert ("accuracy" in document["test"]) == ("baselines" in document) == (recipe == "m2")
    loaded = load_run(tmp_path / "run")
    for name, leaf in run.trainer.leaves.items():
        assert torch.equal(leaf, loaded.trainer.leaves[name])
    assert loaded.result(particles=2)["test"] == document["test"]
    with loaded.trainer.evaluating():
        template = {"x": torch.zeros(4, *loaded.data.shape)}
        drawn = programs.generate(loaded.trainer.model, template)
    assert drawn["x"].shape == (4, *loaded.data.shape)
    assert drawn["x"].isfinite().all()


@pytest.mark.parametrize("recipe", TINY)
def test_a_recipe_learns(tmp_path: Path, recipe: str) -> None:
    """Its bound on validation rows rises; with a learning rate of (almost) nothing it does not."""

    def gain(path: Path, learning_rate: float) -> float:
        run = trained(path, recipe, "digits", steps=60, learning_rate=learning_rate, average=None)
        bounds = [record["validation_bound"] for record in run.folder.metrics()]
        return float(bounds[0] - bounds[-1])

    least = LEAST_GAIN.get(recipe, 3)
    assert gain(tmp_path / "learns", 1e-2) > least
    assert abs(gain(tmp_path / "does not", 1e-9)) < least / 6


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("data", ["digits", "images"])
@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_every_likelihood_and_network_trains_on_images(
    tmp_path: Path, files: dict[str, str], recipe: str, data: str, likelihood: str, network: str
) -> None:
    options: dict[str, Any] = {"likelihood": likelihood, "network": network, "hidden": SMALL[network], "levels": 5}
    run = trained(tmp_path / "run", recipe, files[data], **options)
    with run.trainer.evaluating():
        drawn = programs.generate(run.trainer.model, {"x": torch.zeros(2, *run.data.shape)})
    assert drawn["x"].shape == (2, *run.data.shape)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_every_likelihood_trains_on_vectors(
    tmp_path: Path, files: dict[str, str], recipe: str, likelihood: str
) -> None:
    trained(tmp_path / "run", recipe, files["vectors"], likelihood=likelihood, levels=4)


@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_a_convolutional_network_needs_images_and_sizes(tmp_path: Path, files: dict[str, str], recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"expected images .*; got \(5,\)"):
        trained(tmp_path / "run", recipe, files["vectors"], network="conv", hidden=(4, 16))
    for hidden in ((16,), ()):
        with pytest.raises(ConfigError, match="expected hidden of a convolutional network"):
            trained(tmp_path / "run", recipe, "digits", network="conv", hidden=hidden)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_covariance_trains(tmp_path: Path, covariance: str, network: str) -> None:
    options: dict[str, Any] = {"covariance": covariance, "network": network, "hidden": SMALL[network]}
    trained(tmp_path / "run", "vae", "digits", z_dim=3, **options)


@pytest.mark.parametrize("binarization", ["none", "static", "dynamic"])
@pytest.mark.parametrize("recipe", ["vae", "m2"])
def test_every_binarization_trains(tmp_path: Path, recipe: str, binarization: str) -> None:
    run = trained(tmp_path / "run", recipe, "digits", binarization=binarization)
    assert run.data.binarization == binarization
    assert set(run.data.test["x"].unique().tolist()) == (
        {0.0, 1.0} if binarization != "none" else {i / 16 for i in range(17)}
    )


def test_m2_without_labels_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((50, 4)).astype(np.float32))
    with pytest.raises(DataError, match=r"x\.npy: expected labels; got none: recipe m2 needs a column y"):
        trained(tmp_path / "run", "m2", str(tmp_path / "x.npy"))


# The user's own


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


RETURNS_DATA = "def recipe(data, *, size: int = 3):\n    'Mine.'\n    return data, size\n"


def test_a_recipe_in_a_file_is_found(tmp_path: Path) -> None:
    """Beside it lies what it imports; it may carry the name of a module that there is."""
    write(tmp_path / "my_helpers.py", "SIZE = 7\n")
    own = write(tmp_path / "random.py", f"from my_helpers import SIZE\n{RETURNS_DATA}")
    entry = find(f"{own}:recipe")
    assert entry.name == f"{own}:recipe"
    assert entry.summary == "Mine."
    assert entry.resolve("", {"size": "4"}) == {"size": 4}
    assert entry.function.__globals__["SIZE"] == 7
    import random

    assert hasattr(random, "shuffle")


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "my_model.py", f"def recipe(data):\n    return {folder!r}\n")
    found = [find(f"{tmp_path / folder}/my_model.py:recipe").function(None) for folder in ("a", "b")]
    assert found == ["a", "b"]


def test_a_recipe_in_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package").mkdir()
    write(tmp_path / "my_package/__init__.py", "")
    write(
        tmp_path / "my_package/models.py", RETURNS_DATA + "class Maker:\n    def __call__(self, data):\n        pass\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find("my_package.models:recipe").function(5) == (5, 3)


def test_an_entry_may_be_named_too(tmp_path: Path) -> None:
    text = "from ppgen.recipes import Entry\n" + RETURNS_DATA + "mine = Entry('x', recipe, labels=10)\n"
    entry = find(f"{write(tmp_path / 'my_entry.py', text)}:mine")
    assert entry.labels == 10
    assert entry.name.endswith("my_entry.py:mine")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("vea", "there is no recipe 'vea': did you mean 'vae'"),
        ("xyzzy", r"there are m2, vae, .*my_model\.py:recipe"),
        ("", "there is no recipe ''"),
        ("missing.py:recipe", r"there is no file 'missing\.py'"),
        (f"{OWN}:noisi", "has no function 'noisi': did you mean 'noisy'"),
        (f"{OWN}:NO_FUNCTION", "has no function 'NO_FUNCTION'"),
        (f"{OWN}:", "has no function ''"),
        ("my_missing_package.models:recipe", r"there is no module 'my_missing_package\.models'"),
        ("json.missing:recipe", r"there is no module 'json\.missing'"),
        (":recipe", "expected a recipe as"),
        ("..models:recipe", "expected a recipe as"),
        ("a file.txt:recipe", "expected a recipe as"),
        ("json:xyzzy", "'json' has no function 'xyzzy'"),
    ],
)
def test_what_is_no_recipe_is_said(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find(reference)
    assert caught.value.exit_code == 2


def test_a_module_missing_inside_the_users_code_is_not_mistaken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "my_broken.py", "import my_absent_library\n")
    monkeypatch.chdir(tmp_path)
    for reference in ("my_broken:recipe", "my_broken.py:recipe"):
        with pytest.raises(ModuleNotFoundError, match="my_absent_library"):
            find(reference)


@pytest.mark.parametrize("value", ["a model", None, (1, 2), (1, 2, 3, 4), {"model": 1}, [1, 2, 3]])
def test_a_recipe_that_returns_nonsense_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"recipe 'mine' returned {type(value).__name__}; expected \(model, guide"):
        Entry("mine", lambda data: value).build(datasets.load("digits"), {})


@pytest.mark.parametrize("parts", [(1, 2, 3), ("a", "b", "c"), (None, None, None)])
def test_three_things_that_are_no_programs_are_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match=r"recipe 'mine' returned .* as its model; expected a callable"):
        Entry("mine", lambda data: parts).build(datasets.load("digits"), {})


def test_an_objective_that_is_none_is_refused() -> None:
    def program(x: Any) -> None:
        return None

    with pytest.raises(ConfigError, match="recipe 'mine': expected an Objective or one of Pyro's ELBOs; got int"):
        Entry("mine", lambda data: (program, program, 3)).build(datasets.load("digits"), {})


def test_a_schedule_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected schedule constant or cosine; got 'linear'"):
        adam(schedule="linear")


def test_a_full_covariance_of_many_values_starts_within_bounds(tmp_path: Path, files: dict[str, str]) -> None:
    """An unscaled triangular factor of 126 values starts at a loss of 1e20."""
    run = trained(tmp_path / "run", "vae", files["images"], steps=1, likelihood="gaussian-full")
    assert run.folder.metrics()[0]["loss"] < 1e4


def test_data_of_a_recipe_without_a_column_x_are_refused() -> None:
    def program(x: Any) -> None:
        return None

    def own(data: Any) -> Recipe:
        columns = {"time": data.train["x"]}
        return Recipe(program, program, ELBO(), data=dataclasses.replace(data, train=columns))

    with pytest.raises(ConfigError, match="recipe 'mine' returned data without a column 'x'; it has time"):
        Entry("mine", own).build(datasets.load("digits"), {})
