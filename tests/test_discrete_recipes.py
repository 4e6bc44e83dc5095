"""Nets of stochastic layers, halves of images and the toy problem: their densities, draws and recipes."""

import itertools
import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from zoo import binary_rows, value_and_gradients, z_score

from ppgen import Trainer, guides, models, nn, programs
from ppgen import data as datasets
from ppgen.errors import ConfigError
from ppgen.nn.units import BernoulliUnits, CategoricalUnits, GaussianUnits, Shift, Units
from ppgen.objectives import ELBO, IWAE, EnumeratedELBO, ReweightedWakeSleep
from ppgen.recipes import RECIPES, Recipe
from ppgen.recipes.iwae import factor_of

PIXELS = 3


def bits(size: int) -> Tensor:
    """All states of so many bits: ``(2 ** size, size)``."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))


def one_hots(groups: int, classes: int) -> Tensor:
    """All states of so many one-hot vectors: ``(classes ** groups, groups, classes)``."""
    states = list(itertools.product(range(classes), repeat=groups))
    return torch.eye(classes)[torch.tensor(states)]


def net(*units: Units, pixels: int = PIXELS) -> tuple[models.BeliefNet, guides.BottomUp]:
    """A net of one-layer networks with weights large enough to matter."""
    torch.manual_seed(5)
    likelihood = nn.Bernoulli((pixels,))
    targets = [pixels, *(layer.features for layer in units[:-1])]
    down = [nn.MLP(layer.size, [], target) for layer, target in zip(units, targets, strict=True)]
    sources = [pixels, *(layer.size for layer in units[:-1])]
    up = [nn.MLP(source, [], layer.features) for layer, source in zip(units, sources, strict=True)]
    model, guide = models.BeliefNet(units, down, likelihood), guides.BottomUp(units, up)
    for parameter in (*model.parameters(), *guide.parameters()):
        torch.nn.init.normal_(parameter)
    return model, guide


def log_probs(program: Any, x: Tensor, **values: Tensor) -> dict[str, Tensor]:
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(x)
    trace.compute_log_prob()
    return {name: site["log_prob"] for name, site in trace.nodes.items() if site["type"] == "sample" and name != "data"}


def log_joint(program: Any, x: Tensor, **values: Tensor) -> Tensor:
    return torch.stack(list(log_probs(program, x, **values).values())).sum(0)


def weights_of(network: Any) -> tuple[Tensor, Tensor]:
    return network.first[0].weight.detach(), network.first[0].bias.detach()


def bernoulli(state: Tensor, logits: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-logits))
    return torch.where(state == 1, p, 1 - p).log().sum(-1)


# Densities


def test_a_belief_net_has_its_density() -> None:
    model, guide = net(BernoulliUnits(2), BernoulliUnits(4))
    x, z1, z2 = binary_rows(7, PIXELS), binary_rows(7, 2, seed=1), binary_rows(7, 4, seed=2)
    found = log_probs(model, x, z1=z1, z2=z2)
    (w0, b0), (w1, b1) = (weights_of(network) for network in model.networks)
    assert torch.allclose(found["z2"], bernoulli(z2, model.prior), atol=1e-5)
    assert torch.allclose(found["z1"], bernoulli(z1, (2 * z2 - 1) @ w1.T + b1), atol=1e-5)
    assert torch.allclose(found["x"], bernoulli(x, (2 * z1 - 1) @ w0.T + b0), atol=1e-5)
    assert not torch.allclose(found["x"], bernoulli(x, z1 @ w0.T + b0), atol=1e-2), "negative control: units as 0, 1"
    found = log_probs(guide, x, z1=z1, z2=z2)
    (v1, c1), (v2, c2) = (weights_of(network) for network in guide.networks)
    assert torch.allclose(found["z1"], bernoulli(z1, x @ v1.T + c1), atol=1e-5)
    assert torch.allclose(found["z2"], bernoulli(z2, (2 * z1 - 1) @ v2.T + c2), atol=1e-5)


def test_categorical_units_have_their_density() -> None:
    model, guide = net(CategoricalUnits(2, 3))
    x, z = binary_rows(9, PIXELS), one_hots(2, 3)
    found = log_probs(model, x, z1=z)
    logs = model.prior.detach().view(2, 3).log_softmax(-1)
    w, b = weights_of(model.networks[0])
    assert torch.allclose(found["z1"], (z * logs).sum((-1, -2)), atol=1e-5)
    assert torch.allclose(found["x"], bernoulli(x, z.reshape(9, 6) @ w.T + b), atol=1e-5)
    assert not torch.allclose(found["x"], bernoulli(x, z.transpose(-1, -2).reshape(9, 6) @ w.T + b), atol=1e-2)
    v, c = weights_of(guide.networks[0])
    logs = (x @ v.T + c).view(9, 2, 3).log_softmax(-1)
    assert torch.allclose(log_probs(guide, x, z1=z)["z1"], (z * logs).sum((-1, -2)), atol=1e-5)


def test_gaussian_units_have_their_density() -> None:
    units = GaussianUnits(2)
    standard = units(torch.zeros(1, 4))
    assert torch.allclose(standard.base_dist.scale, torch.ones(2), atol=1e-6)
    torch.manual_seed(5)
    networks = [nn.MLP(2, [], PIXELS), nn.MLP(2, [], 4)]
    model = models.BeliefNet([units, units], networks, nn.Bernoulli((PIXELS,)), learn_prior=False)
    x, z1, z2 = binary_rows(7, PIXELS), torch.randn(7, 2), torch.randn(7, 2)
    found = log_probs(model, x, z1=z1, z2=z2)
    assert torch.allclose(found["z2"], dist.Normal(0.0, 1.0).log_prob(z2).sum(-1), atol=1e-5)
    w, b = weights_of(model.networks[1])
    mean, raw = (z2 @ w.T + b).chunk(2, -1)
    scale = torch.nn.functional.softplus(raw + math.log(math.expm1(0.999))) + 1e-3
    expected = -0.5 * ((z1 - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(found["z1"], expected.sum(-1), atol=1e-5)
    assert "prior" not in dict(programs.leaves(model, model)), "a standard Gaussian stays one"
    assert "model.prior" in programs.leaves(net(BernoulliUnits(2))[0], model)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_draws_have_the_marginals_of_the_explicit_sum(kind: str) -> None:
    """p(x) of every x as a sum over all states of both layers, beside how often the model draws it."""
    units: list[Units] = [BernoulliUnits(2), BernoulliUnits(3)]
    first, second = bits(2), bits(3)
    if kind == "categorical":
        units = [CategoricalUnits(1, 3), CategoricalUnits(2, 2)]
        first, second = one_hots(1, 3), one_hots(2, 2)
    model, _ = net(*units)
    pairs = [(x, a, b) for x in bits(PIXELS) for a in first for b in second]
    x, a, b = (torch.stack(column) for column in zip(*pairs, strict=True))
    with torch.no_grad():
        exact = log_joint(model, x, z1=a, z2=b).view(2**PIXELS, -1).exp().sum(-1).double()
    assert exact.sum() == pytest.approx(1, abs=1e-5)
    drawn = programs.generate(model, {"x": torch.zeros(20_000, PIXELS)})["x"]
    code = (drawn @ torch.tensor([4.0, 2.0, 1.0])).long()
    assert z_score(torch.eye(8)[code], exact) < 4.5
    model.prior.data.neg_()
    drawn = programs.generate(model, {"x": torch.zeros(20_000, PIXELS)})["x"]
    assert z_score(torch.eye(8)[(drawn @ torch.tensor([4.0, 2.0, 1.0])).long()], exact) > 6, "negative control"


def test_weights_average_to_the_evidence() -> None:
    """With particles to the left of the rows; a guide whose layers depend on each other."""
    model, guide = net(BernoulliUnits(2), BernoulliUnits(2))
    x = bits(PIXELS)
    exact = torch.zeros(8)
    for a, b in itertools.product(bits(2), bits(2)):
        exact += log_joint(model, x, z1=a.expand(8, 2), z2=b.expand(8, 2)).exp().detach()
    with torch.no_grad():
        weights = programs.log_weights(model, guide, {"x": x}, particles=20_000).local.exp()
    assert weights.shape == (20_000, 8)
    assert z_score(weights, exact.double()) < 4.5
    assert z_score(weights * 1.1, exact.double()) > 6, "negative control"


def test_relaxed_draws_may_take_the_place_of_discrete_ones() -> None:
    model, _ = net(BernoulliUnits(2), CategoricalUnits(2, 3))
    x = binary_rows(4, PIXELS)
    relaxed = {"z1": torch.rand(4, 2).requires_grad_(), "z2": torch.rand(4, 2, 3).softmax(-1).requires_grad_()}
    with programs.quiet():
        likelihood = log_probs(model, x, **relaxed)["x"].sum()
        found = torch.autograd.grad(likelihood, [relaxed["z1"]])
    assert all((gradient != 0).all() for gradient in found)


def test_a_net_needs_a_network_for_every_layer() -> None:
    units = [BernoulliUnits(2)]
    for made in (
        lambda: models.BeliefNet(units, [], nn.Bernoulli((3,))),
        lambda: models.BeliefNet([], [], nn.Bernoulli((3,))),
        lambda: guides.BottomUp(units, [nn.MLP(3, [], 2)] * 2),
        lambda: models.StructuredPrediction(units, [nn.MLP(3, [], 2)], models.UpperHalf((4,))),
    ):
        with pytest.raises(ConfigError, match="expected one network"):
            made()
    with pytest.raises(ConfigError, match="at least 2 classes; got 1"):
        CategoricalUnits(3, 1)


def test_a_shift_moves_with_its_network() -> None:
    shift = Shift(torch.tensor([-0.5, 1.0]))
    assert torch.equal(shift(torch.zeros(3, 2)), torch.tensor([-0.5, 1.0]).expand(3, 2))
    assert list(shift.state_dict()) == ["constant"]


# Half of an image


def half(*units: Units, shape: tuple[int, ...] = (1, 3, 2)) -> tuple[models.StructuredPrediction, guides.BottomUp]:
    torch.manual_seed(5)
    upper = models.UpperHalf(shape)
    sizes = [upper.size, *(layer.size for layer in units)]
    targets = [*(layer.features for layer in units), math.prod(upper.lower_shape)]
    networks: list[torch.nn.Module] = [nn.MLP(size, [], target) for size, target in zip(sizes, targets, strict=True)]
    networks[0] = torch.nn.Sequential(upper, networks[0])
    model = models.StructuredPrediction(units, networks, upper)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model, guides.BottomUp(units, networks[:-1])


@pytest.mark.parametrize(
    ("shape", "upper", "lower"),
    [((1, 4, 3), 6, (1, 2, 3)), ((3, 5, 2), 12, (3, 3, 2)), ((5,), 2, (3,)), ((28, 28), 392, (14, 28))],
)
def test_halves_are_exact(shape: tuple[int, ...], upper: int, lower: tuple[int, ...]) -> None:
    half_of = models.UpperHalf(shape)
    x = torch.arange(float(math.prod(shape))).view(1, *shape) / 1000
    found = (half_of(x)[0] + 1) / 2
    assert found.shape == (upper,)
    assert half_of.size == upper
    assert half_of.lower_shape == lower
    rest = x[0][half_of.lower]
    assert sorted([*found.tolist(), *rest.tolist()]) == pytest.approx(x.flatten().tolist(), abs=1e-6)
    rows = x[0].narrow(half_of.dim, 0, half_of.rows)
    assert torch.allclose(found, rows.flatten())


def test_what_cannot_be_halved_is_refused() -> None:
    for shape in [(), (1,), (3, 1, 4)]:
        with pytest.raises(ConfigError, match="two rows or values to halve"):
            models.UpperHalf(shape)


def test_only_the_lower_half_counts() -> None:
    model, guide = half(BernoulliUnits(2), BernoulliUnits(3))
    x = binary_rows(7, 6).view(7, 1, 3, 2)
    z1, z2 = binary_rows(7, 2, seed=1), binary_rows(7, 3, seed=2)
    found = log_probs(model, x, z1=z1, z2=z2)
    w0, b0 = weights_of(list(model.networks[0].children())[1])
    w2, b2 = weights_of(model.networks[2])
    assert torch.allclose(found["z1"], bernoulli(z1, (2 * x[:, 0, 0] - 1) @ w0.T + b0), atol=1e-5)
    lower = x[:, 0, 1:].flatten(1)
    assert torch.allclose(found["x"], bernoulli(lower, (2 * z2 - 1) @ w2.T + b2), atol=1e-5)
    changed = x.clone()
    changed[:, 0, 0] = 1 - changed[:, 0, 0]
    assert torch.equal(log_probs(model, changed, z1=z1, z2=z2)["x"], found["x"]), "given the layers"
    assert not torch.allclose(log_probs(model, changed, z1=z1, z2=z2)["z1"], found["z1"], atol=1e-2)
    changed = x.clone()
    changed[:, 0, 2] = 1 - changed[:, 0, 2]
    assert not torch.allclose(log_probs(model, changed, z1=z1, z2=z2)["x"], found["x"], atol=1e-2), "negative control"
    assert torch.equal(log_probs(guide, x, z1=z1, z2=z2)["z1"], found["z1"])


def test_a_drawn_image_keeps_its_upper_half() -> None:
    model, guide = half(BernoulliUnits(2))
    x = binary_rows(200, 6).view(200, 1, 3, 2)
    for drawn in (programs.generate(model, {"x": x}), programs.reconstruct(model, guide, {"x": x}, mean=["x"])):
        assert torch.equal(drawn["x"][:, :, 0], x[:, :, 0])
        assert not torch.equal(drawn["x"][:, :, 1:], x[:, :, 1:]), "negative control"
    grey = torch.full((1, 1, 3, 2), 0.3)
    assert torch.allclose(programs.reconstruct(model, guide, {"x": grey}, mean=["x"])["x"][:, :, 0], grey[:, :, 0])


def test_weights_are_likelihoods_of_the_lower_half() -> None:
    """Draws from p(z | upper) weigh p(lower | z): their mean is p(lower | upper), summed here over all states."""
    model, guide = half(BernoulliUnits(2), BernoulliUnits(2))
    x = binary_rows(5, 6).view(5, 1, 3, 2)
    exact = torch.zeros(5)
    for a, b in itertools.product(bits(2), bits(2)):
        exact += log_joint(model, x, z1=a.expand(5, 2), z2=b.expand(5, 2)).exp().detach()
    with torch.no_grad():
        weights = programs.log_weights(model, guide, {"x": x}, particles=20_000).local.exp()
    assert z_score(weights, exact.double()) < 4.5
    assert z_score(weights, exact.double() / 2) > 6, "negative control"


def test_the_guide_of_half_an_image_is_the_models() -> None:
    """Its parameters are the model's, each trained once, and no divergence enters the bound."""
    model, guide = half(BernoulliUnits(2))
    leaves = programs.leaves(model, guide)
    assert {id(leaf) for leaf in leaves.values()} == {id(leaf) for leaf in model.parameters()}
    x = binary_rows(5, 6).view(5, 1, 3, 2)
    joint = programs.run(model, guide, {"x": x})
    assert torch.equal(joint.log_p("z1"), joint.log_q("z1"))


