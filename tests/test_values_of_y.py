"""A column y that holds no labels is a column like others: what a regression predicts."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import command

from ppgen.data import load
from ppgen.errors import DataError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 3)).astype(np.float32)
MEANS = (X @ np.array([1.0, -1.0, 0.5])).astype(np.float32)
REAL = MEANS + 0.3 * RANDOM.normal(size=200).astype(np.float32)

REGRESSION = """
    import pyro, pyro.distributions as dist, torch
    from torch.distributions import constraints
    from ppgen import ELBO
    from ppgen.recipes import Recipe, adam

    def model(x, y, temperature=1.0):
        weight = pyro.param("weight", torch.zeros(x.shape[-1]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.2))
            mean = pyro.deterministic("mean", x @ weight + z)
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    def guide(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        width = pyro.param("width", torch.tensor(0.2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * y, width))  # it cannot do without y

    def recipe(data):
        return Recipe(model, guide, ELBO(), epochs=30, batch_size=20, optimizer=adam(0.03))
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("y", "dtype", "reason"),
    [
        (REAL, torch.float32, r"expected labels in y to be whole numbers; got .* at row 0 "),
        (REAL.astype(np.float64), torch.float32, "whole numbers"),
        (np.stack([REAL, MEANS], 1), torch.float32, r"one class number a row in y, shape \(n,\); got shape \(200, 2\)"),
        (np.where(np.arange(200) == 3, 7, 2), torch.int64, r"rows of every class 0 to 7; got none of class 0"),
        (np.where(np.arange(200) == 3, 2, np.arange(200) % 2), torch.int64, "at least 3 labelled rows of class 2"),
        (-2 * (np.arange(200) % 2), torch.int64, r"-1 \(missing\) or more; got -2 at row 1"),
    ],
    ids=["float", "double", "two values a row", "counts with gaps", "a rare count", "negative numbers"],
)
def test_a_y_without_labels_is_kept_as_it_is(y: np.ndarray, dtype: torch.dtype, reason: str) -> None:
    np.savez("own.npz", x=X, y=y)
    data = load("own.npz")
    assert data.classes is None
    assert data.train["y"].dtype == dtype
    every = torch.cat([columns["y"] for columns in data.splits.values()])
    assert torch.equal(every.sort(0).values, torch.as_tensor(y).to(dtype).sort(0).values)
    assert any(note.startswith("y: values, no labels (") for note in data.notes)
    assert "\n  y " in data.card()
    for call in (data.require_labels, data.labelled, lambda: load("own.npz", labels=10)):
        with pytest.raises(DataError, match=reason):
            call()
    assert data.unlabelled().keys() == data.train.keys()


def test_y_goes_with_its_rows() -> None:
    np.savez("own.npz", x=X, y=MEANS)
    for columns in load("own.npz").splits.values():
        assert torch.allclose(columns["x"] @ torch.tensor([1.0, -1.0, 0.5]), columns["y"], atol=1e-5)


def test_a_missing_value_of_a_table_is_named() -> None:
    Path("own.csv").write_text("a,y\n" + "1,0.5\n" * 20 + "1,\n")
    with pytest.raises(DataError, match=r"expected finite numbers in y .* got nan at row 20 "):
        load("own.csv", label_column="y")


def write(kind: str) -> tuple[object, ...]:
    if kind == "npz":
        np.savez("own.npz", x=X, y=REAL)
        return ("--data", "own.npz")
    lines = (",".join(map(str, (*row, value))) for row, value in zip(X, REAL, strict=True))
    Path("own.csv").write_text("a,b,c,yield\n" + "\n".join(lines))
    return ("--data", "own.csv", "--label-column", "yield")


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_a_regression_from_the_command_line(kind: str) -> None:
    Path("my_model.py").write_text(textwrap.dedent(REGRESSION))
    data = write(kind)
    options = ("--threads", 1, "--compile", "off", "--device", "cpu", "--json")
    trained = command("train", "my_model.py:recipe", *data, "--out", "run", *options)
    assert trained.code == 0, trained.err
    # the best that there is: a normal of variance .09 + .04 around the regression, where the data has .09
    assert 0.1 < trained.document["test"]["nll"]["value"] < 0.55
    again = command("evaluate", "run", "--recipe", "my_model.py:recipe", "--arviz", "draws.nc", "--json")
    assert again.document["test"] == trained.document["test"]
    assert command("sample", "run", "--recipe", "my_model.py:recipe", "--out", "drawn.npz", "-n", 4).code == 0
    drawn = np.load("drawn.npz")
    assert {name: drawn[name].shape for name in drawn} == {
        **{"x": (4, 3), "y": (4,), "y_mean": (4,)},
        **{"mean": (4,), "mean_mean": (4,)},
    }
    assert np.array_equal(drawn["y_mean"], drawn["mean"])
    assert np.abs(drawn["y"] - drawn["x"] @ [1.0, -1.0, 0.5]).max() < 2

    import xarray

    with xarray.open_dataset("draws.nc", group="posterior_predictive", engine="h5netcdf") as found:
        assert found["y"].dims == ("chain", "draw", "data")


@pytest.mark.parametrize("recipe", ["m2", "aae-semisupervised", "cgan"])
def test_recipes_that_need_labels_say_why_these_are_none(recipe: str) -> None:
    np.savez("own.npz", x=X, y=REAL)
    done = command("train", recipe, "--data", "own.npz", "--out", "run", "--steps", 1)
    assert done.code == 3
    assert "expected labels in y to be whole numbers; got" in done.error
