"""What is checked of one program."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen import ELBO, IWAE, Trainer, programs
from ppgen.errors import PpgenError
from ppgen.evaluation import negative_log_likelihood
from ppgen.objectives import Objective

from .autoguides import Auto, move, read
from .constrained import values_of
from .description import FEATURE_COUNT, Description, Site
from .source import batch, built, parameters
from .statistics import SUSPICIOUS, WrongError, distance_of_logs, require, require_mean_one
from .truth import Truth

Check = Callable[[Description], None]

ORDER, LARGEST = 2.5, 1_000.0
"""A moment of a row's weights, over their mean: beyond it, what so many draws come to says nothing of the mean."""


def checks(described: Description) -> Iterator[tuple[str, Check]]:
    """Yields the checks that a program can take, by name."""
    yield "bound", check_bound
    if described.branches_on_draws:  # of which there is one draw at a time
        yield "resume", check_resume
        return
    if (
        described.has_rows
        and not described.has_points
        and not described.auto.endswith(("DiagonalNormal", "iateNormal"))
    ):
        yield "weights", check_weights
        if not described.auto and not described.positional:
            yield "likelihood", check_likelihood
        if not described.is_scaled_in_parts and not described.factor:
            yield "several draws", check_several_draws
    yield "draws", check_draws
    yield "resume", check_resume
    if described.compiled:
        yield "compiled", check_compiled


# --------------------------------------------------------------------------------------------------------- settings


def objective_of(described: Description) -> Objective:
    """Returns the ELBO that a program takes."""
    summed = any(site.only_model for site in described.model)
    drawn = any(site.is_discrete for site in described.guide)
    if described.branches_on_draws:
        return ELBO(particles=1, estimator=described.estimator)
    if not drawn:
        return ELBO(particles=8, estimator="enumerate" if summed else None)
    if summed or described.estimator == "enumerate":
        random = any(not site.is_discrete for site in described.guide)
        return ELBO(particles=4 if random else 1, estimator="enumerate")
    return ELBO(particles=8, estimator=described.estimator)


class Prepared:
    """A program that is built, with its batch and its parameters in a store of its own."""

    def __init__(self, described: Description) -> None:
        torch.manual_seed(described.seed)
        self.described = described
        self.model, self.guide = built(described)
        self.given, self.store = batch(described), programs.Store()
        with self.store.active():
            for program in (self.guide, self.model):  # so that all parameters exist
                for _ in range(20 if described.branches_on_draws else 1):
                    args, kwargs = programs.arguments(program, self.given)
                    pyro.poutine.trace(program).get_trace(*args, **kwargs)
            if described.auto:
                move(self.guide)

    def evaluating(self) -> Any:
        """As evaluation asks a trainer for its parameters."""
        return self.store.active()

    device = torch.device("cpu")

    def truth(self) -> tuple[Truth, dict[str, Tensor]]:
        """Returns the truth at the parameters of the store, and the tensors that are optimised, by name."""
        names = parameters(self.described)
        free = {name: leaf for name, leaf in pyro.get_param_store().named_parameters() if name in names}
        doubles = {name: leaf.detach().double().requires_grad_() for name, leaf in free.items()}
        auto = read(self.described, self.guide) if self.described.auto else Auto()
        return Truth(self.described, values_of(self.described, doubles), auto), doubles

    def ratios(self, count: int, evidence: Tensor) -> Tensor:
        """Weights of rows over their expectation: ``(count, rows)``."""
        left = {site.name for site in self.described.model if site.only_model}
        discrete = [site for site in self.described.model if site.is_discrete]
        summed: Any = bool(discrete) if all(site.index for site in discrete) else left or False
        weights = programs.log_weights(self.model, self.guide, self.given, particles=count, enumerate_discrete=summed)
        return (weights.local.double() - evidence).exp()


# ------------------------------------------------------------------------------------------------------------ checks


def check_bound(described: Description) -> None:
    """The loss and its gradient are those of exact sums."""
    made = Prepared(described)
    with made.store.active():
        truth, doubles = made.truth()
        exact = truth.loss()
        slopes = torch.autograd.grad(exact, list(doubles.values()), allow_unused=True) if doubles else ()
        expected = {"loss": exact.item()}
        for (name, leaf), slope in zip(doubles.items(), slopes, strict=True):
            expected |= _numbers(name, leaf, slope)
        objective = objective_of(described)
        objective.setup(made.model, made.guide, made.given)
        leaves = dict(pyro.get_param_store().named_parameters())
        free = {name: leaves[name] for name in doubles}

        def draw() -> dict[str, float]:
            losses, _ = objective.phases()[0](made.model, made.guide, made.given)
            loss = losses["all"]
            slopes: Sequence[Tensor | None] = [None] * len(free)
            if free and loss.requires_grad:
                slopes = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
            found = {"loss": loss.item()}
            for (name, leaf), slope in zip(free.items(), slopes, strict=True):
                found |= _numbers(name, leaf, slope)
            return found

        require(draw, expected, draws=60 if described.branches_on_draws else 16)


def _numbers(name: str, leaf: Tensor, slope: Tensor | None) -> dict[str, float]:
    values = (torch.zeros_like(leaf) if slope is None else slope).flatten().tolist()
    return {f"the gradient of {name}{f'[{n}]' if leaf.dim() else ''}": value for n, value in enumerate(values)}


