"""Adversarial objectives against formulas, finite differences and closed forms, and what they refuse."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppgen import Trainer, guides, models, programs
from ppgen.data import Batches
from ppgen.errors import ConfigError
from ppgen.objectives import GAN, MADGAN, WGAN, WGANGP, PacGAN, UnrolledGAN
from ppgen.objectives.adversarial.penalties import GradientPenalty
from ppgen.objectives.adversarial.sides import packed
from ppgen.objectives.adversarial.values import VALUES, named_loss, value_of
from ppgen.players import Optimizer

OUTPUTS = torch.tensor([[2.0], [-0.5], [0.3]], dtype=torch.float64)
OTHERS = torch.tensor([[-1.0], [0.7], [4.0]], dtype=torch.float64)
LOSSES = [*VALUES]
SGD = functools.partial(torch.optim.SGD, lr=0.1)
STILL = functools.partial(torch.optim.SGD, lr=0.0)


# ------------------------------------------------------------------------------------------------- the value functions


def log_d(outputs: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-outputs)))


def log_not_d(outputs: Tensor) -> Tensor:
    return torch.log(1 - 1 / (1 + torch.exp(-outputs)))


FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "minimax": (
        lambda real, fake: -log_d(real).mean() - log_not_d(fake).mean(),
        lambda fake: log_not_d(fake).mean(),
        lambda real: log_d(real).mean(),
    ),
    "non-saturating": (
        lambda real, fake: -log_d(real).mean() - log_not_d(fake).mean(),
        lambda fake: -log_d(fake).mean(),
        lambda real: -log_not_d(real).mean(),
    ),
    "least-squares": (
        lambda real, fake: ((real - 1) ** 2).mean() / 2 + ((fake + 1) ** 2).mean() / 2,
        lambda fake: (fake**2).mean() / 2,
        lambda real: (real**2).mean() / 2,
    ),
    "hinge": (
        lambda real, fake: torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean(),
        lambda fake: -fake.mean(),
        lambda real: real.mean(),
    ),
    "wasserstein": (
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake: -fake.mean(),
        lambda real: real.mean(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name: str) -> None:
    value = value_of(name)
    critic, model, guide = FORMULAS[name]
    torch.testing.assert_close(value.critic(OUTPUTS, OTHERS), critic(OUTPUTS, OTHERS))
    torch.testing.assert_close(value.model(OTHERS), model(OTHERS))
    torch.testing.assert_close(value.guide(OUTPUTS), guide(OUTPUTS))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_its_sides_changed_is_noticed(name: str) -> None:
    value = value_of(name)
    assert not torch.isclose(value.critic(OUTPUTS, OTHERS), value.critic(OTHERS, OUTPUTS))


@pytest.mark.parametrize("name", ["minimax", "non-saturating"])
def test_label_smoothing_moves_the_target_of_the_data_alone(name: str) -> None:
    smooth = value_of(name, smoothing=0.1).critic(OUTPUTS, OTHERS)
    expected = -(0.9 * logsigmoid(OUTPUTS) + 0.1 * logsigmoid(-OUTPUTS)).mean() - logsigmoid(-OTHERS).mean()
    torch.testing.assert_close(smooth, expected)
    assert not torch.isclose(smooth, value_of(name).critic(OUTPUTS, OTHERS))


def test_label_smoothing_of_least_squares_moves_its_target() -> None:
    found = value_of("least-squares", smoothing=0.1).critic(OUTPUTS, OTHERS)
    torch.testing.assert_close(found, ((OUTPUTS - 0.9) ** 2).mean() / 2 + ((OTHERS + 1) ** 2).mean() / 2)


def test_the_best_smoothed_critic_is_that_of_the_smoothed_ratio() -> None:
    # at a point with densities p and q the loss is least where D = (1 - s) p / (p + q)
    p, q, output = 0.3, 0.2, torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    value = value_of("minimax", smoothing=0.1)
    for _ in range(300):
        alone = torch.zeros_like(output)
        loss = p * value.critic(output, alone) + q * value_of("minimax").critic(alone, output)
        (gradient,) = torch.autograd.grad(loss, output)
        output = (output - 4 * gradient).detach().requires_grad_()
    assert torch.sigmoid(output).item() == pytest.approx(0.9 * p / (p + q), abs=1e-6)


def test_missing_labels_do_not_count_in_a_named_loss() -> None:
    logits = torch.randn(4, 3)
    labels = torch.tensor([2, -1, 0, -1])
    expected = -(logits.log_softmax(1)[0, 2] + logits.log_softmax(1)[2, 0]) / 2
    torch.testing.assert_close(named_loss(logits, labels), expected)
    assert named_loss(logits, torch.full((4,), -1)) == 0


# ---------------------------------------------------------------------------------------------------------- gradients


class Line(nn.Module):
    """``x = a z + b`` of a Gaussian ``z``."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.7, -1.2], dtype=torch.float64)[:size])
        self.b = nn.Parameter(torch.tensor([0.2, 0.5], dtype=torch.float64)[:size])

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.a.detach()), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(self.a * z + self.b, event_dim=1), obs=x)


