"""Critics, generators and their layers: shapes, who sees whom, and derivatives of derivatives."""

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import softplus

from ppgen import nn
from ppgen.errors import ConfigError
from ppgen.nn.batchwise import NORMALIZATIONS, ReferenceNorm
from ppgen.objectives import Objective
from ppgen.training import Trainer

compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")

NETWORKS: dict[str, tuple[int, ...]] = {"mlp": (6, 5), "conv": (2, 3, 5), "dcgan": (2, 3)}
IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 7, 5), (2, 1, 9), (1, 1, 1)]
every_network = pytest.mark.parametrize("network", NETWORKS)
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def made_critic(
    network: str, shape: tuple[int, ...], *, normalization: str | None = None, others: tuple[int, ...] = (), **more: Any
) -> nn.Critic:
    torch.manual_seed(3)
    if normalization == "virtual":
        more["reference"] = [torch.rand(6, *shape), *(torch.randn(6, size) for size in others)]
    options: Any = {"network": network, "normalization": normalization, "hidden": NETWORKS[network], **more}
    return nn.critic(shape, others=others, **options)


def made_generator(
    network: str, inputs: tuple[int, ...], shape: tuple[int, ...], *, normalization: str | None = None, **more: Any
) -> torch.nn.Module:
    torch.manual_seed(4)
    if normalization == "virtual":
        more["reference"] = [torch.randn(6, size) for size in inputs]
    options: Any = {"network": network, "normalization": normalization, "hidden": NETWORKS[network], **more}
    return nn.generator(inputs, shape, **options)


def layers_of(network: torch.nn.Module, kind: type[torch.nn.Module] | tuple[type[torch.nn.Module], ...]) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, kind)]


# ------------------------------------------------------------------------------------------------------------- shapes


def test_leaky_relu_has_dcgans_slope() -> None:
    assert nn.activation("leaky-relu")(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([-0.2, 2.0])


@every_network
@every_normalization
@pytest.mark.parametrize("shape", IMAGES)
def test_networks_take_images_of_any_size(network: str, normalization: str, shape: tuple[int, ...]) -> None:
    critic = made_critic(network, shape, normalization=normalization, minibatch=2, outputs=3, dropout=0.1)
    generator = made_generator(network, (4, 3), shape, normalization=normalization, output="sigmoid")
    x = generator(torch.randn(5, 4), torch.eye(3).repeat(2, 1)[:5])
    assert x.shape == (5, *shape)
    assert ((x > 0) & (x < 1)).all()
    assert critic(x).shape == (5, critic.outputs) == (5, 3)
    assert critic.features(x).shape == (5, critic.width)


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_perceptrons_take_arrays_of_any_shape(shape: tuple[int, ...]) -> None:
    x = made_generator("mlp", (3,), shape)(torch.randn(5, 3))
    assert x.shape == (5, *shape)
    assert x.min() < 0, "no sigmoid unless told"
    assert made_critic("mlp", shape)(x).shape == (5, 1)


@every_network
@every_normalization
def test_leading_dimensions_are_rows_and_inputs_broadcast(network: str, normalization: str) -> None:
    critic = made_critic(network, (1, 4, 4), normalization=normalization, others=(3, 2)).eval()
    x, y, z = torch.rand(5, 1, 4, 4), torch.randn(2, 1, 3), torch.randn(2, 5, 2)
    assert torch.allclose(critic(x, y, z)[1], critic(x, y[1].expand(5, 3), z[1]), atol=1e-5)
    assert not torch.allclose(critic(x, y, z)[1], critic(x, y[0].expand(5, 3), z[1]), atol=1e-4), "others matter"
    generator = made_generator(network, (3, 2), (1, 4, 4), normalization=normalization).eval()
    assert torch.allclose(generator(y, z)[1], generator(y[1].expand(5, 3), z[1]), atol=1e-5)


@every_network
def test_features_are_what_the_head_reads(network: str) -> None:
    critic, x = made_critic(network, (1, 4, 4), minibatch=2, normalization="layer"), torch.rand(5, 1, 4, 4)
    assert torch.equal(critic.head(critic.features(x)), critic(x))
    assert critic.width == {"mlp": 5, "conv": 5, "dcgan": 3}[network] + 2


def test_hidden_sizes_run_from_data_to_latents() -> None:
    sizes = [(layer.in_features, layer.out_features) for layer in layers_of(made_critic("mlp", (4,)), torch.nn.Linear)]
    assert sizes == [(4, 6), (6, 5), (5, 1)]
    mirrored = layers_of(made_generator("mlp", (3,), (4,)), torch.nn.Linear)
    assert [(layer.in_features, layer.out_features) for layer in mirrored] == [(3, 5), (5, 6), (6, 4)]
    convolutions = layers_of(made_generator("conv", (3,), (1, 8, 8)), torch.nn.ConvTranspose2d)
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(3, 2), (2, 1)]


