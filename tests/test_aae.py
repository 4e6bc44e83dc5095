"""The adversarial autoencoder: its game against formulas, in its five forms, and what it refuses."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ppgen import Trainer, guides, models
from ppgen import nn as networks
from ppgen.data import load
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation.clusters import cluster_accuracy
from ppgen.evaluation.two_sample import kernel_test
from ppgen.models import RingOfGaussians, SwissRoll
from ppgen.objectives import AAE, SemiSupervised
from ppgen.players import Optimizer
from ppgen.recipes import RECIPES
from ppgen.recipes.adversaries import players_adam

ROWS = 6


def sgd(rate: float) -> Optimizer:
    return Optimizer(functools.partial(torch.optim.SGD, lr=rate))


class Deterministic(nn.Module):
    """A guide without noise, so that losses can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.linear(x), event_dim=1))


class Fixed(nn.Module):
    """A model with a prior of one point, and a Gaussian likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Delta(torch.ones(2), event_dim=1))
            pyro.sample("x", dist.Normal(self.linear(z), 0.5).to_event(1), obs=x)


def game(critic: nn.Module | None = None, **options: Any) -> tuple[Fixed, Deterministic, AAE, Tensor]:
    torch.manual_seed(0)
    return Fixed(), Deterministic(), AAE(critic or nn.Linear(2, 1), **options), torch.randn(ROWS, 3)


# ------------------------------------------------------------------------------------------------ against formulas


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_losses_and_gradients_are_those_of_the_formulas(weight: float) -> None:
    model, guide, objective, x = game(weight=weight)
    objective.setup(model, guide, {"x": x})
    critic = objective.critics["latents"]
    judge, play = objective.phases()
    players = objective.players(model, guide, {"x": x})

    z = guide.linear(x)
    error = -dist.Normal(model.linear(z), 0.5).log_prob(x).sum(-1).mean()
    expected = {
        "critic": softplus(-critic(z.detach())).mean() + softplus(critic(torch.ones(ROWS, 2))).mean(),
        "autoencoder": error + weight * softplus(critic(z)).mean(),
    }
    for (losses, metrics), name in (
        (judge(model, guide, {"x": x}), "critic"),
        (play(model, guide, {"x": x}), "autoencoder"),
    ):
        leaves = list(players[name].values())
        assert losses.keys() == {name}
        torch.testing.assert_close(losses[name], expected[name])
        torch.testing.assert_close(
            torch.autograd.grad(losses[name], leaves, allow_unused=True),
            torch.autograd.grad(expected[name], leaves, allow_unused=True),
        )
        if name == "autoencoder":
            torch.testing.assert_close(metrics["reconstruction"], error)


@pytest.mark.parametrize(
    ("rates", "moved"),
    [((0.1, 0.0), {"critic"}), ((0.0, 0.1), {"autoencoder"}), ((0.1, 0.1), {"critic", "autoencoder"})],
)
def test_no_players_loss_moves_another(rates: tuple[float, float], moved: set[str]) -> None:
    model, guide, objective, x = game()
    optimizers = {"critic": sgd(rates[0]), "autoencoder": sgd(rates[1])}
    trainer = Trainer(model, guide, objective, optimizers, compile="off")
    trainer.setup({"x": x})
    before = {name: leaf.detach().clone() for name, leaf in trainer.leaves.items()}
    list(trainer.fit({"x": x}, steps=3))
    changed = {name for name, leaf in trainer.leaves.items() if not torch.equal(leaf, before[name])}
    names = {
        "critic": {name for name in before if name.startswith("objective.")},
        "autoencoder": {name for name in before if not name.startswith("objective.")},
    }
    assert changed == set().union(*(names[player] for player in moved))


def labelled_pair(classes: int = 3) -> tuple[models.M2, guides.Label]:
    torch.manual_seed(0)
    decoder = networks.decoder([2, classes], (4,), hidden=(8,))
    classifier = networks.encoder((4,), classes, hidden=(8,))
    style = networks.encoder((4,), 4, hidden=(8,), others=[classes])
    return models.M2(decoder, networks.likelihood("gaussian-fixed", (4,)), 2, classes), guides.Label(
        classifier, style, classes
    )


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_few_labels_add_the_cross_entropy_alone(alpha: float) -> None:
    model, guide = labelled_pair()
    critics = {"z": networks.critic((2,), hidden=(4,)), "y": networks.critic((3,), hidden=(4,))}
    alone = AAE(critics)
    objective = SemiSupervised(alpha=alpha, unlabelled=alone)
    x, y, unlabelled = torch.randn(5, 4), torch.tensor([0, 1, 2, 2, 1]), torch.randn(ROWS, 4)
    batch = {"labelled": {"x": x, "y": y}, "unlabelled": {"x": unlabelled}}
    objective.setup(model, guide, batch)
    torch.manual_seed(1)
    losses, metrics = objective.phases()[-1](model, guide, batch)
    torch.manual_seed(1)
    plain, _ = alone.phases()[-1](model, guide, batch["unlabelled"])
    by_hand = cross_entropy(guide.classifier(x), y)
    torch.testing.assert_close(metrics["cross_entropy"], by_hand)
    torch.testing.assert_close(losses["autoencoder"], plain["autoencoder"] + alpha * by_hand)


def test_a_category_enters_decoder_and_critic_by_its_probabilities() -> None:
    model, guide = labelled_pair()
    shown: list[Tensor] = []

    class Watching(nn.Linear):
        def forward(self, y: Tensor) -> Tensor:
            shown.append(y)
            return super().forward(y)

    objective = AAE({"y": Watching(3, 1)})
    x = torch.randn(ROWS, 4)
    objective.setup(model, guide, {"x": x})
    shown.clear()
    objective.phases()[0](model, guide, {"x": x})
    inferred, prior = shown
    torch.testing.assert_close(inferred, guide.classifier(x).softmax(-1))
    assert set(prior.unique().tolist()) == {0.0, 1.0}
    assert prior.sum(-1).tolist() == [1.0] * ROWS


def test_a_critic_is_told_the_label_on_both_sides_and_nothing_where_there_is_none() -> None:
    shown: list[tuple[Tensor, Tensor]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 1)

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            shown.append((z, y))
            return self.linear(torch.cat([z, y], -1))  # type: ignore[no-any-return]

    prior = functools.partial(RingOfGaussians, classes=4)
    likelihood = networks.likelihood("gaussian-fixed", (3,))
    model = models.LabelledPriorVAE(networks.decoder([2], (3,), hidden=(8,)), likelihood, prior, 4)
    guide = guides.DiagonalGaussian(networks.encoder((3,), 4, hidden=(8,)), 2)
    objective = AAE({"z,y": Watching()}, given=("y",))
    y = torch.tensor([0, 3, -1, 1]).repeat(500)
    batch = {"x": torch.randn(2000, 3), "y": y}
    objective.setup(model, guide, batch)
    shown.clear()
    objective.phases()[0](model, guide, batch)
    (_, guided), (drawn, told) = shown
    assert told[:4].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert torch.equal(told, guided)
    angles = torch.atan2(drawn[:, 1], drawn[:, 0]) / (math.pi / 2)
    part = angles.round().long() % 4
    assert (part[y == 3] == 3).float().mean() > 0.9
    share = torch.bincount(part[y == -1], minlength=4) / 500
    assert (share - 0.25).abs().max() < 0.1


def test_a_missing_label_says_nothing_and_a_known_one_is_a_fair_die() -> None:
    prior = functools.partial(SwissRoll, classes=4)
    model = models.LabelledPriorVAE(nn.Linear(2, 3), networks.likelihood("gaussian-fixed", (3,)), prior, 4)
    x, y = torch.randn(3, 3), torch.tensor([2, -1, 0])
    with pyro.validation_enabled(True):
        trace = pyro.poutine.trace(model).get_trace(x=x, y=y)
        trace.compute_log_prob()
    site = trace.nodes["y"]
    torch.testing.assert_close(site["log_prob"], torch.tensor([-math.log(4), 0.0, -math.log(4)]))
    with pyro.validation_enabled(True), pytest.raises(ValueError):  # noqa: PT011 -- torch's words
        pyro.poutine.trace(model).get_trace(x=x, y=torch.tensor([2, -2, 0])).compute_log_prob()


def test_a_classifier_asked_about_several_changes_answers_with_their_mean() -> None:
    class Scaled(nn.Module):
        """Makes each image of a batch once as large as before, and once three times."""

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1.0, 3.0]).repeat_interleave(len(x) // 2).reshape(-1, 1)

    torch.manual_seed(0)
    classifier = nn.Linear(4, 3)
    agreed = networks.AgreedLogits(classifier, Scaled(), views=2)
    x = torch.randn(5, 4)
    by_hand = (classifier(x).softmax(-1) + classifier(3 * x).softmax(-1)) / 2
    torch.testing.assert_close(agreed(x).exp(), by_hand)
    with pytest.raises(ConfigError, match="expected views >= 1; got 0"):
        networks.AgreedLogits(classifier, Scaled(), views=0)
    image = torch.rand(5, 1, 8, 8)
    flat = networks.AgreedLogits(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), networks.RandomAffine(), views=2)
    assert not torch.equal(flat(image), flat(image))
    flat.eval()
    torch.testing.assert_close(flat(image), flat.classifier(image))


# ----------------------------------------------------------------------------------------- against known distributions


class Shifted(nn.Module):
    """A guide that is never trained: ``z ~ N(1, 1)`` for any row."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.ones(1), 1.0).to_event(1))