def smooth_critic(inputs: int = 2, outputs: int = 1, *, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def rows(count: int = 6, size: int = 2) -> dict[str, Tensor]:
    return {"x": torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))}


def losses_of(objective: GAN, model: nn.Module, batch: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """Losses by player, all phases from the same noise."""
    found: dict[str, Tensor] = {}
    for phase in objective.phases():
        torch.manual_seed(seed)
        losses, _ = phase(model, guides.Nothing(), dict(batch))
        found |= losses
    return found


def set_up(objective: GAN, model: nn.Module, batch: Mapping[str, Tensor]) -> GAN:
    objective.setup(model, guides.Nothing(), dict(batch))
    return objective


def finite_differences(function: Callable[[], Tensor], leaf: Tensor, *, width: float = 1e-5) -> Tensor:
    found = torch.zeros_like(leaf)
    with torch.no_grad():
        for index in range(leaf.numel()):
            flat = leaf.view(-1)
            kept = flat[index].item()
            values = []
            for shift in (width, -width):
                flat[index] = kept + shift
                with torch.enable_grad():
                    values.append(function().detach())
            flat[index] = kept
            found.view(-1)[index] = (values[0] - values[1]) / (2 * width)
    return found


GAMES: dict[str, Callable[[], GAN]] = {
    **{name: functools.partial(lambda loss: GAN(smooth_critic(), loss=loss), name) for name in LOSSES},
    "smoothed": lambda: GAN(smooth_critic(), smoothing=0.2),
    "noisy": lambda: GAN(smooth_critic(), noise=0.3),
    "WGAN-GP": lambda: WGANGP(smooth_critic()),
    "penalty beside a logistic loss": lambda: GAN(smooth_critic(), penalty=3.0),
    "PacGAN": lambda: PacGAN(smooth_critic(6), pack=3),
    "unrolled": lambda: UnrolledGAN(smooth_critic(), unroll=3),
}


@pytest.mark.parametrize("game", GAMES)
def test_gradients_of_both_players_are_finite_differences_of_their_losses(game: str) -> None:
    model, batch = Line(), rows()
    objective = set_up(GAMES[game](), model, batch)
    leaves = {"critic": [*objective.critic.parameters()], "model": [*model.parameters()]}
    for player, own in leaves.items():
        loss = losses_of(objective, model, batch)[player]
        found = torch.autograd.grad(loss, own, allow_unused=True, retain_graph=True)
        for leaf, gradient in zip(own, found, strict=True):
            expected = finite_differences(lambda player=player: losses_of(objective, model, batch)[player], leaf)  # type: ignore[misc]
            # a bias at the critic's end may cancel
            given = torch.zeros_like(leaf) if gradient is None else gradient
            torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-8)


