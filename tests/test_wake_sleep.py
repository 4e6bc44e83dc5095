"""Wake-sleep and its reweighted form against sums over all states of a belief net."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from zoo import z_score

from ppgen import Trainer
from ppgen.errors import ConfigError
from ppgen.objectives import Objective, wake_sleep
from ppgen.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep
from ppgen.programs import Store

sys.path.append(str(Path(__file__).parents[1]))  # last, so that it hides no installed ppgen
from benchmarks import wake_sleep as benchmark
from benchmarks.__main__ import main

PIXELS = 4
STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=PIXELS)), dtype=torch.float64)
ROWS = IMAGES[[3, 5, 6, 13]]
BATCH = {"x": ROWS.repeat(50, 1)}


def log_bernoulli(value: Tensor, logit: Tensor) -> Tensor:
    return value * logsigmoid(logit) + (1 - value) * logsigmoid(-logit)


class Net(nn.Module):
    """A cause ``a`` of two others, ``b`` and ``c``, which are the causes of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.prior = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.middle = nn.Linear(1, 2, dtype=torch.float64)
        self.pixels = nn.Linear(2, PIXELS, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1.5)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=self.prior))
            logits = self.middle(a.unsqueeze(-1))
            b = pyro.sample("b", dist.Bernoulli(logits=logits[..., 0]))
            c = pyro.sample("c", dist.Bernoulli(logits=logits[..., 1]))
            pixels = self.pixels(torch.stack([b, c], -1))
            pyro.sample("x", dist.Bernoulli(logits=pixels).to_event(1), obs=x)

    def table(self, x: Tensor) -> Tensor:
        """log p(x, z), by hand: ``(rows, states)``."""
        top = log_bernoulli(STATES[:, 0], self.prior)
        middle = log_bernoulli(STATES[:, 1:], self.middle(STATES[:, :1])).sum(-1)
        return top + middle + log_bernoulli(x.unsqueeze(1), self.pixels(STATES[:, 1:])).sum(-1)


