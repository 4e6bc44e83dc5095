"""Pyro programs of every kind, those of examples/ among them, with small data: what the conformance suite runs.

`CASES` is the table: for every program how ours trains it (`ours`) and how stock Pyro does (`stock`).
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen import ELBO, EnumeratedELBO
from ppgen.data import Dataset, load
from ppgen.programs import Program, arguments
from ppgen.recipes import Recipe

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

Batch = dict[str, Any]


@functools.cache
def example(name: str) -> ModuleType:
    """A file of examples/, imported as `ppgen train` imports it: by its path."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------------------- data


def dataset(**columns: Tensor) -> Dataset:
    """A data set whose three splits are the same rows."""
    parts: Any = {"train": columns, "validation": columns, "test": columns}
    return Dataset("zoo", **parts, classes=None, binarization="none", fingerprint="", notes=())


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table() -> Dataset:
    """Three features and a target that depends on two of them."""
    features, noise = _normal(40, 3, seed=1), _normal(40, seed=2)
    target = 1.5 * features[:, 0] - features[:, 1] + 0.5 + 0.5 * noise
    return dataset(x=torch.cat([features, target.unsqueeze(-1)], -1))


def points() -> Dataset:
    """Three clusters in the plane."""
    centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, -1.0]])
    return dataset(x=centres[torch.arange(60) % 3] + _normal(60, 2, seed=3) * torch.tensor([0.6, 1.0]))


@functools.cache
def digits(rows: int = 60) -> Dataset:
    """The first digits."""
    whole = load("digits")
    parts: Any = {name: {k: v[:rows] for k, v in columns.items()} for name, columns in whole.splits.items()}
    return replace(whole, **parts, rows={})


def short() -> Dataset:
    """Every other row of the first digits: sequences of four steps."""
    parts: Any = {name: {"x": columns["x"][:, :, ::2]} for name, columns in digits().splits.items()}
    return replace(digits(), **parts, classes=None)


# ----------------------------------------------------------------------------------------------------- programs


def words_enumerated(documents: int = 12, words: int = 16, vocabulary: int = 8, topics: int = 3) -> Recipe:
    """Latent Dirichlet allocation: subsampled documents, in each subsampled words, whose topics are summed out."""
    generator = torch.Generator().manual_seed(8)
    shares, favourites = (
        torch.rand(shape, generator=generator) ** 3 for shape in ((documents, topics), (topics, vocabulary))
    )
    drawn = torch.multinomial(shares @ favourites + 1e-3, words, replacement=True, generator=generator).T

    def model(words: Tensor, rows: int | None = None, size: int | None = None) -> None:
        with pyro.plate("topics", topics):
            topic = pyro.sample("topic", dist.Dirichlet(torch.full((vocabulary,), 0.5)))
        with pyro.plate("documents", documents, subsample_size=rows) as chosen:
            share = pyro.sample("share", dist.Dirichlet(torch.full((topics,), 0.7)))
            with pyro.plate("words", len(words), subsample_size=size) as places:
                z = pyro.sample("z", dist.Categorical(share))
                seen = words[places.unsqueeze(-1), chosen]
                pyro.sample("word", dist.Categorical(Vindex(topic)[..., z, :]), obs=seen)

    def guide(words: Tensor, rows: int | None = None, size: int | None = None) -> None:
        first = 1 + torch.rand(topics, vocabulary, generator=torch.Generator().manual_seed(9))
        concentration = pyro.param("concentration", first, constraint=constraints.positive)
        with pyro.plate("topics", topics):
            pyro.sample("topic", dist.Dirichlet(concentration))
        shares = pyro.param("shares", torch.ones(documents, topics), constraint=constraints.positive)
        with pyro.plate("documents", documents, subsample_size=rows) as chosen:
            pyro.sample("share", dist.Dirichlet(shares[chosen]))

    return Recipe(model, guide, ELBO(), data=dataset(words=drawn))


