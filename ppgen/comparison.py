"""One model fitted in several ways, side by side: guides, a point estimate, draws of the posterior."""

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppgen import programs
from ppgen.data import Dataset
from ppgen.devices import choose_device
from ppgen.errors import ConfigError
from ppgen.evaluation.arviz import container, to_netcdf
from ppgen.evaluation.diagnostics import FEWEST_RATIOS, Summary, dataset, pareto_k, summarize, verdict
from ppgen.evaluation.posteriors import densities
from ppgen.guides.points import PointEstimate
from ppgen.objectives import ELBO, EnumeratedELBO
from ppgen.programs import Program
from ppgen.programs.points import Latents, joint_ratios, latents_of
from ppgen.randomness import forked
from ppgen.recipes.base import OptimizerOfSteps, Recipe, adam
from ppgen.recipes.methods import METHODS, table
from ppgen.sampling import Sampler
from ppgen.stepping import Compile
from ppgen.training import Trainer

OBJECTIVES = ("svi", "map", "nuts")
GUIDES: dict[str, Callable[..., Any]] = {"normal": AutoNormal, "multivariate-normal": AutoMultivariateNormal}
"""Pyro's guides of any model, by name; "own" is the recipe's."""
STEPS = 3_000
"""How many steps a guide of these is trained."""
LEARNING_RATE = 0.05
MOST_TOGETHER = 1e6
"""Rows times draws that are drawn at once."""

logger = logging.getLogger("ppgen")


@dataclass(frozen=True)
class Fit:
    """What one way of fitting found.

    Attributes:
        name: such as "svi own" or "nuts".
        seconds: how long it took, compiling included.
        draws: ``(chains, draws, ...)`` by continuous latent; a single one of a point estimate.
        posterior: a summary of each of their numbers, such as ``w[0]``: see `summarize`.
        pareto_k: of the guide, None where there is none: see `pareto_k`.
        elbo: of the guide, in nats for all data; None where there is none.
        divergences: of a sampler; None elsewhere.
    """

    name: str
    seconds: float
    draws: Mapping[str, Tensor]
    posterior: Mapping[str, Summary]
    pareto_k: float | None = None
    elbo: float | None = None
    divergences: int | None = None

    @property
    def verdict(self) -> str | None:
        """What the k of the guide means: "good", "usable" or "unreliable"."""
        return None if self.pareto_k is None else verdict(self.pareto_k)

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it, without the draws."""
        k = self.pareto_k
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "pareto_k": k if k is None or math.isfinite(k) else None,
            "verdict": self.verdict,
            "elbo": self.elbo,
            "divergences": self.divergences,
            "posterior": {name: dict(line) for name, line in self.posterior.items()},
        }

    def to_arviz(self) -> Any:
        """Returns the draws as the installed ArviZ holds them."""
        return container({"posterior": dataset(self.draws)})


@dataclass(frozen=True)
class Comparison:
    """One model fitted in several ways, in the order asked for."""

    fits: tuple[Fit, ...]

    def __getitem__(self, name: str) -> Fit:
        """Returns the fit of that name."""
        for fit in self.fits:
            if fit.name == name:
                return fit
        raise KeyError(f"there is no '{name}': there are {', '.join(fit.name for fit in self.fits)}")

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it, without the draws."""
        return {"fits": [fit.as_dict() for fit in self.fits]}

    def write(self, folder: Path) -> list[Path]:
        """Writes ``comparison.png`` and the draws of each fit, for ArviZ, into a folder; returns their paths.

        Raises:
            StorageError: if they cannot be written.
        """
        paths = [to_netcdf(fit.to_arviz(), folder / f"{fit.name.replace(' ', '-')}.nc") for fit in self.fits]
        return [self.plot(folder / "comparison.png"), *paths]

    def plot(self, path: Path, *, most: int = 12) -> Path:
        """Draws the density of each number of the latents, the first ``most`` of them; returns the path.

        Raises:
            StorageError: if it cannot be written.
        """
        densities({fit.name: fit.draws for fit in self.fits}, path, most=most)
        return path