def test_dropout_drops_in_every_hidden_layer_and_only_while_training() -> None:
    critic, x = made_critic("conv", (1, 8, 8), dropout=0.5), torch.rand(5, 1, 8, 8)
    assert [layer.p for layer in layers_of(critic, torch.nn.Dropout)] == [0.5] * 3
    assert not torch.equal(critic(x), critic(x))
    critic.eval()
    assert torch.equal(critic(x), critic(x))


# -------------------------------------------------------------------------------------------------------------- DCGAN


def test_dcgan_is_what_its_paper_says() -> None:
    critic = nn.critic((3, 32, 32), network="dcgan", hidden=(32, 64, 128))
    generator = nn.generator([100], (3, 32, 32), network="dcgan", hidden=(32, 64, 128))
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear, torch.nn.BatchNorm2d, torch.nn.LeakyReLU)
    names = [type(layer).__name__ for layer in layers_of(critic, kinds)]
    assert names == ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2, "Linear"]
    names = [type(layer).__name__ for layer in layers_of(generator, (*kinds, torch.nn.ReLU))]
    assert names == ["Linear", *["BatchNorm2d", "ReLU", "ConvTranspose2d"] * 3]
    for layer in layers_of(torch.nn.ModuleList([critic, generator]), kinds[:3]):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
    assert {layer.kernel_size for layer in layers_of(critic, torch.nn.Conv2d)} == {(4, 4)}
    plain = nn.critic((3, 32, 32), network="conv", hidden=(32, 64, 128))
    assert not layers_of(plain, torch.nn.BatchNorm2d), "negative control"
    assert float(layers_of(plain, torch.nn.Conv2d)[1].weight.detach().std()) > 0.025


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("size", [(28, 14), (7, 4), (1, 1), (9, 5)])
def test_doubling_is_halving_the_other_way_round(kernel: Any, size: tuple[int, int]) -> None:
    before, after = size
    down = nn.dcgan.halving(1, 1, (before, before), kernel)
    up = nn.dcgan.doubling(1, 1, (before, before), kernel)
    up.weight.data, up.bias = down.weight.data, None
    down.bias = None
    x, y = torch.randn(1, 1, before, before).double(), torch.randn(1, 1, after, after).double()
    down, up = down.double(), up.double()
    # <down(x), y> = <x, up(y)>: each is the other's transpose
    assert float((down(x) * y).sum().detach()) == pytest.approx(float((x * up(y)).sum().detach()), abs=1e-9)


# ------------------------------------------------------------------------------------------------------ who sees whom


def depends_on_other_rows(network: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the first row's output changes with the other rows, or with how many there are."""
    changed = torch.cat([x[:1], x[1:].flip(0) * 0.5])
    outputs = [network(rows)[0] for rows in (x, changed, x[:3])]
    return not all(torch.allclose(one, outputs[0], atol=1e-5) for one in outputs)


@every_network
@every_normalization
def test_only_batch_normalisation_lets_rows_see_each_other(network: str, normalization: str) -> None:
    critic = made_critic(network, (1, 4, 4), normalization=normalization)
    generator = made_generator(network, (3,), (1, 4, 4), normalization=normalization)
    if normalization == "spectral":  # its power iterations move on from call to call
        critic.eval(), generator.eval()
    expected = normalization == "batch"  # the negative control
    assert depends_on_other_rows(critic, torch.rand(5, 1, 4, 4)) == expected
    assert depends_on_other_rows(generator, torch.randn(5, 3)) == expected


@pytest.mark.parametrize("event", [(), (4, 3)])
def test_a_row_is_normalised_as_by_a_batch_of_the_reference_and_itself(event: tuple[int, ...]) -> None:
    reference, x = torch.randn(6, 2, *event) * 3 + 5, torch.randn(7, 2, *event)
    virtual = nn.VirtualBatchNorm(ReferenceNorm(2), reference)
    norm: Any = torch.nn.BatchNorm2d(2) if event else torch.nn.BatchNorm1d(2)
    layer: Any = virtual.network
    for one in (norm, layer):
        one.weight.data, one.bias.data = torch.tensor([1.5, -2.0]), torch.tensor([0.5, 1.0])
    expected = torch.cat([norm(torch.cat([reference, row[None]]))[-1:] for row in x])
    assert torch.allclose(virtual(x), expected, atol=1e-4)
    assert not torch.allclose(norm(x), expected, atol=0.1), "negative control"


def test_the_reference_goes_through_every_layer() -> None:
    """The second layer's reference is what the first made of it: that of an ordinary batch normalisation."""
    reference, x = torch.randn(6, 3), torch.randn(4, 3)
    first, second = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)
    virtual = nn.VirtualBatchNorm(torch.nn.Sequential(first, ReferenceNorm(5), torch.nn.Tanh(), second), reference)
    deep = nn.VirtualBatchNorm(torch.nn.Sequential(*virtual.network.children(), ReferenceNorm(2)), reference)
    below = torch.nn.functional.batch_norm(first(reference), None, None, training=True)
    through = second(below.tanh())
    joint = torch.cat([through, virtual(x)[:1]])
    expected = torch.nn.functional.batch_norm(joint, None, None, training=True)[-1]
    assert torch.allclose(deep(x)[0], expected, atol=1e-4)


