"""Baselines that a guide asks for at its sites, as Pyro's TraceGraph_ELBO takes them."""

import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from every_run import exact_loss, gradients, leaves_of, z_scores
from torch import Tensor, nn

from ppgen import ELBO, Trainer, programs
from ppgen.errors import ConfigError
from ppgen.gradients import Spec

ROWS = 4
X = torch.tensor([[0.5, 2.0], [-1.0, 1.5], [1.5, 2.5], [0.1, 1.8]])


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    with programs.Store().active():
        yield


def pair(options: dict[str, Any], *, network: nn.Module | None = None) -> tuple[Any, Any]:
    """Units whose signals are far from 0."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.tensor(0.4)))
            mean = pyro.param("w", torch.tensor(1.0)) * z.unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean, 0.6).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        asked = dict(options)
        if network is not None:
            pyro.module("baseline", network)
            asked |= {"nn_baseline": network, "nn_baseline_input": x}
        with pyro.plate("data", len(x)):
            logits = pyro.param("q", torch.tensor(0.3)) * x[..., 0]
            pyro.sample("z", dist.Bernoulli(logits=logits), infer={"baseline": asked})

    return model, guide


class Predictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x).squeeze(-1)
        return found


def measured(options: dict[str, Any], *, spec: Spec = None, network: nn.Module | None = None) -> tuple[float, float]:
    """The largest z-score of the gradient, and the variance of that of the guide, after some training of baselines."""
    model, guide = pair(options, network=network)
    objective = ELBO(estimator=spec, particles=2)
    with programs.quiet():
        leaves = leaves_of(*pair({}), X)
        exact = gradients(exact_loss(*pair({}), X), leaves)
        objective.setup(model, guide, (X,))
        objective.players(model, guide, (X,))
        optimizer = torch.optim.Adam(list(network.parameters()), 0.05) if network is not None else None
        for _ in range(80 if network is not None else 20):
            losses, _ = objective.phases()[0](model, guide, (X,))
            if optimizer is not None:
                optimizer.zero_grad()
                losses["estimator"].backward()
                optimizer.step()
        found = torch.stack(
            [gradients(objective.phases()[0](model, guide, (X,))[0]["all"] * ROWS, leaves) for _ in range(250)]
        )
    return float(z_scores(found, exact).max()), float(found[:, 0].var())


def test_each_option_is_unbiased_and_lowers_the_variance() -> None:
    score, plain = measured({}, spec="score")
    assert score < 4.5
    kinds: list[tuple[dict[str, Any], nn.Module | None]] = [
        ({"use_decaying_avg_baseline": True, "baseline_beta": 0.95}, None),
        ({"baseline_value": torch.full((ROWS,), -9.0)}, None),
        ({"use_decaying_avg_baseline": True}, Predictor()),
        ({}, Predictor()),
    ]
    for options, network in kinds:
        score, variance = measured(options, network=network)
        assert score < 4.5, options
        assert variance < 0.7 * plain, (options, variance, plain)


def test_the_network_is_trained_as_an_estimator_and_by_nothing_else() -> None:
    network = Predictor()
    before = [p.detach().clone() for p in network.parameters()]
    model, guide = pair({}, network=network)
    trainer = Trainer(model, guide, ELBO(), lambda p: torch.optim.Adam(p, 0.01), compile="off")
    trainer.step(itertools.repeat((X,)))
    groups = trainer.objective.players(model, guide, (X,))
    assert {id(p) for p in groups["estimator"].values()} == {id(p) for p in network.parameters()}
    assert not {id(p) for p in network.parameters()} & {id(p) for p in groups["all"].values()}
    after = list(network.parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_is_named_for_the_site_and_what_sums_it_exactly_come_first() -> None:
    asked = {"use_decaying_avg_baseline": True}
    for spec, expected in (({"z": "relax"}, "RELAX"), ("enumerate", "Enumerate"), ("score", "Baseline")):
        objective = ELBO(estimator=spec)
        objective(*pair(asked), X)
        assert [type(one).__name__ for one in objective.plan.estimators().values()] == [expected]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"nn_baselin": 1}, "'z': its baseline has no option nn_baselin"),
        ({"nn_baseline": lambda x: x, "nn_baseline_input": X}, "'z': expected an nn.Module as nn_baseline"),
        ({"nn_baseline": Predictor()}, "'z': expected nn_baseline_input"),
        ({"nn_baseline": Predictor(), "baseline_value": 1.0}, "'z': expected nn_baseline or baseline_value; got both"),
        ({"use_decaying_avg_baseline": True, "baseline_beta": 1.5}, "'z': expected 0 <= baseline_beta < 1; got 1.5"),
        ({"baseline_value": torch.zeros(3)}, "'z': expected a baseline that broadcasts"),
        ({"baseline_value": nn.Parameter(torch.zeros(ROWS))}, "'z': what its baseline_value is computed from"),
    ],
)
def test_what_it_cannot_be_is_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ELBO()(*pair(options), X)