def compare(
    model: Program,
    columns: Mapping[str, Tensor],
    guide: Program | None = None,
    *,
    objective: Any = None,
    optimizer: OptimizerOfSteps | None = None,
    objectives: Sequence[str] = OBJECTIVES,
    guides: Sequence[str] | None = None,
    steps: int | None = None,
    guide_draws: int = 2_000,
    seed: int = 0,
    device: str = "auto",
    compile: Compile = "auto",
    **options: Any,
) -> Comparison:
    """Fits one model in several ways on all its data, and sets what they found side by side.

    Args:
        model: the generative program; it must have no parameters, since each way would train its own.
        columns: all the data, ``(rows, ...)`` by name.
        guide: your own guide; None for none.
        objective: by which ``guide`` is trained; an `ELBO` unless told.
        optimizer: likewise, from the number of steps: ``ppgen.recipes.adam(0.01)``.
        objectives: some of "svi", "map", "nuts".
        guides: those that "svi" trains: "own", "normal" (every latent by itself), "multivariate-normal".
        steps: how many steps guides and points are trained; 3,000 and 2,000 unless told.
        guide_draws: from each guide, at least 1,000.
        seed: of everything; no random stream outside moves.
        device: where the data are held.
        compile: "auto", "on" or "off".
        **options: those of the methods: ``draws``, ``warmup``, ``chains``, ``learning_rate`` and so on.

    Raises:
        ConfigError: if a name is unknown, or a way does not suit the model.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> found = compare(model, {"x": torch.randn(50) + 3}, objectives=["svi"], guides=["normal"], steps=1000)
        >>> found["svi normal"].verdict
        'good'
    """
    data = Dataset("", dict(columns), {}, {}, None, "none", "", ())
    chosen = tuple(guides) if guides is not None else ("own",) if guide is not None else ("normal",)
    if guide is None and "own" in chosen:
        raise ConfigError("expected a guide of your own for guides=['own']; got none")
    recipe = Recipe(model, guide or AutoNormal(model), objective or ELBO(), data, optimizer or adam(LEARNING_RATE))
    _check_names(objectives, chosen)
    known = {name for method in objectives if method in METHODS for name in METHODS[method].options}
    if unknown := sorted(options.keys() - known):
        raise ConfigError(f"there is no option '{unknown[0]}': there are {', '.join(sorted(known)) or 'none'}")

    def build(method: str | None) -> Recipe:
        if method is None:
            return replace(recipe, epochs=steps or STEPS, whole=True)
        return METHODS[method].apply(recipe, {**METHODS[method].defaults({}), **_of(options, METHODS[method].options)})

    ways = Ways(build, steps=steps, draws=guide_draws, seed=seed, device=device, compile=compile)
    return Comparison(tuple(ways.fits(objectives, chosen)))


def _of(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in known}


def _check_names(objectives: Sequence[str], guides: Sequence[str]) -> None:
    for what, names, known in (("objectives", objectives, OBJECTIVES), ("guides", guides, ("own", *GUIDES))):
        for name in names:
            if name not in known:
                raise ConfigError(f"expected {what} from {', '.join(known)}; got '{name}'")
    if not objectives or ("svi" in objectives and not guides):
        raise ConfigError("expected at least one of the objectives, and a guide for svi; got none")


