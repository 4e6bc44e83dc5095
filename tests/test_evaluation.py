"""Measures against closed forms, brute force and scikit-learn; what evaluation leaves untouched."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen import programs
from ppgen.data import Batches, Together, load
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation import Estimate, Proportion, accuracy, elbo, evaluate, negative_log_likelihood, predict
from ppgen.evaluation.baselines import baselines
from ppgen.guides import Label
from ppgen.models import M2, VAE
from ppgen.nn import MLP, decoder, encoder, likelihood, one_hot
from ppgen.objectives import SemiSupervised
from ppgen.training import Trainer


class Pair:
    """A pair that is as it is: what evaluation asks of a trainer, without training."""

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self.model, self.guide = model, guide
        self.device = torch.device("cpu")
        self.store = programs.Store()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        with self.store.active(), programs.quiet(), torch.no_grad():
            yield


# ------------------------------------------------------------------------------- probabilistic PCA: a closed form


SCALE = 0.7
WEIGHT = torch.linspace(-1, 1, 10).reshape(5, 2).sin()
BIAS = torch.tensor([0.3, -0.2, 0.0, 0.5, 1.0])
PRECISION = torch.eye(2) + WEIGHT.T @ WEIGHT / SCALE**2


def ppca_model() -> VAE:
    linear = nn.Linear(2, 5)
    linear.load_state_dict({"weight": WEIGHT, "bias": BIAS})
    return VAE(linear, likelihood("gaussian-fixed", (5,), scale=SCALE), 2)


def posterior_guide(x: Tensor, *, shift: float = 0.0, widen: float = 1.0) -> None:
    covariance = PRECISION.inverse()
    mean = (x - BIAS) @ WEIGHT @ covariance / SCALE**2 + shift
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(mean, covariance_matrix=covariance * widen**2))


def ppca(**options: Any) -> Pair:
    return Pair(ppca_model(), functools.partial(posterior_guide, **options))


def ppca_rows(rows: int = 40) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 5, generator=torch.Generator().manual_seed(1)) * 1.5}


def ppca_exact(x: Tensor) -> Tensor:
    covariance = WEIGHT @ WEIGHT.T + SCALE**2 * torch.eye(5)
    log_prob: Tensor = dist.MultivariateNormal(BIAS, covariance_matrix=covariance).log_prob(x)
    return -log_prob.double()


@pytest.mark.parametrize("particles", [1, 3])
def test_exact_posterior_gives_the_closed_form_of_every_row(particles: int) -> None:
    columns = ppca_rows()
    found = negative_log_likelihood(ppca(), columns, particles=particles)
    assert found.dtype == torch.float64
    assert (found - ppca_exact(columns["x"])).abs().max() < 1e-4
    assert (elbo(ppca(), columns, particles=particles) + ppca_exact(columns["x"])).abs().max() < 1e-4


def test_wrong_posterior_is_noticed() -> None:
    columns = ppca_rows()
    found = negative_log_likelihood(ppca(shift=0.5), columns, particles=1)
    assert (found - ppca_exact(columns["x"])).abs().max() > 0.1


def test_bound_tightens_with_particles_and_stays_a_bound() -> None:
    columns = ppca_rows()
    exact = ppca_exact(columns["x"])
    repeats = 20
    means, errors = [], []
    for particles in (1, 10, 100, 1000):
        gaps = [
            negative_log_likelihood(ppca(widen=3.0), columns, particles=particles, seed=seed) - exact
            for seed in range(repeats)
        ]
        per_repeat = torch.stack([gap.mean() for gap in gaps])
        means.append(float(per_repeat.mean()))
        errors.append(float(per_repeat.std()) / math.sqrt(repeats))
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.0
    assert means[-1] < 0.02
    assert all(mean > -4 * error for mean, error in zip(means, errors, strict=True))


def test_elbo_is_the_mean_of_the_log_weights() -> None:
    columns = ppca_rows(8)
    widened = torch.distributions.MultivariateNormal(torch.zeros(2), PRECISION.inverse() * 4)
    exact_posterior = torch.distributions.MultivariateNormal(torch.zeros(2), PRECISION.inverse())
    gap = torch.distributions.kl_divergence(widened, exact_posterior)
    runs = [elbo(ppca(widen=2.0), columns, particles=200, seed=s).mean() for s in range(20)]
    expected = -(ppca_exact(columns["x"]).mean() + gap)
    z = (torch.stack(runs).mean() - expected) / (torch.stack(runs).std() / math.sqrt(20))
    assert abs(z) < 4.5
    assert gap > 1.0


# --------------------------------------------------------------------------------------------- labels summed out


CLASSES = 3


def m2_pair() -> Pair:
    torch.manual_seed(3)
    model = M2(MLP([1, CLASSES], [8], 4, activation="tanh"), likelihood("bernoulli", (4,)), 1, CLASSES)
    guide = Label(MLP(4, [8], CLASSES), MLP([4, CLASSES], [8], 2), CLASSES)
    rest: Any = guide.encoder.rest
    last = rest[-1]  # near the prior, so that weights vary little
    last.load_state_dict({"weight": last.weight * 0.3, "bias": torch.tensor([0.0, 0.8])})
    return Pair(model, guide)


def m2_rows(rows: int = 12) -> dict[str, Tensor]:
    return {"x": torch.bernoulli(torch.full((rows, 4), 0.5)), "y": torch.arange(rows) % CLASSES}


def m2_exact(model: M2, x: Tensor) -> Tensor:
    """Integrates z on a grid and sums over y."""
    grid = torch.linspace(-8, 8, 4001)
    step = float(grid[1] - grid[0])
    z = grid[:, None, None]
    features = model.decoder(z, one_hot(torch.arange(CLASSES), CLASSES)[None])
    log_x: Tensor = dist.Bernoulli(logits=features[:, :, None]).log_prob(x).sum(-1)
    terms: Tensor = log_x + dist.Normal(0.0, 1.0).log_prob(z) - math.log(CLASSES) + math.log(step)
    return -terms.flatten(0, 1).double().logsumexp(0).detach()


def test_labels_are_summed_out() -> None:
    pair, columns = m2_pair(), m2_rows()
    exact = m2_exact(pair.model, columns["x"])  # type: ignore[arg-type]
    runs = torch.stack([negative_log_likelihood(pair, columns, particles=2000, seed=seed) for seed in range(10)])
    error = runs.std(0) / math.sqrt(10)
    assert ((runs.mean(0) - exact).abs() < 4.5 * error + 1e-3).all()
    assert (runs.mean(0) - exact).abs().max() < 1e-2
    # the joint log p(x, y) is another quantity
    assert (runs.mean(0) - (exact + math.log(CLASSES))).abs().min() > 0.5


def test_labels_are_withheld() -> None:
    pair, columns = m2_pair(), m2_rows()
    without = {"x": columns["x"]}
    assert torch.equal(negative_log_likelihood(pair, columns), negative_log_likelihood(pair, without))
    assert torch.equal(elbo(pair, columns), elbo(pair, without))
    assert torch.equal(predict(pair, columns), predict(pair, without))


def test_guide_that_cannot_be_enumerated_is_sampled() -> None:
    pair, columns = m2_pair(), m2_rows()
    inner: Any = pair.guide

    def concatenating(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=inner.classifier(x)))
            joined = torch.cat([x, one_hot(y, CLASSES)], dim=-1)  # fails with more dimensions than x has
            features = inner.encoder(joined[..., :4], joined[..., 4:])
            pyro.sample("z", dist.Normal(features[..., :1], nn.functional.softplus(features[..., 1:])).to_event(1))

    assert torch.allclose(predict(Pair(pair.model, concatenating), columns), predict(pair, columns), atol=1e-6)
    exact = m2_exact(pair.model, columns["x"])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        programs.log_weights(pair.model, concatenating, {"x": columns["x"]}, enumerate_discrete=True)
    found = negative_log_likelihood(Pair(pair.model, concatenating), columns, particles=1500)
    assert (found - exact).abs().max() < 0.3
    assert (found - exact).mean().abs() < 0.05


def test_response_that_the_guide_does_not_infer_is_scored() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("slope", dist.Delta(torch.tensor(2.0)))

    columns = {"x": torch.arange(4.0), "y": torch.tensor([0.0, 2.0, 4.0, 9.0])}
    found = negative_log_likelihood(Pair(model, guide), columns, particles=2)
    assert torch.allclose(found, -dist.Normal(2 * columns["x"], 1.0).log_prob(columns["y"]).double())
    assert evaluate(Pair(model, guide), columns, particles=2).accuracy is None


# ------------------------------------------------------------------------------------------------ users' programs


def test_global_latents_give_the_predictive_density() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.5))

    columns = {"x": torch.tensor([-1.0, 0.0, 1.0, 2.5])}
    found = negative_log_likelihood(Pair(model, guide), columns, particles=40_000)
    exact = -dist.Normal(1.0, math.sqrt(1.25)).log_prob(columns["x"]).double()
    assert (found - exact).abs().max() < 0.02
    plugged_in = -dist.Normal(1.0, 1.0).log_prob(columns["x"]).double()
    assert (found - plugged_in).abs().max() > 0.1


def test_program_for_one_particle_at_a_time() -> None:
    inner = ppca_model()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rows = inner.decoder(z.view(len(x), 2))  # fails with particles
            pyro.sample("x", dist.Normal(rows, SCALE).to_event(1), obs=x)

    columns = ppca_rows()
    found = negative_log_likelihood(Pair(model, posterior_guide), columns, particles=3)
    assert (found - ppca_exact(columns["x"])).abs().max() < 1e-4
    apart = negative_log_likelihood(Pair(model, functools.partial(posterior_guide, widen=3.0)), columns, particles=50)
    single = negative_log_likelihood(ppca(widen=3.0), columns, particles=1)
    assert (apart - ppca_exact(columns["x"])).mean() < 0.3 * (single - ppca_exact(columns["x"])).mean()


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    def unplated(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    def subsampling(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=1) as chosen:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[chosen])

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    for model in (unplated, subsampling):
        for particles in (1, 2):
            with pytest.raises(ConfigError, match="data plate"):
                negative_log_likelihood(Pair(model, guide), {"x": torch.randn(6)}, particles=particles)


def test_failing_program_is_named_in_one_line() -> None:
    def guide(x: Tensor) -> None:
        raise RuntimeError("only 100 rows\nare known")

    with pytest.raises(ConfigError, match=r"do not run on held-out rows: only 100 rows$"):
        negative_log_likelihood(Pair(ppca_model(), guide), ppca_rows())


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="particles of at least 1; got 0"):
        negative_log_likelihood(ppca(), ppca_rows(), particles=0)
    with pytest.raises(ConfigError, match="expected measures from nll, accuracy, elbo; got 'nl'"):
        evaluate(ppca(), ppca_rows(), measures=("nl",))
    with pytest.raises(DataError, match="expected rows"):
        negative_log_likelihood(ppca(), {"x": torch.zeros(0, 5)})
    with pytest.raises(ConfigError, match="no discrete site 'y'"):
        predict(ppca(), ppca_rows())


# ----------------------------------------------------------------------------------------- slices, memory, seeds


@pytest.mark.parametrize("batch_size", [None, 1, 7, 1000])
@pytest.mark.parametrize("largest", [1, 600, 2e7])
def test_slices_do_not_change_exact_values(
    batch_size: int | None, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppgen.evaluation.slices.LARGEST", largest)
    columns = ppca_rows()
    found = negative_log_likelihood(ppca(), columns, particles=7, batch_size=batch_size)
    assert (found - ppca_exact(columns["x"])).abs().max() < 1e-4


def test_slices_do_not_change_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ppca_rows()

    def runs(batch_size: int | None) -> Tensor:
        values = [
            negative_log_likelihood(ppca(widen=3.0), columns, particles=20, seed=seed, batch_size=batch_size).mean()
            for seed in range(25)
        ]
        return torch.stack(values)

    whole = runs(None)
    monkeypatch.setattr("ppgen.evaluation.slices.LARGEST", 150)
    sliced = runs(9)
    error = math.sqrt((whole.var() + sliced.var()) / 25)
    assert abs(whole.mean() - sliced.mean()) / error < 4.5
    assert not torch.equal(whole, sliced)


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.numel())
        return result


def test_slices_bound_the_largest_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, columns = m2_pair(), m2_rows(50)

    def largest() -> int:
        mode = _Largest()
        with mode:
            negative_log_likelihood(pair, columns, particles=300)
        return mode.size

    assert largest() > 100_000
    monkeypatch.setattr("ppgen.evaluation.slices.LARGEST", 5000)
    assert 2500 < largest() <= 5000


def test_same_seed_same_number_and_no_stream_moves() -> None:
    pair, columns = ppca(widen=2.0), ppca_rows()
    before = torch.get_rng_state()
    first = negative_log_likelihood(pair, columns, particles=5, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(17)
    assert torch.equal(negative_log_likelihood(pair, columns, particles=5, seed=4), first)
    assert not torch.equal(negative_log_likelihood(pair, columns, particles=5, seed=5), first)
    before = torch.get_rng_state()
    evaluate(m2_pair_with(before), m2_rows(4), particles=2)
    before = torch.get_rng_state()
    predict(m2_pair_with(before), {"x": columns["x"][:, :4].sigmoid()})
    assert torch.equal(torch.get_rng_state(), before)


def m2_pair_with(state: Tensor) -> Pair:
    """Makes the pair without moving the random stream."""
    pair = m2_pair()
    torch.set_rng_state(state)
    return pair


# -------------------------------------------------------------------------------------- accuracy and its interval


def test_predict_is_the_classifier() -> None:
    pair, columns = m2_pair(), m2_rows()
    guide: Any = pair.guide
    expected = guide.classifier(columns["x"]).softmax(-1).detach()
    for batch_size in (None, 5):
        found = predict(pair, columns, batch_size=batch_size)
        assert torch.allclose(found, expected, atol=1e-6)


def test_class_probabilities_are_averaged_over_other_latents() -> None:
    shift = torch.tensor([6.0, 0.0, 0.0])

    def program(x: Tensor, *, p: float) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(p))
            pyro.sample("y", dist.Categorical(logits=x + c[..., None] * shift))

    pair = Pair(functools.partial(program, p=0.5), functools.partial(program, p=0.3))
    x = torch.randn(2000, 3)
    found = predict(pair, {"x": x})
    exact = 0.7 * x.softmax(-1) + 0.3 * (x + shift).softmax(-1)
    assert abs((found - exact).mean(0)).max() < 0.01
    assert abs(found - exact).mean() < 0.05
    assert abs(x.softmax(-1) - exact).mean() > 0.1


def test_accuracy_leaves_missing_labels_out() -> None:
    pair, columns = m2_pair(), m2_rows(20)
    best = predict(pair, columns).argmax(-1)
    y = best.clone()
    y[:3] = (y[:3] + 1) % CLASSES
    y[10:] = -1
    assert accuracy(pair, {**columns, "y": y}).value == 0.7
    assert accuracy(pair, {**columns, "y": best}).value == 1.0
    assert evaluate(pair, {**columns, "y": torch.full((20,), -1)}).accuracy is None
    with pytest.raises(DataError, match="got none"):
        accuracy(pair, {**columns, "y": torch.full((20,), -1)})


def test_guide_that_takes_its_labels_as_given_has_no_accuracy() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("y", dist.Categorical(logits=z[..., None] * x), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(y.float(), 1.0))

    columns = {"x": torch.randn(6, 3), "y": torch.arange(6) % 3}
    found = evaluate(Pair(model, guide), columns)
    assert found.accuracy is None
    assert found.nll
    assert 0.2 < found.nll.value < 3


def test_wilson_interval() -> None:
    # Wilson, 1927: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    z, n, p = 1.959963984540054, 500, 0.956
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = Proportion.of(478, 500)
    assert found.value == p
    assert found.low == pytest.approx((centre - half) / (1 + z**2 / n))
    assert found.high == pytest.approx((centre + half) / (1 + z**2 / n))


def test_estimate_is_json_even_where_it_is_not_finite() -> None:
    assert Estimate.of(torch.tensor([1.0, 3.0]), particles=2).as_dict() == {"value": 2.0, "stderr": 1.0, "particles": 2}
    single = Estimate.of(torch.tensor([torch.inf]), particles=2).as_dict()
    assert json.dumps(single, allow_nan=False) == '{"value": null, "stderr": null, "particles": 2}'


def test_trainer_is_evaluated() -> None:
    data = load("digits", labels=100)
    model = M2(decoder([4, 10], data.shape, hidden=(32,)), likelihood("bernoulli", data.shape), 4, 10)
    guide = Label(encoder(data.shape, 10, hidden=(32,)), encoder(data.shape, 8, hidden=(32,), others=[10]), 10)
    batches = Together(labelled=Batches(data.labelled(), 50), unlabelled=Batches(data.unlabelled(), 50))
    adam = functools.partial(torch.optim.Adam, lr=3e-3)
    trainer = Trainer(model, guide, SemiSupervised(alpha=1.0), adam, compile="off", device="cpu")
    list(trainer.fit(batches, steps=1))
    early = evaluate(trainer, data.test, particles=5, measures=("nll", "accuracy", "elbo"))
    list(trainer.fit(batches, steps=150))
    late = evaluate(trainer, data.test, particles=5, measures=("nll", "accuracy", "elbo"))
    assert early.nll
    assert late.nll
    assert late.elbo
    assert early.accuracy
    assert late.accuracy
    assert late.nll.value < early.nll.value - 5
    assert late.nll.value < -late.elbo.value
    assert late.accuracy.low > early.accuracy.high
    document = late.as_dict()
    assert list(document) == ["accuracy", "nll", "elbo"]
    assert document["nll"].keys() == {"value", "stderr", "particles"}
    assert document["accuracy"].keys() == {"value", "low", "high"}
    unlabelled = evaluate(trainer, {"x": data.test["x"]}, particles=5)
    assert unlabelled.as_dict() == {"nll": late.nll.as_dict()}


# ---------------------------------------------------------------------------------------------------- baselines


def test_baselines_see_the_same_labels_and_no_test_row() -> None:
    data = load("digits", labels=100)
    found = baselines(data)
    x, y = data.labelled()["x"].flatten(1).numpy(), data.labelled()["y"].numpy()
    test_x, test_y = data.test["x"].flatten(1).numpy(), data.test["y"].numpy()
    for name, classifier in {
        "logistic_regression": LogisticRegression(max_iter=2000),
        "nearest_neighbour": KNeighborsClassifier(1),
    }.items():
        assert found[name].value == classifier.fit(x, y).score(test_x, test_y)
    assert found["label_spreading"].value > 0.9
    # accuracy is a mean over test rows, so no test row helps another
    halves = [
        baselines(dataclasses.replace(data, test={k: v[part] for k, v in data.test.items()}))
        for part in (slice(0, 250), slice(250, 500))
    ]
    for name, whole in found.items():
        assert np.mean([half[name].value for half in halves]) == pytest.approx(whole.value)


def test_label_spreading_uses_unlabelled_rows() -> None:
    data = load("digits", labels=100)
    noise = torch.rand(data.train["x"].shape)
    known = (data.train["y"] >= 0)[:, None, None, None]
    noisy = dataclasses.replace(data, train={**data.train, "x": torch.where(known, data.train["x"], noise)})
    real, without = baselines(data), baselines(noisy)
    assert real["label_spreading"] != without["label_spreading"]
    assert real["nearest_neighbour"] == without["nearest_neighbour"]
    assert real["logistic_regression"] == without["logistic_regression"]


def test_baselines_that_have_no_meaning_are_left_out() -> None:
    data = load("digits", labels=100)
    assert baselines(dataclasses.replace(data, classes=None)) == {}
    one_class = torch.where(data.train["y"] == 3, 3, -1)
    assert baselines(dataclasses.replace(data, train={**data.train, "y": one_class})) == {}
    assert list(baselines(load("digits"))) == ["logistic_regression", "nearest_neighbour"]


def test_baselines_of_large_data_stay_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppgen.evaluation.baselines.MOST_ROWS", 99)
    assert list(baselines(load("digits", labels=100))) == ["nearest_neighbour"]
