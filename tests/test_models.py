"""The models and guides that come along: their densities, and what is drawn from them."""

import math
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from zoo import binary_rows, small_m2, small_vae, z_score

from ppgen import guides, models, nn, programs
from ppgen.errors import ConfigError

BATCH = {"x": binary_rows(7), "y": torch.tensor([0, 1, 2, 3, 0, 1, 2])}


def log_probs(program: Any, *args: Any, **values: Tensor) -> dict[str, Tensor]:
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*args)
    trace.compute_log_prob()
    return {name: site["log_prob"] for name, site in trace.nodes.items() if site["type"] == "sample" and name != "data"}


def test_the_vae_has_its_density() -> None:
    model, guide = small_vae()
    x, z = BATCH["x"], torch.randn(7, 2)
    found = log_probs(model, x, z=z)
    assert torch.allclose(found["z"], torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1), atol=1e-5)
    nats = torch.nn.functional.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none").sum(-1)
    assert torch.allclose(found["x"], -nats, atol=1e-5)
    loc, raw = guide.encoder(x).chunk(2, -1)
    scale = torch.nn.functional.softplus(raw) + 1e-3
    expected = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
    assert torch.allclose(log_probs(guide, x, z=z)["z"], expected, atol=1e-5)


def test_m2_has_its_density() -> None:
    model, guide = small_m2(classes=4)
    x, y, z = BATCH["x"], BATCH["y"], torch.randn(7, 3)
    found = log_probs(model, x, y, z=z)
    assert torch.allclose(found["y"], torch.full((7,), -math.log(4)))
    logits = model.decoder(z, torch.eye(4)[y])
    nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    assert torch.allclose(found["x"], -nats, atol=1e-5)
    found = log_probs(guide, x, y=y, z=z)
    assert torch.allclose(found["y"], guide.classifier(x).log_softmax(-1)[torch.arange(7), y], atol=1e-5)
    other = log_probs(model, x, y.roll(1), z=z)
    assert not torch.allclose(other["x"], -nats, atol=1e-3), "negative control: the label matters"


def test_a_full_gaussian_has_the_covariance_of_its_factor() -> None:
    size = guides.FullGaussian.features(2)
    assert size == 5
    encoder = nn.MLP(6, [], size)
    first: Any = encoder.first
    first[0].bias.data[3] = 2.0  # far from diagonal
    guide = guides.FullGaussian(encoder, 2)
    x = BATCH["x"][:1].expand(4000, -1)
    drawn = programs.posterior(guide, {"x": x})["z"]
    features = guide.encoder(x[0]).detach()
    tril = nn.likelihoods.scale_tril(features[2:], 2)
    assert z_score(drawn, features[:2].double()) < 4.5
    centred = drawn - features[:2]
    assert z_score(centred.unsqueeze(-1) * centred.unsqueeze(-2), (tril @ tril.T).double()) < 4.5
    diagonal = torch.diag((tril @ tril.T).diagonal())
    assert z_score(centred.unsqueeze(-1) * centred.unsqueeze(-2), diagonal.double()) > 6, "negative control"


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "gaussian-fixed", "gaussian-full", "categorical"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_likelihood_goes_with_every_network(name: str, network: Any) -> None:
    shape = (1, 5, 3)
    likelihood = nn.likelihood(name, shape, levels=4)
    hidden = (4, 8)
    decoder = nn.decoder([2], shape, likelihood.features, network=network, hidden=hidden)
    encoder = nn.encoder(shape, 4, network=network, hidden=hidden)
    model, guide = models.VAE(decoder, likelihood, 2), guides.DiagonalGaussian(encoder, 2)
    x = torch.rand(3, *shape)
    weights = programs.log_weights(model, guide, {"x": x}, particles=5)
    assert weights.local.shape == (5, 3)
    assert weights.local.isfinite().all()
    assert torch.equal(weights.global_, torch.zeros(5))
    assert programs.generate(model, {"x": x}, 4)["x"].shape == (4, *shape)
    assert programs.reconstruct(model, guide, {"x": x}, mean=["x"])["x"].shape == (3, *shape)


# ---------------------------------------------------------------------------------------------------------- generation


def test_a_template_has_rows_but_no_data() -> None:
    made = programs.template({**BATCH, "note": None}, 4)
    assert made["x"].shape == (4, 6)
    assert made["y"].dtype == torch.int64
    assert made["note"] is None
    assert programs.template(BATCH, 50)["y"].shape == (50,)


