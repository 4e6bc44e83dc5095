"""Judging pairs without a density: which those are, by what they are judged, and what is said about it."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cli_helpers import command
from pyro.infer import autoguide
from torch import Tensor

from ppgen import cli_outcomes, programs
from ppgen.data import load
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation import ALL_MEASURES, evaluate, judge, missing_density
from ppgen.evaluation.simulated import samples_of
from ppgen.guides import Nothing
from ppgen.recipes import find


class Pair:
    """A pair that is as it is: what evaluation asks of a trainer, without training."""

    def __init__(self, model: Any, guide: Any) -> None:
        self.model, self.guide = model, guide
        self.device = torch.device("cpu")
        self.store = programs.Store()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        with self.store.active(), programs.quiet(), torch.no_grad():
            yield


RING = load("ring")
CENTRES = torch.stack([RING.train["x"][RING.train["y"] == label].mean(0) for label in range(8)])


class Mixture:
    """A generator whose draws are the ring itself, or `modes` of its modes only, and whose data site is a Delta."""

    def __init__(self, modes: int = 8, noise: float = 0.01) -> None:
        self.modes, self.noise = modes, noise

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mode = pyro.sample("mode", dist.Uniform(0.0, self.modes))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            centre = CENTRES[mode.long().clamp(max=self.modes - 1)]
            pyro.sample("x", dist.Delta(centre + self.noise * z, event_dim=1), obs=x)


# ----------------------------------------------------------------------------------------------------- densities


def gaussian(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def generator(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(2 * z, event_dim=1), obs=x)


def encoder(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


def deterministic(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x / 2, event_dim=1))


def implicit(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        noise = pyro.sample("noise", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x / 2 + noise**3, event_dim=1))


def semi_implicit(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        noise = pyro.sample("noise", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(x / 2 + noise, 1.0).to_event(1))


def shapeless(x: Tensor) -> None:
    class Roll(dist.Normal):  # type: ignore[misc]
        def log_prob(self, value: Tensor) -> Tensor:
            raise NotImplementedError

    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Roll(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def named_value(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        doubled = pyro.deterministic("doubled", 2 * z, event_dim=1)
        pyro.sample("x", dist.Normal(doubled, 1.0).to_event(1), obs=x)


def categories(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(c.float()[..., None].expand(*c.shape, 2), 1.0).to_event(1), obs=x)


def shared_mean(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


REASONS = [
    (generator, Nothing(), "its data site 'x' is a Delta"),
    (generator, encoder, "its data site 'x' is a Delta"),
    (gaussian, Nothing(), "its guide does not draw the latent 'z'"),
    (gaussian, deterministic, "the site 'z' of its guide is a Delta"),
    (gaussian, implicit, "its guide is implicit, by way of its auxiliary site 'noise'"),
    (gaussian, semi_implicit, "its guide is implicit, by way of its auxiliary site 'noise'"),
    (shapeless, encoder, "the density of the site 'z' of its model is not known"),
]


@pytest.mark.parametrize(("model", "guide", "reason"), REASONS)
def test_a_pair_without_a_density_is_told_with_the_reason(model: Any, guide: Any, reason: str) -> None:
    pair, columns = Pair(model, guide), {"x": torch.randn(6, 2)}
    before = torch.get_rng_state()
    assert missing_density(pair, columns) == reason
    assert torch.equal(before, torch.get_rng_state())
    assert evaluate(pair, columns).as_dict() == {}
    for name in ("nll", "elbo"):
        with pytest.raises(ConfigError, match="judge its samples instead"):
            evaluate(pair, columns, measures=[name])


WITH_DENSITY = [
    (gaussian, encoder),
    (named_value, encoder),
    (categories, Nothing()),
    (shared_mean, autoguide.AutoNormal(shared_mean)),
    (shared_mean, autoguide.AutoMultivariateNormal(shared_mean)),
    (shared_mean, autoguide.AutoDelta(shared_mean)),
]


@pytest.mark.parametrize(("model", "guide"), WITH_DENSITY)
def test_a_pair_with_a_density_is_not(model: Any, guide: Any) -> None:
    pair, columns = Pair(model, guide), {"x": torch.randn(6, 2)}
    with pair.evaluating():
        programs.run(pair.model, pair.guide, columns, check=False)  # an autoguide makes its parameters
    assert missing_density(pair, columns) is None
    assert evaluate(pair, columns, particles=5).nll is not None


@pytest.mark.parametrize("prior", [dist.Normal(0.0, 1.0), dist.LogNormal(0.0, 1.0)])
def test_an_autoguide_of_single_rows_has_a_density(prior: Any) -> None:
    """Its auxiliary sites are its latents in coordinates without constraints, not noise."""

    def of_two_rows(x: Tensor) -> None:
        with pyro.plate("data", 2):
            scale = pyro.sample("scale", prior)
            pyro.sample("x", dist.Normal(scale[..., None].expand(*scale.shape, 2), 1.0).to_event(1), obs=x)

    pair, columns = Pair(of_two_rows, autoguide.AutoNormal(of_two_rows)), {"x": torch.randn(2, 2)}
    with pair.evaluating():
        programs.run(pair.model, pair.guide, columns, check=False)
    assert missing_density(pair, columns) is None
    points = Pair(of_two_rows, autoguide.AutoDelta(of_two_rows))
    with points.evaluating():
        programs.run(points.model, points.guide, columns, check=False)
    assert missing_density(points, columns) == "the site 'scale' of its guide is a Delta"


@pytest.mark.parametrize("name", ["m2", "vae", "iwae", "sbn", "categorical-vae", "structured"])
def test_recipes_with_a_bound_have_a_density(name: str) -> None:
    entry = find(name)
    built = entry.build(load("digits", labels=entry.labels), entry.resolve("digits"))
    assert built.data is not None
    assert missing_density(Pair(built.model, built.guide), built.data.test) is None


def test_a_pair_that_does_not_run_is_left_to_those_who_say_why() -> None:
    assert missing_density(Pair(gaussian, encoder), {"x": torch.randn(6, 3)}) is None


# ----------------------------------------------------------------------------------------------------- judgement


def test_the_right_generator_passes_and_a_collapsed_one_does_not() -> None:
    right = judge(Pair(Mixture(), Nothing()), RING)
    assert list(right) == ["mmd", "c2st", "modes"]
    assert right["modes"]["value"] == right["modes"]["total"] == 8
    assert right["modes"]["divergence"] < 0.01
    assert min(right["mmd"]["p_value"], right["c2st"]["p_value"]) > 0.01
    assert (right["mmd"]["samples"], right["mmd"]["rows"], right["modes"]["samples"]) == (1000, 1000, 2500)
    collapsed = judge(Pair(Mixture(modes=2), Nothing()), RING)
    assert collapsed["modes"]["value"] == 2
    assert max(collapsed["mmd"]["p_value"], collapsed["c2st"]["p_value"]) < 0.01
    assert collapsed["mmd"]["value"] > 10 * abs(right["mmd"]["value"])


def test_measures_by_name_and_as_many_samples_as_asked() -> None:
    found = judge(Pair(Mixture(), Nothing()), RING, measures=["parzen", "mmd"], samples=200)
    assert list(found) == ["mmd", "parzen"]
    assert (found["mmd"]["samples"], found["mmd"]["rows"], found["parzen"]["samples"]) == (200, 200, 200)
    assert "misleads" in found["parzen"]["warning"]
    json.dumps(found, allow_nan=False)
    again = judge(Pair(Mixture(), Nothing()), RING, measures=["mmd"], samples=200)
    assert again["mmd"] == found["mmd"]
    assert judge(Pair(Mixture(), Nothing()), RING, measures=["mmd"], samples=200, seed=1)["mmd"] != found["mmd"]


REFUSED = [
    ("fid", ConfigError, "did you mean 'fid_classifier'"),
    ("nll", ConfigError, "its data site 'x' is a Delta"),
    ("accuracy", ConfigError, "cannot measure 'accuracy'"),
    ("knn", ConfigError, "cannot measure 'knn': expected a guide"),
]


@pytest.mark.parametrize(("measure", "kind", "words"), REFUSED)
def test_what_does_not_suit_is_refused(measure: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        judge(Pair(Mixture(), Nothing()), RING, measures=[measure])


def test_what_does_not_suit_is_left_out_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    exploded = Pair(Mixture(noise=float("inf")), Nothing())
    assert judge(exploded, RING) == {}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(":")[0] for message in said] == [
        f"cannot measure '{name}'" for name in ("mmd", "c2st", "modes")
    ]
    assert all("finite samples" in message for message in said)
    with pytest.raises(DataError, match="cannot measure 'mmd': expected finite samples"):
        judge(exploded, RING, measures=["mmd"])


def test_labels_are_needed_for_features_and_modes() -> None:
    bare = [{"x": columns["x"]} for columns in RING.splits.values()]
    unlabelled = dataclasses.replace(RING, classes=None, train=bare[0], validation=bare[1], test=bare[2])
    for measure in ("modes", "fid_classifier"):
        with pytest.raises(DataError, match=f"cannot measure '{measure}'"):
            judge(Pair(Mixture(), Nothing()), unlabelled, measures=[measure])
    assert list(judge(Pair(Mixture(), Nothing()), unlabelled)) == ["mmd", "c2st"]


FEATURES = [name for name in ALL_MEASURES if name.endswith("_classifier")]


def test_features_are_said_to_be_those_of_a_classifier_of_the_data() -> None:
    right = judge(Pair(Mixture(), Nothing()), RING, measures=FEATURES, samples=500)
    assert set(right) == set(FEATURES)
    for found in right.values():
        assert found["features"].startswith("classifier trained on ring, test accuracy 1.000; not Inception")
        assert (found["samples"], found["rows"]) == (500, 500)
    # how often each mode is drawn varies among train rows, too
    assert right["fid_classifier"]["value"] < 5 * right["fid_classifier"]["train_rows"]
    assert abs(right["kid_classifier"]["value"]) < 4.5 * right["kid_classifier"]["stderr"]
    assert min(right["precision_classifier"]["value"], right["recall_classifier"]["value"]) > 0.8
    collapsed = judge(Pair(Mixture(modes=2), Nothing()), RING, measures=FEATURES, samples=500)
    assert collapsed["fid_classifier"]["value"] > 10 * right["fid_classifier"]["value"]
    assert collapsed["kid_classifier"]["value"] > 4.5 * collapsed["kid_classifier"]["stderr"]
    assert collapsed["precision_classifier"]["value"] > 0.8
    assert collapsed["recall_classifier"]["value"] < 0.5
    assert collapsed["one_nn_classifier"]["value"] > right["one_nn_classifier"]["value"] + 0.1


def test_samples_have_the_shape_and_scale_of_the_data() -> None:
    digits = load("digits")

    def flattened(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            shared = torch.full((len(x), 64), 0.25)
            pyro.sample("x", dist.Delta(shared, event_dim=1), obs=x.flatten(1))

    found = samples_of(Pair(flattened, Nothing()), digits, 7)
    assert torch.equal(found, torch.full((7, 1, 8, 8), 0.25))
    with pytest.raises(ConfigError, match=r"shape \(2,\)"):
        samples_of(Pair(flattened, Nothing()), RING, 7)

    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("picture", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    with pytest.raises(ConfigError, match="draws 'x'"):
        samples_of(Pair(other, Nothing()), RING, 7)


def test_what_rows_share_comes_from_the_guide() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(torch.full((2,), 50.0), 0.1).to_event(1))

    found = samples_of(Pair(shared_mean, guide), RING, 100)
    assert (found.mean(0) - 50).abs().max() < 1
    prior = samples_of(Pair(shared_mean, Nothing()), RING, 100)  # control: nobody infers it
    assert prior.mean(0).abs().max() < 5


def test_inputs_of_a_model_are_those_of_random_test_rows() -> None:
    def labelled(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Delta(CENTRES[y], event_dim=1), obs=x)

    found = judge(Pair(labelled, Nothing()), RING, measures=["modes"], samples=300)
    assert found["modes"]["value"] == 8


# --------------------------------------------------------------------------------------------------- command line


def test_the_command_line_knows_every_measure() -> None:
    assert sorted(cli_outcomes.MEASURES) == sorted(ALL_MEASURES)


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a GAN on the ring."""
    run = tmp_path_factory.mktemp("gan") / "run"
    done = command("train", "gan", "--data", "ring", "--steps", 5, "--compile", "off", "--out", run, "--json")
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    (run.parent / "document.json").write_text(done.out)
    return run


