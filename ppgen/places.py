"""Where a run lives: its folder, which one of its processes writes and the others read, its recipe and its data."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen import data as datasets
from ppgen.configuration import Config
from ppgen.data import Dataset
from ppgen.errors import ConfigError, DataError
from ppgen.processes import Processes
from ppgen.recipes import Entry, find
from ppgen.storage import RunFolder

LONGEST_PART = 60
"""Bytes of a recipe's or a data set's name that stand in that of a folder; a disk takes 255 in all."""
_NOTE = "folder"


class FollowedFolder(RunFolder):
    """The run folder for processes that leave writing to the one that leads."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Does nothing: the process that leads holds the lock."""
        yield

    def write_text(self, name: str, text: str) -> None:
        """Does nothing."""

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2
    ) -> Path:
        """Writes nothing."""
        return self.path

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""

    def truncate_metrics(self, size: int) -> None:
        """Does nothing."""


def place_for(config: Config, out: str | Path | None, processes: Processes) -> str:
    """Returns the folder of a new run, the same in all processes.

    It is that of an earlier attempt of the same launch, the one asked for, or the first free one.
    """
    path = processes.noted(_NOTE) or str(out if out is not None else _free_folder(f"{subject(config)}-{config.seed}"))
    return processes.first(path) or path


def create_folder(path: str, processes: Processes) -> RunFolder:
    """Makes a run folder; `RunFolder.create` says what it raises."""
    folder = RunFolder.create(path) if processes.leads else FollowedFolder(path)
    processes.note(_NOTE, str(folder.path))
    processes.wait()
    return folder


def open_folder(path: str | Path, processes: Processes) -> RunFolder:
    """Opens a run folder; `RunFolder.open` says what it raises."""
    return (RunFolder if processes.leads else FollowedFolder).open(path)


def begun_folder(processes: Processes) -> str | None:
    """Returns the folder of a run that an earlier attempt of the same launch has begun."""
    path = processes.noted(_NOTE)
    found = path is not None and (Path(path) / "config.toml").exists()
    return path if processes.leading(found) else None


def recipe_of(config: Config, named: str | None) -> Entry:
    """Returns the recipe of a run.

    Args:
        config: that of the run.
        named: the user's own recipe, named again, since opening a folder runs no code that the folder names.

    Raises:
        ConfigError: if it is the user's own and not named, or another one is named.
    """
    own = ":" in config.recipe
    if own and named is None:
        raise ConfigError(f"this run's recipe is your own code: name it again with --recipe {config.recipe}")
    if not own and named not in (None, config.recipe):
        raise ConfigError(f"this run's recipe is '{config.recipe}'; got --recipe {named}")
    return find(named or config.recipe)


def find_data_below(config: Config, root: Path) -> None:
    """Has a run look for its data below ``root``, where the user's own file may have moved too."""
    config.data.root = str(root)
    moved = root / Path(config.data.name).name
    if config.data.name not in datasets.names() and not Path(config.data.name).exists() and moved.exists():
        config.data.name = str(moved)


def load_again(config: Config, root: str | Path | None) -> Dataset:
    """Loads the data of a run, below another root than before if that is told.

    Raises:
        DataError: if they are not there, nor told where.
    """
    if root is not None:
        find_data_below(config, Path(root))
    name = config.data.name
    try:
        return load_data(config)
    except (DataError, ConfigError) as error:
        if not os.path.isabs(name) or os.path.lexists(name):  # only a file that was there has a path from the root
            raise
        where = f"there is no {Path(name).name} below {root}" if root is not None else str(error)
        raise DataError(
            f"{where}: where the run's data have moved, give --data-root DIR, the folder that holds {Path(name).name}"
        ) from error


def load_together(config: Config, processes: Processes) -> Dataset:
    """Loads the data set in all processes; the one that leads is first, since it may download, and says how."""
    data = load_data(config) if processes.leads else None
    streamed = bool(processes.leading(data is not None and data.streamed))
    if data is not None:
        return data
    # how much memory is free may differ between processes, and the order of streamed rows is another
    return load_data(config.model_copy(update={"data": config.data.model_copy(update={"stream": streamed})}))


def _free_folder(stem: str) -> Path:
    for number in range(1, 10_000):
        path = Path("runs", stem if number == 1 else f"{stem}-{number}")
        if not path.exists():
            return path
    raise ConfigError(f"there are 10,000 folders named runs/{stem}: choose another --out")


def subject(config: Config) -> str:
    """What a folder is named after: the recipe, of the user's own file and function, and the data.

    >>> subject(Config(recipe="models/my_model.py:recipe", data={"name": "digits"}))
    'my_model-recipe-digits'
    """
    place, _, function = config.recipe.rpartition(":")
    file = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    parts = [part for part in (file, function, Path(config.data.name).stem) if part]
    return "-".join(_short_name(part) for part in parts)


def _short_name(text: str) -> str:
    """A part of a folder's name that every disk takes; one that had to be shortened is told apart by a digest."""
    if len(text.encode()) <= LONGEST_PART:
        return text
    kept = text.encode()[:LONGEST_PART].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def results_folder(kind: str, config: Config, out: str | None) -> Path:
    """Returns where the files of a comparison go: the folder asked for, or a new one below ``runs``.

    Raises:
        ConfigError: if the folder asked for has something in it.
    """
    if out is not None:
        path = Path(out)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ConfigError(f"expected a new or empty folder; got {path}: choose another --out")
        return path
    return _free_folder(f"{kind}-{subject(config)}")


def load_data(config: Config) -> Dataset:
    """Loads the data set of a configuration."""
    data = config.data
    return datasets.load(
        data.name,
        data_root=data.root,
        labels=data.labels,
        label_column=data.label_column,
        seed=config.seed,
        stream=data.stream,
    )
