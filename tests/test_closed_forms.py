"""Divergences in closed form against sampled ones, where programs make the two differ; programs that use autograd."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from zoo import repeated, z_between

import ppgen
from ppgen import ELBO, programs
from ppgen.errors import ConfigError
from ppgen.evaluation import evaluate
from ppgen.objectives import EnumeratedELBO, elbo
from ppgen.training import Trainer

X = torch.tensor([0.3, -1.2, 0.8, 2.0])
SOME = torch.tensor([True, False, True, True])
Distributions = tuple[Callable[[], Any], Callable[[Tensor], Any]]


def pair_of(prior: Callable[[], Any], posterior: Callable[[Tensor], Any]) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            events = tuple(range(-len(prior().event_shape), 0))
            pyro.sample("x", dist.Normal(z.sum(events) if events else z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(pyro.param("c", torch.tensor(1.0)) * x))

    return model, guide


def require_one_value(model: Any, guide: Any) -> None:
    closed = repeated(ELBO(particles=200), model, guide, {"x": X}, draws=60)
    sampled = repeated(ELBO(particles=200, analytic_kl=False), model, guide, {"x": X}, draws=60, seed=7)
    assert z_between(closed[0], sampled[0]) < 4.5
    for name, gradients in closed[1].items():
        assert z_between(gradients, sampled[1][name]) < 4.5


CASES: dict[str, Distributions] = {
    "both masked": (lambda: dist.Normal(0.0, 1.0).mask(False), lambda x: dist.Normal(x, 0.5).mask(False)),
    "prior masked": (lambda: dist.Normal(0.0, 1.0).mask(False), lambda x: dist.Normal(x, 0.5)),
    "guide masked": (lambda: dist.Normal(0.0, 1.0), lambda x: dist.Normal(x, 0.5).mask(False)),
    "prior masked in a row": (lambda: dist.Normal(0.0, 1.0).mask(SOME), lambda x: dist.Normal(x, 0.5)),
    "both masked in a row": (lambda: dist.Normal(0.0, 1.0).mask(SOME), lambda x: dist.Normal(x, 0.5).mask(SOME)),
    "masked within an event": (
        lambda: dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1),
        lambda x: dist.Normal(x[:, None].expand(-1, 2), 0.5).to_event(1),
    ),
    "other reinterpreted dimensions": (
        lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3)).expand([2]).to_event(1),
        lambda x: dist.Normal(x[:, None, None].expand(-1, 2, 3), 0.7).to_event(2),
    ),
    "fewer dimensions of a batch": (
        lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1),
        lambda x: dist.Normal(x[:, None].expand(-1, 3), 0.5).to_event(1),
    ),
    "bounded support": (lambda: dist.Uniform(0.0, 1.0), lambda x: dist.Beta(x.abs() + 1, 2.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_closed_form_is_the_sampled_divergence(name: str) -> None:
    require_one_value(*pair_of(*CASES[name]))


def test_a_closed_form_with_masks_of_their_own_would_be_another() -> None:
    one, other = (repeated(ELBO(particles=200), *pair_of(*CASES[n]), {"x": X}, draws=60) for n in list(CASES)[:2])
    assert z_between(one[0], other[0]) > 6, "negative control"


def through_python() -> tuple[Any, Any]:
    """A prior that the guide's later draw reaches through a variable, which no order of sites shows."""
    kept: dict[str, Tensor] = {}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(kept["y"], 1.0))
            y = pyro.sample("y", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("c", torch.tensor(1.0)) * x, 0.5))
            kept["y"] = pyro.sample("y", dist.Normal(z + x, 0.5))

    return model, guide


def test_a_prior_may_depend_on_a_later_draw_through_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    require_one_value(*through_python())
    sampled = repeated(ELBO(particles=200, analytic_kl=False), *through_python(), {"x": X}, draws=60, seed=7)
    monkeypatch.setattr(elbo, "_late_priors", lambda *_: frozenset())
    biased = repeated(ELBO(particles=200), *through_python(), {"x": X}, draws=60)
    assert z_between(biased[0], sampled[0]) > 6, "negative control: without looking"