@dataclass(frozen=True)
class Ways:
    """The ways to fit one recipe.

    Attributes:
        build: a method's name, None for the recipe's own objective, to a recipe made anew.
        steps: how many steps guides are trained; None for as many as they have.
        draws: from each guide.
        seed: of everything.
        device: where the data are held.
        compile: as `Trainer` has it.
        say: is told what begins.
    """

    build: Callable[[str | None], Recipe]
    steps: int | None = None
    draws: int = 2_000
    seed: int = 0
    device: str = "auto"
    compile: Compile = "auto"
    say: Callable[[str], object] = logger.debug

    def fits(self, objectives: Sequence[str], guides: Sequence[str]) -> Iterator[Fit]:
        """Yields what each way found.

        Raises:
            ConfigError: if a name is unknown, or a way does not suit the model.
        """
        _check_names(objectives, guides)
        if self.draws < FEWEST_RATIOS:
            raise ConfigError(f"expected at least {FEWEST_RATIOS:,} draws; got {self.draws:,}")
        for objective in objectives:
            for guide in guides if objective == "svi" else [None]:
                self.say(f"{objective} {guide} ..." if guide else f"{objective} ...")
                with forked(self.seed):
                    yield self._guided(guide) if guide else self._method(objective)

    def _method(self, name: str) -> Fit:
        recipe = self.build(name)
        if recipe.sampling is not None:
            return self._sampled(recipe)
        trainer, seconds = self._trained(recipe, self._latents(recipe))
        guide = trainer.guide
        if not isinstance(guide, PointEstimate):
            raise ConfigError(f"expected a point estimate of objective '{name}'; got {type(guide).__name__}")
        with trainer.evaluating():
            points = {site: guide.value(site).detach().clone()[None, None] for site in guide.latents.continuous}
        return Fit(name, seconds, points, summarize(_shown(points, guide.latents)))

    def _sampled(self, recipe: Recipe) -> Fit:
        device = choose_device(self.device)
        if recipe.sampling is None:
            raise ConfigError("expected a recipe that is sampled")
        sampler = Sampler(recipe.model, recipe.sampling, seed=self.seed, device=device)
        start = time.perf_counter()
        for _ in sampler.fit(recipe.batches(self.seed, device)):
            pass
        seconds = time.perf_counter() - start
        found = sampler.report()
        return Fit("nuts", seconds, sampler.draws, found["posterior"], divergences=found["divergences"])

    def _guided(self, name: str) -> Fit:
        recipe = self.build(None)
        recipe = replace(recipe, data=table(recipe, "svi"))
        latents = self._latents(recipe)
        if name != "own":
            guide = GUIDES[name](poutine.block(recipe.model, hide=list(latents.discrete)))
            objective = EnumeratedELBO() if latents.discrete else ELBO()
            optimizer = adam(LEARNING_RATE, schedule="cosine")
            recipe = replace(recipe, guide=guide, objective=objective, optimizer=optimizer, epochs=STEPS, average=None)
        trainer, seconds = self._trained(replace(recipe, whole=True), latents)
        draws, ratios = self._drawn(trainer, next(recipe.batches(self.seed, trainer.device)), latents)
        k, bound = pareto_k(ratios), float(ratios.mean())
        return Fit(f"svi {name}", seconds, draws, summarize(_shown(draws, latents)), pareto_k=k, elbo=bound)

    def _latents(self, recipe: Recipe) -> Latents:
        """Returns the model's latents, and refuses one that has parameters."""
        if recipe.data is None:
            raise ConfigError("the recipe names no data")
        with programs.Store().active(), programs.quiet():
            latents = latents_of(recipe.model, recipe.data.train)
            trained = list(programs.leaves(recipe.model, recipe.model))
        if trained:
            raise ConfigError(
                f"expected one model for all; got one with the parameter '{trained[0]}', which each way would train to"
                " another value: make it latent (pyro.sample, PyroSample)"
            )
        if not latents.continuous:
            raise ConfigError("expected a model with a continuous latent; got none")
        return latents

    def _trained(self, recipe: Recipe, latents: Latents) -> tuple[Trainer, float]:
        device = choose_device(self.device)
        batches = recipe.batches(self.seed, device)
        steps = self.steps or recipe.epochs
        start = time.perf_counter()
        trainer = Trainer(
            recipe.model,
            recipe.guide,
            recipe.objective,
            recipe.optimizer(steps),
            total_steps=steps,
            average=recipe.average,
            device=device,
            compile=self.compile,
        )
        for _ in trainer.fit(batches, every=steps):
            pass
        return trainer, time.perf_counter() - start

    def _drawn(self, trainer: Trainer, batch: Any, latents: Latents) -> tuple[dict[str, Tensor], Tensor]:
        """Returns draws from a guide, ``(1, draws, ...)`` by site, and their log ratios ``(draws,)``."""
        together = min(self.draws, max(1, int(MOST_TOGETHER / max(1, latents.rows))))
        drawing = functools.partial(joint_ratios, trainer.model, trainer.guide, batch, latents)
        with trainer.evaluating(), forked(self.seed):
            try:
                parts = [drawing(particles=together) for _ in range(math.ceil(self.draws / together))]
            except Exception as error:  # a user's program need not bear particles
                logger.debug("one draw at a time: %s", error)
                parts = [drawing(particles=1) for _ in range(self.draws)]
        draws = {name: torch.cat([part[0][name] for part in parts])[: self.draws] for name in latents.continuous}
        ratios = torch.cat([part[1] for part in parts])[: self.draws]
        return {name: value.detach()[None] for name, value in draws.items()}, ratios


def _shown(draws: Mapping[str, Tensor], latents: Latents) -> dict[str, Tensor]:
    return {name: draws[name] for name in latents.summarized}