def check_weights(described: Description) -> None:
    """Importance weights of a row have its evidence as mean, whatever the program is scaled by."""
    made = Prepared(described)
    with made.store.active(), torch.no_grad():
        truth = made.truth()[0]
        evidence, able = truth.evidence(), truth.moment_of_weights(ORDER) < math.log(LARGEST)
        require_mean_one(lambda count: torch.where(able, made.ratios(count, evidence), 1.0), "weight")


def check_likelihood(described: Description) -> None:
    """The NLL of every row is that of exact sums."""
    made = Prepared(described)
    with made.store.active(), torch.no_grad():
        truth = made.truth()[0]
        evidence, able = truth.evidence(), truth.moment_of_weights(ORDER) < math.log(LARGEST)
        spread = made.ratios(4_000, evidence).std(0)
    for count in (2_000, 50_000):
        with torch.no_grad():
            found = negative_log_likelihood(made, made.given, particles=count, label="", seed=described.seed)  # type: ignore[arg-type]
        if tuple(found.shape) != (described.rows,):
            raise WrongError(f"the NLL has shape {tuple(found.shape)}, and should have ({described.rows},)")
        apart = torch.where(able, -found - evidence, 0.0)
        if distance_of_logs(apart, spread, count) < SUSPICIOUS + 0.5:
            return
    row = int(apart.abs().argmax())
    raise WrongError(f"the NLL of row {row} is {float(found[row]):.5g}, and should be {-float(evidence[row]):.5g}")


def check_several_draws(described: Description) -> None:
    """With many draws the importance-weighted bound is the evidence; with few it lies between that and the ELBO."""
    if any("r" not in site.index for site in described.model):
        return
    made = Prepared(described)
    with made.store.active(), torch.no_grad():
        truth, _ = made.truth()
        if not (truth.moment_of_weights(ORDER) < math.log(LARGEST)).all():
            return
        weights = truth.columns["weight"] if described.whole_scale == "row" else float(described.whole_scale)
        exact, loose = -(weights * truth.evidence()).mean().item(), truth.loss().item()
        summed = "enumerate" if any(s.is_discrete for s in described.model) else None
        many, few = (IWAE(particles=k, estimator=summed) for k in (3_000, 3))
        for objective in (many, few):
            objective.setup(made.model, made.guide, made.given)
        torch.manual_seed(1)
        found = [float(many.loss(made.model, made.guide, made.given)) for _ in range(3)]
        if not abs(sum(found) / 3 - exact) < 0.03 * (1 + abs(exact)) + 3 * (max(found) - min(found)):
            raise WrongError(f"the bound of 3,000 draws is {found[0]:.4g}, and should be {exact:.4g}")
        drawn = torch.tensor([float(few.loss(made.model, made.guide, made.given)) for _ in range(16)]).double()
        error = 1.5 * SUSPICIOUS * float(drawn.std()) / math.sqrt(len(drawn)) + 1e-4 * (1 + abs(exact))
        if not exact - error < float(drawn.mean()) < loose + error:
            raise WrongError(f"the bound of 3 draws is {float(drawn.mean()):.4g}, not in [{exact:.4g}, {loose:.4g}]")


def check_draws(described: Description) -> None:
    """What a model draws has the shape of data, for another number of rows as well."""
    made, fixed = Prepared(described), described.size != described.rows or described.positional
    rows = described.rows if fixed or described.plates == "inside" else described.rows + 3
    with made.store.active():
        drawn = programs.generate(made.model, made.given, None if rows == described.rows else rows)
    for site in described.model:
        for name, shape in _shapes(described, site, rows):
            if tuple(drawn[name].shape) != shape:
                raise WrongError(f"site {name} is drawn as {tuple(drawn[name].shape)}, and should be {shape}")


def _shapes(described: Description, site: Site, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the shapes of a site where no other plate can have its hand in it."""
    local, along = "r" in site.index, "m" in site.index
    if not local or not described.has_rows or described.mask == "obs_mask":
        return
    if not along:
        yield site.name, (rows, 1) if described.flipped else (rows,)
    elif described.features == "sequential":
        yield from ((f"{site.name}_{m}", (rows,)) for m in range(FEATURE_COUNT))
    else:
        rows_first = described.flipped or described.features == "event"
        yield site.name, (rows, FEATURE_COUNT) if rows_first else (FEATURE_COUNT, rows)


def _trained(described: Description, steps: int, state: Any = None, *, compile: Any = "off") -> Trainer:
    torch.manual_seed(3 if state is None else 99)
    rate = functools.partial(torch.optim.Adam, lr=0.01)
    model, guide = built(described)
    trainer = Trainer(model, guide, objective_of(described), rate, device="cpu", compile=compile)
    if state is not None:
        trainer.load_state_dict(state)
    list(trainer.fit(iter([batch(described)] * steps), steps=steps))
    return trainer


def check_resume(described: Description) -> None:
    """A training goes on from its state as if nothing had been."""
    if described.seed % 3 or not (parameters(described) or described.auto):
        return
    whole = _trained(described, 4)
    ended = _trained(described, 2, _trained(described, 2).state_dict())
    for name, leaf in whole.leaves.items():
        if not torch.equal(leaf, ended.leaves[name]):
            raise WrongError(f"after a resume {name} is another")


def check_compiled(described: Description) -> None:
    """Compiled steps end where eager ones do."""
    eager = _trained(described, 5)
    try:
        compiled = _trained(described, 5, compile="on")
    except PpgenError:
        if described.branch:  # which reads data, so that such a step cannot be compiled
            return
        raise
    for name, leaf in eager.leaves.items():
        if not torch.allclose(leaf, compiled.leaves[name], atol=1e-4, rtol=1e-3):
            raise WrongError(f"compiled, {name} is another")