class Recognition(nn.Module):
    """``b`` and ``c`` given the pixels, then ``a`` given both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.lower = nn.Linear(PIXELS, 2, dtype=torch.float64)
        self.upper = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = self.lower(x)
            b = pyro.sample("b", dist.Bernoulli(logits=logits[..., 0]))
            c = pyro.sample("c", dist.Bernoulli(logits=logits[..., 1]))
            pyro.sample("a", dist.Bernoulli(logits=self.upper(torch.stack([b, c], -1)).squeeze(-1)))

    def table(self, x: Tensor) -> Tensor:
        """log q(z | x), by hand: ``(rows, states)``."""
        lower = log_bernoulli(STATES[:, 1:], self.lower(x).unsqueeze(1)).sum(-1)
        return lower + log_bernoulli(STATES[:, 0], self.upper(STATES[:, 1:]).squeeze(-1))


def exact_posterior(model: Net) -> Callable[..., None]:
    """A guide whose draws are those of the posterior."""

    def guide(x: Tensor) -> None:
        joint = model.table(x).exp().detach().reshape(-1, 2, 2, 2)
        rows = torch.arange(len(x))
        with pyro.plate("data", len(x)):
            of_a = joint.sum((2, 3))
            a = pyro.sample("a", dist.Bernoulli(of_a[:, 1] / of_a.sum(1))).long()
            of_b = joint.sum(3)[rows, a]
            b = pyro.sample("b", dist.Bernoulli(of_b[..., 1] / of_b.sum(-1))).long()
            of_c = joint[rows, a, b]
            pyro.sample("c", dist.Bernoulli(of_c[..., 1] / of_c.sum(-1)))

    return guide


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def drawn(
    objective: Objective, player: str, model: Any, guide: Any, *, draws: int = 300, batch: Any = BATCH
) -> tuple[Tensor, Tensor]:
    """Losses ``(draws,)`` and gradients ``(draws, parameters)`` of a player."""
    losses, gradients = [], []
    torch.manual_seed(0)
    for _ in range(draws):
        for phase in objective.phases():
            found, _metrics = phase(model, guide, batch)
            if player in found:
                losses.append(found[player].detach())
                gradients.append(gradient(found[player], model if player == "model" else guide))
    return torch.stack(losses), torch.stack(gradients)


def under(probabilities: Tensor, table: Tensor) -> Tensor:
    return -(probabilities.detach() * table).sum(-1).mean()


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("particles", [1, 5])
def test_the_wake_phase_has_the_expected_gradient_of_the_model(particles: int) -> None:
    model, guide = Net(), Recognition()
    losses, gradients = drawn(WakeSleep(particles=particles), "model", model, guide)
    loss = under(guide.table(ROWS).exp(), model.table(ROWS))
    assert z_score(losses, float(loss.detach())) < 4.5
    assert z_score(gradients, gradient(loss, model)) < 4.5
    posterior = under(model.table(ROWS).softmax(-1), model.table(ROWS))
    assert z_score(gradients, gradient(posterior, model)) > 6, "negative control: wake-sleep follows the guide"


def test_the_sleep_phase_has_the_expected_gradient_of_the_guide() -> None:
    model, guide = Net(), Recognition()
    losses, gradients = drawn(WakeSleep(), "guide", model, guide)
    loss = -(model.table(IMAGES).exp().detach() * guide.table(IMAGES)).sum()
    assert z_score(losses, float(loss.detach())) < 4.5
    assert z_score(gradients, gradient(loss, guide)) < 4.5
    of_data = under(model.table(ROWS).softmax(-1), guide.table(ROWS))
    assert z_score(gradients, gradient(of_data, guide)) > 6, "negative control: sleep does not look at data"


def of_two_particles(model: Net, guide: Recognition, table: Tensor) -> Tensor:
    """The loss of two particles, by the sum over all pairs of states."""
    log_q = guide.table(ROWS).detach()
    log_w = model.table(ROWS).detach() - log_q
    pairs = torch.stack([log_w[:, :, None].expand(-1, 8, 8), log_w[:, None, :].expand(-1, 8, 8)]).softmax(0)
    chance = (log_q[:, :, None] + log_q[:, None, :]).exp()
    return -(chance * (pairs[0] * table[:, :, None] + pairs[1] * table[:, None, :])).sum((1, 2)).mean()


@pytest.mark.parametrize("player", ["model", "guide"])
def test_the_reweighted_gradients_are_the_expected_ones_and_approach_those_of_the_posterior(player: str) -> None:
    model, guide = Net(), Recognition()
    module: Any = model if player == "model" else guide
    table, posterior = module.table(ROWS), model.table(ROWS).softmax(-1)
    right = gradient(under(posterior, table), module)
    found = {}
    for particles in (1, 2, 8, 64):
        objective = ReweightedWakeSleep(particles=particles, wake=1.0, sleep=0.0)
        found[particles] = drawn(objective, player, model, guide, draws=100 if particles > 2 else 300)[1]
    assert z_score(found[2], gradient(of_two_particles(model, guide, module.table(ROWS)), module)) < 4.5
    assert z_score(found[2], right) > 6, "negative control: the bias of two particles"
    bias = {particles: float((gradients.mean(0) - right).norm()) for particles, gradients in found.items()}
    assert bias[1] > 4 * bias[8] > 12 * bias[64]


@pytest.mark.parametrize("particles", [1, 3])
def test_with_the_exact_posterior_reweighting_is_unbiased(particles: int) -> None:
    model = Net()
    objective = ReweightedWakeSleep(particles=particles)
    objective.sleep = 0.0
    gradients, bounds = [], []
    torch.manual_seed(0)
    for _ in range(300):
        (phase,) = objective.phases()
        losses, metrics = phase(model, exact_posterior(model), BATCH)
        gradients.append(gradient(losses["model"], model))
        bounds.append(metrics["bound"])
    evidence = model.table(ROWS).logsumexp(-1).mean()
    exact = gradient(-evidence, model)
    assert z_score(torch.stack(gradients), exact) < 4.5
    apart = (torch.stack(bounds) - evidence.detach()).abs().max()
    assert float(apart) < 1e-8, "every weight is the evidence, but for Pyro's clamping of probabilities"
    others = drawn(ReweightedWakeSleep(particles=particles, sleep=0.0), "model", model, Recognition())[1]
    assert z_score(others, exact) > 6, "negative control: another guide"


def test_the_weights_of_wake_and_sleep_add_up() -> None:
    model, guide = Net(), Recognition()
    sleep = -(model.table(IMAGES).exp().detach() * guide.table(IMAGES)).sum()
    wake = under(guide.table(ROWS).exp(), guide.table(ROWS))
    gradients = drawn(ReweightedWakeSleep(particles=1, wake=0.3, sleep=2.0), "guide", model, guide)[1]
    of_wake, of_sleep = gradient(wake, guide), gradient(sleep, guide)
    assert z_score(gradients, 0.3 * of_wake + 2.0 * of_sleep) < 4.5
    assert z_score(gradients, 0.3 * of_wake + 1.8 * of_sleep) > 6, "negative control"


# -------------------------------------------------------------------------------------------- continuous and global


class Line(nn.Module):
    """``z ~ N(0, 1)``, ``x ~ N(1.5 z + 0.3, 0.8)``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.weight * z + 0.3, 0.8), obs=x)