def test_finite_differences_notice_a_critic_that_does_not_look_ahead() -> None:
    model, batch = Line(), rows()
    ahead = set_up(UnrolledGAN(smooth_critic(), unroll=3), model, batch)
    plain = set_up(GAN(smooth_critic()), model, batch)
    (wrong,) = torch.autograd.grad(losses_of(plain, model, batch)["model"], [model.b])
    right = finite_differences(lambda: losses_of(ahead, model, batch)["model"], model.b)
    assert not torch.allclose(wrong, right, rtol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_game_is_the_one_written_by_hand(name: str) -> None:
    model, batch = Line(), rows()
    objective = set_up(GAN(smooth_critic(), loss=name), model, batch)  # type: ignore[arg-type]
    torch.manual_seed(0)
    z = programs.simulate(model, batch)["z"]["value"].detach()
    fake = model.a * z + model.b
    critic, generator, _ = FORMULAS[name]
    by_hand = {
        "critic": critic(objective.critic(batch["x"]), objective.critic(fake.detach())),
        "model": generator(objective.critic(fake)),
    }
    found = losses_of(objective, model, batch)
    for player, leaves in (("critic", [*objective.critic.parameters()]), ("model", [model.a, model.b])):
        torch.testing.assert_close(found[player], by_hand[player])
        for own, other in zip(
            torch.autograd.grad(found[player], leaves, retain_graph=True),
            torch.autograd.grad(by_hand[player], leaves, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(own, other)


def test_mad_gan_is_cross_entropy_of_the_generators() -> None:
    torch.manual_seed(0)
    heads = [nn.Linear(3, 2), nn.Linear(3, 2)]
    model = models.GeneratorMixture(nn.Linear(2, 3), heads, (2,), 2).double()
    batch = rows(50)
    objective = set_up(MADGAN(smooth_critic(outputs=3)), model, batch)
    torch.manual_seed(0)
    sites = programs.simulate(model, batch)
    component, z = sites["component"]["value"], sites["z"]["value"].detach()
    each = torch.stack([head(model.network(z)) for head in heads], 1)
    fake = each[torch.arange(50), component]
    torch.testing.assert_close(sites["x"]["value"], fake)
    on_data, on_fake = (objective.critic(x).log_softmax(1) for x in (batch["x"], fake))
    found = losses_of(objective, model, batch)
    by_hand = -on_data[:, 0].mean() - on_fake[torch.arange(50), 1 + component].mean()
    torch.testing.assert_close(found["critic"], by_hand)
    torch.testing.assert_close(found["model"], -on_fake[:, 0].mean())
    # names of the generators that are wrong make another loss
    wrong = -on_data[:, 0].mean() - on_fake[torch.arange(50), 2 - component].mean()
    assert not torch.isclose(found["critic"], wrong)


@pytest.mark.parametrize("moving", ["critic", "model"])
def test_no_players_loss_moves_another(moving: str) -> None:
    model, batch = Line().float(), {"x": rows()["x"].float()}
    objective = WGANGP(smooth_critic().float(), critic_steps=2)
    optimizer = {name: SGD if name == moving else STILL for name in ("critic", "model")}
    trainer = Trainer(model, guides.Nothing(), objective, optimizer, device="cpu", compile="off")
    parts = {"critic": objective.critic, "model": model}
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    list(trainer.fit(batch, steps=3))
    for name, part in parts.items():
        same = [torch.equal(p, old) for p, old in zip(part.parameters(), before[name], strict=True)]
        assert all(same) if name != moving else not any(same[:-1])


# ---------------------------------------------------------------------------------------------- penalties and clipping


def test_the_gradient_penalty_of_a_linear_critic_has_a_closed_form() -> None:
    critic = nn.Linear(3, 1).double()
    real, fake = torch.randn(8, 3).double(), torch.randn(8, 3).double()
    penalty = GradientPenalty(10.0).of(critic, (real,), (fake,))
    norm = critic.weight.norm()
    torch.testing.assert_close(penalty, 10 * (norm - 1) ** 2)
    (second,) = torch.autograd.grad(penalty, [critic.weight])
    torch.testing.assert_close(second, 20 * (norm - 1) * critic.weight / norm)
    assert not torch.isclose(penalty, 10 * (norm**2 - 1))


def test_the_gradient_penalty_looks_between_data_and_draws() -> None:
    # the gradient of |x|^2 / 2 is x itself, whose norm is that of a point on the line from 3 to 5
    real, fake = torch.full((500, 1), 3.0), torch.full((500, 1), 5.0)
    penalty = GradientPenalty(1.0).of(lambda x: x.square().sum(1, keepdim=True) / 2, (real,), (fake,))
    mean_square = (4**3 - 2**3) / 3 / 2  # of (u - 1) for u uniform on [3, 5]
    assert penalty.item() == pytest.approx(mean_square, abs=0.5)
    at_data = GradientPenalty(1.0).of(lambda x: x.square().sum(1, keepdim=True) / 2, (real,), (real,))
    assert at_data.item() == pytest.approx(4.0)


def test_the_norm_of_the_penalty_is_over_all_inputs_together() -> None:
    x, z = torch.randn(4, 2).double(), torch.randn(4, 1).double()
    penalty = GradientPenalty(1.0).of(lambda x, z: x @ torch.tensor([[3.0], [0.0]]).double() + 4 * z, (x, z), (x, z))
    torch.testing.assert_close(penalty, torch.tensor(16.0).double())  # (sqrt(9 + 16) - 1)^2


@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_clipping_holds_after_every_step(compile: Any) -> None:
    model, batch = Line().float(), {"x": 5 + rows(32)["x"].float()}

    def largest(objective: GAN) -> float:
        trainer = Trainer(model, guides.Nothing(), objective, SGD, device="cpu", compile=compile)
        found = []
        for _ in trainer.fit(batch, steps=5, every=1):
            found.append(max(p.abs().max().item() for p in objective.critic.parameters()))
        return max(found)

    assert largest(WGAN(smooth_critic().float(), clip=0.05, critic_steps=2)) <= 0.05 + 1e-7
    assert largest(GAN(smooth_critic().float(), loss="wasserstein", critic_steps=2)) > 0.05


# ---------------------------------------------------------------------------------------------- unrolling and packing


def test_one_step_ahead_is_the_derivative_by_hand() -> None:
    # critic w x with the Wasserstein loss: w' = w + rate (mean of data - mean of draws), the model's loss is
    # -w' (mean of draws), and so its derivative by b is -w' + rate (mean of draws)
    critic = nn.Linear(1, 1, bias=False).double()
    model, batch, rate = Line(1), rows(7, 1), 0.3
    objective = set_up(GAN(critic, loss="wasserstein", unroll=1, unroll_rate=rate), model, batch)
    torch.manual_seed(0)
    fake = programs.simulate(model, batch)["x"]["value"].mean().detach()
    ahead = critic.weight.detach().squeeze() + rate * (batch["x"].mean() - fake)
    loss = losses_of(objective, model, batch)["model"]
    torch.testing.assert_close(loss, -ahead * fake)
    (gradient,) = torch.autograd.grad(loss, [model.b])
    torch.testing.assert_close(gradient, (-ahead + rate * fake).reshape(1))
    # differentiating the model's loss alone, not the critic's way there, would give another one
    assert not torch.isclose(gradient, -ahead)


def test_no_step_ahead_is_the_plain_game() -> None:
    model, batch = Line(), rows()
    plain = losses_of(set_up(GAN(smooth_critic()), model, batch), model, batch)
    none = losses_of(set_up(UnrolledGAN(smooth_critic(), unroll=0), model, batch), model, batch)
    several = losses_of(set_up(UnrolledGAN(smooth_critic(), unroll=2), model, batch), model, batch)
    assert torch.equal(plain["model"], none["model"])
    assert not torch.isclose(plain["model"], several["model"])
    assert torch.equal(plain["critic"], several["critic"])


def test_a_pack_is_rows_side_by_side_along_their_first_dimension() -> None:
    vectors, images = torch.arange(10.0).reshape(5, 2), torch.rand(5, 3, 4, 4)
    found_vectors, found_images = packed((vectors, images), 2)
    assert found_vectors.tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    assert torch.equal(
        found_images, torch.stack([torch.cat([images[0], images[1]]), torch.cat([images[2], images[3]])])
    )


def test_a_packed_critic_judges_packs() -> None:
    class Halves(nn.Module):
        """Tells how far two rows of a pack are apart."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()).double())

        def forward(self, x: Tensor) -> Tensor:
            apart: Tensor = (x[:, :2] - x[:, 2:]).norm(dim=1, keepdim=True)
            return self.scale * apart

    model, batch = Line(), rows(6)
    objective = set_up(PacGAN(Halves(), loss="wasserstein"), model, batch)
    torch.manual_seed(0)
    fake = programs.simulate(model, batch)["x"]["value"]
    apart = [torch.stack([(x[i] - x[i + 1]).norm() for i in (0, 2, 4)]).mean() for x in (batch["x"], fake)]
    torch.testing.assert_close(losses_of(objective, model, batch)["critic"], apart[1] - apart[0])


class Watching(nn.Module):
    """A critic that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach())
        return self.linear(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("step", "noise_steps", "share"), [(0, 10, 1.0), (5, 10, 0.5), (10, 10, 0.0), (99, 10, 0.0), (99, 0, 1.0)]
)
def test_noise_on_what_the_critic_sees_fades(step: int, noise_steps: int, share: float) -> None:
    critic = Watching()
    objective = GAN(critic, noise=2.0, noise_steps=noise_steps)
    batch = {"x": torch.zeros(4000, 1)}

    class Zeros(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Delta(self.b.expand(len(x), 1), event_dim=1), obs=x)

    set_up(objective, Zeros(), batch)
    objective.step.fill_(step)
    for phase in objective.phases():
        critic.shown.clear()
        phase(Zeros(), guides.Nothing(), batch)
        for seen in critic.shown:
            assert seen.std().item() == pytest.approx(2.0 * share, abs=0.15 if share else 0.0)


# -------------------------------------------------------------------------------------------------- what is estimated


class Shifted(nn.Module):
    """Rows of N(0, 1), which are never moved far: the model player has almost no learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.b, 1.0).to_event(1), obs=x)


class Quadratic(nn.Module):
    """A critic that can be the log ratio of any two Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.cat([x, x.square()], 1))  # type: ignore[no-any-return]


def ratio_error(critic: nn.Module, ratio: Callable[[Tensor], Tensor]) -> float:
    """Root mean square error of a critic as log N(x | 1, 1) / N(x | 0, 1), over points drawn from both."""
    generator = torch.Generator().manual_seed(9)
    points = torch.randn(2000, 1, generator=generator) + (torch.arange(2000) % 2).float().unsqueeze(1)
    with torch.no_grad():
        return float((critic(points) - ratio(points)).square().mean().sqrt())


def test_the_critic_of_two_gaussians_recovers_their_log_ratio() -> None:
    data = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(5))
    # the sample's own mean and standard deviation would be what is learnt: they are made exact
    data = 1 + (data - data.mean()) / data.std()
    critic = Quadratic()
    untrained = Quadratic()
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=500)

    optimizer = {
        "critic": Optimizer(functools.partial(torch.optim.Adam, lr=0.1), schedule=cosine),
        "model": Optimizer(STILL),
    }
    batches = Batches({"x": data}, 2000, seed=0)
    trainer = Trainer(Shifted(), guides.Nothing(), GAN(critic), optimizer, device="cpu", compile="off")
    list(trainer.fit(batches, steps=500, every=500))
    assert ratio_error(critic, lambda x: x - 0.5) < 0.05
    assert ratio_error(untrained, lambda x: x - 0.5) > 0.3
    assert ratio_error(critic, lambda x: 0.5 - x) > 1.0


