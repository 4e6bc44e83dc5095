"""Markov chain Monte Carlo in the place of training: Pyro's NUTS, one chain after another, each a step of a run."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic
import torch
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor

from ppgen import programs, randomness
from ppgen.configuration import Config
from ppgen.errors import CheckpointError, ConfigError, DivergedError
from ppgen.evaluation.arviz import container
from ppgen.evaluation.diagnostics import dataset, summarize
from ppgen.guides.points import PosteriorDraws
from ppgen.processes import Processes
from ppgen.programs import Batch, Program
from ppgen.programs.points import Latents, latents_of
from ppgen.state import plain, require, require_chain
from ppgen.streams import place

if TYPE_CHECKING:
    from ppgen.recipes import Recipe

Metrics = dict[str, float]
Count = Annotated[int, pydantic.Field(ge=1)]

FEWEST_DRAWS = 4
"""Draws of a chain from which its convergence can be told."""


@dataclass(frozen=True)
class Sampling:
    """How a posterior is sampled.

    Attributes:
        draws: draws of each chain that are kept.
        warmup: draws before them, in which step size and mass matrix adapt, that are not.
        chains: how many, each with its own start and random stream.
        target_acceptance: towards which the step size adapts.
        max_tree_depth: a trajectory takes up to two to this power steps.
        full_mass: whether the mass matrix has correlations.
    """

    draws: int = 1_000
    warmup: int = 500
    chains: int = 4
    target_acceptance: float = 0.8
    max_tree_depth: int = 10
    full_mass: bool = False

    def __post_init__(self) -> None:
        if self.draws < FEWEST_DRAWS or self.warmup < 1 or self.chains < 1:
            got = f"draws={self.draws}, warmup={self.warmup}, chains={self.chains}"
            raise ConfigError(f"expected draws >= {FEWEST_DRAWS}, warmup >= 1 and chains >= 1; got {got}")

    @property
    def length(self) -> int:
        """Iterations of one chain."""
        return self.warmup + self.draws

    @property
    def steps(self) -> int:
        """Iterations of all chains."""
        return self.chains * self.length


@dataclass(frozen=True)
class Chain:
    """One finished chain.

    Attributes:
        draws: ``(draws, ...)`` by latent site, constrained.
        diverging: ``(draws,)``, whether the trajectory of a draw diverged.
        acceptance: mean probability of acceptance.
        step_size: that of its trajectories.
    """

    draws: dict[str, Tensor]
    diverging: Tensor
    acceptance: float
    step_size: float


class Sampler:
    """Samples the posterior of a model's continuous latents with NUTS; discrete ones are summed out.

    It has the interface of a `Trainer`: a step is an iteration of a chain, the guide a choice among the draws. Its
    state is that of its finished chains, so a run that is stopped goes on at the beginning of a chain. Each chain
    depends on the seed and its number only.

    Args:
        model: the generative program; it must have no parameters, which nothing would train.
        sampling: how much is sampled.
        seed: of all chains.
        device: where the data are.

    Attributes:
        guide: draws of the posterior, as evaluation wants them.
        steps: iterations taken.
        chains: those that are finished.
        latents: the model's latent sites, once it is set up.

    References:
        Hoffman, Gelman, 2014, arXiv:1111.4246.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> sampler = Sampler(model, Sampling(draws=100, warmup=50, chains=2))
        >>> records = list(sampler.fit(iter([{"x": torch.tensor([2.0, 3.0, 4.0])}])))
        >>> sampler.draws["mean"].shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        model: Program,
        sampling: Sampling,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        processes: Processes | None = None,
    ) -> None:
        if processes is not None and processes.size > 1:
            raise ConfigError("objective=nuts runs in one process: start it without torchrun")
        self.model, self.guide = model, PosteriorDraws(model)
        self.sampling, self.seed = sampling, seed
        self.device = torch.device(device)
        self.precision, self.compiled, self.compiling_seconds = "fp32", False, 0.0
        self.steps = self.skipped = 0
        self.chains: list[Chain] = []
        self._store = programs.Store()
        self._batch: Batch = None
        self._random: dict[str, Any] | None = None
        self._chain: Iterator[Metrics] | None = None
        for module in programs.modules_of(model):
            module.to(self.device)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """None: nothing is trained."""
        return {}

    @property
    def latents(self) -> Latents:
        """The model's latent sites."""
        if self.guide.latents is None:
            raise ConfigError("expected a sampler that has been set up; got one that has not run")
        return self.guide.latents

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of the finished chains by latent site, ``(chains, draws, ...)``; empty if none is finished."""
        return {
            n: torch.stack([chain.draws[n] for chain in self.chains]) for n in self.latents.continuous if self.chains
        }

    def setup(self, batch: Batch) -> None:
        """Runs the model once, on all its data.

        Raises:
            ConfigError: if it has parameters, subsamples its data, or has no continuous latents.
        """
        if self._batch is not None:
            return
        batch = place(batch, self.device)
        with self._running():
            latents = latents_of(self.model, batch)
            trained = list(programs.leaves(self.model, self.model))
        if trained:
            more = f" and {len(trained) - 1} more" if len(trained) > 1 else ""
            raise ConfigError(
                f"objective=nuts trains no parameters, but the model has '{trained[0]}'{more}: make them latent"
                " (pyro.sample, PyroSample), or use objective=map"
            )
        if latents.scaled:
            raise ConfigError(
                "objective=nuts needs all rows at once, but the model draws a subsample of its own: make its"
                " subsample_size the number of rows it is given, len(x)"
            )
        if not latents.continuous:
            raise ConfigError("objective=nuts samples continuous latents; the model has none")
        self.guide.latents, self._batch = latents, batch

    def plan(self, batch: Batch) -> None:
        """Sets up: there is nothing to decide."""
        self.setup(batch)

    def decide(self, compiled: bool | None) -> None:
        """Does nothing: it is never compiled."""

    def check_finite(self) -> None:
        """Does nothing: a chain is checked at its end."""

    def scale_learning_rate(self, factor: float) -> None:
        """Does nothing: it has none."""

    def fit(
        self,
        batches: Iterator[Batch],
        *,
        steps: int | None = None,
        every: int = 100,
        until: Callable[[], bool] = lambda: False,
    ) -> Iterator[Metrics]:
        """Samples, and yields a report every ``every`` iterations and at the end of a chain, where it stops for now.

        Args:
            batches: of which the first has all the data.
            steps: how many iterations at most; all chains unless told.
            every: how many iterations a report stands for.
            until: asked before every iteration whether to stop; the chain is then begun anew another time.

        Raises:
            ConfigError: if no starting point has a finite density.
            DivergedError: if a draw is not finite.
        """
        if self._batch is None:
            self.setup(next(batches))
        whole, last = steps is None, self.sampling.steps if steps is None else self.steps + steps
        while self.steps < min(last, self.sampling.steps):
            self._chain = self._chain or self._iterate(len(self.chains))
            with self._running(), self._own_stream():
                record, stopped = self._advance(min(every, last - self.steps), until)
            if stopped:
                self.steps, self._chain = len(self.chains) * self.sampling.length, None
                return
            yield record
            if self.steps % self.sampling.length == 0 and not whole:
                return

    def _advance(self, count: int, until: Callable[[], bool]) -> tuple[Metrics, bool]:
        record: Metrics = {}
        for _ in range(count):
            if until() or self._chain is None:
                return record, True
            record = next(self._chain)
            self.steps += 1
            if self.steps % self.sampling.length == 0:
                next(self._chain, None)  # keeps the chain
                self._chain = None
                break
        return {"step": self.steps, **record}, False

    def _iterate(self, number: int) -> Iterator[Metrics]:
        """Yields after every iteration of a chain, and keeps the chain at its end."""
        settings, (args, kwargs) = self.sampling, programs.arguments(self.model, self._batch)
        entropy = np.random.SeedSequence(self.seed, spawn_key=(number,))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        kernel = NUTS(
            self.model,
            target_accept_prob=settings.target_acceptance,
            max_tree_depth=settings.max_tree_depth,
            full_mass=settings.full_mass,
            max_plate_nesting=self.latents.nesting,
        )
        try:
            kernel.setup(settings.warmup, *args, **kwargs)
        except ValueError as error:
            trace = poutine.trace(self.model).get_trace(*args, **kwargs)
            if "initial params" not in str(error) and torch.as_tensor(trace.log_prob_sum()).isfinite():
                raise  # another mistake: the density is finite, at one draw from the prior at least
            raise ConfigError("no starting point was found at which the model's density is finite: check it") from error
        state, kept = kernel.initial_params, []
        for iteration in range(settings.length):
            state = kernel.sample(state)
            if iteration >= settings.warmup:
                kept.append({name: value.detach().clone() for name, value in state.items()})
            if iteration == settings.warmup - 1:
                kernel.end_warmup()
            yield self._record(kernel, number, iteration)
        self._keep(kernel, kept)

    def _record(self, kernel: Any, number: int, iteration: int) -> Metrics:
        found = {"chain": number + 1, "draw": max(0, iteration + 1 - self.sampling.warmup)}
        if iteration >= self.sampling.warmup:
            found["divergences"] = len(kernel.diagnostics()["divergences"])
        return {**found, "acceptance": float(kernel.logging()["acc. prob"]), "step_size": float(kernel.step_size)}

    def _keep(self, kernel: Any, kept: list[dict[str, Tensor]]) -> None:
        unconstrained = {name: torch.stack([draw[name] for draw in kept]) for name in kept[0]}
        draws = {name: kernel.transforms[name].inv(value) for name, value in unconstrained.items()}
        for name, value in draws.items():
            if not value.isfinite().all():
                raise DivergedError(
                    f"draws of '{name}' are not finite: check the model, or --set target_acceptance=0.95"
                )
        diverging = torch.zeros(len(kept), dtype=torch.bool, device=self.device)
        diverging[list(set(kernel.diagnostics()["divergences"]))] = True
        self.chains.append(Chain(draws, diverging, float(kernel.logging()["acc. prob"]), float(kernel.step_size)))
        self._show_draws()

    def _show_draws(self) -> None:
        self.guide.draws = {name: value.flatten(0, 1) for name, value in self.draws.items()}

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with self._store.active(), programs.evaluation_mode(self.model), programs.quiet():
            yield

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Within it, random streams are those of the chain."""
        with randomness.forked():
            if self._random is not None:
                randomness.set_all_random_states(self._random)
            yield
            self._random = randomness.all_random_states()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, model and guide run as evaluation wants it.

        Raises:
            CheckpointError: if it has begun, and no chain is finished.
        """
        if self.guide.draws is not None and not self.chains:
            raise CheckpointError("no chain is finished: `ppgen resume` the run first")
        with self._running(), torch.no_grad():
            yield

    def report(self) -> dict[str, Any]:
        """Returns what the sampler says of itself, and a line for each number of the posterior."""
        shown = {name: value for name, value in self.draws.items() if name in self.latents.summarized}
        return {
            "method": "nuts",
            "chains": len(self.chains),
            "draws": self.sampling.draws,
            "warmup": self.sampling.warmup,
            "divergences": sum(int(chain.diverging.sum()) for chain in self.chains),
            "acceptance": [chain.acceptance for chain in self.chains],
            "step_size": [chain.step_size for chain in self.chains],
            "posterior": summarize(shown, chains=True),
        }

    def to_arviz(self) -> Any:
        """Returns every draw of every chain, and which diverged, as the installed ArviZ holds it.

        Raises:
            CheckpointError: if no chain is finished.
        """
        if not self.chains:
            raise CheckpointError("no chain is finished: `ppgen resume` the run first")
        dims = {
            name: tuple(
                f"{name}_dim_{i}" if plate is None else plate for i, plate in enumerate(self.latents.dims[name])
            )
            for name in self.latents.continuous
        }
        diverging = dataset({"diverging": torch.stack([chain.diverging for chain in self.chains])})
        return container({"posterior": dataset(self.draws, dims), "sample_stats": diverging.astype(bool)})

    def state_dict(self) -> dict[str, Any]:
        """Returns the finished chains."""
        return {"steps": len(self.chains) * self.sampling.length, "chains": plain([vars(c) for c in self.chains])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; a `CheckpointError` of one that is none, or of another model, changes nothing."""
        require(state, steps=int, chains=(list, tuple))
        for chain in state["chains"]:
            length = require_chain(chain)
            if chain["draws"].keys() != set(self.latents.continuous) or length != self.sampling.draws:
                names = ", ".join(self.latents.continuous)
                raise CheckpointError(
                    "the checkpoint is of another model or length: it has"
                    f" {length} draws of {', '.join(chain['draws'])}; expected {self.sampling.draws} of {names}"
                )
        self.chains = [Chain(**place(chain, self.device)) for chain in state["chains"]]
        self.steps, self._chain = len(self.chains) * self.sampling.length, None
        self._show_draws()


def sampler_of(recipe: "Recipe", config: Config, device: torch.device, processes: Processes) -> Sampler | None:
    """Returns the sampler of a run, None if its recipe is trained.

    Raises:
        ConfigError: if something is asked for that only training has.
    """
    if recipe.sampling is None:
        return None
    asked = {
        "--epochs": config.epochs is not None,
        "--steps": config.steps is not None,
        "--compile on": config.compile == "on",
        f"--precision {config.precision}": config.precision not in ("auto", "fp32"),
    }
    for option, given in asked.items():
        if given:
            raise ConfigError(f"objective=nuts has no {option}: it has --set draws=N, warmup=N and chains=N")
    return Sampler(recipe.model, recipe.sampling, seed=config.seed, device=device, processes=processes)
