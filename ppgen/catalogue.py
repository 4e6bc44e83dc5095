"""What there is: recipes, data sets, objectives; and what one recipe consists of."""

import inspect
import re
from typing import Any

from ppgen import data, gradients
from ppgen.configuration import Config
from ppgen.data.sources import data_root as resolved_data_root
from ppgen.display import show_table, write
from ppgen.places import load_data
from ppgen.programs.description import describe
from ppgen.recipes import RECIPES, Entry
from ppgen.recipes.methods import METHODS
from ppgen.runs import Run, resolve


def show_list(data_root: str | None) -> None:
    """Prints recipes, data sets and objectives."""
    recipes = [(entry.name, entry.summary, entry.reference) for entry in RECIPES.values()]
    show_table("Recipes", ("name", "what it is", "paper"), recipes)
    found = data.found(data_root)
    sets = [(name, line, "yes" if name in found else "no") for name, line in data.names().items()]
    where = f"here: found below {resolved_data_root(data_root)}, or needs no files. Others are downloaded when used."
    show_table("Data sets", ("name", "what it is", "here"), sets, caption=where)
    methods = [(method.name, method.summary, _first(method.reference)) for method in METHODS.values()]
    title = "Objectives of any recipe (--set objective=NAME)"
    show_table(title, ("name", "what it is", "paper"), methods)
    estimators = [(name, _summary(kind), _reference(kind)) for name, kind in gradients.ESTIMATORS.items()]
    title = "Gradient estimators (--set estimator=NAME or SITE:NAME,...)"
    show_table(title, ("name", "what it is", "paper"), estimators)


def show_recipe(entry: Entry, config: Config) -> None:
    """Prints what a recipe consists of for the data set of a configuration."""
    config = resolve(config, entry).model_copy(update={"compile": "off", "device": "cpu"})
    run = Run(config, entry, load_data(config))
    with run.trainer.evaluating():
        description = describe(run.trainer.model, run.trainer.guide, next(run.batches))
    write(f"{entry.name}: {entry.summary or 'your own recipe'}")
    write(f"{entry.reference}\n\n" if entry.reference else "\n")
    sites = [
        (site.name, site.role, site.model or "-", site.guide or "-", _shape(site.shape), ", ".join(site.plates) or "-")
        for site in description.sites
    ]
    title = f"Sites, for data set {config.data.name}"
    show_table(title, ("name", "role", "in the model", "in the guide", "shape", "plates"), sites)
    if description.plates:
        show_table("Plates", ("name", "size in a batch"), list(description.plates.items()), right=(1,))
    leaves = run.trainer.leaves
    parameters = [(name, _shape(tuple(leaf.shape)), f"{leaf.numel():,}") for name, leaf in leaves.items()]
    total = f"{sum(leaf.numel() for leaf in leaves.values()):,} in all"
    show_table("Parameters", ("name", "shape", "numbers"), parameters, right=(2,), caption=total)
    options = [
        (name, _type(entry.annotation(name, config.options)), "required" if value is ... else _text(value))
        for name, value in _defaults(entry, config).items()
    ]
    if options:
        show_table(f"Options (--set NAME=VALUE), for {config.data.name}", ("name", "type", "default"), options)


def _defaults(entry: Entry, config: Config) -> dict[str, Any]:
    """Returns the options of a recipe with their defaults, those of the objective that was asked for among them."""
    chosen = {name: config.options[name] for name in ("objective",) if name in config.options}
    return entry.resolve(config.data.name, chosen) if chosen else entry.defaults(config.data.name)


def _type(annotation: str) -> str:
    """Writes ``Literal['a', 'b'] | None`` as ``a | b | None``."""
    words = re.sub(r"Literal\[(.*?)\]", lambda found: found.group(1).replace("'", "").replace(", ", " | "), annotation)
    return words.replace("None", "none")


def _text(value: Any) -> str:
    """Writes a value as it is typed after ``--set``."""
    return (
        ",".join(map(str, value))
        if isinstance(value, (tuple, list))
        else str(value).lower()
        if value is None
        else str(value)
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "number"


def _summary(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n")[0].replace("`", "").rstrip(".")


def _reference(kind: type) -> str:
    """Returns the first paper of the docstring's references."""
    _, _, text = (kind.__doc__ or "").partition("References:")
    return _first(" ".join(text.split()))


def _first(text: str) -> str:
    found = re.match(r".*?arXiv:\d+\.\d+", text)
    return found.group() if found else text.split(". ")[0]
