"""Observed values that their distribution cannot have are named before a step is taken, whatever validate_args says."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppgen import ELBO, Trainer
from ppgen.data import Batches
from ppgen.errors import DataError

UNCHECKED: dict[str, Any] = {"validate_args": False}
Likelihood = Callable[[Tensor], Any]
PIXELS = torch.randint(0, 256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
PIXELS[0, 0, 0, :2] = torch.tensor([0.0, 254.0])


@pytest.fixture(autouse=True)
def _own_store() -> Any:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def set_up(likelihood: Likelihood, x: Any, objective: Any = None) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    trainer = Trainer(model, guide, objective or ELBO(), compile="off")
    list(trainer.fit(x if isinstance(x, Batches) else {"x": x}, steps=1))


def images(**options: Any) -> Likelihood:
    return lambda z: dist.Bernoulli(logits=z[:, None, None, None].expand(-1, 1, 4, 4), **options).to_event(3)


@pytest.mark.parametrize("options", [{}, UNCHECKED], ids=["checked", "unchecked"])
@pytest.mark.parametrize("objective", [ELBO, Trace_ELBO])
@pytest.mark.parametrize("batched", [False, True], ids=["columns", "batches"])
def test_pixels_of_0_to_255_under_a_bernoulli(options: dict[str, Any], objective: Any, batched: bool) -> None:
    batches = Batches({"x": PIXELS}, 6) if batched else PIXELS
    place = r"\d+ at row \d, position \(0, \d, \d\)" if batched else r"254 at row 0, position \(0, 0, 1\)"
    with pytest.raises(DataError, match=rf"site 'x' observes {place} .*divide pixels of 0 to 255 by 255"):
        set_up(images(**options), batches, objective())


def test_intensities_are_the_continuous_relaxation_that_unchecked_bernoullis_are_taken_for() -> None:
    set_up(images(**UNCHECKED), PIXELS / 255)
    with pytest.raises(DataError, match=r"site 'x' observes 0.99.*draw or round it .*validate_args=False"):
        set_up(images(), PIXELS / 255)
    with pytest.raises(DataError, match=r"site 'x' observes -0.5 at row 0, position \(0, 0, 0\)"):
        set_up(images(**UNCHECKED), PIXELS / 255 - 0.5)


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


RATES = torch.ones(4, 3)
REFUSED: dict[str, tuple[Likelihood, Tensor, str]] = {
    "a negative count": (lambda z: dist.Poisson(z.exp(), **UNCHECKED), rows(0, 1, 2, -1), "-1 at row 3 "),
    "a count above the total": (lambda z: dist.Binomial(5, logits=z, **UNCHECKED), rows(1, 6, 2, 3), "6 at row 1 "),
    "a negative count of failures": (
        lambda z: dist.NegativeBinomial(z.exp(), torch.tensor(0.5), **UNCHECKED),
        rows(1, 2, -3, 0),
        "-3 at row 2 ",
    ),
    "a category too many": (
        lambda z: dist.Categorical(RATES, **UNCHECKED),
        torch.tensor([0, 1, 3, 2]),
        "3 at row 2 ",
    ),
    "half a category": (lambda z: dist.Categorical(RATES, **UNCHECKED), rows(0, 1, 1.5, 2), "1.5 at row 2 "),
    "a share above 1": (lambda z: dist.Beta(z.exp(), 1.0, **UNCHECKED), rows(0.1, 0.5, 1.5, 0.2), "1.5 at row 2 "),
    "a negative size": (lambda z: dist.LogNormal(z, 1.0, **UNCHECKED), rows(0.1, -0.5, 1.5, 2), "-0.5 at row 1 "),
    "shares that sum to 1.5": (
        lambda z: dist.Dirichlet(RATES, **UNCHECKED),
        torch.full((4, 3), 0.5),
        r"a vector of 0.5 to 0.5 at row 0 .*4 such values",
    ),
    "whole numbers that torch's Bernoulli cannot score": (
        lambda z: dist.Bernoulli(logits=z),
        torch.tensor([0, 1, 1, 0]),
        r"int64 values, .*pass y.float\(\), say",
    ),
    "a negative count of a word": (
        lambda z: dist.Multinomial(9, RATES, **UNCHECKED),
        torch.tensor([[1.0, 2, 3], [1, -1, 3], [0, 0, 0], [9, 0, 0]]),
        "a vector of -1 to 3 at row 1 ",
    ),
    "nan": (lambda z: dist.Normal(z, 1.0, **UNCHECKED), rows(1, 2, float("nan"), 3), "nan at row 2 .*mask it"),
    "nan in one of two": (
        lambda z: dist.Normal(z[:, None].expand(-1, 2), 1.0, **UNCHECKED).to_event(1),
        torch.tensor([[1.0, 2.0], [1.0, float("nan")], [0.0, 0.0]]),
        r"nan at row 1, position \(1,\) .*1 such value\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_outside_a_support_are_named(name: str) -> None:
    likelihood, x, message = REFUSED[name]
    with pytest.raises(DataError, match=f"site 'x' observes {message}"):
        set_up(likelihood, x)


ACCEPTED: dict[str, tuple[Likelihood, Tensor]] = {
    "expected counts": (lambda z: dist.Poisson(z.exp(), **UNCHECKED), rows(0, 1, 2.5, 1)),
    "soft one-hot rows": (lambda z: dist.OneHotCategorical(RATES, **UNCHECKED), torch.full((4, 3), 1 / 3)),
    "documents of any length": (
        lambda z: dist.Multinomial(9, RATES, **UNCHECKED),
        torch.tensor([[1.0, 2, 3], [9, 9, 9], [0, 0, 0], [9, 0, 0]]),
    ),
    "whole numbers under a normal": (lambda z: dist.Normal(z, 1.0), torch.tensor([1, 2, 3, 4])),
    "what a distribution masks": (
        lambda z: dist.Bernoulli(logits=z, **UNCHECKED).mask(torch.arange(4) != 2),
        rows(0, 1, 255, 1),
    ),
    "what a handler masks": (
        lambda z: (
            dist.Poisson(z.exp()[:, None].expand(-1, 2), **UNCHECKED)
            .mask(torch.tensor([[True, True], [True, False], [True, True], [True, True]]))
            .to_event(1)
        ),
        torch.tensor([[1.0, 2.0], [1.0, -1.0], [0.0, 0.0], [3.0, 1.0]]),
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_values_that_have_a_density_or_do_not_count_pass(name: str) -> None:
    set_up(*ACCEPTED[name])


def test_rows_that_a_handler_masks_do_not_count() -> None:
    x, known = rows(0, 1, 255, 1), torch.arange(4) != 2

    def model(x: Tensor, known: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=known):
            pyro.sample("x", dist.Bernoulli(pyro.param("p", torch.tensor(0.5)), **UNCHECKED), obs=x)

    def guide(x: Tensor, known: Tensor) -> None:
        pass

    fast = functools.partial(torch.optim.Adam, lr=0.01)
    Trainer(model, guide, ELBO(), fast, compile="off").setup({"x": x, "known": known})
    with pytest.raises(DataError, match="255 at row 2 "):
        Trainer(model, guide, ELBO(), fast, compile="off").setup({"x": x, "known": torch.ones(4) > 0})
