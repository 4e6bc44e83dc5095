"""Precisions of matrix products: what is narrowed, what is not, and what a machine lacks."""

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ppgen
from ppgen import ELBO, Trainer, data, precision, programs
from ppgen.errors import ConfigError
from ppgen.precision import arithmetic, choose_precision
from ppgen.recipes import Entry, Recipe, find

CPU = torch.device("cpu")
A, B, IMAGE = torch.randn(8, 16), torch.randn(16, 4), torch.randn(2, 3, 8, 8)
KERNEL, TRANSPOSED = torch.randn(5, 3, 3, 3), torch.randn(3, 5, 3, 3)

PRODUCTS: dict[str, Any] = {
    "matmul": (torch.matmul, A, B),
    "@": (lambda a, b: a @ b, A, B),
    "mm": (lambda a, b: a.mm(b), A, B),
    "linear": (functional.linear, A, B.t()),
    "Linear": (lambda a, b: nn.Sequential(_linear(b))(a), A, B.t()),
    "batched": (torch.bmm, A.expand(3, 8, 16), B.expand(3, 16, 4)),
    "convolution": (functional.conv2d, IMAGE, KERNEL),
    "transposed convolution": (functional.conv_transpose2d, IMAGE, TRANSPOSED),
}


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_taken_in_bfloat16_and_come_out_as_float32(name: str) -> None:
    function, a, b = PRODUCTS[name]
    exact = function(a, b)
    narrow = function(a.bfloat16(), b.bfloat16()).float()
    with arithmetic("bf16", CPU):
        product = function(a, b)
    assert product.dtype == torch.float32
    assert torch.equal(product, narrow)
    assert not torch.equal(product, exact)
    for plain in ("fp32", "tf32"):
        with arithmetic(plain, CPU):
            assert torch.equal(function(a, b), exact)
    assert torch.equal(function(a, b), exact)


def test_gradients_of_products_are_narrow_and_all_else_is_not() -> None:
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    with arithmetic("bf16", CPU):
        hidden = torch.tanh(a @ b)
        (gradient,) = torch.autograd.grad(hidden.square().sum(), b)
    assert hidden.dtype == gradient.dtype == torch.float32
    narrow = torch.tanh((a.bfloat16() @ b.bfloat16()).float())
    (expected,) = torch.autograd.grad(narrow.square().sum(), b)
    assert torch.equal(gradient, expected)
    wide = torch.tanh(a @ b)
    assert not torch.equal(torch.autograd.grad(wide.square().sum(), b)[0], gradient)


def test_integer_and_double_products_stay_as_they_are() -> None:
    with arithmetic("bf16", CPU):
        assert torch.equal(A.double() @ B.double(), torch.matmul(A.double(), B.double()))
        assert (A.double() @ B.double()).dtype == torch.float64
        assert torch.equal(torch.tensor([[3]]) @ torch.tensor([[257]]), torch.tensor([[771]]))


def test_densities_are_float32_whatever_the_products() -> None:
    """A full covariance has products in its density; 1.01 is not a number of bfloat16."""
    tril = torch.tensor([[1.01, 0.0], [0.37, 1.03]])
    value = torch.tensor([0.123, 0.457])
    normal = dist.MultivariateNormal(torch.zeros(2), scale_tril=tril)
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.LowerCholeskyAffine(torch.zeros(2), tril)]
    )
    site = {"fn": flow, "value": value, "args": (), "kwargs": {}}
    exact = flow.log_prob(value)
    with arithmetic("bf16", CPU):
        assert torch.equal(programs.joint.log_prob_of(site), exact)
        with programs.in_full_precision():
            assert torch.equal(tril @ tril, torch.matmul(tril, tril))
        # the control: a product right there is narrow
        assert not torch.allclose(tril @ value, (tril.double() @ value.double()).float(), rtol=1e-4)
    assert torch.allclose(normal.log_prob(value), exact)


def test_no_distribution_sees_bfloat16() -> None:
    seen: list[torch.dtype] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = self.layer(x)
                seen.append(loc.dtype)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    trainer = Trainer(Net(), lambda x: None, ELBO(), device="cpu", precision="bf16", compile="off")
    list(trainer.fit({"x": torch.randn(6, 4)}, steps=2))
    assert set(seen) == {torch.float32}
    assert {leaf.dtype for leaf in trainer.leaves.values()} == {torch.float32}


def test_a_precision_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="expected precision auto, fp32, tf32, bf16; got 'fp7'"):
        choose_precision("fp7", CPU)
    with pytest.raises(ConfigError, match="precision 'tf32' is not there: this machine's cpu has fp32, bf16"):
        choose_precision("tf32", CPU)


def test_auto_is_what_the_machine_runs_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast, raising=False)
        assert choose_precision("auto", CPU) == expected


def test_auto_spares_small_steps_and_the_users_own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_fast_at_bf16", lambda device: True)
    digits = data.load("digits")

    def built(entry: Entry, **options: Any) -> Recipe:
        return entry.build(digits, entry.resolve("digits", options))

    assert built(find("vae")).precision("auto", CPU) == "fp32"
    assert built(find("vae"), hidden=(2000, 500)).precision("auto", CPU) == "bf16"
    own = Entry("own", lambda data: (nn.Linear(5000, 5000), nn.Linear(1, 1), ELBO()))
    assert built(own).precision("auto", CPU) == "fp32"
    assert built(own).precision("bf16", CPU) == "bf16"


def test_training_in_bfloat16_ends_where_float32_does() -> None:
    digits = data.load("digits")
    losses = {}
    for name in ("fp32", "bf16"):
        torch.manual_seed(0)
        recipe = find("vae").build(digits, find("vae").resolve("digits", {"hidden": (32,)}))
        trainer = ppgen.Trainer(
            recipe.model, recipe.guide, recipe.objective, device="cpu", precision=name, compile="off"
        )
        *_, last = trainer.fit(recipe.batches(0, CPU), steps=400, every=100)
        losses[name] = last["loss"]
    assert losses["bf16"] != losses["fp32"]
    assert abs(losses["bf16"] - losses["fp32"]) < 0.3


@pytest.fixture
def _settings() -> Iterator[None]:
    own: Any = torch.backends
    parts = (own.cuda.matmul, own.cudnn.conv, own.cudnn.rnn)
    before = [part.fp32_precision for part in parts]
    yield
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("own", ["none", "tf32", "ieee"])
@pytest.mark.parametrize(("asked", "inside"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_the_users_own_settings_of_products_hold_again_afterwards(own: str, asked: str, inside: str) -> None:
    matmul: Any = torch.backends.cuda.matmul
    matmul.fp32_precision = own
    with precision.backend(asked, torch.device("cuda")):
        assert matmul.fp32_precision in (inside, "none" if inside == "ieee" else inside)
    assert matmul.fp32_precision == own
