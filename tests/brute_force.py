"""Small programs whose discrete latents can be listed, and exact expectations over all their states."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro import poutine
from torch import Tensor
from zoo import Gradients

from ppgen import programs
from ppgen.objectives import Objective

Parameters = Mapping[str, Tensor]


class Parts(torch.nn.Module):
    """A program with parameters of given shapes, drawn from a seed."""

    def __init__(self, body: Callable[..., None], *, seed: int, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.parts = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in made.items()})
        self.body = body

    def forward(self, x: Tensor) -> None:
        self.body(self.parts, x)


@dataclass(frozen=True)
class Case:
    """A pair, a few rows, and all states of its discrete latents.

    Attributes:
        model: as trained.
        guide: as trained.
        x: the distinct rows.
        states: every joint state of the discrete sites, a row each.
        nodes: Gaussian sites that are integrated, by quadrature.
        inner: sites whose last state dimension is that of a plate inside the data plate.
        whole: whether the sites lie outside the data plate: rows are then one, of a mean of so many nats.
        exact_pair: the pair without subsampling.
    """

    model: Any
    guide: Any
    x: Tensor
    states: dict[str, Tensor]
    nodes: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    whole: bool = False
    exact_pair: tuple[Any, Any] | None = field(default=None)

    def parameters(self) -> dict[str, Tensor]:
        named = {f"model.{name}": p for name, p in self.model.named_parameters()}
        return named | {f"guide.{name}": p for name, p in self.guide.named_parameters()}


def bits(*sizes: int) -> list[Tensor]:
    """All joint states of vectors of so many bits: ``(states, size)`` each."""
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=sum(sizes))))
    return list(every.split(list(sizes), -1))


class _Quadrature(poutine.messenger.Messenger):
    """Puts Gaussian sites at given standardised values."""

    def __init__(self, standardised: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.standardised = standardised

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.standardised:
            msg["value"] = msg["fn"].loc + msg["fn"].scale * self.standardised[msg["name"]]
            msg["done"] = True


@dataclass(frozen=True)
class Listed:
    """Log probabilities of every state: ``(states, rows)``.

    Attributes:
        log_p: of the model.
        log_q: of the guide, masked as it is.
        chance: of the state in the guide, or its weight in the quadrature.
    """

    log_p: Tensor
    log_q: Tensor
    chance: Tensor

    @property
    def log_w(self) -> Tensor:
        return self.log_p - self.log_q

    def elbo(self) -> Tensor:
        """The bound of every row."""
        return (self.chance * self.log_w).sum(0)

    def of_pairs(self, bound: Callable[[Tensor], Tensor]) -> Tensor:
        """The expectation of a bound of two samples, of every row; ``bound`` reduces the first dimension."""
        states = len(self.log_w)
        one = self.log_w.unsqueeze(1).expand(states, states, -1)
        two = self.log_w.unsqueeze(0).expand(states, states, -1)
        chance = self.chance.unsqueeze(1) * self.chance.unsqueeze(0)
        return (chance * bound(torch.stack([one, two]))).sum((0, 1))


def listed(case: Case, *, points: int = 24) -> Listed:
    """Runs the pair on every row in every state."""
    model, guide = case.exact_pair or (case.model, case.guide)
    states, weights, standardised = _with_nodes(case, points)
    count, rows = len(weights), len(case.x)
    if case.whole:
        found = [_terms(case, model, guide, case.x, {k: v[i] for k, v in states.items()}, {}) for i in range(count)]
        log_p, log_q, chance = (torch.stack(part).unsqueeze(-1) / rows for part in zip(*found, strict=True))
        return Listed(log_p, log_q, (chance * rows).exp())

    def spread(value: Tensor) -> Tensor:
        return value.unsqueeze(1).expand(count, rows, *value.shape[1:]).reshape(count * rows, *value.shape[1:])

    x = case.x.repeat(count, *(1 for _ in case.x.shape[1:]))
    placed = {k: spread(v).T if k in case.inner else spread(v) for k, v in states.items()}
    terms = _terms(case, model, guide, x, placed, {k: spread(v) for k, v in standardised.items()})
    log_p, log_q, chance = (term.reshape(count, rows) for term in terms)
    return Listed(log_p, log_q, chance.exp() * weights.unsqueeze(-1))


def _with_nodes(case: Case, points: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    where, weights = (torch.tensor(part, dtype=torch.get_default_dtype()) for part in hermegauss(points))
    states, total = dict(case.states), torch.ones(len(next(iter(case.states.values()), torch.zeros(1))))
    standardised: dict[str, Tensor] = {}
    for name in case.nodes:
        states = {k: v.repeat_interleave(points, 0) for k, v in states.items()}
        standardised = {k: v.repeat_interleave(points, 0) for k, v in standardised.items()}
        standardised[name] = where.repeat(len(total))
        total = total.repeat_interleave(points) * (weights / math.sqrt(2 * math.pi)).repeat(len(total))
    return states, total, standardised


def _terms(
    case: Case, model: Any, guide: Any, x: Tensor, values: dict[str, Tensor], standardised: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    with _Quadrature(standardised):
        q = poutine.trace(poutine.condition(guide, data=values)).get_trace(x)
    drawn = {name: site["value"] for name, site in q.nodes.items() if site["type"] == "sample"}
    p = poutine.trace(poutine.condition(model, data=drawn)).get_trace(x)
    q.compute_log_prob()
    p.compute_log_prob()

    def total(trace: Any, key: str, names: Any) -> Tensor:
        parts = [torch.as_tensor(trace.nodes[name][key]) for name in names]
        if case.whole:
            return sum((part.sum() for part in parts), torch.zeros(()))
        return sum((part.sum(0) if part.dim() > 1 else part for part in parts), torch.zeros(()))

    sites = [name for name, site in p.nodes.items() if site["type"] == "sample" and not _holds_indices(site)]
    return (
        total(p, "log_prob", sites),
        total(q, "log_prob", (*values, *standardised)),
        total(q, "unscaled_log_prob", values).expand(total(q, "log_prob", (*values, *standardised)).shape),
    )


def _holds_indices(site: Any) -> bool:
    return bool(poutine.util.site_is_subsample(site))


def gradients_of(loss: Tensor, parameters: dict[str, Tensor]) -> Gradients:
    """The gradient with respect to every parameter, 0 where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def _z(draws: Tensor, exact: Tensor) -> float:
    # what is exact but for rounding has hardly a standard error
    rounding = 1e-5 * (1 + float(exact.abs().max()))
    error = draws.std(0) / len(draws) ** 0.5 + rounding
    return float(((draws.mean(0) - exact).abs() / error).max())