# ------------------------------------------------------------------------------------------------------ what is refused


# torch's own words, after the colon, differ by version
SHAPES = "the critic does not take inputs of shape {}: "


def refused(objective: Callable[[], GAN], model: Any = None, guide: Any = None, batch: Any = None) -> str:
    """Returns the message with which building or setting up a game is refused."""
    batch = {"x": torch.randn(6, 2)} if batch is None else batch
    pair = Line().float() if model is None else model, guides.Nothing() if guide is None else guide

    def start() -> None:
        Trainer(*pair, objective(), SGD, device="cpu", compile="off").setup(batch)

    with pytest.raises(ConfigError) as error:
        start()
    return str(error.value)


def assert_refused(objective: Callable[[], GAN], message: str) -> None:
    found = refused(objective)
    assert "\n" not in found
    assert found.startswith(message) if message.startswith("the critic does not take") else found == message


def critic() -> nn.Module:
    return nn.Linear(2, 1)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"loss": "wasserstien"}, "there is no adversarial loss 'wasserstien': did you mean 'wasserstein'?"),
    (
        {"loss": "f-divergence"},
        "there is no adversarial loss 'f-divergence':"
        " there are minimax, non-saturating, least-squares, hinge, wasserstein",
    ),
    ({"smoothing": 0.5}, "expected label smoothing from 0 to below 0.5; got 0.5"),
    (
        {"loss": "hinge", "smoothing": 0.1},
        "expected label smoothing with minimax, non-saturating or least-squares; got loss 'hinge'",
    ),
    ({"critic_steps": 0}, "expected critic_steps >= 1; got 0"),
    ({"pack": 0}, "expected pack >= 1; got 0"),
    ({"noise": -1.0}, "expected noise >= 0; got -1.0"),
    ({"clip": 0.0}, "expected clip > 0; got 0.0"),
    ({"penalty": -1.0}, "expected a weight of the gradient penalty of at least 0; got -1.0"),
    ({"unroll": -1}, "expected unroll >= 0; got -1"),
    ({"sites": ()}, "expected at least one site that the critic compares; got none"),
    (
        {"sites": ("v",)},
        "expected batches as dicts with a column 'v', which the critic compares; got none",
    ),
    ({"sites": ("x", "y")}, "the model has no site 'y', which GAN is about"),
    (
        {"sites": ("x", "z")},
        "site 'z', which the critic compares, is neither a column of the data nor a site of the guide",
    ),
    ({"pack": 7}, "expected at least 7 rows a batch, which the critic judges together"),
    ({"pack": 2}, SHAPES.format((3, 4))),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_no_game_can_have_are_refused(options: dict[str, Any], message: str) -> None:
    assert_refused(lambda: GAN(critic(), **options), message)


