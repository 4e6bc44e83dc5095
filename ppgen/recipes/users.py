"""Recipes of the user's own: finding them, which runs the code of their file."""

import difflib
import importlib
import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

from ppgen.errors import OWN, ConfigError
from ppgen.recipes.base import Entry


def load_users(reference: str) -> Entry:
    """Returns the recipe that ``file.py:function`` or ``package.module:function`` names, running that code.

    Raises:
        ConfigError: if there is no such file, module or function.
    """
    place, _, name = reference.rpartition(":")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module_named(place)
    vars(module).setdefault(OWN, reference)
    function = getattr(module, name, None)
    if isinstance(function, Entry):
        return replace(function, name=reference)
    if not callable(function):
        near = difflib.get_close_matches(name, vars(module), 1)
        raise ConfigError(f"'{place}' has no function '{name}'" + (f": did you mean '{near[0]}'?" if near else ""))
    return Entry(reference, function)


def _module_of_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}'")
    # a name of its own, so that my_data/random.py hides no other module
    spec = importlib.util.spec_from_file_location(f"ppgen_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _look_for_modules_in(path.parent)
    spec.loader.exec_module(module)
    return module


def _module_named(name: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"expected a recipe as my_model.py:recipe or package.module:recipe; got '{name}'")
    _look_for_modules_in(Path())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, one that it imports is not
        raise ConfigError(f"there is no module '{name}'") from error


def _look_for_modules_in(folder: Path) -> None:
    """Lets the user's code import what lies beside it, as Python itself would; last, so that it hides nothing."""
    if (place := str(folder.resolve())) not in sys.path:
        sys.path.append(place)