def test_the_reference_is_a_buffer_and_belongs_to_the_caller_no_more() -> None:
    reference = torch.rand(6, 3)
    critic = nn.critic((3,), normalization="virtual", reference=reference)
    x = torch.rand(4, 3)
    before = critic(x)
    reference.zero_()
    assert torch.equal(critic(x), before)
    assert critic.double()(x.double()).dtype == torch.float64
    (name,) = (name for name, _ in critic.named_buffers())
    assert "reference" in name
    assert len(list(critic.parameters())) == 3 * 2 + 2 * 2 - 0, "weights and biases, none of the reference"


def test_minibatch_discrimination_equals_a_double_loop() -> None:
    layer, x = nn.MinibatchDiscrimination(4, 3, dimensions=2), torch.randn(6, 4)
    places = (x @ layer.projection.weight.T).reshape(6, 3, 2)
    expected = torch.zeros(6, 3)
    for i, j, k in itertools.product(range(6), range(6), range(3)):
        expected[i, k] += torch.exp(-(places[i, k] - places[j, k]).abs().sum())
    assert layer(x).shape == (6, 7)
    assert torch.equal(layer(x)[:, :4], x)
    assert torch.allclose(layer(x)[:, 4:], expected, atol=1e-5)
    assert torch.equal(layer(x.reshape(2, 3, 4)), layer(x).reshape(2, 3, 7))


def test_minibatch_discrimination_sees_a_collapse() -> None:
    critic, x = made_critic("mlp", (4,), minibatch=3), torch.randn(20, 4)
    apart, collapsed = critic.features(x)[:, -3:], critic.features(x[:1].expand(20, 4))[:, -3:]
    assert torch.allclose(collapsed, torch.full((20, 3), 20.0)), "each of 20 rows is close to 20"
    assert apart.max() < 19
    assert apart.min() > 1.05, "distances start at a size that has gradients"
    assert depends_on_other_rows(critic, x)
    assert not depends_on_other_rows(made_critic("mlp", (4,)), x), "negative control"


# -------------------------------------------------------------------------------------------------- singular values


def largest_singular_values(network: torch.nn.Module) -> list[float]:
    layers = layers_of(network, (torch.nn.Linear, torch.nn.Conv2d))
    return [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) for layer in layers]


@every_network
def test_spectrally_normalised_weights_have_a_largest_singular_value_of_1(network: str) -> None:
    critic = made_critic(network, (1, 8, 8), normalization="spectral", others=(3,), minibatch=2)
    for parameter in critic.parameters():
        parameter.data.mul_(3.0)
    for _ in range(200):
        critic(torch.rand(4, 1, 8, 8), torch.randn(4, 3))
    assert len(largest_singular_values(critic)) == len(NETWORKS[network]) + (4 if network == "dcgan" else 3)
    assert largest_singular_values(critic) == pytest.approx([1.0] * len(largest_singular_values(critic)), abs=1e-3)
    plain = largest_singular_values(made_critic(network, (1, 8, 8), normalization="none", others=(3,), minibatch=2))
    assert min(abs(value - 1) for value in plain) > 1e-3, "negative control"


# ----------------------------------------------------------------------------------------------- second derivatives


