"""Gradient estimators side by side: bias, variance, cost, at initialisation and along training."""

import itertools
import logging
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.estimators.contenders import (
    Asked,
    Contender,
    Pair,
    known,
    objective_of,
    reference_objective,
    seconds_of,
    sites_of,
)
from ppgen.estimators.exact import NotEnumerableError, enumeration
from ppgen.estimators.results import ALL, Comparison, Row, State
from ppgen.estimators.rows import rows_of
from ppgen.estimators.statistics import Bias, Interval, Reference, variance
from ppgen.players import OptimizerLike
from ppgen.programs import Batch, Program
from ppgen.randomness import forked
from ppgen.stepping import Compile
from ppgen.training import Trainer

BASELINE = "score"
"""The estimator that the others' cost and variance are set against."""
Spread = dict[str, Interval]

_REASON = re.compile("^estimator '[^']*' cannot treat guide site '[^']*': ")

logger = logging.getLogger("ppgen")


def compare(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    estimators: Iterable[str] | Mapping[str, Asked] | None = None,
    draws: int = 20_000,
    particles: int = 5,
    steps: int = 0,
    at: Sequence[float] = (0.0, 0.1, 1.0),
    train_with: str | None = None,
    optimizer: OptimizerLike = None,
    batches: Iterator[Batch] | None = None,
    burn_in: int = 500,
    seed: int = 0,
    rounds: int = 20,
    compile: Compile = "auto",
) -> Comparison:
    """Compares gradient estimators of the evidence lower bound of one batch.

    Each is set against the exact gradient where all latents are discrete and can be summed (of latents of each row's
    own, up to 4,096 joint states), else against the mean, with its error, of as many draws of leave-one-out, or of
    pathwise where all latents have derivatives. VIMCO's is the gradient of the bound of ``particles`` samples, and is
    set against that. Variances are those of the latents' draws, given the batch. Baselines and control variates are
    trained for ``burn_in`` steps beforehand and then held. Models are in evaluation mode, so that rows do not depend
    on each other.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: whose gradient is estimated.
        estimators: names, or by a name of your own an estimator or an objective (an ELBO or IWAE); all by default.
        draws: gradients of each estimator for bias and variance.
        particles: samples of VIMCO's bound.
        steps: how long the pair is trained; it keeps the parameters that it then has.
        at: when the estimators are compared, as shares of ``steps``.
        train_with: the estimator to train with; unless told, the first that fits of rebar, leave-one-out, pathwise.
        optimizer: to train with, as in `Trainer`.
        batches: to train and burn in with; the one batch, unless told.
        burn_in: steps that train only what estimators train along.
        seed: of all draws.
        rounds: how often a gradient is timed; 0 for never.
        compile: whether what is timed is compiled: "auto" where it can be.

    Raises:
        ConfigError: if no estimator fits, or a name is unknown.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.4))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=slope * x))
        >>> batch = {"x": torch.tensor([0.3, 1.2])}
        >>> found = compare(model, guide, batch, estimators=["score", "straight-through"], draws=20_000, rounds=0)
        >>> {row.name: row.bias.flagged for row in found.states[0].rows}
        {'score': False, 'straight-through': True}
    """
    if draws < 1_000 or steps < 0 or burn_in < 0 or rounds < 0:
        raise ConfigError(
            f"expected draws >= 1000 and steps, burn_in, rounds >= 0; got {draws}, {steps}, {burn_in}, {rounds}"
        )
    asked = _asked(estimators)
    drawn = itertools.repeat(batch) if batches is None else batches
    with forked():
        torch.manual_seed(seed)
        trainer, trained_with = _trainer(model, guide, batch, train_with, optimizer, steps, compile)
        work = _Work(model, guide, batch, asked, draws, particles, drawn, burn_in, seed, rounds, compile)
        states = []
        for moment in _moments(steps, at):
            for _ in trainer.fit(drawn, steps=moment - trainer.steps, every=max(1, moment - trainer.steps)):
                pass
            with _evaluating(trainer):
                states.append(work.state(moment))
    pair = work.pair
    return Comparison(tuple(states), work.refused, pair.rows, pair.sites, trained_with if steps else None, burn_in)