def subsampled() -> Recipe:
    """A global and local latents, the rows subsampled by the program's own plate."""

    def model(x: Tensor, size: int | None = None) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])

    def guide(x: Tensor, size: int | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        width = pyro.param("width", torch.tensor(0.5), constraint=constraints.positive)
        slope = pyro.param("slope", torch.tensor(0.5))
        pyro.sample("shift", dist.Normal(loc, scale))
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            pyro.sample("z", dist.Normal(loc + slope * (x[rows] - loc), width))

    return Recipe(model, guide, ELBO(), data=dataset(x=1 + _normal(20, seed=4)))


def partly_observed() -> Recipe:
    """Rows that are not known are latent (obs_mask).

    An AutoNormal would not do: it does not mask the rows that are known, whose entropy it then raises without end.
    """
    x = 1 + _normal(20, seed=4)
    known = torch.arange(20) < 15

    def model(x: Tensor, known: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        width = pyro.param("width", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, width), obs=x, obs_mask=known)

    def guide(x: Tensor, known: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        locs = pyro.param("locs", torch.zeros(len(x)))
        scales = pyro.param("scales", torch.ones(len(x)), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))
        with pyro.plate("data", len(x)), poutine.mask(mask=~known):
            pyro.sample("x_unobserved", dist.Normal(locs, scales))

    return Recipe(model, guide, ELBO(), data=dataset(x=x.where(known, torch.tensor(99.0)), known=known))


def masked_and_scaled() -> Recipe:
    """Rows masked out by a handler, and a likelihood that counts half (a power posterior)."""

    def model(x: Tensor, known: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)), poutine.mask(mask=known), poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(mean, width), obs=x)

    known = torch.arange(20) < 15
    x = (1 + _normal(20, seed=4)).where(known, torch.tensor(99.0))
    return Recipe(model, AutoNormal(model), ELBO(), data=dataset(x=x, known=known))


class Belief(nn.Module):
    """Binary units above binary data."""

    def __init__(self, units: int, size: int) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(units))
        self.layer = nn.Linear(units, size)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.layer(h)).to_event(1), obs=x)


class Recognition(nn.Module):
    """Independent units given the data."""

    def __init__(self, units: int, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, units)

    def forward(self, x: Tensor) -> None:
        baseline = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}}
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Bernoulli(logits=self.layer(x)).to_event(1), infer=baseline)


def belief() -> Recipe:
    """A sigmoid belief net of one layer: a discrete latent in the guide, by the score function."""
    data = digits().binarized("static")
    parts: Any = {name: {"x": columns["x"].flatten(1)} for name, columns in data.splits.items()}
    return Recipe(Belief(3, 64), Recognition(3, 64), ELBO(), data=replace(data, **parts, classes=None))