# The toy problem


def test_the_toy_problem_is_the_expected_square() -> None:
    """The bound, summed over both states, is E[(b - t)^2] + log(pi) / 2, and so is its gradient."""
    target, rows = 0.499, 4
    model = models.Coins(rows)
    model.logits.data = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    batch = {"x": torch.full((rows, 1), target), "replica": torch.tensor([2, 0, 3, 1])}
    theta = model.logits.detach().sigmoid()
    cost = theta * (1 - target) ** 2 + (1 - theta) * target**2
    for analytic_kl in (True, False):
        objective = EnumeratedELBO(analytic_kl=analytic_kl)
        loss, gradients = value_and_gradients(objective, model, guides.SameCoins(model), batch)
        assert loss.item() == pytest.approx(cost.mean().item() + 0.5 * math.log(math.pi), abs=1e-6)
        exact = (1 - 2 * target) * theta * (1 - theta) / rows
        assert list(gradients) == ["model.logits"]
        assert torch.allclose(gradients["model.logits"], exact, atol=1e-8)
    other = models.Coins(rows)
    loss, _ = value_and_gradients(EnumeratedELBO(), other, guides.SameCoins(model), batch)
    assert loss.item() > cost.mean().item() + 0.5 * math.log(math.pi) + 0.1, "negative control: a prior of its own"


