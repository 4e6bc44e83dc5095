"""Estimators where a state cannot be, and where a relaxation is all but discrete."""

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from every_run import z_scores
from torch import Tensor

from ppgen import ELBO, programs
from ppgen.gradients import Concrete

NEVER = -float("inf")
X = torch.tensor([0.5, -1.0, 1.5])


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    with programs.Store().active():
        yield


def pair(*, one_hot: bool, forbidden: bool = True) -> tuple[Any, Any]:
    """A state of three that the guide never draws, and the model may not know either."""

    def site(logits: Tensor) -> Tensor:
        kind: Any = dist.OneHotCategorical if one_hot else dist.Categorical
        value: Tensor = pyro.sample("z", kind(logits=logits))
        return value

    def model(x: Tensor) -> None:
        means = pyro.param("means", torch.tensor([-1.0, 0.2, 1.0]))
        with pyro.plate("data", len(x)):
            z = site(torch.tensor([0.3, NEVER if forbidden else 0.0, 0.0]))
            pyro.sample("x", dist.Normal((z * means).sum(-1) if one_hot else means[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        free = pyro.param("free", torch.tensor([0.3, -0.3, 0.1])) * x.unsqueeze(-1)
        with pyro.plate("data", len(x)):
            site(torch.where(torch.tensor([True, False, True]), free, torch.tensor(NEVER)))

    return model, guide


def exact() -> tuple[Tensor, Tensor]:
    """The gradients of ``means`` and ``free``, of two states, in nats per datum."""
    means = torch.tensor([-1.0, 0.2, 1.0], requires_grad=True)
    free = torch.tensor([0.3, -0.3, 0.1], requires_grad=True)
    log_q = (free[[0, 2]] * X.unsqueeze(-1)).log_softmax(-1)
    log_p = torch.tensor([0.3, 0.0]).log_softmax(-1) + dist.Normal(means[[0, 2]], 1.0).log_prob(X.unsqueeze(-1))
    (log_q.exp() * (log_q - log_p)).sum(-1).mean().backward()
    assert means.grad is not None
    assert free.grad is not None
    return means.grad, free.grad


def found(name: str, *, one_hot: bool, calls: int = 40) -> Tensor:
    model, guide = pair(one_hot=one_hot)
    objective = ELBO(estimator=name, particles=1000, analytic_kl=False)
    rows = []
    with programs.quiet():
        for _ in range(calls):
            losses, _ = objective.phases()[0](model, guide, (X,))
            leaves = [pyro.get_param_store()._params[key] for key in ("means", "free")]
            rows.append(torch.cat(torch.autograd.grad(losses["all"], leaves, retain_graph=True)))
            if "estimator" in losses:
                own = [p for p in objective.parameters() if p.requires_grad]
                parts = torch.autograd.grad(losses["estimator"], own, allow_unused=True)
                assert all(part is None or part.isfinite().all() for part in parts), name
    return torch.stack(rows)


KINDS = [("score", False), ("score", True), ("nvil", False), ("muprop", True), ("rebar", True), ("relax", True)]


@pytest.mark.parametrize(("name", "one_hot"), KINDS)
def test_a_state_that_cannot_be_leaves_the_gradient_as_it_is(name: str, one_hot: bool) -> None:
    draws = found(name, one_hot=one_hot)
    assert draws.isfinite().all()
    assert z_scores(draws, torch.cat(exact())).max() < 4.5


def test_relaxations_of_such_a_site_are_finite() -> None:
    for name in ("gumbel-softmax", "straight-through", "gumbel-straight-through"):
        assert found(name, one_hot=True, calls=2).isfinite().all(), name


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("units", [False, True])
def test_no_temperature_rounds_a_relaxed_density_to_infinity(temperature: float, units: bool) -> None:
    logits = torch.tensor([0.3, -0.3, 0.1], requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            fn = dist.Bernoulli(torch.full((3,), 0.4)).to_event(1) if units else dist.OneHotCategorical(torch.ones(3))
            pyro.sample("x", dist.Normal(pyro.sample("z", fn).sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            own = logits * x.unsqueeze(-1)
            pyro.sample("z", dist.Bernoulli(logits=own).to_event(1) if units else dist.OneHotCategorical(logits=own))

    loss = ELBO(estimator=Concrete(temperature=temperature), particles=5000)(model, guide, X)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_logarithms_have_the_density_of_values_but_for_what_all_have_in_common() -> None:
    logits, others = torch.tensor([0.3, -0.5, 0.1]), torch.tensor([0.0, 0.4, 0.2])
    temperature = torch.tensor(0.7)
    for one_hot in (True, False):
        site: dict[str, Any] = {"fn": None, "infer": {}}
        make: Any = dist.OneHotCategorical if one_hot else dist.Bernoulli
        relaxed: Any = dist.RelaxedOneHotCategorical if one_hot else dist.RelaxedBernoulli
        site["fn"] = make(logits=logits)
        value = Concrete(temperature=0.7).draw(site)
        density = site["infer"][programs.DENSITY]
        mine = density(make(logits=logits)).log_prob(value) - density(make(logits=others)).log_prob(value)
        stock = relaxed(temperature, logits=logits).log_prob(value) - relaxed(temperature, logits=others).log_prob(
            value
        )
        assert torch.allclose(mine, stock, atol=1e-5)