class LineGuide(nn.Module):
    """``z ~ N(slope x + offset, exp(log_scale))``."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset, self.log_scale = (nn.Parameter(torch.tensor(value)) for value in (0.2, 0.5, -0.4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + self.offset, self.log_scale.exp()))


def test_the_sleep_gradient_of_a_gaussian_guide_is_that_of_the_joint_moments() -> None:
    guide = LineGuide()
    gradients = drawn(WakeSleep(), "guide", Line(), guide, batch={"x": torch.zeros(500)})[1]
    # under the model x = 1.5 z + 0.3 + noise, so z - slope x - offset is Gaussian
    rest = 1 - 1.5 * guide.slope
    variance, mean = rest**2 + (0.8 * guide.slope) ** 2, -0.3 * guide.slope - guide.offset
    loss = guide.log_scale + (variance + mean**2) / (2 * (2 * guide.log_scale).exp())
    exact = gradient(loss, guide)
    assert z_score(gradients, exact) < 4.5
    assert z_score(gradients, exact + torch.tensor([0.0, 0.0, 0.1])) > 6, "negative control"


@pytest.mark.parametrize("detached", [True, False])
def test_no_gradient_passes_through_a_draw(detached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of one's own draws is 0 in the mean; through the draws it would be that of the entropy."""
    if not detached:
        monkeypatch.setattr(wake_sleep, "DetachedDraws", contextlib.nullcontext)
    objective = ReweightedWakeSleep(particles=1, wake=1.0, sleep=0.0)
    gradients = drawn(objective, "guide", Line(), LineGuide(), batch={"x": torch.randn(200)})[1]
    assert (z_score(gradients, 0.0) < 4.5) == detached


def switch_model(x: Tensor) -> None:
    """One switch for all rows, and a part of each row."""
    switch = pyro.sample("switch", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x)):
        part = pyro.sample("part", dist.Bernoulli(0.2 + 0.5 * switch))
        pyro.sample("x", dist.Normal(part + switch, pyro.param("scale", torch.tensor(1.1))), obs=x)


def switch_table(x: Tensor, scale: Tensor) -> Tensor:
    """log p(x, switch, parts), the parts apart: ``(switch, rows, part)``, and the switch's own."""
    switch, part = torch.tensor([0.0, 1.0]).view(2, 1, 1), torch.tensor([0.0, 1.0])
    log_part = dist.Bernoulli(0.2 + 0.5 * switch).log_prob(part)
    table: Tensor = log_part + dist.Normal(part + switch, scale).log_prob(x.unsqueeze(-1))
    return table


