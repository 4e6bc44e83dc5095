"""Features of rows by a guide: means in closed form, files that read back, and who has none."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cli_helpers import QUICK, command
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ppgen import load_run, programs
from ppgen.data import load
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation.embedding import DRAWS, embed, nearest_neighbour_accuracy
from ppgen.guides import Nothing


class Pair:
    """A guide that is as it is: what embedding asks of a trainer."""

    def __init__(self, guide: Any) -> None:
        self.model, self.guide = guide, guide
        self.device = torch.device("cpu")
        self.store = programs.Store()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        with self.store.active(), programs.quiet(), torch.no_grad():
            yield


def rows(count: int = 40, width: int = 2) -> dict[str, Tensor]:
    return {"x": torch.randn(count, width, generator=torch.Generator().manual_seed(1))}


def gaussian(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(3 * x, 5.0).to_event(1))


def two_layers(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        first = pyro.sample("first", dist.Bernoulli(logits=x).to_event(1))
        pyro.sample("second", dist.Normal(10 * first, 1.0).to_event(1))


def category(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=x))
        pyro.sample("z", dist.Normal(c.float(), 1.0))


def implicit(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        noise = pyro.sample("noise", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x + noise.square(), event_dim=1))


def shared(x: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))


def with_hidden_layer(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        hidden = pyro.deterministic("hidden", torch.cat([x, 2 * x], 1), event_dim=1)
        pyro.sample("z", dist.Normal(0 * hidden, 1.0).to_event(1))


def test_features_are_the_means_of_the_guide() -> None:
    columns = rows()
    found = embed(Pair(gaussian), columns)
    assert list(found) == ["z"]
    assert found["z"].dtype == torch.float32
    assert torch.allclose(found["z"], 3 * columns["x"])
    assert not torch.allclose(programs.posterior(gaussian, columns)["z"], 3 * columns["x"], atol=1)  # a draw is another


def test_a_layer_gets_the_means_of_the_layer_below() -> None:
    columns = rows()
    found = embed(Pair(two_layers), columns)
    assert torch.allclose(found["first"], columns["x"].sigmoid())
    assert torch.allclose(found["second"], 10 * columns["x"].sigmoid())


def test_categories_have_probabilities_and_what_follows_the_most_probable_one() -> None:
    columns = rows(width=3)
    found = embed(Pair(category), columns)
    assert list(found) == ["c_probabilities", "z"]
    assert torch.allclose(found["c_probabilities"], columns["x"].softmax(-1))
    assert torch.equal(found["z"], columns["x"].argmax(-1).float())


def test_an_implicit_guide_is_averaged() -> None:
    columns = rows(400)
    found = embed(Pair(implicit), columns)["z"] - columns["x"]  # a mean of `DRAWS` chi-squares: mean 1, variance 2
    error = (2 / DRAWS / found.numel()) ** 0.5
    assert abs(float(found.mean()) - 1) < 4.5 * error
    assert 0.8 < float(found.var()) / (2 / DRAWS) < 1.25
    assert torch.equal(embed(Pair(implicit), columns)["z"], embed(Pair(implicit), columns)["z"])
    assert not torch.equal(embed(Pair(implicit), columns, seed=1)["z"], embed(Pair(implicit), columns)["z"])


@pytest.mark.parametrize("guide", [gaussian, category, implicit])
def test_rows_may_come_in_slices_and_no_random_stream_moves(guide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, before = rows(33, 3 if guide is category else 2), torch.get_rng_state()
    whole = embed(Pair(guide), columns)
    monkeypatch.setattr("ppgen.evaluation.slices.LARGEST", 50.0)
    sliced = embed(Pair(guide), columns)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in whole.items():
        assert sliced[name].shape == value.shape
        assert guide is implicit or torch.allclose(sliced[name], value)


@pytest.mark.parametrize("guide", [Nothing(), shared])
def test_a_guide_without_latents_of_rows_has_no_features(guide: Any) -> None:
    with pytest.raises(ConfigError, match="without an encoder"):
        embed(Pair(guide), rows())


def test_rows_that_the_guide_cannot_take_are_named() -> None:
    def of_three(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ torch.ones(3, 1), 1.0).to_event(1))

    with pytest.raises(ConfigError, match="the guide does not run on these rows, which have x"):
        embed(Pair(of_three), rows())

    def of_its_own_size(x: Tensor) -> None:
        with pyro.plate("data", 10):
            pyro.sample("z", dist.Normal(torch.zeros(10), 1.0))

    with pytest.raises(ConfigError, match="plate"):
        embed(Pair(of_its_own_size), rows())


def test_labels_are_withheld_where_the_guide_can_do_without() -> None:
    def reads_labels(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x if y is None else x + 100, 1.0).to_event(1))

    def needs_labels(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + y[:, None], 1.0).to_event(1))

    columns = {**rows(), "y": torch.ones(40, dtype=torch.int64)}
    assert torch.allclose(embed(Pair(reads_labels), columns)["z"], columns["x"])
    assert torch.allclose(embed(Pair(needs_labels), columns)["z"], columns["x"] + 1)


# ----------------------------------------------------------------------------------------------- nearest neighbours


def test_nearest_neighbours_agree_with_scikit_learn() -> None:
    data = load("digits", labels=300)

    def linear(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.flatten(1)[:, 16:48], 1.0).to_event(1))

    found = nearest_neighbour_accuracy(Pair(linear), data.train, data.test)
    labelled = data.labelled()
    known, test = (columns["x"].flatten(1)[:, 16:48].numpy() for columns in (labelled, data.test))
    expected = KNeighborsClassifier(1).fit(known, labelled["y"].numpy()).score(test, data.test["y"].numpy())
    assert found.accuracy.value == pytest.approx(expected)
    assert found.train_rows == 300
    assert found.as_dict()["sites"] == ["z"]
    # control: features that say nothing of the label
    noise = nearest_neighbour_accuracy(Pair(lambda x: _noise(x)), data.train, data.test)
    assert noise.accuracy.high < 0.3
    with pytest.raises(DataError, match="labels in the column 'y'"):
        nearest_neighbour_accuracy(Pair(linear), {"x": data.train["x"]}, data.test)


def _noise(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.arange(len(x))[:, None] % 7.0, 1.0).to_event(1))


def test_neighbours_go_by_what_the_guide_names() -> None:
    columns = {**rows(200), "y": (rows(200)["x"][:, 0] > 0).long()}
    named = nearest_neighbour_accuracy(Pair(with_hidden_layer), columns, columns)
    assert named.sites == ("hidden",)
    assert named.accuracy.value == 1.0
    assert embed(Pair(with_hidden_layer), columns)["hidden"].shape == (200, 4)


# ----------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits."""
    run = tmp_path_factory.mktemp("vae") / "vae"
    done = command("train", "vae", "--steps", 3, *QUICK, "--out", run, "--json")
    assert done.code == 0, done.err
    return run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def features_of(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def test_features_of_test_rows(vae: Path) -> None:
    done = command("embed", vae)
    assert done.code == 0, done.err
    assert done.out == "Wrote features of 500 rows: z (16) to vae-features.npz\n"
    found, run = features_of("vae-features.npz"), load_run(vae)
    assert {name: (value.shape, value.dtype.name) for name, value in found.items()} == {
        "z": ((500, 16), "float32"),
        "row": ((500,), "int64"),
        "y": ((500,), "int64"),
    }
    with run.trainer.evaluating():
        mean, _ = run.trainer.guide.encoder(run.data.test["x"]).chunk(2, -1)  # type: ignore[attr-defined]
    assert np.allclose(found["z"], mean.numpy(), atol=1e-5)
    assert np.array_equal(found["y"], run.data.test["y"].numpy())
    command("embed", vae, "--out", "again.npz")
    assert np.array_equal(features_of("again.npz")["z"], found["z"])


def test_all_rows_of_a_file_come_in_its_order(vae: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 1, 8, 8)).astype(np.float32).round(), np.arange(60) % 3
    np.savez("mine.npz", x=x, y=y)
    np.save("bare.npy", x)
    assert command("embed", vae, "--data", "mine.npz", "--out", "mine_z.npz").code == 0
    found = features_of("mine_z.npz")
    assert found["y"].tolist() == y.tolist()
    assert found["row"].tolist() == list(range(60))
    with (run := load_run(vae)).trainer.evaluating():
        mean, _ = run.trainer.guide.encoder(torch.from_numpy(x)).chunk(2, -1)  # type: ignore[attr-defined]
    assert np.allclose(found["z"], mean.numpy(), atol=1e-5)
    assert command("embed", vae, "--data", "bare.npy", "--out", "bare_z.npz").code == 0
    assert np.allclose(features_of("bare_z.npz")["z"], found["z"], atol=1e-6)
    assert "y" not in features_of("bare_z.npz")
    assert command("embed", vae, "--data", "mine.npz", "--split", "validation", "--out", "part.npz").code == 0
    part = features_of("part.npz")
    assert np.allclose(part["z"], found["z"][part["row"]], atol=1e-6)
    assert len(part["z"]) < 20


