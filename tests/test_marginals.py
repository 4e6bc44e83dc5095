"""Discrete sites that only the model has, summed out: against sums written out and against Pyro's own."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute_force import Parameters, Parts
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from zoo import relative, value_and_gradients, z_between

from ppgen import ELBO, programs
from ppgen.errors import ConfigError
from ppgen.objectives import IWAE, EnumeratedELBO, Objective, Renyi
from ppgen.objectives.bounds import Bound
from ppgen.programs import Store

X = torch.tensor([0.3, -1.2, 0.8, 2.0])
SERIES = torch.tensor([[0.3, -1.2, 0.8, 2.0], [1.3, 0.2, -0.6, -0.5], [0.0, 0.9, 1.1, 0.1]])

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "EnumeratedELBO": EnumeratedELBO,
    "ELBO": lambda: ELBO(estimator="enumerate"),
    "IWAE, 1 sample": lambda: IWAE(particles=1, estimator="enumerate"),
    "IWAE": lambda: IWAE(particles=3, estimator="enumerate"),
    "Renyi": lambda: Renyi(alpha=0.5, particles=3, estimator="enumerate"),
}


def nothing(x: Tensor) -> None:
    """A guide without latents."""


def require(
    objective: Objective, model: Any, guide: Any, x: Tensor, expected: Tensor, leaves: dict[str, Tensor]
) -> None:
    """The value and the gradients are those expected, and those of half the loss are not."""
    loss, gradients = value_and_gradients(objective, model, guide, {"x": x}, seed=3)
    names = [name for name in leaves if name in gradients]
    found = torch.autograd.grad(expected, [leaves[name] for name in names], retain_graph=True)
    wanted = dict(zip(names, found, strict=True))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative(gradients, wanted) < 1e-4
    halved = {name: gradient / 2 for name, gradient in wanted.items()}
    assert relative(gradients, halved) > 0.1, "negative control"


def leaves_of(model: Parts, guide: Parts | None = None) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {f"model.{name}": p for name, p in model.named_parameters()}
    return named | ({f"guide.{name}": p for name, p in guide.named_parameters()} if guide is not None else {})


def stock(model: Any, guide: Any, x: Tensor, size: int) -> tuple[float, dict[str, Tensor]]:
    """Pyro's own value and gradients, in nats per datum."""
    with Store().active():
        torch.manual_seed(3)
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        loss = elbo.differentiable_loss(config_enumerate(model), guide, x) / size
        leaves = leaves_of(model, guide if isinstance(guide, Parts) else None)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.item(), {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


# ------------------------------------------------------------------------------------------------------------- mixtures


def mixture(*, size: int | None = None, rows: int = 4) -> Parts:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", rows, subsample_size=size):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            pyro.sample("x", dist.Normal(p["locs"][y], (0.3 * p["s"][y]).exp()), obs=x)

    return Parts(model, seed=1, prior=(3,), locs=(3,), s=(3,))


def mixture_evidence(model: Parts, x: Tensor) -> Tensor:
    p = model.parts
    each = dist.Normal(p["locs"], (0.3 * p["s"]).exp()).log_prob(x.unsqueeze(-1))
    evidence: Tensor = (p["prior"].log_softmax(-1) + each).logsumexp(-1)
    return evidence


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mixture_is_its_evidence(name: str) -> None:
    model = mixture()
    require(OBJECTIVES[name](), model, nothing, X, -mixture_evidence(model, X).mean(), leaves_of(model))
    loss, gradients = value_and_gradients(OBJECTIVES[name](), model, nothing, {"x": X})
    value, theirs = stock(model, nothing, X, 4)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert relative(gradients, theirs) < 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_some_rows_of_a_mixture_stand_for_all(name: str) -> None:
    model = mixture(size=2, rows=12)
    expected = -mixture_evidence(model, X[:2]).mean()
    require(OBJECTIVES[name](), model, nothing, X[:2], expected, leaves_of(model))
    value, theirs = stock(model, nothing, X[:2], 12)
    loss, gradients = value_and_gradients(OBJECTIVES[name](), model, nothing, {"x": X[:2]})
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert relative(gradients, theirs) < 1e-4


def beside_a_latent() -> tuple[Parts, Parts]:
    """The guide draws z; which component it came from only the model knows."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x), subsample=torch.arange(len(x))):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            z = pyro.sample("z", dist.Normal(p["locs"][y], 0.8))
            pyro.sample("x", dist.Normal(p["w"][0] * z + p["shift"][y], 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x), subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(p["a"][0] * x + p["a"][1], 0.9))

    return Parts(model, seed=1, prior=(3,), locs=(3,), w=(1,), shift=(3,)), Parts(guide, seed=2, a=(2,))


def weights_beside(model: Parts, guide: Parts, noise: Tensor) -> Tensor:
    """Log weights of standardised draws ``(samples, rows)``."""
    p, a = model.parts, guide.parts["a"]
    z = a[0] * X + a[1] + 0.9 * noise
    each = p["prior"].log_softmax(-1) + dist.Normal(p["locs"], 0.8).log_prob(z.unsqueeze(-1))
    each = each + dist.Normal(p["w"][0] * z.unsqueeze(-1) + p["shift"], 1.0).log_prob(X.unsqueeze(-1))
    log_w: Tensor = each.logsumexp(-1) - dist.Normal(a[0] * X + a[1], 0.9).log_prob(z)
    return log_w


@pytest.mark.parametrize("name", OBJECTIVES)
def test_beside_a_latent_of_the_guide_the_sum_is_of_each_draw(name: str) -> None:
    model, guide = beside_a_latent()
    objective = OBJECTIVES[name]()
    with Store().active():
        objective.setup(model, guide, {"x": X})
        torch.manual_seed(3)
        with programs.quiet():
            batch = {"x": X}
            if isinstance(objective, ELBO):
                joint, _ = objective._drawn(model, guide, batch, None)
            else:
                assert isinstance(objective, Bound)
                joint = objective._drawn(model, guide, batch)
    z, a = joint.guide.nodes["z"]["value"].detach().reshape(-1, 4), guide.parts["a"]
    log_w = weights_beside(model, guide, (z - a[0].detach() * X - a[1].detach()) / 0.9)
    alpha = 0.5 if name == "Renyi" else 0.0
    bound = log_w.mean(0) if isinstance(objective, ELBO) else ((1 - alpha) * log_w).exp().mean(0).log() / (1 - alpha)
    require(objective, model, guide, X, -bound.mean(), leaves_of(model, guide))


def test_beside_a_latent_it_is_trace_enum_in_the_mean() -> None:
    model, guide = beside_a_latent()
    with Store().active(), torch.no_grad(), programs.quiet():
        objective = EnumeratedELBO(particles=50)
        objective.setup(model, guide, {"x": X})
        ours = torch.stack([objective.loss(model, guide, {"x": X}) for _ in range(100)])
        elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=50, vectorize_particles=True)
        theirs = torch.tensor([elbo.loss(config_enumerate(model), guide, X) / 8 for _ in range(100)])
        several = IWAE(particles=5, outer=10, estimator="enumerate")
        several.setup(model, guide, {"x": X})
        weighted = torch.stack([several.loss(model, guide, {"x": X}) for _ in range(100)])
    assert z_between(ours, theirs) < 4.5
    assert z_between(weighted, theirs) > 6, "negative control: another bound"


def test_a_site_in_both_and_one_in_the_model_only() -> None:
    """Enumerated in the guide with its probabilities, in the model exactly."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=p["top"]))
            y = pyro.sample("y", dist.Categorical(logits=p["prior"][k]))
            pyro.sample("x", dist.Normal(p["locs"][y] + p["shift"][k], 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=x.unsqueeze(-1) * p["v"]))

    made = Parts(model, seed=1, top=(2,), prior=(2, 3), locs=(3,), shift=(2,)), Parts(guide, seed=2, v=(2,))
    p = made[0].parts
    log_q = (X.unsqueeze(-1) * made[1].parts["v"]).log_softmax(-1)
    each = dist.Normal(p["locs"] + p["shift"].unsqueeze(-1), 1.0).log_prob(X.reshape(-1, 1, 1))
    log_p = p["top"].log_softmax(-1) + (p["prior"].log_softmax(-1) + each).logsumexp(-1)
    elbo = -(log_q.exp() * (log_p - log_q)).sum(-1).mean()
    require(EnumeratedELBO(), *made, X, elbo, leaves_of(*made))
    half = -2 * (log_q.exp() * ((log_p - log_q) / 2).exp()).sum(-1).log().mean()
    require(Renyi(alpha=0.5, particles=2, estimator="enumerate"), *made, X, half, leaves_of(*made))
    evidence, gradients = value_and_gradients(IWAE(particles=2, estimator="enumerate"), *made, {"x": X})
    assert evidence.item() == pytest.approx(-log_p.logsumexp(-1).mean().item(), rel=1e-5)
    assert float(gradients["guide.parts.v"].abs().max()) < 1e-5


# --------------------------------------------------------------------------------------------------------------- chains


def chain(*, size: int = 3) -> Parts:
    """A hidden Markov model with two states, a series a row."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            y: Any = 0
            for t in pyro.markov(range(x.shape[1])):
                y = pyro.sample(f"y{t}", dist.Categorical(logits=p["step"][y]))
                pyro.sample(f"x{t}", dist.Normal(p["locs"][y], 0.8), obs=x[:, t])

    return Parts(model, seed=1, step=(2, 2), locs=(2,))


def chain_evidence(model: Parts, x: Tensor) -> Tensor:
    p = model.parts
    steps = p["step"].log_softmax(-1)
    paths = []
    for path in itertools.product(range(2), repeat=x.shape[1]):
        total = torch.zeros(len(x))
        for t, y in enumerate(path):
            total = total + steps[path[t - 1] if t else 0, y] + dist.Normal(p["locs"][y], 0.8).log_prob(x[:, t])
        paths.append(total)
    return torch.stack(paths).logsumexp(0)


@pytest.mark.parametrize("size", [3, 12])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_hidden_markov_model_is_its_evidence(name: str, size: int) -> None:
    model = chain(size=size)
    require(OBJECTIVES[name](), model, nothing, SERIES, -chain_evidence(model, SERIES).mean(), leaves_of(model))
    value, theirs = stock(model, nothing, SERIES, size)
    loss, gradients = value_and_gradients(OBJECTIVES[name](), model, nothing, {"x": SERIES})
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert relative(gradients, theirs) < 1e-4


def test_rows_that_do_not_count_are_left_out_of_the_sum() -> None:
    counts = torch.tensor([True, False, True, True])

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=counts):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            pyro.sample("x", dist.Normal(p["locs"][y], 1.0), obs=x)

    made = Parts(model, seed=1, prior=(3,), locs=(3,))
    each = dist.Normal(made.parts["locs"], 1.0).log_prob(X.unsqueeze(-1)) + made.parts["prior"].log_softmax(-1)
    for name in OBJECTIVES:
        require(OBJECTIVES[name](), made, nothing, X, -each.logsumexp(-1)[counts].sum() / 4, leaves_of(made))
        value, _ = stock(made, nothing, X, 4)
        assert value == pytest.approx(-each.logsumexp(-1)[counts].sum().item() / 4, rel=1e-5)


def test_series_of_different_lengths() -> None:
    """Steps after the end of a series are masked."""
    lengths = torch.tensor([4, 2, 3])

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y: Any = 0
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    y = pyro.sample(f"y{t}", dist.Categorical(logits=p["step"][y]))
                    pyro.sample(f"x{t}", dist.Normal(p["locs"][y], 0.8), obs=x[:, t])

    made = Parts(model, seed=1, step=(2, 2), locs=(2,))
    each = [chain_evidence(made, row[:length].unsqueeze(0)) for row, length in zip(SERIES, lengths, strict=True)]
    for name in OBJECTIVES:
        require(OBJECTIVES[name](), made, nothing, SERIES, -torch.cat(each).mean(), leaves_of(made))


# ---------------------------------------------------------------------------------------------------- outside the plate


def shared(*, size: int = 4) -> Parts:
    """One component for all rows."""

    def model(p: Parameters, x: Tensor) -> None:
        y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(p["locs"][y], 1.0), obs=x)

    return Parts(model, seed=1, prior=(3,), locs=(3,))


def test_a_component_of_all_rows_is_summed_outside_of_their_product() -> None:
    model = shared()
    each = dist.Normal(model.parts["locs"], 1.0).log_prob(X.unsqueeze(-1)).sum(0)
    expected = -(model.parts["prior"].log_softmax(-1) + each).logsumexp(-1) / 4
    for name in ("EnumeratedELBO", "IWAE, 1 sample", "IWAE", "Renyi"):
        require(OBJECTIVES[name](), model, nothing, X, expected, leaves_of(model))
    value, _ = stock(model, nothing, X, 4)
    assert value == pytest.approx(expected.item(), rel=1e-5)


def test_some_rows_are_no_bound_of_a_sum_over_all() -> None:
    model = shared(size=8)
    whole = "the weight of a draw of 'y' needs all 8 rows, and a batch has 4: no scale makes that a bound"
    for name, message in (("EnumeratedELBO", "have different scales: no sum over it is a bound"), ("IWAE", whole)):
        with pytest.raises(ConfigError, match=message):
            value_and_gradients(OBJECTIVES[name](), model, nothing, {"x": X})


def test_beside_latents_of_rows_such_a_sum_takes_one_weight() -> None:
    def model(p: Parameters, x: Tensor) -> None:
        y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(p["locs"][y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p["a"][0] + 0.5 * x, 0.9))

    made = Parts(model, seed=1, prior=(3,), locs=(3,)), Parts(guide, seed=2, a=(1,))
    with pytest.raises(ConfigError, match="'y' is summed out for all rows at once, and a weight is of one row"):
        IWAE(particles=3, estimator="enumerate").setup(*made, {"x": X})
    objective = IWAE(particles=3, estimator="enumerate", weights="joint")
    with Store().active(), programs.quiet():
        objective.setup(*made, {"x": X})
        torch.manual_seed(3)
        z = objective._drawn(*made, {"x": X}).guide.nodes["z"]["value"].detach().reshape(3, 4)
    location = made[1].parts["a"][0] + 0.5 * X
    z = location + (z - location.detach())
    p = made[0].parts
    each = dist.Normal(p["locs"], 1.0).log_prob(z.unsqueeze(-1)).sum(1) + p["prior"].log_softmax(-1)
    log_w = each.logsumexp(-1) + dist.Normal(z, 1.0).log_prob(X).sum(1) - dist.Normal(location, 0.9).log_prob(z).sum(1)
    require(objective, *made, X, -log_w.exp().mean().log() / 4, leaves_of(*made))


def test_without_enumeration_such_a_site_is_refused_by_name() -> None:
    for objective in (ELBO(), IWAE(), Renyi()):
        with pytest.raises(ConfigError, match="model site 'y' is neither observed nor sampled by the guide"):
            objective.setup(mixture(), nothing, {"x": X})