def test_a_latent_of_all_rows_has_one_weight() -> None:
    x, scale = torch.tensor([0.3, 1.6, 1.9, 0.8]), torch.tensor(1.1, requires_grad=True)
    table = switch_table(x, scale)
    of_switch = table.logsumexp(-1).sum(-1) + torch.tensor([0.7, 0.3]).log()
    (exact,) = torch.autograd.grad(-of_switch.logsumexp(0) / len(x), scale, retain_graph=True)

    def guide(x: Tensor) -> None:
        switch = pyro.sample("switch", dist.Bernoulli(of_switch.softmax(0)[1].detach()))
        chosen = table[switch.long()].squeeze(-3) if switch.dim() else table[switch.long()]
        with pyro.plate("data", len(x)):
            pyro.sample("part", dist.Bernoulli(logits=(chosen[..., 1] - chosen[..., 0]).detach()))

    for particles in (1, 3):
        objective = ReweightedWakeSleep(particles=particles)
        objective.sleep = 0.0
        gradients, bounds = [], []
        with Store().active():
            for _ in range(200):
                losses, metrics = objective.phases()[0](switch_model, guide, {"x": x})
                leaf = pyro.param("scale")
                gradients.append(torch.autograd.grad(losses["model"], leaf)[0])
                bounds.append(metrics["bound"])
        assert float((torch.stack(bounds) - of_switch.detach().logsumexp(0) / len(x)).abs().max()) < 1e-5
        assert z_score(torch.stack(gradients), exact) < 4.5
        assert z_score(torch.stack(gradients), exact + 0.3) > 6, "negative control"


def test_losses_are_per_datum_of_a_subsampled_plate_too() -> None:
    class Subsampled(Line):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", 1_000, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.weight * z + 0.3, 0.8), obs=x)

    class SubsampledGuide(LineGuide):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", 1_000, subsample_size=len(x)):
                pyro.sample("z", dist.Normal(self.slope * x + self.offset, self.log_scale.exp()))

    batch = {"x": torch.randn(2_000)[:50]}
    for objective in (WakeSleep(particles=2), ReweightedWakeSleep(particles=2)):
        for player in ("model", "guide"):
            plain = drawn(objective, player, Line(), LineGuide(), draws=100, batch=batch)[0]
            scaled_losses = drawn(
                type(objective)(particles=2), player, Subsampled(), SubsampledGuide(), draws=100, batch=batch
            )[0]
            error = (plain.var() / len(plain) + scaled_losses.var() / len(plain)).sqrt()
            assert abs(float(plain.mean() - scaled_losses.mean())) < 4.5 * float(error)
            assert abs(float(plain.mean() - 20 * scaled_losses.mean())) > 6 * float(error), "negative control"


# ------------------------------------------------------------------------------------------------------------ training

adam, quick = (functools.partial(torch.optim.Adam, lr=rate) for rate in (0.02, 0.05))


def trainer(objective: Objective, **options: Any) -> Trainer:
    options = {"compile": "off", "device": "cpu"} | options
    return Trainer(Net(), Recognition(), objective, adam, **options)