def test_replicas_see_their_own_coin() -> None:
    model = models.Coins(3)
    model.logits.data = torch.tensor([-30.0, 30.0, -30.0])
    drawn = programs.generate(model, {"x": torch.zeros(4, 1), "replica": torch.tensor([1, 1, 0, 2])})
    assert drawn["b"].tolist() == [1, 1, 0, 0]
    assert programs.generate(model, {"x": torch.zeros(5, 1)})["b"].tolist() == [0, 1, 0, 0, 1]


def test_a_pathwise_bound_refuses_coins() -> None:
    model = models.Coins(3)
    with pytest.raises(ConfigError, match=r"'b' .* has no pathwise derivative"):
        value_and_gradients(ELBO(), model, guides.SameCoins(model), {"x": torch.zeros(3, 1)})


# Recipes


def built(name: str, data: str = "digits", **options: Any) -> Recipe:
    entry = RECIPES[name]
    return entry.build(datasets.load(data), entry.resolve(data, options))


def steps_of(recipe: Recipe, count: int) -> tuple[Trainer, list[float]]:
    """Trains eagerly; returns the trainer, and the losses of every step and player."""
    trainer = Trainer(
        recipe.model, recipe.guide, recipe.objective, recipe.optimizer(count), device="cpu", compile="off"
    )
    batches = recipe.batches(0, torch.device("cpu"))
    found = list(trainer.fit(batches, steps=count, every=1))
    return trainer, [value for metrics in found for name, value in metrics.items() if name.startswith("loss")]


