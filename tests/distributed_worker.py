"""What each of the processes in tests/test_distribution.py does: trains small programs and writes down what it saw.

Started as ``torchrun tests/distributed_worker.py FILE CHECK...``; the process that leads writes FILE.
"""

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import pyro
import pyro.distributions as dist
import torch
import zoo
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn

from ppgen import distribution, guides, models, programs
from ppgen import nn as ppgen_nn
from ppgen.data import Dataset
from ppgen.distribution import DataParallel
from ppgen.errors import PpgenError
from ppgen.objectives import AAE, ELBO, GAN, WGANGP, Objective, SemiSupervised
from ppgen.processes import Processes, joined
from ppgen.recipes import Recipe
from ppgen.sharing import SharedNoise
from ppgen.training import Trainer

ROWS, STEPS = 16, 4
Made = tuple[Any, Any, Any, Any]
Trajectory = dict[str, list[float]]


# ---------------------------------------------------------------------------------------- what N processes can train


def vae() -> Made:
    return (*zoo.small_vae(), ELBO(), {"x": zoo.binary_rows(ROWS)})


def particles() -> Made:
    return (*zoo.small_vae(), ELBO(particles=3, analytic_kl=False), {"x": zoo.binary_rows(ROWS)})


def m2() -> Made:
    labelled = {"x": zoo.binary_rows(8), "y": torch.arange(8) % 10}
    return (*zoo.small_m2(), SemiSupervised(), {"labelled": labelled, "unlabelled": {"x": zoo.binary_rows(ROWS)}})


def _with_encoder(*layers: nn.Module) -> Made:
    model, guide, objective, batch = vae()
    torch.manual_seed(6)
    guide.encoder = nn.Sequential(nn.Linear(6, 8), *layers, nn.ReLU(), nn.Linear(8, 4))
    return model, guide, objective, batch


def dropout() -> Made:
    return _with_encoder(nn.Dropout(0.3))


def batch_norm() -> Made:
    return _with_encoder(nn.BatchNorm1d(8))


class Mixture(nn.Module):
    """A global latent, a categorical and a gamma for every row, Bernoulli pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, 18).view(3, 6))

    def forward(self, x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 1_000, subsample_size=len(x)):
            kind = pyro.sample("kind", dist.Categorical(torch.ones(3) / 3))
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            logits = self.logits[kind] * rate.unsqueeze(-1) + shift.unsqueeze(-1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class MixtureGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.location = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        pyro.sample("shift", dist.Normal(self.location, 0.5))
        features = self.layer(x)
        with pyro.plate("data", 1_000, subsample_size=len(x)):
            pyro.sample("kind", dist.Categorical(logits=features[:, :3]))
            pyro.sample("rate", dist.Gamma(features[:, 3].exp() + 0.3, features[:, 4].exp()))


def score_function() -> Made:
    """Rejection sampling draws more or fewer numbers for a row as its parameters are."""
    torch.manual_seed(5)
    return Mixture(), MixtureGuide(), TraceGraph_ELBO(), {"x": zoo.binary_rows(ROWS)}


def particles_by_rows() -> Made:
    """Particles and rows lie in one dimension where a categorical is drawn."""
    torch.manual_seed(5)
    elbo = TraceGraph_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    return Mixture(), MixtureGuide(), elbo, {"x": zoo.binary_rows(ROWS)}


class Game(Objective):
    """Two players and two phases; the critic has batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def setup(self, model: Any, guide: Any, batch: Any) -> None:
        self.critic(self._made(model, batch))

    def players(self, model: Any, guide: Any, batch: Any) -> dict[str, dict[str, Tensor]]:
        return {"generator": programs.leaves(model, guide), "critic": dict(self.critic.named_parameters())}

    def phases(self) -> Any:
        return (self._criticise, self._generate)

    def _made(self, model: Any, batch: Any) -> Tensor:
        made: Tensor = model.decoder(3 * torch.randn(len(batch["x"]), 2)).sigmoid()
        return made

    def _criticise(self, model: Any, guide: Any, batch: Any) -> Any:
        real, made = self.critic(batch["x"]), self.critic(self._made(model, batch).detach())
        loss = (made - real).mean() + 0.1 * (real.square() + made.square()).mean()
        return {"critic": loss}, {"distance": (real - made).detach().mean()}

    def _generate(self, model: Any, guide: Any, batch: Any) -> Any:
        return {"generator": -self.critic(self._made(model, batch)).mean()}, {}