CRITICS: list[tuple[Any, str]] = [
    (nn.ReLU(), "expected a critic that can be trained, an nn.Module; got ReLU"),
    (torch.sigmoid, "expected a critic that can be trained, an nn.Module; got builtin_function_or_method"),
    (nn.Linear(2, 3), "expected a critic that gives (6, 1) for inputs of shape (6, 2); got (6, 3)"),
    (nn.Linear(5, 1), SHAPES.format((6, 2))),
    (nn.LSTM(2, 1), "expected a critic that gives (6, 1) for inputs of shape (6, 2); got tuple"),
    (
        nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)),
        "expected a critic that gives (6, 1) for inputs of shape (6, 2); got (6,)",
    ),
]


@pytest.mark.parametrize(("made", "message"), CRITICS)
def test_a_critic_that_cannot_judge_is_refused(made: Any, message: str) -> None:
    assert_refused(lambda: GAN(made), message)


class Drawn(nn.Module):
    """Rows of a distribution that has a parameter."""

    def __init__(self, distribution: Callable[[Tensor], Any], *, size: int = 2, plate: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((size,), 0.5))
        self.distribution = distribution
        self.plate = plate

    def forward(self, x: Tensor) -> None:
        if self.plate:
            with pyro.plate("data", len(x)):
                pyro.sample("x", self.distribution(self.p), obs=x)
        else:
            pyro.sample("x", self.distribution(self.p.expand(len(x), -1)).to_event(2), obs=x)