def test_the_critic_recovers_the_log_ratio_of_two_gaussians() -> None:
    torch.manual_seed(0)
    model = models.VAE(nn.Linear(1, 1), networks.likelihood("gaussian-fixed", (1,)), 1)
    critic, untrained = (networks.critic((1,), hidden=(8,), activation="softplus") for _ in range(2))
    steps = 100
    optimizer = players_adam(0.0, 2e-2, betas=(0.9, 0.999), schedule="cosine", name="autoencoder")(steps)
    trainer = Trainer(model, Shifted(), AAE(critic, critic_steps=4), optimizer, average=0.95, compile="off")
    list(trainer.fit({"x": torch.zeros(5000, 1)}, steps=steps))
    points = torch.cat([torch.randn(5000, 1), 1 + torch.randn(5000, 1)])
    exact = points - 0.5  # log N(z; 1, 1) - log N(z; 0, 1)
    with trainer.evaluating(), torch.no_grad():
        found, control = ((one(points) - exact).square().mean().sqrt() for one in (critic, untrained))
    assert found < 0.05 < 0.5 < control


def matched(weight: float) -> float:
    """The kernel discrepancy between codes of fresh rows and draws of a swiss roll."""
    torch.manual_seed(0)
    x = 4 * torch.randn(4000, 2)
    model = models.PriorVAE(
        networks.decoder([2], (2,), hidden=(32,)), networks.likelihood("gaussian-fixed", (2,)), SwissRoll
    )
    guide = guides.DiagonalGaussian(networks.encoder((2,), 4, hidden=(32, 32)), 2)
    critic = networks.critic((2,), hidden=(32, 32))
    steps = 300
    optimizer = players_adam(3e-3, 6e-3, schedule="cosine", name="autoencoder")(steps)
    trainer = Trainer(model, guide, AAE(critic, weight=weight), optimizer, average=0.98, compile="off")
    batches = ({"x": x[torch.randint(4000, (256,))]} for _ in range(10**9))
    for _ in trainer.fit(batches, steps=steps):
        pass
    with trainer.evaluating(), torch.no_grad():
        codes = pyro.poutine.trace(guide).get_trace(4 * torch.randn(1000, 2)).nodes["z"]["value"]
    return kernel_test(codes, SwissRoll().sample((1000,)), permutations=1).value