def game() -> Made:
    model, guide, _, batch = vae()
    torch.manual_seed(6)
    return model, guide, Game(), batch


def wgan_gp() -> Made:
    """Second derivatives, points between rows, and a phase that comes twice in a step."""
    torch.manual_seed(6)
    generator = models.Generator(ppgen_nn.generator([2], (6,), hidden=(8,)), (6,), 2)
    critic = ppgen_nn.critic((6,), hidden=(8,), normalization="layer")
    return generator, guides.Nothing(), WGANGP(critic, penalty=0.2, critic_steps=2), {"x": zoo.binary_rows(ROWS)}


def aae() -> Made:
    torch.manual_seed(6)
    return (*zoo.small_vae(), AAE(ppgen_nn.critic((2,), hidden=(8,))), {"x": zoo.binary_rows(ROWS)})


ALIKE: dict[str, Callable[[], Made]] = {
    f.__name__: f
    for f in (vae, particles, m2, dropout, batch_norm, score_function, particles_by_rows, game, wgan_gp, aae)
}


# ------------------------------------------------------------------------------------- what they cannot, or do wrong


class Variance(ELBO):
    """Its loss depends on how rows differ from each other."""

    def loss(self, model: Any, guide: Any, batch: Any) -> Tensor:
        variance: Tensor = guide.encoder(batch["x"]).var(0).sum()
        return super().loss(model, guide, batch) + variance


def no_mean() -> Made:
    model, guide, _, batch = vae()
    return model, guide, Variance(), batch


def global_latent() -> Made:
    """Its plate takes the rows of the batch for all the data, so the prior counts once for each process."""

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("location", torch.tensor(0.5)), 0.3))

    return model, guide, ELBO(), {"x": torch.linspace(0, 1, ROWS)}


def permutation() -> Made:
    """Every row looks at another one, drawn at random."""
    model, guide, _, batch = vae()

    def shuffled(x: Tensor) -> None:
        guide(x[torch.randperm(len(x))])

    return model, shuffled, ELBO(), batch


def uneven() -> Made:
    return (*zoo.small_vae(), ELBO(), {"x": zoo.binary_rows(ROWS + 1)})


@contextlib.contextmanager
def independent_noise() -> Iterator[None]:
    """Every process draws for its own rows alone."""

    def plain(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))

    with mock.patch.object(SharedNoise, "__torch_dispatch__", plain):
        yield


@contextlib.contextmanager
def own_gradients() -> Iterator[None]:
    """Gradients are not averaged, as if the verification had not noticed."""
    with mock.patch.object(DataParallel, "mean", lambda self, *parts: parts):
        yield


@contextlib.contextmanager
def own_statistics() -> Iterator[None]:
    """Batch normalisation sees the rows of its own process alone."""
    with mock.patch.object(distribution, "SharedStatistics", return_value=contextlib.nullcontext()):
        yield


def minibatch_discrimination() -> Made:
    """Its critic compares the rows of a batch with each other."""
    generator, guide, _, batch = wgan_gp()
    return generator, guide, GAN(ppgen_nn.critic((6,), hidden=(8,), minibatch=4)), batch


REFUSED: dict[str, tuple[Callable[[], Made], Callable[[], Any]]] = {
    "no_mean": (no_mean, contextlib.nullcontext),
    "global_latent": (global_latent, contextlib.nullcontext),
    "permutation": (permutation, contextlib.nullcontext),
    "uneven": (uneven, contextlib.nullcontext),
    "independent_noise": (vae, independent_noise),
    "own_statistics": (batch_norm, own_statistics),
    "minibatch_discrimination": (minibatch_discrimination, contextlib.nullcontext),
}