def _asked(estimators: Iterable[str] | Mapping[str, Asked] | None) -> dict[str, Asked]:
    if isinstance(estimators, Mapping):
        return dict(estimators)
    return {name: name for name in (known() if estimators is None else estimators)}


def _moments(steps: int, at: Sequence[float]) -> list[int]:
    if any(not 0 <= share <= 1 for share in at) or not at:
        raise ConfigError(f"expected shares of the steps from 0 to 1; got {', '.join(map(str, at)) or 'none'}")
    return sorted({round(share * steps) for share in at})


def _trainer(
    model: Program,
    guide: Program,
    batch: Batch,
    train_with: str | None,
    optimizer: OptimizerLike,
    steps: int,
    compile: Compile,
) -> tuple[Trainer, str]:
    """Returns a trainer of the pair that is set up, and the estimator that it trains with."""
    with programs.Store().active():
        sites, pathwise = sites_of(model, guide, batch)
    candidates = (train_with,) if train_with else ("pathwise",) if pathwise else ("rebar", "leave-one-out")
    for last, name in enumerate(candidates, start=1 - len(candidates)):
        objective = objective_of(name, sites, particles=5)
        trainer = Trainer(
            model,
            guide,
            objective,
            optimizer,
            total_steps=steps or None,
            compile=compile if steps else "off",
            device=_device(batch),
        )
        try:
            trainer.setup(batch)
        except ConfigError:
            if last == 0:
                raise
            continue
        return trainer, name
    raise ConfigError("expected an estimator to train with; got none")