@every_network
@every_normalization
@pytest.mark.parametrize("minibatch", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_second_derivatives_of_critics_are_right(network: str, normalization: str, minibatch: int) -> None:
    critic = made_critic(
        network, (1, 4, 3), normalization=normalization, others=(2,), minibatch=minibatch, activation="tanh"
    ).double()
    if normalization == "spectral":  # otherwise a power iteration changes the function from call to call
        critic.eval()
    names, leaves = zip(*critic.named_parameters(), strict=True)
    x = torch.rand(3, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, z: Tensor, *leaves: Tensor) -> Any:
        return functional_call(critic, dict(zip(names, leaves, strict=True)), (x, z))

    assert torch.autograd.gradgradcheck(function, (x, z, *leaves), atol=1e-5, fast_mode=True)


def test_second_derivatives_of_minibatch_discrimination_are_right() -> None:
    layer, x = nn.MinibatchDiscrimination(3, 2).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


def gradients(loss: Tensor, leaves: Sequence[Tensor], **options: Any) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True, **options)
    return [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, leaves, strict=True)]


def penalised(critic: nn.Critic, generator: torch.nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """The loss of a WGAN-GP critic, at points between data and draws."""
    fake = generator(z).detach()
    between = (0.3 * x + 0.7 * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    loss: Tensor = critic(fake).mean() - critic(x).mean() + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return loss


def unrolled(critic: nn.Critic, generator: torch.nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """The loss of a generator whose critic takes a step first, through which it is differentiated."""
    leaves: dict[str, Tensor] = dict(critic.named_parameters())
    fake = generator(z)
    call: Any = functools.partial(functional_call, critic)
    loss = (softplus(-call(leaves, (x,))) + softplus(call(leaves, (fake,)))).mean()
    slopes = gradients(loss, list(leaves.values()), create_graph=True)
    leaves = {name: leaf - 0.5 * slope for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)}
    return softplus(-call(leaves, (fake,))).mean()


GAMES: dict[str, Any] = {"penalised": penalised, "unrolled": unrolled}
QUICK = {("mlp", normalization, game) for normalization in NORMALIZATIONS for game in GAMES} - {
    ("mlp", "none", "unrolled"),
    ("mlp", "layer", "unrolled"),
} | {("dcgan", "batch", "penalised")}


@pytest.mark.parametrize(
    ("network", "normalization", "game"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(NETWORKS, NORMALIZATIONS, GAMES)
    ],
)
def test_a_traced_game_equals_an_eager_one(network: str, normalization: str, game: str) -> None:
    options: Any = {"normalization": normalization}
    critic = made_critic(network, (1, 4, 4), minibatch=2, **options)
    generator = made_generator(network, (3,), (1, 4, 4), **options)
    both = torch.nn.ModuleDict({"critic": critic, "generator": generator}).double()
    leaves = list((critic if game == "penalised" else generator).parameters())

    def step(x: Tensor, z: Tensor) -> list[Tensor]:
        loss = GAMES[game](critic, generator, x, z)
        return [loss.detach(), *gradients(loss, leaves)]

    x, z = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    graph = make_fx(step)(x.roll(1, 0), z)
    both.load_state_dict(before)
    eager = step(x, z)
    buffers = [buffer.clone() for buffer in both.buffers()]
    both.load_state_dict(before)
    with torch.no_grad():
        traced = graph(x, z)
    assert max(float(one.abs().max()) for one in eager[1:]) > 1e-6, "there is something to compare"
    for one, two in zip([*traced, *both.buffers()], [*eager, *buffers], strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(step(x * 0.5, z)[1], eager[1], rtol=1e-4, atol=1e-12), "negative control"


class Duel(Objective):
    """A WGAN-GP critic against an unrolled generator, whatever the programs are."""

    def __init__(self, critic: nn.Critic, generator: torch.nn.Module) -> None:
        super().__init__()
        self.critic = critic
        self.generator = generator

    def setup(self, model: Any, guide: Any, batch: Any) -> None:
        """There is nothing to look at."""

    def players(self, model: Any, guide: Any, batch: Any) -> dict[str, dict[str, Tensor]]:
        parts = {"critic": self.critic, "model": self.generator}
        return {name: {f"{name}.{key}": p for key, p in part.named_parameters()} for name, part in parts.items()}

    def phases(self) -> tuple[Any, ...]:
        return self._critic, self._model

    def _critic(self, model: Any, guide: Any, batch: Any) -> Any:
        return {"critic": penalised(self.critic, self.generator, batch["x"], self._noise(batch["x"]))}, {}

    def _model(self, model: Any, guide: Any, batch: Any) -> Any:
        return {"model": unrolled(self.critic, self.generator, batch["x"], self._noise(batch["x"]))}, {}

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), 3, dtype=x.dtype)


def nothing(x: Tensor) -> None:
    """A program without sites."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_network
@every_normalization
def test_a_compiled_game_equals_an_eager_one(network: str, normalization: str) -> None:
    reports, tensors = [], []
    for mode in ("on", "off"):
        options: Any = {"normalization": normalization}
        critic = made_critic(network, (1, 4, 4), minibatch=2, activation="tanh", dropout=0.1, **options)
        generator = made_generator(network, (3,), (1, 4, 4), activation="tanh", **options)
        duel = Duel(critic, generator).double()  # errors of rounding grow from step to step in a game
        optimizer = functools.partial(torch.optim.SGD, lr=0.01)
        compile: Any = mode
        trainer = Trainer(nothing, nothing, duel, optimizer, device="cpu", compile=compile)
        torch.manual_seed(1)
        stream: Iterator[Any] = iter(lambda: {"x": torch.rand(5, 1, 4, 4, dtype=torch.float64)}, None)
        reports.append([{name: float(value) for name, value in trainer.step(stream).items()} for _ in range(12)])
        tensors.append([tensor.clone() for tensor in (*trainer.leaves.values(), *duel.buffers())])
        assert trainer.compiled == (mode == "on")
    for one, two in zip(*reports, strict=True):
        assert one == pytest.approx(two, rel=1e-6)
    assert reports[0][0]["loss/critic"] != pytest.approx(reports[0][-1]["loss/critic"], rel=1e-3)
    for ours, theirs in zip(*tensors, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-6, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: nn.critic((4,), network="cnn"), "expected network mlp, conv, dcgan; got 'cnn'"),  # type: ignore[arg-type]
        (lambda: nn.critic((4,), network="dcgan"), r"expected images \(channels, height, width\).*got \(4,\)"),
        (lambda: nn.generator([2], (4,), network="conv"), r"expected images \(channels, height, width\).*got \(4,\)"),
        (lambda: nn.critic((4,), hidden=()), "expected hidden as one size or more.*got nothing"),
        (lambda: nn.generator([2], (1, 8, 8), network="conv", hidden=(32,)), "expected hidden as channels.*got 32"),
        (lambda: nn.critic((4,), normalization="instance"), "expected normalization none, batch.*got 'instance'"),  # type: ignore[arg-type]
        (lambda: nn.critic((4,), activation="swoosh"), "expected activation relu, .*got 'swoosh'"),
        (lambda: nn.generator([2], (4,), output="tanh"), "expected output identity, sigmoid; got 'tanh'"),  # type: ignore[arg-type]
        (lambda: nn.critic((4,), minibatch=-1), "expected outputs of 1 or more and minibatch of 0 or more; got 1, -1"),
        (lambda: nn.critic((4,), outputs=0), "expected outputs of 1 or more and minibatch of 0 or more; got 0, 0"),
        (lambda: nn.critic((4,), normalization="virtual"), "expected reference rows .*got none"),
        (
            lambda: nn.critic((4,), others=[2], normalization="virtual", reference=torch.rand(6, 4)),
            r"expected \(rows, 4\), \(rows, 2\) as reference rows; got \(6, 4\)",
        ),
        (
            lambda: nn.critic((4,), normalization="virtual", reference=torch.rand(1, 4)),
            r"expected two or more reference rows, as many of each input; got \(1, 4\)",
        ),
        (lambda: nn.critic((4,), reference=torch.rand(6, 4)), 'only with normalization="virtual"; got "none"'),
        (lambda: nn.VirtualBatchNorm(nn.MLP(4, [3], 2), torch.rand(6, 4)), "it has none"),
        (lambda: ReferenceNorm(3)(torch.rand(6, 3)), "inside nn.VirtualBatchNorm"),
        (
            lambda: nn.critic((1, 8, 8), others=[2])(torch.rand(5, 64), torch.rand(5, 2)),
            r"expected \(rows, 1, 8, 8\), \(rows, 2\) as inputs of the critic; got \(5, 64\), \(5, 2\)",
        ),
        (lambda: nn.critic((4,), others=[2])(torch.rand(5, 4)), r"as inputs of the critic; got \(5, 4\)"),
    ],
)
def test_what_cannot_be_is_refused(made: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made()
