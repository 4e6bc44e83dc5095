"""Sums over discrete sites of the guide: against sums written out, a run for every joint state, in float64."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from brute_force import Parameters, Parts
from enumeration import States, elbo, evidence, paths
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor
from zoo import relative, value_and_gradients, z_score

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.evaluation import negative_log_likelihood
from ppgen.objectives import IWAE, EnumeratedELBO, Objective, Renyi
from ppgen.programs import Store
from ppgen.training import Trainer

BOUNDS: dict[str, Callable[[], Objective]] = {
    "elbo": EnumeratedELBO,
    "sampled divergence": lambda: EnumeratedELBO(analytic_kl=False),
    "iwae": lambda: IWAE(particles=2, estimator="enumerate"),
}
SEQUENTIAL, PARALLEL = {"enumerate": "sequential"}, {"enumerate": "parallel"}
NEVER = -math.inf


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows() -> Tensor:
    return torch.tensor([0.3, -1.2, 0.8, 2.0])


def require_sums(
    model: Parts, guide: Parts, x: Tensor, states: States, *, of_model: States | None = None, control: bool = True
) -> None:
    """Values and gradients of all bounds are those of the sums; twice the gradients are not."""
    found = list(paths(model, guide, {"x": x}, states, of_model=of_model))
    leaves: dict[str, Tensor] = {f"model.{name}": p for name, p in model.named_parameters()}
    leaves |= {f"guide.{name}": p for name, p in guide.named_parameters()}
    for name, bound in BOUNDS.items():
        loss, gradients = value_and_gradients(bound(), model, guide, {"x": x})
        expected = -(evidence(found) if name == "iwae" else elbo(found)).mean()
        wanted = torch.autograd.grad(
            expected, list(leaves.values()), allow_unused=True, retain_graph=True, materialize_grads=True
        )
        ours = {leaf: gradients.get(leaf, torch.zeros_like(tensor)) for leaf, tensor in leaves.items()}
        theirs = dict(zip(leaves, wanted, strict=True))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10), name
        assert relative(ours, theirs) < 1e-10, name
        if control:
            assert relative(ours, {leaf: 2 * gradient for leaf, gradient in theirs.items()}) > 0.1, "negative control"


# --------------------------------------------------------------------------------------------------------------- chains


def chain(length: int, states: int, *, markov: bool, infer: Any = None) -> tuple[Parts, Parts]:
    steps: Any = pyro.markov(range(length)) if markov else range(length)

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y: Any = 0
            for t in pyro.markov(range(length)) if markov else steps:
                y = pyro.sample(f"y{t}", dist.Categorical(logits=p["step"][y]))
                pyro.sample(f"x{t}", dist.Normal(p["locs"][y], 0.8), obs=x[:, t])

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y: Any = 0
            for t in pyro.markov(range(length)) if markov else steps:
                logits = p["step"][y] + x[:, t].unsqueeze(-1) * p["w"]
                y = pyro.sample(f"y{t}", dist.Categorical(logits=logits), infer=infer)

    return Parts(model, seed=1, step=(states,) * 2, locs=(states,)), Parts(
        guide, seed=2, step=(states,) * 2, w=(states,)
    )


def series(length: int) -> Tensor:
    return torch.randn(3, length, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("markov", [False, True])
@pytest.mark.parametrize(("length", "states"), [(2, 2), (3, 2), (3, 3), (4, 3), (5, 2), (6, 2)])
def test_chains_of_a_guide_are_summed_over_all_paths(length: int, states: int, markov: bool) -> None:
    every = {f"y{t}": range(states) for t in range(length)}
    require_sums(*chain(length, states, markov=markov), series(length), every)


def test_a_likelihood_sums_chains_of_the_guide() -> None:
    pair, x = chain(4, 2, markov=True), series(4)
    trained = Trainer(*pair, EnumeratedELBO(), lambda leaves: torch.optim.Adam(leaves, 1e-3), compile="off")
    found = negative_log_likelihood(trained, {"x": x}, particles=2)
    expected = evidence(list(paths(*pair, {"x": x}, {f"y{t}": range(2) for t in range(4)})))
    torch.testing.assert_close(found, -expected.detach(), rtol=1e-6, atol=1e-6)


def test_long_chains_are_summed_step_by_step() -> None:
    """2^40 paths, of which no more than two steps are held at once."""
    (model, guide), x = chain(40, 2, markov=True), series(40)
    loss, gradients = value_and_gradients(EnumeratedELBO(), model, guide, {"x": x})
    p, q = model.parts, guide.parts
    log_p, total, before = p["step"].log_softmax(-1), torch.zeros(3), torch.tensor([[1.0, 0.0]]).expand(3, 2)
    for t in range(40):
        log_q = (q["step"] + x[:, t, None, None] * q["w"]).log_softmax(-1)
        joint = before.unsqueeze(-1) * log_q.exp()
        before = joint.sum(1)
        total = total + (joint * (log_p - log_q)).sum((1, 2))
        total = total + (before * dist.Normal(p["locs"], 0.8).log_prob(x[:, t, None])).sum(1)
    assert loss.item() == pytest.approx(-total.mean().item(), rel=1e-10)
    wanted = torch.autograd.grad(-total.mean(), [p["step"], q["step"]])
    for name, gradient in zip(("model.parts.step", "guide.parts.step"), wanted, strict=True):
        torch.testing.assert_close(gradients[name], gradient)


def test_more_states_than_there_is_room_for_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^the weight of a row depends on .* joint states of enumerated sites"):
        value_and_gradients(BOUNDS["iwae"](), *chain(40, 2, markov=True), {"x": series(40)})
    with pytest.raises(ConfigError, match=r"^guide site 'y59' is one of more than 59 discrete sites") as caught:
        value_and_gradients(EnumeratedELBO(), *chain(70, 2, markov=True), {"x": series(70)})
    assert "\n" not in str(caught.value)


def test_a_site_that_depends_on_too_many_states_is_refused_by_name() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for t in range(30):
                pyro.sample(f"y{t}", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            shape = torch.broadcast_shapes(*(pyro.sample(f"y{t}", dist.Bernoulli(0.3)).shape for t in range(30)))
            # an expanded tensor takes no room
            pyro.sample("x", dist.Normal(torch.zeros(()).expand(shape), 1.0), obs=x)

    with pytest.raises(ConfigError, match=r"^site 'x' depends on 1,073,741,824 joint states of enumerated sites"):
        value_and_gradients(EnumeratedELBO(), model, guide, {"x": rows()})


# ------------------------------------------------------------------------------------------- the ways to ask for a sum


def mixed(of_k: Any, of_y: Any) -> tuple[Parts, Parts]:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=p["top"]))
            y = pyro.sample("y", dist.Categorical(logits=p["prior"][k]))
            pyro.sample("x", dist.Normal(p["locs"][y] + p["shift"][k], 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x.unsqueeze(-1) * p["v"]), infer=of_k)
            pyro.sample("y", dist.Categorical(logits=p["u"][k] * x.unsqueeze(-1)), infer=of_y)

    shapes: dict[str, tuple[int, ...]] = {"top": (2,), "prior": (2, 3), "locs": (3,), "shift": (2,)}
    return Parts(model, seed=1, **shapes), Parts(guide, seed=2, v=(2,), u=(2, 3))


@pytest.mark.parametrize(
    ("of_k", "of_y"),
    [
        (SEQUENTIAL, PARALLEL),
        (PARALLEL, SEQUENTIAL),
        (SEQUENTIAL, SEQUENTIAL),
        ({"enumerate": "parallel", "num_samples": 5}, {}),
        ({"enumerate": "parallel", "num_samples": 5, "expand": True, "tmc": "mixture"}, SEQUENTIAL),
    ],
)
def test_every_way_to_ask_for_a_sum_gives_the_sum(of_k: Any, of_y: Any) -> None:
    require_sums(*mixed(of_k, of_y), rows(), {"k": range(2), "y": range(3)})


def test_chains_are_summed_sequentially() -> None:
    require_sums(*chain(3, 2, markov=True, infer=SEQUENTIAL), series(3), {f"y{t}": range(2) for t in range(3)})


def test_num_samples_is_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    pair = mixed({"enumerate": "parallel", "num_samples": 5}, {})
    with caplog.at_level(logging.INFO, logger="ppgen"):
        value_and_gradients(EnumeratedELBO(), *pair, {"x": rows()})
    assert sum("num_samples of site 'k' is left out" in record.getMessage() for record in caplog.records) == 1


class SequentialM2(torch.nn.Module):
    """Kingma's M2 as Pyro's example has it: one-hot labels that are concatenated without broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classify, self.encode = torch.nn.Linear(5, 3), torch.nn.Linear(8, 4)
        self.decode = torch.nn.Linear(5, 5)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), torch.ones(len(x), 2)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3) / 3), obs=y)
            loc = self.decode(torch.cat([z, y], -1)).sigmoid()
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(self.classify(x).softmax(-1)))
            loc, log_scale = self.encode(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_the_m2_of_pyros_examples_is_summed_over_its_classes() -> None:
    made, x = SequentialM2(), (torch.rand(6, 5) < 0.5).double()
    guide = config_enumerate(made.guide, "sequential", expand=True)
    total = torch.zeros(6)
    with torch.no_grad():
        log_q = made.classify(x).log_softmax(-1)
        for state in range(3):
            y = torch.eye(3)[state].expand(6, 3)
            loc, log_scale = made.encode(torch.cat([x, y], -1)).chunk(2, -1)
            z = loc + log_scale.exp() * torch.randn(20_000, 6, 2)
            pixels = dist.Bernoulli(logits=made.decode(torch.cat([z, y.expand(20_000, 6, 3)], -1))).to_event(1)
            kl = ((loc.square() + (2 * log_scale).exp() - 1) / 2 - log_scale).sum(-1)
            total += log_q[:, state].exp() * (pixels.log_prob(x).mean(0) - kl - math.log(3) - log_q[:, state])
    with Store().active(), torch.no_grad():
        objective = EnumeratedELBO()
        objective.setup(made.model, guide, (x,))
        losses = torch.stack([objective.loss(made.model, guide, (x,)) for _ in range(400)])
    assert z_score(losses, -total.mean().item()) < 4.5
    assert z_score(losses, -total.mean().item() * 1.05) > 6, "negative control"


def test_sequential_states_may_branch() -> None:
    """A site that is there in one state only, beside a latent of all rows."""

    def model(p: Parameters, x: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=p["pa"][0]))
        with pyro.plate("data", len(x)):
            loc = p["locs"][pyro.sample("k", dist.Categorical(logits=p["pk"]))] if a == 1 else p["other"][0]
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=p["qa"][0]), infer=SEQUENTIAL)
        if a == 1:
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Categorical(logits=p["qk"] * x.unsqueeze(-1)))

    made = Parts(model, seed=1, pa=(1,), pk=(2,), locs=(2,), other=(1,)), Parts(guide, seed=2, qa=(1,), qk=(2,))
    p, q, x = made[0].parts, made[1].parts, rows()
    with Store().active():
        joint = programs.run(*made, {"x": x}, enumerate_discrete=True)
        terms = [joint.reduced(name, joint.log_p(name)).sum() for name in ("x", "a", "k")]
        terms += [-joint.reduced(name, joint.log_q(name)).sum() for name in ("a", "k")]
    log_q = (q["qk"] * x.unsqueeze(-1)).log_softmax(-1)
    each = p["pk"].log_softmax(-1) + dist.Normal(p["locs"], 1.0).log_prob(x.unsqueeze(-1)) - log_q
    ones, zeros = (log_q.exp() * each).sum(), dist.Normal(p["other"][0], 1.0).log_prob(x).sum()
    on, prior = q["qa"][0].sigmoid(), p["pa"][0].sigmoid()
    expected = on * (ones + (prior / on).log()) + (1 - on) * (zeros + ((1 - prior) / (1 - on)).log())
    assert torch.stack(terms).sum().item() == pytest.approx(expected.item(), rel=1e-10)