def _device(batch: Batch) -> torch.device:
    found = [leaf.device for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    return found[0] if found else torch.device("cpu")


@contextmanager
def _evaluating(trainer: Trainer) -> Iterator[None]:
    with trainer.evaluating(), torch.enable_grad():
        yield


@dataclass
class _Work:
    """Everything that is done in one state of the parameters."""

    model: Program
    guide: Program
    batch: Batch
    asked: Mapping[str, Asked]
    draws: int
    particles: int
    batches: Iterator[Batch]
    burn_in: int
    seed: int
    rounds: int
    compile: Compile
    refused: dict[str, str] = field(default_factory=dict)
    times: dict[str, tuple[list[float], bool]] = field(default_factory=dict)

    def state(self, steps: int) -> State:
        """Compares all estimators with the parameters as they are."""
        self.sites, self.pathwise = sites_of(self.model, self.guide, self.batch)
        rows, repeatable = rows_of(self.model, self.guide, self.batch)
        leaves = programs.leaves(self.model, self.guide)
        self.pair = Pair(self.model, self.guide, self.batch, leaves, self.sites, rows, repeatable)
        contenders = self._contenders(steps)
        references: dict[tuple[str, int], Reference] = {}
        measured = []
        for number, one in enumerate(contenders, start=2):
            if one.bound not in references:
                references[one.bound] = self._reference(one.bound)
            torch.manual_seed(self.seed + number)
            measured.append((one, *self._measured(one, references[one.bound])))
        if self.rounds and not self.times:  # what a gradient costs does not depend on the parameters
            self.times = seconds_of(contenders, mode=self.compile, rounds=self.rounds)
        found = {_label(bound): (one.name, one.error()) for bound, one in references.items()}
        return State(steps, found, tuple(_row(*each, self.times) for each in measured))

    def _contenders(self, steps: int) -> list[Contender]:
        found = []
        for name, asked in self.asked.items():
            torch.manual_seed(self.seed)
            try:
                objective = objective_of(asked, self.sites, particles=self.particles)
                objective.step.fill_(steps)
                one = Contender(name, objective, self.pair)
                one.bound  # noqa: B018
            except ConfigError as error:
                if not isinstance(asked, str) or asked not in known():
                    raise
                self.refused[name] = _REASON.sub("", str(error))
            else:
                found.append(one)
        if not found:
            raise ConfigError("none of the estimators can treat the pair: " + "; ".join(self.refused.values()))
        return found

    def _reference(self, bound: tuple[str, int]) -> Reference:
        leaves = list(self.pair.leaves.values())
        try:
            loss = enumeration(self.model, self.guide, self.batch).loss(bound[1])
        except NotEnumerableError as reason:
            return self._summed(bound) or self._long_run(bound, str(reason))
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        parts = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
        return _exactly(parts, scale=float(loss.detach()))

    def _summed(self, bound: tuple[str, int]) -> Reference | None:
        """The exact gradient by `Enumerate`, which takes latents that rows share too; None where it does not fit."""
        joint = programs.run(self.model, self.guide, self.batch, check=False)
        if bound != ("ELBO", 1) or set(joint.latents) != set(self.sites) or self.pathwise:
            return None
        try:
            one = Contender("enumerate", objective_of("enumerate", self.sites, particles=1), self.pair)
        except ConfigError:
            return None
        return _exactly(one.gradients(self.batch)[: len(self.pair.leaves)])

    def _long_run(self, bound: tuple[str, int], reason: str) -> Reference:
        objective = reference_objective(bound, self.sites, pathwise=self.pathwise)
        one = Contender("pathwise" if self.pathwise else "leave-one-out", objective, self.pair)
        logger.info("%s: set against a long run of %s, since %s", _label(bound), one.name, reason)
        torch.manual_seed(self.seed + 1)
        groups, each = one.draw(self.draws)
        return Reference(one.name, groups.mean(0, dtype=torch.float64).float(), groups, len(groups) * each)

    def _measured(self, one: Contender, reference: Reference) -> tuple[Bias, Spread, dict[str, float], int]:
        logger.info("%s: %s draws", one.name, f"{self.draws:,}")
        one.burn_in(self.burn_in, self.batches)
        groups, each = one.draw(self.draws)
        tensors = self.pair.tensors()
        spread, signal = {}, {}
        for name, chosen in _groups(tensors).items():
            spread[name] = variance(groups, chosen, draws=each)
            signal[name] = reference.norm(*chosen) / max(spread[name].value, 1e-30) ** 0.5
        return Bias.of(groups, reference, tensors), spread, signal, len(groups) * each


def _exactly(gradients: Sequence[Tensor], *, scale: float = 1.0) -> Reference:
    """A reference of these gradients of a loss of that size."""
    mean = torch.cat([gradient.detach().flatten().float().cpu() for gradient in gradients])
    return Reference("exact", mean, rounding=torch.finfo(torch.float32).eps * abs(scale))


def _groups(tensors: Mapping[str, slice]) -> dict[str, list[slice]]:
    """Which tensors are the model's, the guide's, or in the parameter store."""
    found: dict[str, list[slice]] = {ALL: list(tensors.values())}
    for name, part in tensors.items():
        found.setdefault(name.partition(".")[0], []).append(part)
    return found if len(found) > 2 else {ALL: found[ALL]}


def _label(bound: tuple[str, int]) -> str:
    kind, particles = bound
    return kind if kind == "ELBO" else f"{kind}({particles})"


def _row(
    one: Contender,
    bias: Bias,
    spread: Mapping[str, Interval],
    signal: Mapping[str, float],
    draws: int,
    times: Mapping[str, tuple[list[float], bool]],
) -> Row:
    own, compiled = times.get(one.name, ([], False))
    base = times.get(BASELINE, ([], False))[0]
    cost = statistics.median(a / b for a, b in zip(own, base, strict=True)) if own and base else None
    return Row(
        name=one.name,
        bound=_label(one.bound),
        claims=one.unbiased,
        particles=one.particles,
        bias=bias,
        variance=spread,
        signal=signal,
        seconds=statistics.median(own) if own else None,
        cost=cost,
        compiled=compiled,
        draws=draws,
        adapts=one.adapts,
    )
