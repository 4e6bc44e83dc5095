"""The project's objectives as methods for any recipe: ``--set objective=iwae``."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ppgen.errors import ConfigError
from ppgen.gradients import Spec
from ppgen.objectives import OBJECTIVES, SemiSupervised, named
from ppgen.objectives.named import options_of
from ppgen.recipes.base import Recipe

RENAMED = {"scale": "penalty"}
"""Options whose names recipes have for something else, and what they are called instead."""
FROM_DATA = "data_size"


def options(name: str) -> dict[str, tuple[Any, Any]]:
    """Returns type and default of the options of an objective, as they are typed."""
    return {
        RENAMED.get(option, option): (str | None if kind == Spec else kind, default)
        for option, (kind, default) in options_of(name).items()
        if option != FROM_DATA
    }


def changed(recipe: Recipe, values: Mapping[str, Any], *, name: str) -> Recipe:
    """Returns the recipe with another objective.

    Raises:
        ConfigError: if the recipe's objective takes labelled and unlabelled rows apart.
    """
    if isinstance(recipe.objective, SemiSupervised):
        raise ConfigError(
            f"objective={name} takes one table of rows, and this recipe's objective takes labelled and unlabelled rows"
            " apart"
        )
    known = options_of(name)
    back = {new: old for old, new in RENAMED.items()}
    given = {back.get(option, option): value for option, value in values.items() if option != "objective"}
    if name == "elbo" and not given:  # the recipe has it itself, with its own settings
        return recipe
    if FROM_DATA in known and recipe.data is not None:
        given[FROM_DATA] = len(next(iter(recipe.data.train.values())))
    return replace(recipe, objective=named(name, **{option: given[option] for option in known if option in given}))


def summary(name: str) -> str:
    """Returns the first line of an objective's docstring."""
    return (inspect.getdoc(OBJECTIVES[name]) or "").split("\n")[0].replace("`", "").rstrip(".")


def reference(name: str) -> str:
    """Returns the papers that an objective's docstring names."""
    text = (inspect.getdoc(OBJECTIVES[name]) or "").partition("References:")[2]
    return " ".join(text.split())


def of(name: str) -> functools.partial[Recipe]:
    """Returns what gives a recipe the objective of that name."""
    return functools.partial(changed, name=name)