def run(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    return list(trainer.fit(BATCH, steps=steps, every=1))


@pytest.mark.parametrize(
    ("objective", "pair", "x"),
    [
        (WakeSleep, (Line, LineGuide), torch.linspace(-2, 2, 50)),
        (ReweightedWakeSleep, (Net, Recognition), BATCH["x"].float()),
        pytest.param(WakeSleep, (Net, Recognition), BATCH["x"].float(), marks=pytest.mark.slow),
        pytest.param(ReweightedWakeSleep, (Line, LineGuide), torch.linspace(-2, 2, 50), marks=pytest.mark.slow),
    ],
    ids=["wake-sleep-line", "reweighted-net", "wake-sleep-net", "reweighted-line"],
)
def test_compiled_equals_eager(
    objective: type[Objective], pair: tuple[type[nn.Module], type[nn.Module]], x: Tensor
) -> None:
    reports = []
    for mode in ("off", "on"):
        # in float64 the compiler's Bernoulli draws are not torch's own
        model, guide = (kind().float() for kind in pair)
        made = Trainer(model, guide, objective(), adam, compile=mode, device="cpu")  # type: ignore[arg-type]
        torch.manual_seed(0)
        reports.append(list(made.fit({"x": x}, steps=12, every=1)))
        assert made.compiled == (mode == "on")
    for eager, compiled in zip(*reports, strict=True):
        assert eager == pytest.approx(compiled, rel=1e-5, abs=1e-6)
    assert reports[0][0]["loss/guide"] != pytest.approx(reports[0][-1]["loss/guide"], rel=1e-3), "negative control"


@pytest.mark.parametrize("objective", [WakeSleep, ReweightedWakeSleep])
def test_resumed_is_bit_identical_to_uninterrupted(objective: type[Objective]) -> None:
    whole, half, rest = (trainer(objective()) for _ in range(3))
    torch.manual_seed(0)
    expected = run(whole, 6)
    torch.manual_seed(0)
    found = run(half, 3)
    state = half.state_dict()
    torch.manual_seed(77)
    rest.load_state_dict(state)
    assert found + run(rest, 3) == expected


@pytest.mark.parametrize(
    "objective", [WakeSleep(), ReweightedWakeSleep(), ReweightedWakeSleep(sleep=0.0), ReweightedWakeSleep(wake=0.0)]
)
def test_training_approaches_the_evidence(objective: Objective) -> None:
    """Where the model can express the data and the guide nearly its posterior, so do all of these."""
    made = Trainer(Net(), Recognition(), objective, quick, compile="off", device="cpu")
    assert isinstance(made.model, Net)
    truth = Net()
    data = truth.table(IMAGES).logsumexp(-1).exp()
    rows = IMAGES[torch.multinomial(data.detach(), 400, replacement=True)]
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(0.1)  # where all pixels are nearly independent
        before = -float(made.model.table(rows).logsumexp(-1).mean())
        best = -float(truth.table(rows).logsumexp(-1).mean())
    list(made.fit({"x": rows}, steps=250))
    with torch.no_grad():
        after = -float(made.model.table(rows).logsumexp(-1).mean())
    assert before - best > 0.25
    assert after - best < 0.25 * (before - best)


# ------------------------------------------------------------------------------------------------------------- players


def test_each_player_has_its_own_parameters() -> None:
    def model(x: Tensor) -> None:
        bias = pyro.param("bias", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + bias, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(x, pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive))
            )

    def shared(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("bias", torch.tensor(0.0)), 1.0))

    batch = {"x": torch.randn(5)}
    with Store().active():
        objective = WakeSleep()
        objective.setup(model, guide, batch)
        assert {k: list(v) for k, v in objective.players(model, guide, batch).items()} == {
            "model": ["store.bias"],
            "guide": ["store.scale"],
        }
    for refusing in (WakeSleep(), ReweightedWakeSleep()):
        with pytest.raises(ConfigError, match=r"'store.bias' is used by the model and by the guide.*of its own"):
            run_once(refusing, model, shared, batch)
    line, recognition = Line(), LineGuide()
    recognition.model = line
    with pytest.raises(ConfigError, match=r"'model.weight' is used by the model and by the guide"):
        run_once(WakeSleep(), line, recognition, batch)


def run_once(objective: Objective, model: Any, guide: Any, batch: Any) -> None:
    Trainer(model, guide, objective, adam, compile="off", device="cpu").step(itertools.repeat(batch))


def test_a_module_reached_by_a_function_belongs_to_that_function() -> None:
    line, recognition = Line(), LineGuide()

    def model(x: Tensor) -> None:
        pyro.module("line", line)
        line(x)

    def guide(x: Tensor) -> None:
        pyro.module("recognition", recognition)
        recognition(x)

    made = Trainer(model, guide, WakeSleep(), adam, compile="off", device="cpu")
    before = [value.item() for value in (line.weight, recognition.slope)]
    list(made.fit({"x": torch.randn(20)}, steps=3))
    after = [value.item() for value in (line.weight, recognition.slope)]
    assert all(old != new for old, new in zip(before, after, strict=True))


# ------------------------------------------------------------------------------------------------------------ refusals


def other_column(data: Tensor) -> None:
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)


def transformed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)


def with_factor(x: Tensor) -> None:
    Line()(x)
    pyro.factor("penalty", torch.tensor(1.0))


def data_guide(data: Tensor) -> None:
    LineGuide()(data)


def positive_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def positive_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(0.0, pyro.param("scale", torch.tensor(1.0))))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def point_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(pyro.param("loc", torch.tensor(0.0)) + x))