def test_what_cannot_be_run_state_by_state_is_refused_by_name() -> None:
    def of(order: str) -> tuple[Any, Any]:
        def model(x: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(w + y, 1.0), obs=x)

        def draw_y(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Bernoulli(0.3), infer=SEQUENTIAL)

        def guide(x: Tensor) -> None:
            if order == "after":
                draw_y(x)
            pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))
            if order == "before":
                draw_y(x)

        return model, guide

    value_and_gradients(EnumeratedELBO(), *of("before"), {"x": rows()})
    with pytest.raises(ConfigError, match="site 'w' is drawn after a site that is enumerated sequentially"):
        value_and_gradients(EnumeratedELBO(), *of("after"), {"x": rows()})


def test_sequential_sites_of_the_model_alone_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    with pytest.raises(ConfigError, match=r"^model site 'y' is marked to be enumerated sequentially, and .*parallel"):
        value_and_gradients(EnumeratedELBO(), config_enumerate(model, "sequential"), lambda x: None, {"x": rows()})


# ------------------------------------------------------------------------------------ states without probability, masks


def forbidden(kind: Any, banned: Tensor, *, in_model: bool) -> tuple[Parts, Parts]:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", kind(logits=p["prior"] + (banned if in_model else 0.0)))
            loc = p["locs"][y] if kind is dist.Categorical else (y * p["locs"]).sum(-1)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", kind(logits=x.unsqueeze(-1) * p["v"] + banned))

    return Parts(model, seed=1, prior=(3,), locs=(3,)), Parts(guide, seed=2, v=(3,))