def test_codes_of_all_rows_together_follow_a_prior_that_can_only_be_drawn_from() -> None:
    found, control = matched(5.0), matched(0.0)
    assert found < 0.03 < 0.1 < control


# -------------------------------------------------------------------------------------------------------- bad input


class VonMises(nn.Module):
    """A guide whose draws have no pathwise derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = self.linear(x)
            pyro.sample("z", dist.VonMises(z, torch.ones_like(z)).to_event(1))


class Counting(nn.Module):
    """A guide with a count, which has no probabilities to take in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(self.linear(x).exp()).to_event(1))


class Integers(nn.Module):
    """A model that looks a category up, and so cannot take its probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(self.table(y), 1.0).to_event(1), obs=x)


class Classifying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.linear(x)))


class Wide(Deterministic):
    """A guide of a latent larger than the prior's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)


class Summing(Fixed):
    """A model that takes latents of any size, but has a prior of two."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.linear(z[..., :2]), 0.5).to_event(1), obs=x)


class Unobserved(Fixed):
    """A model that observes nothing."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


class Improper(Fixed):
    """A model whose prior cannot be drawn from."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
            pyro.sample("x", dist.Normal(self.linear(z), 0.5).to_event(1), obs=x)


def critic() -> nn.Module:
    return nn.Linear(2, 1)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], AAE], str]] = {
    "a guide without pathwise derivative": (
        lambda: Fixed(),
        VonMises,
        lambda: AAE(critic()),
        "expected draws with a pathwise derivative, or a category; got site 'z', which is a VonMises",
    ),
    "a guide with a count": (
        lambda: Fixed(),
        Counting,
        lambda: AAE(critic()),
        "expected draws with a pathwise derivative, or a category; got site 'z', which is a Poisson",
    ),
    "a guide without sites": (
        Fixed,
        guides.Nothing,
        lambda: AAE(critic()),
        "expected a guide with a site, whose draws critics compare with the prior's; got none",
    ),
    "a model without data": (
        Unobserved,
        Deterministic,
        lambda: AAE(critic()),
        "expected a site of the model that observes data, which AAE reconstructs; got none",
    ),
    "a prior without draws": (
        Improper,
        Deterministic,
        lambda: AAE(critic()),
        "expected a prior that can be drawn from",
    ),
    "a model that looks integers up": (
        Integers,
        Classifying,
        lambda: AAE(nn.Linear(3, 1)),
        r"expected programs that take the guide's draws, y \(6, 3\), a category as its probabilities",
    ),
    "a latent that the decoder does not take": (
        Fixed,
        Wide,
        lambda: AAE(critic()),
        r"expected programs that take the guide's draws, z \(6, 4\), .*; got ",
    ),
    "a latent of another shape": (
        Summing,
        Wide,
        lambda: AAE(critic()),
        r"expected draws of site 'z' from the guide of the shape that the prior's have, \(6, 2\); got \(6, 4\)",
    ),
    "a critic of other inputs": (
        Fixed,
        Deterministic,
        lambda: AAE(nn.Linear(5, 1)),
        r"the critic does not take inputs of shape \(6, 2\)",
    ),
    "a critic of two outputs": (
        Fixed,
        Deterministic,
        lambda: AAE(nn.Linear(2, 2)),
        r"expected a critic that gives \(6, 1\) for inputs of shape \(6, 2\); got \(6, 2\)",
    ),
    "a critic of an unknown site": (
        Fixed,
        Deterministic,
        lambda: AAE({"w": critic()}),
        r"expected critics of latents that the guide draws \(z\); got 'w'",
    ),
    "a label that is no column": (
        Fixed,
        Deterministic,
        lambda: AAE({"z,y": critic()}, given=("y",)),
        "expected batches as dicts with a column 'y'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_play_is_refused_with_the_reason(case: str) -> None:
    model, guide, objective, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        Trainer(model(), guide(), objective()).setup({"x": torch.randn(ROWS, 3)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic": {}}, "expected at least one critic; got none"),
        ({"critic": nn.ReLU()}, "expected a critic that can be trained, an nn.Module; got ReLU"),
        ({"critic": critic(), "critic_steps": 0}, "expected critic_steps >= 1"),
        ({"critic": critic(), "weight": -1.0}, "weight >= 0; got 1, -1.0"),
        ({"critic": critic(), "loss": "hinges"}, "no adversarial loss 'hinges': did you mean 'hinge'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AAE(**options)


# ---------------------------------------------------------------------------------------------------------- recipes

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("aae", {}),
    "mixture": ("aae", {"prior": "mixture"}),
    "swiss-roll": ("aae", {"prior": "swiss-roll"}),
    "labels choose parts": ("aae", {"prior": "mixture", "labels": "prior"}),
    "styles": ("aae", {"labels": "decoder"}),
    "few labels": ("aae-semisupervised", {"augment": 1.0}),
    "clusters": ("aae-clusters", {"clusters": 12}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns_to_reconstruct(form: str) -> None:
    name, options = FORMS[form]
    data = load("digits", labels=100 if name == "aae-semisupervised" else None)
    entry = RECIPES[name]
    small = {"hidden": (32,), "critic_hidden": (16,)}
    torch.manual_seed(0)
    recipe = entry.build(data, entry.resolve("digits", {**options, **small}))
    trainer = Trainer(recipe.model, recipe.guide, recipe.objective, recipe.optimizer(60), compile="off")
    history = list(trainer.fit(recipe.batches(0, torch.device("cpu")), steps=60, every=10))
    assert {"loss/critic", "loss/autoencoder"} <= history[0].keys()
    assert history[-1]["reconstruction"] < history[0]["reconstruction"] - 1


@pytest.mark.slow
def test_clusters_are_found_without_labels() -> None:
    data = load("digits")
    entry = RECIPES["aae-clusters"]
    torch.manual_seed(0)
    recipe = entry.build(data, entry.resolve("digits"))
    trainer = Trainer(recipe.model, recipe.guide, recipe.objective, recipe.optimizer(800), average=0.99)
    batches = recipe.batches(0, torch.device("cpu"))
    trainer.setup(next(batches))
    control = cluster_accuracy(trainer, data.train, data.test)
    list(trainer.fit(batches, steps=800))
    found = cluster_accuracy(trainer, data.train, data.test)
    assert found.used >= 14
    assert found.accuracy.value > 0.7 > 0.2 + control.accuracy.value


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"prior": "mixture", "z_dim": 3}, None, "expected z_dim=2 for prior=mixture, which lies in the plane; got 3"),
        ({"labels": "prior"}, None, "expected prior mixture or swiss-roll, of which labels=prior chooses parts"),
        (
            {"labels": "decoder", "prior": "mixture"},
            None,
            "expected prior=gaussian with labels=decoder; got prior=mixture",
        ),
        ({"labels": "decoder"}, 100, "expected a label for every train row with labels=decoder; .* rows have none"),
    ],
)
def test_forms_that_do_not_go_together_are_refused(options: dict[str, Any], labels: int | None, message: str) -> None:
    entry = RECIPES["aae"]
    with pytest.raises((ConfigError, DataError), match=message):
        entry.build(load("digits", labels=labels), entry.resolve("digits", options))