def greedy_guide(x: Tensor) -> None:
    LineGuide()(x)
    with pyro.plate("more", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0))


X = {"x": torch.randn(6)}


@pytest.mark.parametrize(
    ("model", "guide", "batch", "reason"),
    [
        (
            other_column,
            data_guide,
            {"data": X["x"]},
            r"observed site 'x': name the column .* 'x' too \(columns: data\)",
        ),
        (transformed, LineGuide(), X, "site 'x', which observes something made of the column"),
        (with_factor, LineGuide(), X, "site 'penalty' is a pyro.factor"),
        (Line(), AutoNormal(Line()), X, "guide site 'z_unconstrained' is auxiliary"),
        (Line(), point_guide, X, "guide site 'z' is a Delta"),
        (Line(), positive_guide, X, r"guide site 'z' \(LogNormal\) has no density at what the model \(Normal\) dreams"),
        (Line(), greedy_guide, X, "site 'x' is observed by the model and drawn by the guide"),
        (Line(), LineGuide(), (X["x"],), "expected batches as dicts of columns, {'x': ...} say, .*; got a tuple"),
    ],
    ids=["column", "transformed", "factor", "auxiliary", "delta", "support", "drawn", "tuple"],
)
@pytest.mark.parametrize("objective", [WakeSleep, ReweightedWakeSleep])
def test_what_cannot_be_dreamed_is_refused(
    objective: Callable[[], Objective], model: Any, guide: Any, batch: Any, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        run_once(objective(), model, guide, batch)
    assert "\n" not in str(caught.value)


def test_without_dreams_more_is_let_through() -> None:
    """Negative control of the refusals."""
    run_once(ReweightedWakeSleep(sleep=0.0), positive_model, AutoNormal(positive_model), X)
    run_once(ReweightedWakeSleep(sleep=0.0), positive_model, positive_guide, (X["x"],))
    run_once(WakeSleep(), positive_model, positive_guide, X)


def test_weights_of_a_global_latent_are_refused_under_subsampling() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, pyro.param("width", torch.tensor(1.0))))
        with pyro.plate("data", 60, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ConfigError, match=r"latent 'mean' lies outside the data plate 'data'.*\(6 of 60\)"):
        run_once(ReweightedWakeSleep(), model, guide, X)
    run_once(ReweightedWakeSleep(particles=1), model, guide, X)
    run_once(WakeSleep(), model, guide, X)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WakeSleep(particles=0), "expected particles >= 1; got 0"),
        (lambda: ReweightedWakeSleep(particles=0), "expected particles >= 1; got 0"),
        (lambda: ReweightedWakeSleep(wake=-1.0), "expected wake, sleep >= 0, not both 0; got -1.0, 0.5"),
        (lambda: ReweightedWakeSleep(wake=0.0, sleep=0.0), "not both 0; got 0.0, 0.0"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], Objective], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()


def test_there_is_no_single_loss() -> None:
    for objective in (WakeSleep(), ReweightedWakeSleep()):
        with pytest.raises(TypeError, match=r"has a loss for each of its players: train with ppgen.Trainer"):
            objective.loss(Line(), LineGuide(), X)


# ----------------------------------------------------------------------------------------------------------- benchmark


def test_the_benchmark_draws_what_it_found(tmp_path: Path) -> None:
    def points(height: float) -> list[dict[str, float]]:
        return [{"seconds": s, "samples": 100 * s, "bound": height - 9 / s, "likelihood": height} for s in range(1, 9)]

    found = {panel.name: {name: points(-100.0) for name in panel.methods} for panel in benchmark.PANELS}
    about = {"processor": "a processor", "threads": 1, "load": 0.0}
    for number, heights in enumerate([-100.0, -120.0]):
        found["z3"]["aevb"] = points(heights)
        benchmark.draw(found, tmp_path / "new" / f"{number}.png", seconds=8.0, about=about)
    first, second = ((tmp_path / "new" / f"{number}.png").read_bytes() for number in range(2))
    assert first.startswith(b"\x89PNG")
    assert first != second


def test_the_benchmark_is_a_command() -> None:
    assert main.commands["wake-sleep"] is benchmark.command