def test_generation_draws_everything_and_clamps_what_is_given() -> None:
    model, _ = small_m2(classes=4)
    drawn = programs.generate(model, BATCH, 2000)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {"y": (2000,), "z": (2000, 3), "x": (2000, 6)}
    assert z_score(drawn["z"], 0.0) < 4.5
    assert torch.bincount(drawn["y"], minlength=4).min() > 400, "labels are drawn although the batch has some"
    given = torch.arange(5) % 4
    clamped = programs.generate(model, BATCH, 5, given={"y": given}, mean=["x"])
    assert torch.equal(clamped["y"], given)
    probabilities = torch.sigmoid(model.decoder(clamped["z"], torch.eye(4)[given]))
    assert torch.allclose(clamped["x"], probabilities, atol=1e-6)
    assert not torch.allclose(drawn["x"], drawn["x"].mean()), "negative control: draws are zeros and ones"
    assert set(drawn["x"].unique().tolist()) == {0.0, 1.0}
    assert programs.generate(model, BATCH)["x"].shape == (7, 6)


def test_the_mean_of_categories_is_a_draw() -> None:
    model = models.VAE(nn.MLP(2, [4], 12), nn.Categorical((3,), levels=4), 2)
    drawn = programs.generate(model, {"x": torch.rand(2, 3)}, 5, mean=["x"])["x"]
    assert drawn.dtype == torch.int64
    assert drawn.max() < 4


def test_a_reconstruction_comes_from_the_latents_of_its_row() -> None:
    model, guide = small_vae()
    last: Any = list(guide.encoder.modules())[-1]
    with torch.no_grad():
        last.bias[2:] = -20.0  # next to no noise
        last.weight[2:] = 0.0
        last.weight[:2] *= 5.0
    found = programs.reconstruct(model, guide, {"x": BATCH["x"]}, mean=["x"])
    loc = guide.encoder(BATCH["x"])[:, :2]
    assert torch.allclose(found["x"], torch.sigmoid(model.decoder(loc)), atol=0.01)
    assert not torch.allclose(found["x"], torch.sigmoid(model.decoder(loc.roll(1, 0))), atol=0.01), "negative control"
    assert programs.posterior(guide, {"x": BATCH["x"]})["z"].shape == (7, 2)


def test_label_log_probs_are_the_classifiers() -> None:
    _, guide = small_m2(classes=4)
    found = programs.label_log_probs(guide, {"x": BATCH["x"]})
    assert torch.allclose(found, guide.classifier(BATCH["x"]).log_softmax(-1), atol=1e-6)
    with pytest.raises(ConfigError, match="the guide has no discrete site 'z'"):
        programs.label_log_probs(guide, {"x": BATCH["x"]}, "z")
    with pytest.raises(ConfigError, match="the guide has no discrete site 'label'"):
        programs.label_log_probs(guide, {"x": BATCH["x"]}, "label")


def test_a_weight_with_the_label_summed_out_is_an_explicit_sum() -> None:
    model, guide = small_m2(classes=4)
    x = BATCH["x"]
    torch.manual_seed(0)
    with torch.no_grad():
        found = programs.log_weights(model, guide, {"x": x}, particles=5, enumerate_discrete=True)
    torch.manual_seed(0)
    noise = torch.normal(torch.zeros(4, 5, 7, 3), torch.ones(4, 5, 7, 3))
    terms = []
    for y in range(4):
        label = torch.eye(4)[y].expand(7, 4)
        loc, raw = guide.encoder(x, label).chunk(2, -1)
        q = torch.distributions.Normal(loc, torch.nn.functional.softplus(raw) + 1e-3)
        z = loc + q.scale * noise[y]
        values = log_probs(model, x, torch.full((7,), y), z=z[0])
        assert torch.allclose(values["z"], torch.distributions.Normal(0.0, 1.0).log_prob(z[0]).sum(-1), atol=1e-5)
        logits = model.decoder(z, label)
        nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, x.expand(5, 7, 6), reduction="none").sum(-1)
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - math.log(4) - nats
        terms.append(log_p - q.log_prob(z).sum(-1))
    exact = torch.stack(terms).logsumexp(0)
    assert found.local.shape == (5, 7)
    assert torch.allclose(found.local, exact, atol=1e-4)
    log_q = guide.classifier(x).log_softmax(-1).T.unsqueeze(1)
    assert not torch.allclose(found.local, (torch.stack(terms) + log_q).logsumexp(0), atol=0.1), "negative control"