@dataclass
class Estimated:
    """Losses ``(calls,)`` and gradients ``(calls, ...)`` of calls with many rows each."""

    losses: Tensor
    gradients: Gradients

    def against(self, exact: Gradients) -> dict[str, float]:
        """z-scores by parameter tensor."""
        return {name: _z(draws.double(), exact[name].double()) for name, draws in self.gradients.items()}

    def variance(self, prefix: str = "guide") -> float:
        """Summed over the parameters whose names begin so."""
        parts = [draws.double().var(0).sum() for name, draws in self.gradients.items() if name.startswith(prefix)]
        return float(sum(parts))


def estimated(
    objective: Objective,
    case: Case,
    *,
    repeats: int = 1000,
    calls: int = 100,
    train: int = 0,
    rows: Callable[[], Tensor] | None = None,
) -> Estimated:
    """Gradients of independent calls, each on every row so many times; first, estimators are trained so many steps."""
    dims = tuple(1 for _ in case.x.shape[1:])
    draw = rows or (lambda: case.x.repeat(repeats, *dims))
    parameters = case.parameters()
    losses: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {name: [] for name in parameters}
    with programs.Store().active():
        objective.setup(case.model, case.guide, {"x": draw()})
        players = objective.players(case.model, case.guide, {"x": draw()})
        with programs.quiet():
            _train(objective, case, players, draw, train)
            for _ in range(calls):
                parts = phase(objective, case, draw())
                for part, loss in parts.items():
                    if part == "estimator":
                        continue
                    own = parameters if part == "all" else {k: p for k, p in parameters.items() if k.startswith(part)}
                    for name, gradient in gradients_of(loss, own).items():
                        kept[name].append(gradient)
                losses.append(next(iter(parts.values())).detach())
    return Estimated(torch.stack(losses), {name: torch.stack(parts) for name, parts in kept.items()})


def phase(objective: Objective, case: Case, x: Tensor) -> dict[str, Tensor]:
    """The losses of the objective's one phase, by player."""
    (only,) = objective.phases()
    return only(case.model, case.guide, {"x": x})[0]


def _train(
    objective: Objective, case: Case, players: dict[str, dict[str, Tensor]], draw: Callable[[], Tensor], steps: int
) -> None:
    if "estimator" not in players:
        return
    own = list(players["estimator"].values())
    optimizer = torch.optim.Adam(own, lr=0.02)
    for _ in range(steps):
        loss = phase(objective, case, draw())["estimator"]
        found = torch.autograd.grad(loss, own, allow_unused=True)
        for parameter, gradient in zip(own, found, strict=True):
            parameter.grad = gradient
        optimizer.step()


# ------------------------------------------------------------------------------------------------------------ programs


