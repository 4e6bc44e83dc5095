"""Objectives that suit any recipe, by the name after ``--set objective=``: the one place where such names are resolved.

A method replaces the objective of a recipe, and what goes with it: the guide, the optimizer, the batches.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pydantic
import torch

from ppgen import programs
from ppgen.data import Dataset
from ppgen.errors import ConfigError
from ppgen.evaluation.slices import taken
from ppgen.guides.points import PointEstimate
from ppgen.objectives import ELBO, OBJECTIVES, EnumeratedELBO, SemiSupervised
from ppgen.programs.points import Latents, latents_of
from ppgen.recipes import objectives
from ppgen.recipes.base import Count, Positive, Recipe, adam
from ppgen.sampling import FEWEST_DRAWS, Sampling

Fields = Mapping[str, tuple[Any, Any]]
"""Options by name: type and default."""


@dataclass(frozen=True)
class Method:
    """A way to fit any recipe.

    Attributes:
        name: what the user types.
        summary: one line.
        reference: author, year, arXiv id.
        change: returns the recipe with another objective, and what goes with it; given the values of the options, of
            which those in ``yielding`` are missing where the recipe has them.
        options: type and default of each option. Where the recipe has one of the same name, one value serves both.
        yielding: options that are left to a recipe which has them itself, with its own type and default.
    """

    name: str
    summary: str
    reference: str
    change: Callable[[Recipe, Mapping[str, Any]], Recipe]
    options: Fields = field(default_factory=dict)
    yielding: frozenset[str] = frozenset()

    def fields(self, own: Fields) -> dict[str, tuple[Any, Any]]:
        """Returns the options that it adds to those of a recipe, or changes."""
        added = {name: kind for name, kind in self.options.items() if not (name in own and name in self.yielding)}
        return {"objective": (str, self.name), **added}

    def defaults(self, own: Fields) -> dict[str, Any]:
        """Returns the defaults of `fields`."""
        return {name: default for name, (_, default) in self.fields(own).items()}

    def values(self, options: Mapping[str, Any], own: Fields) -> dict[str, Any]:
        """Returns its part of all options."""
        return {name: options.get(name, default) for name, default in self.defaults(own).items()}

    def apply(self, recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
        """Returns the recipe changed.

        Raises:
            ConfigError: if the method does not suit it.
        """
        return self.change(recipe, options)


def find_method(name: object, *, recipe: str, own: bool) -> Method | None:
    """Returns the method of that name.

    Args:
        name: what was typed after ``--set objective=``.
        recipe: whose option it is.
        own: whether the recipe has objectives of its own, one of which it then may be: None.

    Raises:
        ConfigError: if there is none.
    """
    if name in METHODS:
        return METHODS[str(name)]
    if own:
        return None
    near = difflib.get_close_matches(str(name), METHODS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"there is no objective '{name}' for recipe '{recipe}': {hint} (its own, if not set)")


# --------------------------------------------------------------------------------------------------------- MAP


def point_estimate(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """Returns a recipe for the mode of the posterior: see `PointEstimate`."""
    data = table(recipe, "map")
    store = programs.Store()
    latents = _latents(recipe, data, store)
    if not latents.continuous:
        raise ConfigError("objective=map finds points of continuous latents; the model has none")
    _refuse_parameters(recipe, store, latents)
    if options["minibatches"]:
        _refuse_minibatches(recipe, data, latents)
        data = recipe.data or data
    changed = replace(
        recipe,
        guide=PointEstimate(recipe.model, latents),
        objective=EnumeratedELBO() if latents.discrete else ELBO(),
        data=data,
        epochs=options["epochs"],
    )
    if "learning_rate" in options:
        changed = replace(changed, optimizer=adam(options["learning_rate"], schedule="cosine"))
    return changed if options["minibatches"] else replace(changed, whole=True, batch_size=_rows(data))


def _refuse_parameters(recipe: Recipe, store: programs.Store, latents: Latents) -> None:
    """Refuses a point for each row of a model that is trained too: the two fit the train rows and no others."""
    module = recipe.model if isinstance(recipe.model, torch.nn.Module) else torch.nn.Module()
    trained = [*store.unconstrained(), *(name for name, leaf in module.named_parameters() if leaf.requires_grad)]
    if trained and (local := sorted(latents.local.intersection(latents.continuous))):
        raise ConfigError(
            f"objective=map keeps a point of '{local[0]}' for each row, and the model has parameters to train, such as"
            f" '{trained[0]}': points without uncertainty and parameters together fit the train rows and no others;"
            f" leave objective out, so that the guide infers '{local[0]}', or give the parameters priors"
        )


def _refuse_minibatches(recipe: Recipe, data: Dataset, latents: Latents) -> None:
    rows, size = _rows(data), recipe.batch_size
    if local := sorted(latents.local.intersection(latents.continuous)):
        raise ConfigError(
            f"objective=map keeps a point of '{local[0]}' for each of the {rows} rows, and a minibatch does not say"
            " which rows it has: leave minibatches out"
        )
    some = taken(data.train, slice(min(size, rows)))
    with programs.Store().active():
        scaled = latents_of(recipe.model, some).scaled
    if not scaled and size < rows:
        raise ConfigError(
            f"in minibatches of {size} of {rows} rows the prior would weigh too much: write the model's data plate as"
            f" pyro.plate('data', {rows}, subsample_size=len(x)), or leave minibatches out"
        )


# -------------------------------------------------------------------------------------------------------- NUTS


def sampled(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """Returns a recipe whose posterior is sampled: see `ppgen.sampling.Sampler`."""
    data = table(recipe, "nuts")
    sampling = Sampling(**{name: value for name, value in options.items() if name != "objective"})
    return replace(recipe, data=data, whole=True, batch_size=_rows(data), sampling=sampling, average=None)


def table(recipe: Recipe, name: str) -> Dataset:
    """Returns data of which all rows are at hand, and stay the same from step to step."""
    if isinstance(recipe.objective, SemiSupervised):
        raise ConfigError(
            f"objective={name} fits one table of rows, and this recipe's objective takes labelled and unlabelled rows"
            " apart: write a recipe whose model sums out the labels that are missing"
        )
    data = recipe.data
    if data is None:
        raise ConfigError("the recipe names no data")
    if data.streamed:
        raise ConfigError(f"objective={name} needs all rows in memory; got data streamed from disk")
    return replace(data, binarization="none").binarized("static") if data.binarization == "dynamic" else data


def _latents(recipe: Recipe, data: Dataset, store: programs.Store) -> Latents:
    with store.active(), programs.quiet():
        return latents_of(recipe.model, data.train)


def _rows(data: Dataset) -> int:
    return len(next(iter(data.train.values())))


Draws = Annotated[int, pydantic.Field(ge=FEWEST_DRAWS)]
Acceptance = Annotated[float, pydantic.Field(gt=0, lt=1)]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(
            Method(
                name,
                objectives.summary(name),
                objectives.reference(name),
                objectives.of(name),
                objectives.options(name),
                yielding=frozenset(objectives.options(name)) if name == "elbo" else frozenset(),
            )
            for name in OBJECTIVES
        ),
        Method(
            "map",
            "The mode of the posterior: a point for every latent, all rows in every step",
            "",
            point_estimate,
            {"learning_rate": (Positive, 0.1), "epochs": (Count, 2_000), "minibatches": (bool, False)},
            yielding=frozenset({"learning_rate"}),
        ),
        Method(
            "nuts",
            "Draws from the posterior by the No-U-Turn sampler",
            "Hoffman, Gelman 2014, arXiv:1111.4246",
            sampled,
            {
                "draws": (Draws, Sampling.draws),
                "warmup": (Count, Sampling.warmup),
                "chains": (Count, Sampling.chains),
                "target_acceptance": (Acceptance, Sampling.target_acceptance),
                "max_tree_depth": (Annotated[int, pydantic.Field(ge=1, le=20)], Sampling.max_tree_depth),
                "full_mass": (bool, Sampling.full_mass),
            },
        ),
    )
}