def test_a_gan_is_judged_by_its_samples(gan: Path) -> None:
    document = json.loads((gan.parent / "document.json").read_text())
    assert set(document["test"]) == {"mmd", "c2st", "modes"}
    assert document["no_density"] == "its data site 'x' is a Delta"
    assert json.loads((gan / "result.json").read_text()) == document
    shown = command("evaluate", gan)
    assert shown.code == 0, shown.err
    for words in ("squared MMD", "p <= 0.001", "of 8", "no density of the data", "its data site 'x' is a Delta"):
        assert words in shown.out
    assert "NLL," not in shown.out
    assert command("evaluate", gan, "--json").document == document


def test_measures_are_chosen_and_their_limits_said(gan: Path) -> None:
    arguments = ["--measure", "fid_classifier", "--measure", "parzen", "--samples", 100]
    shown = command("evaluate", gan, *arguments)
    assert shown.code == 0, shown.err
    flat = " ".join(shown.out.split())
    assert "classifier trained on ring" in flat
    assert "compare with no published ones" in flat
    assert "Parzen estimate misleads" in flat
    assert set(command("evaluate", gan, *arguments, "--json").document["test"]) == {"fid_classifier", "parzen"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--measure", "nll"], "its data site 'x' is a Delta"),
        (["--measure", "fid"], "'fid_classifier'"),
        (["--measure", "knn"], "without an encoder"),
        (["--measure", "mmd", "--samples", "5"], "--samples"),
        (["--measure", "mmd", "--arviz", "a.nc"], "no density to weight them by"),
    ],
)
def test_an_unsuitable_request_is_one_line(
    gan: Path, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("evaluate", gan, *arguments)
    assert done.code == 2
    assert words in done.error
    assert list(tmp_path.iterdir()) == []


def test_hidden_labels_serve_to_judge(tmp_path: Path) -> None:
    """Of a run with 100 labels, the classifier is trained on all of them."""
    run = tmp_path / "run"
    options = ["--labels", 20, "--set", "hidden=16", "--set", "evaluation_particles=2", "--compile", "off"]
    assert command("train", "m2", "--steps", 2, *options, "--out", run, "--json").code == 0
    found = command("evaluate", run, "--measure", "fid_classifier", "--measure", "knn", "--json").document["test"]
    accuracy = float(found["fid_classifier"]["features"].split("test accuracy ")[1][:5])
    assert accuracy > 0.9
    assert found["knn"]["train_rows"] == 20
