"""InfoGAN: its bound on the mutual information against the exact one, who owns its shared layers, its clusters."""

import functools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen import Trainer, guides, models, programs
from ppgen import nn as networks
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation.clusters import cluster_accuracy
from ppgen.objectives import InfoGAN
from ppgen.players import Optimizer

CENTRES = torch.tensor([[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]])
STATES = len(CENTRES)


class Channel(nn.Module):
    """``code`` is one of two, ``x = centre[code] + N(0, 1)``: the mutual information is known."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))
        self.distance = distance

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", dist.Categorical(torch.tensor([0.5, 0.5])))
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            centre = self.distance * (networks.one_hot(code, 2)[..., 1:] - 0.5)
            pyro.sample("x", dist.Delta(z + centre + self.shift, event_dim=1), obs=x)

    def information(self) -> float:
        """The mutual information of code and x in nats, by numerical integration."""
        x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
        ends = torch.tensor([[-0.5], [0.5]]) * self.distance
        given = dist.Normal(ends.double(), 1.0).log_prob(x)
        marginal = given.logsumexp(0) - math.log(2)
        return float(torch.trapezoid(0.5 * (given.exp() * (given - marginal)).sum(0), x))


def game(
    *, weight: float = 1.0, states: int = STATES, features: int = 2, styles: int = 0
) -> tuple[guides.Codes, InfoGAN]:
    critic = networks.critic((features,), hidden=(32,))
    return guides.Codes(critic, categories=states, styles=styles, hidden=32), InfoGAN(critic, weight=weight)


def play(
    model: nn.Module, guide: nn.Module, objective: InfoGAN, *, steps: int, model_rate: float, critic_rate: float = 3e-3
) -> Trainer:
    adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.99))
    rates = {"critic": critic_rate, "model": model_rate}
    optimizers = {name: Optimizer(functools.partial(adam, lr=rate)) for name, rate in rates.items()}
    trainer = Trainer(model, guide, objective, optimizers, device="cpu", compile="off")
    for _ in trainer.fit((rows(100) for _ in iter(int, 1)), steps=steps):
        pass
    return trainer


def rows(count: int) -> dict[str, Tensor]:
    return {"x": CENTRES[torch.arange(count) % STATES] + 0.3 * torch.randn(count, 2)}


def scores(model: nn.Module, guide: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log probability of the codes that rows were drawn of, nats ``(rows,)``."""
    with torch.no_grad():
        return programs.scores(guide, programs.simulate(model, batch), batch)["code"]


# The bound


def test_the_bound_is_the_mutual_information_where_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "rows", lambda count: {"x": torch.randn(count, 1)})
    model = Channel(2.0)
    guide, objective = game(states=2, features=1)
    batch = {"x": torch.zeros(20_000, 1)}
    before = math.log(2) + float(scores(model, guide, batch).mean())
    play(model, guide, objective, steps=300, model_rate=0.0, critic_rate=4e-3)
    found = math.log(2) + scores(model, guide, batch)
    error = float(found.std()) / math.sqrt(len(found))
    assert 0.3 < model.information() < 0.4  # far from log 2
    assert before < 0.1
    assert abs(float(found.mean()) - model.information()) < 4.5 * error + 0.01
    # a guide of another channel would have been caught
    narrower = Channel(1.0).information()
    assert abs(float(found.mean()) - narrower) > 10 * error + 0.01


def codes(*, weight: float) -> tuple[models.CodedGenerator, guides.Codes, Trainer]:
    network = networks.generator([2, STATES], (2,), hidden=(32, 32))
    model = models.CodedGenerator(network, (2,), 2, categories=STATES)
    guide, objective = game(weight=weight)
    return model, guide, play(model, guide, objective, steps=300, model_rate=3e-3, critic_rate=4e-3)


def test_codes_become_clusters_of_the_data_and_the_bound_its_largest_value() -> None:
    model, guide, trainer = codes(weight=1.0)
    batch = {"x": torch.zeros(1000, 2)}
    bound = math.log(STATES) + float(scores(model, guide, batch).mean())
    assert math.log(STATES) - 0.1 < bound <= math.log(STATES)
    labelled = {**rows(400), "y": torch.arange(400) % STATES}
    assert cluster_accuracy(trainer, labelled, labelled).accuracy.value > 0.95