# --------------------------------------------------------------------------------------------------------- a recipe


class Mortal(models.VAE):
    """Its second process is killed at a step, unless it is there for the second time."""

    def __init__(self, objective: ELBO, *parts: Any) -> None:
        super().__init__(*parts)
        self.objective = [objective]  # a list, so that it is no part of this module

    def forward(self, x: Tensor) -> None:
        last = os.environ.get("KILLED_AT_STEP") == str(int(self.objective[0].step))
        if last and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        super().forward(x)


def mortal(data: Dataset) -> Recipe:
    """A VAE of the digits with dropout; nobody is killed unless the environment says so."""
    objective = ELBO()
    likelihood = ppgen_nn.Bernoulli(data.shape)
    model = Mortal(objective, ppgen_nn.MLP(2, [16], likelihood.features), likelihood, 2)
    guide = guides.DiagonalGaussian(ppgen_nn.encoder(data.shape, 4, hidden=(16,), dropout=0.2), 2)
    return Recipe(model, guide, objective, data=data.binarized("dynamic"), average=0.9, particles=2)


# ------------------------------------------------------------------------------------------------------------ checks


def trajectory(made: Made, processes: Processes, **options: Any) -> Trajectory:
    """Results of a few steps, and what they made of parameters and buffers."""
    model, guide, objective, batch = made
    torch.manual_seed(1)
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    trainer = Trainer(model, guide, objective, optimizer, processes=processes, **{"compile": "off", **options})
    batches = iter(lambda: batch, None)
    found = {f"step {n}": [float(value) for value in trainer.step(batches).values()] for n in range(STEPS)}
    tensors = trainer.leaves | trainer._buffers
    processes.require_equal(tensors, step=STEPS)
    return found | {name: tensor.detach().double().flatten().tolist() for name, tensor in tensors.items()}


def difference(one: Trajectory, other: Trajectory) -> float:
    """The largest relative difference of anything at any step."""
    assert one.keys() == other.keys()
    pairs = [(torch.tensor(one[name]), torch.tensor(other[name])) for name in one]
    return max(float((a - b).norm() / a.norm().clamp(min=1e-2)) for a, b in pairs)


def alike(name: str, processes: Processes) -> float:
    return difference(trajectory(ALIKE[name](), Processes()), trajectory(ALIKE[name](), processes))


def compiled(name: str, processes: Processes) -> float:
    eager = trajectory(ALIKE[name](), processes)
    return difference(eager, trajectory(ALIKE[name](), processes, compile="on"))


def refused(name: str, processes: Processes) -> str:
    make, patched = REFUSED[name]
    try:
        with patched():
            trajectory(make(), processes)
    except PpgenError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was noticed"


def unequal(name: str, processes: Processes) -> str:
    """What is said of processes whose gradients are not averaged."""
    try:
        with own_gradients():
            trajectory(ALIKE[name](), processes)
    except PpgenError as error:
        return str(error)
    return "nothing was noticed"


def signals(name: str, processes: Processes) -> list[int]:
    """Before which steps, of three parts of a run, processes know of a signal that only the last of them got."""
    known = [processes.signal(15 if step > 5 and processes.rank == processes.size - 1 else None) for step in range(50)]
    return [number or 0 for number in known]


CHECKS: dict[str, Callable[[str, Processes], Any]] = {
    f.__name__: f for f in (alike, compiled, refused, unequal, signals)
}


def main() -> None:
    torch.set_num_threads(1)
    file, *checks = sys.argv[1:]
    with joined() as processes:
        found = {}
        for check in checks:
            kind, name = check.split(":")
            found[check] = CHECKS[kind](name, processes)
        if processes.leads:
            Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