def test_the_rate_falls_in_the_papers_stages() -> None:
    """Eight stages of 1, 3, 9, ... 2187 epochs of 3280, whatever the length of the run."""
    recipe = built("iwae", learning_rate=0.01, schedule="stages")
    of_steps: Any = recipe.optimizer(3280)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = of_steps.factory([parameter])
    assert optimizer.defaults["eps"] == 1e-4
    schedule = of_steps.schedule(optimizer)
    optimizer.step()
    rates = []
    for _ in range(3280):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    for stage in range(8):
        start = (3**stage - 1) // 2
        expected = 0.01 * 10 ** (-stage / 7)
        assert rates[start] == rates[start + 3**stage - 1] == pytest.approx(expected)
    assert factor_of(4000, 3280) == pytest.approx(0.1), "a run that goes on after its end"
    assert factor_of(0, 0) == pytest.approx(1)


def test_outputs_start_at_the_mean_of_the_data() -> None:
    for name in ("sbn", "categorical-vae", "iwae"):
        recipe = built(name)
        model: Any = recipe.model
        bias = [m for m in model.networks[0].modules() if isinstance(m, torch.nn.Linear)][-1].bias
        assert recipe.data is not None
        mean = datasets.load("digits").train["x"].mean(0).flatten()
        assert torch.allclose(bias.sigmoid(), mean.clamp(1e-3, 1 - 1e-3), atol=1e-6)
        guide: Any = recipe.guide
        assert torch.allclose(guide.networks[0][0].constant.flatten(), -mean, atol=1e-6)
    model = built("structured").model
    assert torch.allclose(model.networks[-1].first[0].bias.sigmoid(), mean[32:].clamp(1e-3, 1 - 1e-3), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "kind", "particles"),
    [("vimco", IWAE, 5), ("leave-one-out", ELBO, 2), ("nvil", ELBO, 1), ("relax", ELBO, 1)],
)
def test_a_belief_net_takes_the_bound_that_its_estimator_is_for(estimator: str, kind: Any, particles: int) -> None:
    objective = built("sbn", estimator=estimator).objective
    assert type(objective) is kind
    assert objective.particles == particles
    other: Any = built("sbn", estimator=estimator, objective="reweighted-wake-sleep").objective
    assert type(other) is ReweightedWakeSleep
    told = built("sbn", estimator=estimator, objective="iwae", particles=3).objective
    assert type(told) is IWAE
    assert told.particles == 3