def test_without_weight_the_codes_are_told_by_nobody() -> None:
    model, guide, trainer = codes(weight=0.0)
    assert math.log(STATES) + float(scores(model, guide, {"x": torch.zeros(1000, 2)}).mean()) < 0.2
    labelled = {**rows(400), "y": torch.arange(400) % STATES}
    assert cluster_accuracy(trainer, labelled, labelled).accuracy.value < 0.9


# Whom layers belong to


def parts() -> tuple[models.CodedGenerator, guides.Codes, InfoGAN]:
    network = networks.generator([2, STATES, 1], (2,), hidden=(8,))
    model = models.CodedGenerator(network, (2,), 2, categories=STATES, styles=1)
    return model, *game(styles=1)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_the_layers_that_critic_and_guide_share_are_the_critics() -> None:
    model, guide, objective = parts()
    objective.setup(model, guide, rows(10))
    players = objective.players(model, guide, rows(10))
    owned = {player: {id(leaf) for leaf in leaves.values()} for player, leaves in players.items()}
    assert owned["critic"] == {id(p) for p in [*objective.parameters(), *guide.parameters()]}
    assert owned["model"] == {id(p) for p in model.parameters()}
    assert {id(p) for p in objective.parameters()} < {id(p) for p in guide.parameters()}


@pytest.mark.parametrize(("still", "moving"), [("critic", "model"), ("model", "critic")])
def test_no_players_loss_moves_the_parameters_of_the_other(still: str, moving: str) -> None:
    model, guide, objective = parts()
    owned: dict[str, nn.Module] = {"critic": guide, "model": model}  # the guide holds the critic
    before = {player: snapshot(part) for player, part in owned.items()}
    rates = {still: 0.0, moving: 1e-2}
    play(model, guide, objective, steps=3, model_rate=rates["model"], critic_rate=rates["critic"])
    after = {player: snapshot(part) for player, part in owned.items()}
    assert all(torch.equal(before[still][name], after[still][name]) for name in before[still])
    assert all(not torch.equal(before[moving][name], after[moving][name]) for name in before[moving])


# Bad input, and clusters


def test_weights_of_unknown_codes_are_refused() -> None:
    model, guide, objective = parts()
    objective.weight = {"colour": 1.0}
    with pytest.raises(ConfigError, match="expected weights of sites of the guide"):
        objective.setup(model, guide, rows(10))


class Signs(nn.Module):
    """A guide whose cluster is the sign of x."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Categorical(logits=torch.cat([-x, x, x - 1e3], dim=1) * 100))


def pair(guide: Any) -> Trainer:
    return Trainer(Channel(1.0), guide, InfoGAN(networks.critic((1,), hidden=(4,))), device="cpu")


def test_clusters_are_named_by_most_of_their_train_rows() -> None:
    x = torch.tensor([[-1.0], [-2.0], [-3.0], [1.0], [2.0]])
    train = {"x": x, "y": torch.tensor([7, 7, 3, 3, -1])}
    found = cluster_accuracy(pair(Signs()), train, {"x": x, "y": torch.tensor([7, 3, 7, 3, 3])})
    assert (found.accuracy.value, found.site, found.states, found.used) == (0.8, "code", 3, 2)
    # named by others, the same clusters are wrong
    wrong = cluster_accuracy(pair(Signs()), {"x": x, "y": torch.tensor([3, 3, 3, 7, 7])}, train)
    assert wrong.accuracy.value == 0.25


def test_clusters_need_labels_and_a_category() -> None:
    x = torch.ones(3, 1)
    with pytest.raises(DataError, match="which clusters are compared with; got none"):
        cluster_accuracy(pair(Signs()), {"x": x}, {"x": x})
    labelled = {"x": x, "y": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ConfigError, match="expected one categorical latent of single rows in the guide"):
        cluster_accuracy(pair(guides.DiagonalGaussian(nn.Linear(1, 2), 1)), labelled, labelled)