@pytest.mark.parametrize("in_model", [True, False])
@pytest.mark.parametrize("kind", [dist.Categorical, dist.OneHotCategorical])
@pytest.mark.parametrize(
    "banned", [[0.0, NEVER, 0.0], [[0.0, NEVER, 0.0], [0.0, 0.0, NEVER], [0.0, 0.0, 0.0], [NEVER, NEVER, 0.0]]]
)
def test_a_forbidden_category_is_left_out(banned: Any, kind: Any, in_model: bool) -> None:
    every: Sequence[Any] = range(3) if kind is dist.Categorical else list(torch.eye(3))
    require_sums(*forbidden(kind, torch.tensor(banned), in_model=in_model), rows(), {"y": every})


def test_a_forbidden_category_of_the_model_alone_is_left_out() -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"] + torch.tensor([0.0, NEVER, 0.0])))
            pyro.sample("x", dist.Normal(p["locs"][y], 1.0), obs=x)

    nothing = Parts(lambda p, x: None, seed=2, v=(1,))
    require_sums(Parts(model, seed=1, prior=(3,), locs=(3,)), nothing, rows(), {}, of_model={"y": range(3)})


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_bernoulli_that_is_certain(probability: float) -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=p["prior"][0]))
            pyro.sample("x", dist.Normal(p["locs"][y.long()], 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            certain = torch.full((2,), probability)
            pyro.sample("y", dist.Bernoulli(torch.cat([certain, p["v"].sigmoid()])))

    made = Parts(model, seed=1, prior=(1,), locs=(2,)), Parts(guide, seed=2, v=(2,))
    require_sums(*made, rows(), {"y": [0.0, 1.0]})
    classes = programs.label_log_probs(made[1], {"x": rows()}).exp()
    torch.testing.assert_close(classes[0], torch.tensor([1 - probability, probability]), atol=1e-6, rtol=0)


def test_doubly_reparameterised_gradients_leave_a_forbidden_category_out() -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            z = pyro.sample("z", dist.Normal(p["locs"][y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = x.unsqueeze(-1) * p["v"] + torch.tensor([0.0, NEVER, 0.0])
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(0.5 * x + p["a"][y], 0.8))

    made = Parts(model, seed=1, prior=(3,), locs=(3,)), Parts(guide, seed=2, v=(3,), a=(3,))
    for objective in (
        IWAE(particles=3, gradient="doubly-reparameterized", estimator="enumerate"),
        Renyi(alpha=2.0, particles=3, estimator="enumerate"),
    ):
        with Store().active():
            objective.setup(*made, {"x": rows()})
            losses, _ = objective.phases()[0](*made, {"x": rows()})
            for loss in losses.values():
                found = torch.autograd.grad(loss, list(made[1].parameters()), retain_graph=True, allow_unused=True)
                assert all(bool(gradient.isfinite().all()) for gradient in found if gradient is not None)
                assert bool(loss.isfinite())


@pytest.mark.parametrize("mask", [False, [True, False, True, True]])
@pytest.mark.parametrize("where", ["both", "model", "guide"])
def test_states_of_a_masked_distribution_keep_their_probabilities(where: str, mask: Any) -> None:
    mask = torch.tensor(mask) if isinstance(mask, list) else mask

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=p["prior"])
            y = pyro.sample("y", fn.mask(mask) if where != "guide" else fn)
            pyro.sample("x", dist.Normal(p["locs"][y], 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=x.unsqueeze(-1) * p["v"])
            pyro.sample("y", fn.mask(mask) if where != "model" else fn)

    require_sums(Parts(model, seed=1, prior=(3,), locs=(3,)), Parts(guide, seed=2, v=(3,)), rows(), {"y": range(3)})


@pytest.mark.parametrize("infer", [PARALLEL, SEQUENTIAL])
def test_a_mask_may_depend_on_an_enumerated_site(infer: Any) -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            with poutine.mask(mask=y == 1):
                k = pyro.sample("k", dist.Categorical(logits=p["top"]))
            with poutine.mask(mask=y != 2):
                pyro.sample("x", dist.Normal(p["locs"][y] + p["shift"][k], 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.unsqueeze(-1) * p["v"]), infer=infer)
            with poutine.mask(mask=y == 1):
                pyro.sample("k", dist.Categorical(logits=x.unsqueeze(-1) * p["u"]))

    made = Parts(model, seed=1, prior=(3,), locs=(3,), top=(2,), shift=(2,)), Parts(guide, seed=2, v=(3,), u=(2,))
    require_sums(*made, rows(), {"y": range(3), "k": range(2)})


def test_a_mask_may_depend_on_a_site_of_the_model_alone() -> None:
    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=p["prior"]))
            with poutine.mask(mask=y == 1):
                pyro.sample("x", dist.Normal(p["locs"][y], 1.0), obs=x)
            with poutine.mask(mask=y != 1):
                pyro.sample("w", dist.Laplace(p["locs"][y], 1.0), obs=x)

    nothing = Parts(lambda p, x: None, seed=2, v=(1,))
    require_sums(Parts(model, seed=1, prior=(3,), locs=(3,)), nothing, rows(), {}, of_model={"y": range(3)})


# ---------------------------------------------------------------------------------------- beside an estimated gradient


def test_states_that_are_given_say_something_of_those_before_them() -> None:
    """As the signal of a site needs it that depends on the later one of two enumerated sites."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a, y = pyro.sample("a", dist.Bernoulli(0.4)), pyro.sample("y", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * a * y + a - y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=x))
            pyro.sample("y", dist.Bernoulli(logits=3 * a - 1))

    x = rows()
    joint = programs.run(model, guide, {"x": x}, enumerate_discrete=True)
    of_y = joint.enumerated["y"]
    found = joint.expectation("x", joint.log_p("x"), keep={of_y}).reshape(2, 4)
    prior = torch.stack([(-x).sigmoid(), x.sigmoid()])
    for y in (0.0, 1.0):
        each = torch.stack([dist.Normal(2 * a * y + a - y, 1.0).log_prob(x) for a in (0.0, 1.0)])
        chances = torch.tensor([-1.0, 2.0]).sigmoid().unsqueeze(-1)
        both = prior * (chances if y else 1 - chances)
        torch.testing.assert_close(found[int(y)], (both * each).sum(0) / both.sum(0))
        assert float((found[int(y)] - (prior * each).sum(0)).abs().max()) > 0.1, "negative control: nothing is said"