@pytest.mark.parametrize("estimator", ["vimco", "leave-one-out", "nvil", "gumbel-softmax", "relax"])
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("sbn", {"layers": (6, 4)}),
        ("sbn", {"layers": (6,), "network": "nonlinear", "hidden": (8, 7)}),
        ("categorical-vae", {"latents": 3, "classes": 4, "decoder_hidden": (8,)}),
        ("categorical-vae", {"latents": 3, "classes": 4, "units": "bernoulli", "prior": "uniform"}),
        ("structured", {"layers": (6, 4), "units": "categorical", "classes": 2}),
    ],
)
def test_recipes_of_discrete_layers_train_with_every_kind_of_estimator(
    recipe: str, options: dict[str, Any], estimator: str
) -> None:
    if estimator == "vimco" and recipe != "sbn":
        pytest.skip("they have no K-sample bound")
    particles = {} if recipe == "sbn" else {"particles": 2}
    _, losses = steps_of(built(recipe, **{"estimator": estimator, "batch_size": 20, **particles, **options}), 3)
    assert len(losses) >= 3
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("objective", ["wake-sleep", "reweighted-wake-sleep"])
def test_a_belief_net_wakes_and_sleeps(objective: str) -> None:
    recipe = built("sbn", layers=(6, 4), objective=objective, batch_size=20)
    before = {name: leaf.detach().clone() for name, leaf in programs.leaves(recipe.model, recipe.guide).items()}
    steps_of(recipe, 2)
    after = programs.leaves(recipe.model, recipe.guide)
    assert not [name for name, leaf in after.items() if torch.equal(leaf, before[name])]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 10 values for 10 classes; got 25"):
        built("structured", units="categorical", layers=(20, 25))
    with pytest.raises(ConfigError, match="below each of 3 layers; got 2"):
        built("iwae", layers=(5, 4, 3))
    with pytest.raises(ConfigError, match="at least one layer of latents"):
        built("sbn", layers=())


def test_coins_learn_which_side_is_nearer() -> None:
    """Their probabilities fall below a target of 0.1, as the exact gradient has it, and rise above one of 0.9."""
    for target, low, high in ((0.1, 0.0, 0.3), (0.9, 0.7, 1.0)):
        trainer, _ = steps_of(built("toy", target=target, replicas=20, estimator="score", learning_rate=0.05), 80)
        model: Any = trainer.model
        assert low < model.logits.sigmoid().mean().item() < high


def test_a_toy_problem_ignores_the_data() -> None:
    recipe = built("toy", replicas=7, target=0.3)
    assert recipe.data is not None
    assert recipe.data.train["x"].tolist() == [[pytest.approx(0.3)]] * 7
    batch: Any = next(recipe.batches(0, torch.device("cpu")))
    assert batch["replica"].tolist() == list(range(7))