def bernoulli(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits).to_event(1)


def one_layer() -> Case:
    """Four units that a row shares."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", bernoulli(0.5 * p["prior"]))
            pyro.sample("x", bernoulli(2 * torch.tanh(z @ p["w"]) + 0.3 * p["b"]), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", bernoulli(x @ p["v"] + 0.3 * p["c"]))

    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    (z,) = bits(4)
    return Case(Parts(model, seed=1, w=(4, 3), b=(3,), prior=(4,)), Parts(guide, seed=2, v=(3, 4), c=(4,)), x, {"z": z})


def two_layers() -> Case:
    """Three units above three."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", bernoulli(p["prior"]))
            z1 = pyro.sample("z1", bernoulli(2 * torch.tanh(z2 @ p["w2"])))
            pyro.sample("x", bernoulli(2 * torch.tanh(z1 @ p["w1"])), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", bernoulli(x @ p["v1"]))
            pyro.sample("z2", bernoulli(2 * torch.tanh(z1 @ p["v2"])))

    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    z1, z2 = bits(3, 3)
    made = Parts(model, seed=1, prior=(3,), w2=(3, 3), w1=(3, 3)), Parts(guide, seed=2, v1=(3, 3), v2=(3, 3))
    return Case(*made, x, {"z1": z1, "z2": z2})


def one_hot() -> Case:
    """A one-hot vector of three."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=p["prior"]))
            pyro.sample("x", bernoulli(2 * torch.tanh(z @ p["w"])), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=x @ p["v"]))

    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    made = Parts(model, seed=1, prior=(3,), w=(3, 3)), Parts(guide, seed=2, v=(3, 3))
    return Case(*made, x, {"z": torch.eye(3)})


def inner_plate(*, coupled: bool = True) -> Case:
    """Two units in a plate inside the data plate; coupled by an observation outside of it."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("parts", 2, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(logits=p["prior"].unsqueeze(-1)))
                pyro.sample("x", dist.Normal(p["w"][0] + p["w"][1] * z, 1.0), obs=x[:, :2].T)
            if coupled:
                both = z[..., :1, :] * z[..., 1:, :]
                pyro.sample("y", dist.Normal(p["w"][2] * both, 0.7), obs=x[:, 2])

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 2, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=p["c"].unsqueeze(-1) + p["v"] * x[:, :2].T))

    x = torch.tensor([[0.7, -0.4, 1.0], [-0.9, 1.2, 0.0]])
    made = Parts(model, seed=1, prior=(2,), w=(3,)), Parts(guide, seed=2, c=(2,), v=(1,))
    (z,) = bits(2)
    return Case(*made, x, {"z": z}, inner=("z",))


def whole_site() -> Case:
    """One unit outside the data plate."""

    def model(p: Parameters, x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=p["prior"][0]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(p["w"][0] + p["w"][1] * z, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=p["c"][0]))

    x = torch.tensor([0.7, -0.4, 1.3])
    made = Parts(model, seed=1, prior=(1,), w=(2,)), Parts(guide, seed=2, c=(1,))
    return Case(*made, x, {"z": torch.tensor([0.0, 1.0])}, whole=True)


def with_gaussian(*, first: str) -> Case:
    """A Gaussian and a Bernoulli site, either of them drawn first."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=p["prior"][0]))
            z = pyro.sample("z", dist.Normal(p["w"][0] * y, 1.0))
            pyro.sample("x", dist.Normal(p["w"][1] * z + p["w"][2] * y, 1.0), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if first == "y":
                y = pyro.sample("y", dist.Bernoulli(logits=p["v"][0] * x + p["c"][0]))
                scale = (0.5 * p["s"][0]).exp()
                pyro.sample("z", dist.Normal(p["v"][1] * x + p["c"][1] * y, scale))
            else:
                z = pyro.sample("z", dist.Normal(p["v"][1] * x, (0.5 * p["s"][0]).exp()))
                pyro.sample("y", dist.Bernoulli(logits=p["v"][0] * x + p["c"][0] + p["c"][1] * z))

    x = torch.tensor([0.7, -1.4])
    made = Parts(model, seed=1, prior=(1,), w=(3,)), Parts(guide, seed=2, v=(2,), c=(2,), s=(1,))
    return Case(*made, x, {"y": torch.tensor([0.0, 1.0])}, nodes=("z",))


def with_label(*, first: str) -> Case:
    """Units and a one-hot label, either of them drawn first."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=p["prior"]))
            z = pyro.sample("z1", bernoulli(y @ p["u"]))
            pyro.sample("x", bernoulli(2 * torch.tanh(z @ p["w"] + y @ p["t"])), obs=x)

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if first == "y":
                y = pyro.sample("y", dist.OneHotCategorical(logits=x @ p["a"]))
                pyro.sample("z1", bernoulli(x @ p["v"] + y @ p["c"]))
            else:
                z = pyro.sample("z1", bernoulli(x @ p["v"]))
                pyro.sample("y", dist.OneHotCategorical(logits=x @ p["a"] + z @ p["d"]))

    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    (units,) = bits(2)
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 3), "v": (3, 2)}
    shapes |= {"c": (3, 2)} if first == "y" else {"d": (2, 3)}
    made = Parts(model, seed=1, prior=(3,), u=(3, 2), w=(2, 3), t=(3, 3)), Parts(guide, seed=2, **shapes)
    return Case(*made, x, {"z1": units.repeat_interleave(3, 0), "y": torch.eye(3).repeat(4, 1)})