def coin_then_generator(x: Tensor) -> None:
    p = pyro.param("p", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        side = pyro.sample("side", dist.Bernoulli(p))
        pyro.sample("x", dist.Delta(torch.stack([side, -side], -1), event_dim=1), obs=x)


def guide_with_parameters() -> None:
    pyro.param("lonely", torch.zeros(()))


MODELS: list[tuple[Any, str]] = [
    (
        Drawn(lambda p: dist.Bernoulli(p).to_event(1)),
        "expected draws with a pathwise derivative, through which the model can learn; got its site 'x', which is a"
        " Bernoulli: use a continuous distribution, or a Delta at the mean",
    ),
    (
        Drawn(lambda p: dist.Poisson(p).to_event(1)),
        "expected draws with a pathwise derivative, through which the model can learn; got its site 'x', which is a"
        " Poisson: use a continuous distribution, or a Delta at the mean",
    ),
    (
        coin_then_generator,
        "expected draws with a pathwise derivative, through which the model can learn; got its site 'side', which is a"
        " Bernoulli: use a continuous distribution, or a Delta at the mean",
    ),
    (
        Drawn(lambda p: dist.Normal(p, 1.0).to_event(1), size=3),
        "expected draws of site 'x' of the shape that the data have, (6, 2); got (6, 3)",
    ),
    (
        Drawn(lambda p: dist.Normal(p, 1.0), plate=False),
        "expected site 'x' in the data plate alone, a value for each row, with pyro.plate('data', len(x)) and"
        " .to_event(...); got batch shape ()",
    ),
]


@pytest.mark.parametrize(("model", "message"), MODELS)
def test_a_model_that_cannot_play_is_refused(model: Any, message: str) -> None:
    assert refused(lambda: GAN(critic()), model) == message


def test_a_guide_with_parameters_is_refused() -> None:
    assert refused(lambda: GAN(critic()), guide=guide_with_parameters) == (
        "the guide has parameters ('lonely'), which GAN does not train: give a guide without sites, or take BiGAN"
    )


def test_data_without_names_are_refused() -> None:
    message = "expected batches as dicts with a column 'x', which the critic compares; got none"
    assert refused(lambda: GAN(critic()), batch=(torch.randn(6, 2),)) == message


def test_several_generators_have_to_be_named_by_a_site() -> None:
    assert refused(lambda: MADGAN(nn.Linear(2, 3))) == (
        "expected a site 'component' of the model, which the critic tells of; it has ['z', 'x']"
    )
    assert refused(lambda: MADGAN(nn.Linear(2, 3), pack=2)) == "expected pack 1 for MADGAN; got 2"


def test_what_is_refused_can_be_mended() -> None:
    # the same pairs with one thing changed are let through
    Trainer(
        Drawn(lambda p: dist.Normal(p, 1.0).to_event(1)),
        guides.Nothing(),
        GAN(critic()),
        SGD,
        device="cpu",
        compile="off",
    ).setup({"x": torch.randn(6, 2)})
    Trainer(Line().float(), guides.Nothing(), PacGAN(nn.Linear(4, 1)), SGD, device="cpu", compile="off").setup(
        {"x": torch.randn(6, 2)}
    )
