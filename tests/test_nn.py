"""Networks and likelihoods: shapes for any leading dimensions, densities against torch's own."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus
from zoo import z_score

from ppgen import nn
from ppgen.errors import ConfigError
from ppgen.nn.likelihoods import scale_tril


def test_a_factored_first_layer_equals_one_over_concatenated_inputs() -> None:
    network = nn.MLP([4, 3], [5, 6], 2, activation="tanh")
    a, b = torch.randn(7, 4), torch.randn(7, 3)
    first: Any = network.first
    joined = torch.nn.functional.linear(
        torch.cat([a, b], -1), torch.cat([first[0].weight, first[1].weight], -1), first[0].bias
    )
    assert torch.allclose(network(a, b), network.rest(joined), atol=1e-6)
    assert not torch.allclose(network(a, b), network(a, b.roll(1, 0)), atol=1e-3), "negative control"
    assert first[1].bias is None, "one bias is enough"


def test_inputs_broadcast_instead_of_being_expanded() -> None:
    network = nn.MLP([4, 3], [5], 2)
    image, label = torch.randn(7, 4), torch.eye(3).reshape(3, 1, 3)
    out = network(image, label)
    assert out.shape == (3, 7, 2)
    for index in range(3):
        assert torch.allclose(out[index], network(image, label[index].expand(7, 3)), atol=1e-6)


def test_the_first_layer_starts_as_one_over_concatenated_inputs_would() -> None:
    network = nn.MLP([90, 10], [400], 1)
    first: Any = network.first
    weights = torch.cat([first[0].weight, first[1].weight], -1)
    assert float(weights.detach().abs().max()) == pytest.approx(1 / math.sqrt(100), rel=0.01)


@pytest.mark.parametrize("leading", [(), (5,), (3, 5), (2, 1, 5)])
@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"dropout": 0.5}])
def test_a_perceptron_keeps_leading_dimensions(leading: tuple[int, ...], options: dict[str, Any]) -> None:
    network = nn.MLP(4, [8, 6], 2, **options)
    x = torch.randn(*leading, 4)
    if options.get("batch_norm") and leading == ():
        network.eval()
    assert network(x).shape == (*leading, 2)
    assert nn.MLP(4, [], 2)(x).shape == (*leading, 2)


def test_batch_norm_normalises_over_all_leading_dimensions() -> None:
    network = nn.MLP(4, [8], 8, batch_norm=True)
    assert isinstance(network.rest[0], torch.nn.BatchNorm1d)
    normalised = network.rest[0](5 + 3 * torch.randn(6, 50, 8))
    assert normalised.shape == (6, 50, 8)
    assert torch.allclose(normalised.mean((0, 1)), torch.zeros(8), atol=1e-5)
    assert torch.allclose(normalised.std((0, 1)), torch.ones(8), atol=0.01)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 7, 5), (2, 1, 9), (1, 8, 8)])
@pytest.mark.parametrize("channels", [(4,), (4, 6), (4, 6, 8)])
def test_convolutional_networks_take_images_of_any_size(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    encoder = nn.encoder(shape, 6, network="conv", hidden=(*channels, 16), others=[3])
    decoder = nn.decoder([3, 2], shape, 2 * nn.size_of(shape), network="conv", hidden=(*channels, 16))
    image, label = torch.rand(5, *shape), torch.eye(3).reshape(3, 1, 3)
    assert encoder(image, torch.zeros(5, 3)).shape == (5, 6)
    assert encoder(image, label).shape == (3, 5, 6)
    assert encoder(image[0], label[0, 0]).shape == (6,)
    assert decoder(torch.zeros(2, 5, 3), torch.zeros(5, 2)).shape == (2, 5, 2 * nn.size_of(shape))
    first = encoder(image, label)[1, 2]
    assert torch.allclose(first, encoder(image[2], label[1, 0]), atol=1e-5), "rows do not mix"


def test_the_decoders_channels_are_the_encoders_mirrored() -> None:
    decoder: Any = nn.decoder([3], (1, 28, 28), network="conv", hidden=(4, 6, 16))
    assert isinstance(decoder, nn.ConvDecoder)
    layers = [layer for layer in decoder.convolutions if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in layers] == [(6, 4), (4, 1)]


@pytest.mark.parametrize("shape", [(1, 7, 5), (6,), (2, 3)])
def test_perceptrons_take_arrays_of_any_shape(shape: tuple[int, ...]) -> None:
    encoder = nn.encoder(shape, 4, hidden=(8,), others=[3])
    label = torch.eye(3).reshape(3, 1, 3)
    assert encoder(torch.rand(5, *shape), label).shape == (3, 5, 4)
    assert nn.decoder([4], shape, 3 * nn.size_of(shape), hidden=(8,))(torch.zeros(2, 5, 4)).shape == (
        2,
        5,
        3 * nn.size_of(shape),
    )


def test_what_has_no_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected images \(channels, height, width\).*got \(6,\)"):
        nn.encoder((6,), 2, network="conv", hidden=(4, 8))
    with pytest.raises(ConfigError, match=r"expected images"):
        nn.decoder([2], (6,), network="conv", hidden=(4, 8))
    with pytest.raises(ConfigError, match=r"expected activation relu, .*got 'swoosh'"):
        nn.MLP(2, [3], 1, activation="swoosh")


def test_one_hot_equals_torchs() -> None:
    labels = torch.randint(4, (3, 5))
    assert torch.equal(nn.one_hot(labels, 4), torch.nn.functional.one_hot(labels, 4).float())


# -------------------------------------------------------------------------------------------------------- likelihoods


def summed(terms: Tensor, shape: tuple[int, ...]) -> Tensor:
    return terms.sum(tuple(range(-len(shape), 0)))


@pytest.mark.parametrize("shape", [(6,), (1, 3, 2)])
def test_densities_equal_torchs(shape: tuple[int, ...]) -> None:
    size = nn.size_of(shape)
    x = torch.rand(5, *shape)
    bernoulli = nn.likelihood("bernoulli", shape)
    features = torch.randn(2, 5, bernoulli.features)
    expected = -binary_cross_entropy_with_logits(
        features.reshape(2, 5, *shape), x.expand(2, 5, *shape), reduction="none"
    )
    assert torch.allclose(bernoulli(features).log_prob(x), summed(expected, shape), atol=1e-5), "grey values too"

    fixed = nn.likelihood("gaussian-fixed", shape, scale=0.3)
    features = torch.randn(2, 5, fixed.features)
    expected = torch.distributions.Normal(features.reshape(2, 5, *shape), 0.3).log_prob(x)
    assert torch.allclose(fixed(features).log_prob(x), summed(expected, shape), atol=1e-4)

    learned = nn.likelihood("gaussian", shape)
    features = torch.randn(2, 5, learned.features)
    mean, raw = features.reshape(2, 5, 2, *shape).unbind(2)
    expected = torch.distributions.Normal(mean, softplus(raw) + 1e-3).log_prob(x)
    assert torch.allclose(learned(features).log_prob(x), summed(expected, shape), rtol=1e-4)

    full = nn.likelihood("gaussian-full", shape)
    features = torch.randn(2, 5, full.features)
    tril = scale_tril(features[..., size:], size)
    reference = torch.distributions.MultivariateNormal(features[..., :size], scale_tril=tril)
    assert torch.allclose(full(features).log_prob(x), reference.log_prob(x.flatten(1)), rtol=1e-4)

    categorical = nn.likelihood("categorical", shape, levels=5)
    features = torch.randn(5, categorical.features)
    levels = categorical.prepare(x)
    nats = cross_entropy(features.reshape(5, 5, *shape), levels, reduction="none")  # levels are channels
    assert torch.allclose(categorical(features).log_prob(levels), -summed(nats, shape), atol=1e-4)
    for made in (bernoulli, fixed, learned, full, categorical):
        distribution = made(torch.zeros(2, 5, made.features))
        assert distribution.batch_shape == (2, 5)
        assert distribution.event_shape == shape
        assert distribution.sample().shape == (2, 5, *shape)


def test_levels_are_the_nearest_ones() -> None:
    categorical = nn.Categorical((3,), levels=256)
    stored = torch.tensor([0, 128, 255])
    assert torch.equal(categorical.prepare(stored / 255), stored)
    assert nn.Bernoulli((3,)).unit_interval
    assert categorical.unit_interval
    assert not nn.Gaussian((3,)).unit_interval


def test_factors_are_lower_triangular_and_positive() -> None:
    tril = scale_tril(torch.randn(4, 5, 10, dtype=torch.float64), 4)
    assert tril.shape == (4, 5, 4, 4)
    assert torch.equal(tril, tril.tril())
    assert (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert (torch.linalg.eigvalsh(tril @ tril.mT) > 0).all()
    one = torch.zeros(10)
    one[1] = 3.0
    assert scale_tril(one, 4)[1, 0] == 3.0 / math.sqrt(4), "row by row"


def test_every_feature_of_a_full_covariance_matters() -> None:
    features = torch.randn(10, requires_grad=True)
    scale_tril(features, 4).sum().backward()
    assert features.grad is not None
    assert (features.grad != 0).all()


def test_likelihoods_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected likelihood bernoulli, .*got 'poisson'"):
        nn.likelihood("poisson", (3,))
    with pytest.raises(ConfigError, match="expected at most 512 values for a full covariance; got 513"):
        nn.likelihood("gaussian-full", (513,))


def test_random_affine_moves_images_only_while_training() -> None:
    x = torch.zeros(64, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    still = nn.RandomAffine(shift=0.0, rotation=0.0, scale=0.0, shear=0.0)
    assert torch.allclose(still(x), x, atol=1e-5)
    layer = nn.RandomAffine(shift=2.0, rotation=0.0, scale=0.0, shear=0.0)
    moved = layer(x)
    assert moved.shape == x.shape
    assert not torch.allclose(moved, x, atol=0.1)
    grid = torch.arange(9.0)
    columns = (moved.sum((1, 2)) * grid).sum(-1) / moved.sum((1, 2, 3)) - 4
    rows = (moved.sum((1, 3)) * grid).sum(-1) / moved.sum((1, 2, 3)) - 4
    for shifts in (columns, rows):
        assert shifts.abs().max() <= 2.0 + 1e-4, "never further than asked"
        assert shifts.abs().max() > 1.2
        assert z_score(shifts, 0.0) < 4.5
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ConfigError, match="expected images"):
        nn.random_affine(torch.zeros(3, 9))


def test_random_affine_turns_by_at_most_the_angle() -> None:
    x = torch.zeros(256, 1, 41, 41)
    x[:, :, 20, 35] = 1.0  # to the right of the middle
    turned = nn.random_affine(x, shift=0.0, rotation=30.0, scale=0.0, shear=0.0)
    mass, grid = turned.sum((1, 2, 3)), torch.arange(41.0) - 20
    angle = torch.atan2((turned.sum((1, 3)) * grid).sum(-1) / mass, (turned.sum((1, 2)) * grid).sum(-1) / mass)
    assert 25 < angle.rad2deg().abs().max() < 32