def subsampled(*, size: int = 2000) -> Case:
    """Units of rows of which a plate chooses some."""

    def model_of(size: int | None) -> Callable[..., None]:
        def model(p: Parameters, x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=size) as chosen:
                z = pyro.sample("z", bernoulli(p["prior"]))
                pyro.sample("x", bernoulli(2 * torch.tanh(z @ p["w"])), obs=x[chosen])

        return model

    def guide_of(size: int | None) -> Callable[..., None]:
        def guide(p: Parameters, x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=size) as chosen:
                pyro.sample("z", bernoulli(x[chosen] @ p["v"]))

        return guide

    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    (z,) = bits(2)
    model, guide = Parts(model_of(size), seed=1, prior=(2,), w=(2, 3)), Parts(guide_of(size), seed=2, v=(3, 2))
    whole_model, whole_guide = Parts(model_of(None), seed=1), Parts(guide_of(None), seed=2)
    whole_model.parts, whole_guide.parts = model.parts, guide.parts
    return Case(model, guide, x, {"z": z}, exact_pair=(whole_model, whole_guide))


def masked() -> Case:
    """Rows that do not count, and rows of which a part is missing."""

    def model(p: Parameters, x: Tensor) -> None:
        counts, seen = x[:, 2] > 0, x[:, 3] > 0
        with pyro.plate("data", len(x)), poutine.mask(mask=counts):
            z = pyro.sample("z", bernoulli(p["prior"]))
            pyro.sample("x", dist.Bernoulli(logits=2 * torch.tanh(z @ p["w"])), obs=x[:, 0])
            with poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(z @ p["u"], 1.0), obs=x[:, 1])

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 2] > 0):
            pyro.sample("z", bernoulli(x[:, :1] @ p["v"] + p["c"]))

    x = torch.tensor([[1.0, 0.3, 1.0, 1.0], [0.0, -1.2, 1.0, 0.0], [1.0, 0.5, 0.0, 1.0]])
    (z,) = bits(2)
    made = Parts(model, seed=1, prior=(2,), w=(2,), u=(2,)), Parts(guide, seed=2, v=(1, 2), c=(2,))
    return Case(*made, x, {"z": z})


def missing() -> Case:
    """Rows whose value is not known (obs_mask): the guide draws it."""

    def model(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", bernoulli(p["prior"]))
            value = pyro.sample("x", dist.Bernoulli(logits=z @ p["w"]), obs=x[:, 0], obs_mask=x[:, 2] > 0)
            pyro.sample("y", dist.Normal(z @ p["u"] + p["t"][0] * value, 1.0), obs=x[:, 1])

    def guide(p: Parameters, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", bernoulli(x[:, 1:2] @ p["v"] + p["c"]))
            with poutine.mask(mask=x[:, 2] <= 0):
                pyro.sample("x_unobserved", dist.Bernoulli(logits=z @ p["d"]))

    x = torch.tensor([[1.0, 0.3, 1.0], [0.0, -1.2, 0.0]])
    z, value = bits(2, 1)
    made = (
        Parts(model, seed=1, prior=(2,), w=(2,), u=(2,), t=(1,)),
        Parts(guide, seed=2, v=(1, 2), c=(2,), d=(2,)),
    )
    return Case(*made, x, {"z": z, "x_unobserved": value.squeeze(-1)})


CASES: dict[str, Callable[[], Case]] = {
    "one layer": one_layer,
    "two layers": two_layers,
    "one-hot": one_hot,
    "inner plate": inner_plate,
    "global": whole_site,
    "Gaussian after": lambda: with_gaussian(first="y"),
    "Gaussian before": lambda: with_gaussian(first="z"),
    "subsampled": subsampled,
    "masked": masked,
    "missing": missing,
}


def every_case() -> Iterator[tuple[str, Case]]:
    for name, make in CASES.items():
        yield name, make()