def switched() -> Recipe:
    """Each row has a side, plus or minus: a Bernoulli site of the guide that is used as a number and summed out."""

    def model(x: Tensor) -> None:
        distance = pyro.sample("distance", dist.LogNormal(0.0, 1.0))
        share = pyro.param("share", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            side = pyro.sample("side", dist.Bernoulli(share))
            pyro.sample("x", dist.Normal(distance * (2 * side - 1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
        slope, offset = pyro.param("slope", torch.tensor(0.5)), pyro.param("offset", torch.tensor(0.0))
        pyro.sample("distance", dist.LogNormal(loc, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("side", dist.Bernoulli(logits=slope * x + offset))

    side = torch.where(torch.arange(30) % 3 == 0, -1.0, 1.0)
    return Recipe(model, guide, EnumeratedELBO(), data=dataset(x=2 * side + _normal(30, seed=6)))


# -------------------------------------------------------------------------------------------------------- table


def plain() -> Any:
    """Stock Pyro where every latent has a pathwise derivative."""
    return Trace_ELBO()


def sampled() -> Any:
    """Ours with the very estimator of `plain`: the same noise then leads to the same of many local optima."""
    return ELBO(analytic_kl=False)


def summed(nesting: int = 1) -> Any:
    """Stock Pyro where discrete sites are summed out."""
    return TraceEnum_ELBO(max_plate_nesting=nesting)


@dataclass(frozen=True)
class Case:
    """A program with what it trains on.

    Attributes:
        recipe: makes model, guide and data anew.
        ours: the objective that ppgen trains it with.
        stock: the ELBO that stock SVI trains it with, and that both are judged by.
        steps: how many bring it past its plateau.
        quick: how many the quick comparison takes.
        rate: the first learning rate, which falls to 0 along a half cosine.
        extra: arguments besides the data while it trains: the sizes of subsamples.
        judged: whether `ppgen.evaluate` can judge its rows.
        enumerated: whether stock Pyro needs to be told to sum over discrete sites.
        compiles: whether its step can be compiled.
    """

    recipe: Callable[[], Recipe]
    ours: Callable[[], Any] = ELBO
    stock: Callable[[], Any] = plain
    steps: int = 3000
    quick: int = 60
    rate: float = 0.03
    extra: tuple[tuple[str, int], ...] = ()
    judged: bool = True
    enumerated: bool = False
    compiles: bool = True

    def pair(self) -> tuple[Program, Program, Batch]:
        """A new model and guide, and all rows of their data."""
        built = self.recipe()
        assert built.data is not None
        columns = built.data.train
        asked = arguments(built.model, columns)[1].keys() | arguments(built.guide, columns)[1].keys()
        return built.model, built.guide, {name: column for name, column in columns.items() if name in asked}


def _of(name: str, data: Callable[[], Dataset], function: str = "recipe", **options: Any) -> Callable[[], Recipe]:
    def made() -> Recipe:
        found: Recipe = getattr(example(name), function)(data(), **options)
        return found if found.data is not None else replace(found, data=data())

    return made


CASES: dict[str, Case] = {
    "linear regression, functions": Case(_of("linear_regression", table)),
    "linear regression, PyroModule": Case(_of("linear_regression", table, "module")),
    "eight schools, AutoNormal": Case(_of("eight_schools", table)),
    "eight schools, constrained parameters": Case(_of("eight_schools", table, "by_hand")),
    "Gaussian mixture, guide summed": Case(_of("gaussian_mixture", points), EnumeratedELBO, summed, enumerated=True),
    "Gaussian mixture, model summed": Case(
        _of("gaussian_mixture", points, "marginal"), EnumeratedELBO, summed, enumerated=True
    ),
    "LDA, words collapsed": Case(_of("topics", digits, topics=3, hidden=8), sampled, steps=8000, rate=0.02),
    "LDA, words summed, nested subsampled plates": Case(
        words_enumerated,
        EnumeratedELBO,
        lambda: summed(2),
        enumerated=True,
        rate=0.02,
        extra=(("rows", 6), ("size", 8)),
        judged=False,
    ),
    "hidden Markov model": Case(
        _of("hidden_markov", short, states=3), EnumeratedELBO, summed, quick=40, enumerated=True
    ),
    "deep Markov model": Case(_of("deep_markov", short, latent=2, hidden=8), sampled, quick=50, rate=0.02),
    "sparse gamma DEF": Case(_of("sparse_gamma", digits, top=2, middle=4, hidden=8), sampled, steps=10_000, rate=0.02),
    "Bayesian network, AutoNormal": Case(_of("bayesian_network", digits, hidden=4)),
    "Bayesian network, AutoLowRank": Case(_of("bayesian_network", digits, hidden=4, guide="low-rank", rank=3)),
    "missing values": Case(_of("missing_data", digits, factors=2), rate=0.01),
    "obs_mask": Case(partly_observed, judged=False),
    "mask and scale": Case(masked_and_scaled),
    "subsampled plate, global and local": Case(subsampled, extra=(("size", 8),)),
    "discrete guide, summed": Case(switched, EnumeratedELBO, summed, enumerated=True),
    "discrete guide, score function": Case(
        belief, TraceGraph_ELBO, TraceGraph_ELBO, steps=8000, rate=0.02, compiles=False
    ),
}


def for_svi(case: Case, program: Program) -> Program:
    """A model or guide as stock Pyro needs it."""
    annotated: Program = config_enumerate(program) if case.enumerated else program
    return annotated