def test_a_table_has_a_column_for_each_number(vae: Path) -> None:
    for suffix in ("csv", "npz"):
        assert command("embed", vae, "--split", "all", "--out", f"all.{suffix}").code == 0
    table, arrays = np.genfromtxt("all.csv", delimiter=",", names=True), features_of("all.npz")
    assert table.dtype.names == (*(f"z_{i}" for i in range(16)), "row", "y")
    assert len(table) == len(arrays["z"]) == 1797
    assert np.array_equal(table["z_3"].astype(np.float32), arrays["z"][:, 3])
    assert np.array_equal(table["y"], arrays["y"])


def test_a_label_that_the_guide_infers_has_probabilities() -> None:
    options = ["--labels", 100, "--steps", 2, *QUICK, "--out", "m2"]
    assert command("train", "m2", *options).code == 0
    assert "y_probabilities (10)" in command("embed", "m2", "--split", "train").out
    found = features_of("m2-features.npz")
    assert np.allclose(found["y_probabilities"].sum(1), 1, atol=1e-5)
    assert (found["y"] >= 0).sum() == 100


REFUSED = [
    (["--data", "ring"], 3, "expected rows of shape (1, 8, 8)"),
    (["--data", "digist"], 2, "'digits'"),
    (["--data", "no/such.npz"], 3, "no/such.npz"),
    (["--out", "features.txt"], 2, ".npz or .csv"),
    (["--out", "no/folder/f.npz"], 2, "existing folder"),
    (["--split", "tset"], 2, "'test'"),
    (["--label-column", "y"], 2, "--data FILE.csv"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED)
def test_a_wrong_request_is_one_line(vae: Path, arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    done = command("embed", vae, *arguments)
    assert (done.code, list(tmp_path.iterdir())) == (code, [])
    assert words in done.error


def test_a_run_without_an_encoder_has_no_features() -> None:
    assert command("train", "gan", "--data", "ring", "--steps", 2, "--compile", "off", "--out", "gan").code == 0
    done = command("embed", "gan")
    assert done.code == 2
    assert "cannot embed by gan" in done.error
    assert "without an encoder" in done.error