# ------------------------------------------------------------------------------------------------- derivatives inside


class Langevin(torch.nn.Module):
    """A guide that climbs the joint density for two steps, and a model that knows its decoder's slope."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decode, self.encode = torch.nn.Linear(1, 1), torch.nn.Linear(1, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("langevin", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            there = z if z.requires_grad else z.detach().requires_grad_()
            loc = self.decode(there.unsqueeze(-1)).squeeze(-1)
            (slope,) = torch.autograd.grad(loc.sum(), there, create_graph=True)
            pyro.sample("x", dist.Normal(loc + 0.1 * slope, 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("langevin", self)
        loc, log_scale = self.encode(x.unsqueeze(-1)).unbind(-1)
        there = loc.detach().clone().requires_grad_()
        for _ in range(2):
            (slope,) = torch.autograd.grad((x - there).square().sum(), there)
            there = (there - 0.1 * slope).detach().requires_grad_()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + 0.1 * there.detach(), log_scale.exp()))


def trainer(model: Any, guide: Any, objective: Any) -> Trainer:
    return Trainer(model, guide, objective, lambda leaves: torch.optim.Adam(leaves, 1e-2), compile="off")


def test_programs_may_take_derivatives_themselves() -> None:
    made, batch = Langevin(), {"x": X}
    trained = trainer(made.model, made.guide, ELBO())
    assert list(trained.fit(iter(lambda: batch, None), steps=2))
    assert evaluate(trained, batch, particles=5, measures=("nll", "elbo")).nll is not None
    with trained.evaluating():
        for found in (programs.generate(made.model, batch), programs.reconstruct(made.model, made.guide, batch)):
            assert not any(value.requires_grad for value in found.values())
    assert "posterior" in ppgen.to_arviz(trained, batch, draws=2)


def test_what_fails_with_derivatives_too_fails_for_its_own_reason() -> None:
    def model(x: Tensor) -> None:
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        programs.generate(model, {"x": X})


# ------------------------------------------------------------------------------------------ states of the model alone


def test_states_of_the_model_alone_are_drawn_from_their_posterior_for_arviz() -> None:
    """Components far apart: the data tell which one each row is of."""
    x = torch.tensor([-5.0, 5.0, 5.2, -4.9])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(torch.tensor([-5.0, 5.0])[k] + z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("b", torch.tensor(0.1)) * x.sign(), 0.1))

    trained = trainer(model, guide, EnumeratedELBO())
    assert list(trained.fit(iter(lambda: {"x": x}, None), steps=1))
    found = ppgen.to_arviz(trained, {"x": x}, draws=5)
    drawn = torch.as_tensor(found["posterior"]["k"].values)
    assert drawn.tolist() == torch.tensor([0, 1, 1, 0]).expand(drawn.shape).tolist()
    z = torch.as_tensor(found["posterior"]["z"].values)
    with torch.no_grad():
        q = dist.Normal(trained.leaves[next(iter(trained.leaves))] * x.sign(), 0.1).log_prob(z)
    each = (
        dist.Normal(torch.tensor([-5.0, 5.0]) + z.unsqueeze(-1), 0.5).log_prob(x.unsqueeze(-1)) - torch.tensor(2).log()
    )
    expected = dist.Normal(0.0, 0.1).log_prob(z) + each.logsumexp(-1) - q
    weights = torch.as_tensor(found["log_weights"]["log_weight"].values)
    torch.testing.assert_close(weights.float(), expected.float(), rtol=1e-4, atol=1e-4)


def test_a_state_shared_by_all_rows_gives_none_a_likelihood_of_its_own() -> None:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("l", torch.tensor([-1.0, 1.0]))[k], 0.5), obs=x)

    trained = trainer(model, lambda x: None, EnumeratedELBO())
    assert list(trained.fit(iter(lambda: {"x": X}, None), steps=1))
    with pytest.raises(ConfigError, match=r"^model site 'k' is shared by all rows and summed out for all of them"):
        evaluate(trained, {"x": X}, particles=5, measures=("nll",))
