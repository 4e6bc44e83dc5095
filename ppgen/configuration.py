"""What a run is asked to do, what that came to, and the text form of both."""

import difflib
import hashlib
import json
import platform
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from ppgen.errors import ConfigError

FORMAT = 1
LARGEST_SEED = 2**63 - 1
"""What torch takes, and TOML."""
LARGEST, DEEPEST = 2**18, 32
"""Characters and levels of a configuration; real ones have some thousands, and at most four."""
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"?|\'[^\'\n]*\'?|#[^\n]*')


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class DataConfig(_Strict):
    """Which data, and which of its labels."""

    name: str = "digits"
    root: str | None = None
    labels: int | None = None
    label_column: str | None = None
    stream: bool | None = None


class Resolved(_Strict):
    """What the request came to on the machine of the run; a resumed run takes it over."""

    steps: int
    device: str
    precision: str
    compiled: bool | None = None
    threads: int
    fingerprint: str
    versions: dict[str, str]


class Config(_Strict):
    """Everything needed to repeat a run."""

    format: int = pydantic.Field(default=FORMAT, ge=1, strict=True)
    recipe: str
    seed: int = pydantic.Field(default=0, ge=0, le=LARGEST_SEED, strict=True)
    epochs: int | None = pydantic.Field(default=None, ge=1, strict=True)
    steps: int | None = pydantic.Field(default=None, ge=1, strict=True)
    device: str = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    threads: int | None = pydantic.Field(default=None, ge=1, strict=True)
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    data: DataConfig = DataConfig()
    options: dict[str, Any] = {}
    resolved: Resolved | None = None

    def to_toml(self) -> str:
        """Returns the text that `from_toml` reads back."""
        return tomli_w.dumps(
            _writable(self.model_dump(exclude_none=True, exclude={"options"}) | {"options": self.options})
        )


def identity(config: Config) -> dict[str, str]:
    """Returns what makes a run this one and no other, as text by name: a checkpoint fits if it has the same.

    How long it trains is left out, and so is how it computes.
    """
    fixed = {"recipe": config.recipe, "seed": config.seed, "labels": config.data.labels}
    if config.resolved is not None:
        fixed["data"] = config.resolved.fingerprint
    options = {f"option {name}": _writable(value) for name, value in config.options.items() if name != "epochs"}
    return {name: str(value) for name, value in {**fixed, **options}.items()}


def digest(config: Config) -> str:
    """Returns a short name for `identity`, by which a result is known as that of a run."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(config: Config, other: Config) -> list[str]:
    """Returns in what two requests differ, in words; what they came to on a machine is left out."""
    found = [_flat(each) for each in (config, other)]
    pairs = [(key, *(each.get(key, "unset") for each in found)) for key in sorted(found[0] | found[1])]
    return [f"{key} is {theirs}; expected {ours}" for key, ours, theirs in pairs if ours != theirs]


def _flat(config: Config) -> dict[str, str]:
    data = config.data.model_copy(update={"stream": None})
    plain = config.model_copy(update={"resolved": None, "data": data}).to_toml()
    values = from_toml(plain, source="the configuration")
    parts = {"data": values.pop("data", {}), "option": values.pop("options", {}), "": values}
    return {f"{part} {key}".strip(): str(value) for part, inner in parts.items() for key, value in inner.items()}


def read_config(values: dict[str, Any], *, source: str) -> Config:
    """Checks nested values, as read from a TOML file or the command line.

    Raises:
        ConfigError: if a key is unknown, a value is wrong, or the format is newer than this version's.
    """
    if isinstance(values.get("format"), int) and values["format"] > FORMAT:
        raise ConfigError(f"{source} has format {values['format']}; this version of ppgen reads up to {FORMAT}")
    if "epochs" in values and "steps" in values:
        raise ConfigError(f"{source} has both epochs and steps: give one of them")
    try:
        return Config(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            fields = DataConfig.model_fields if key.startswith("data.") else Config.model_fields
            near = difflib.get_close_matches(str(first["loc"][-1]), fields, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(fields)}"
            raise ConfigError(f"{source}: there is no key '{key}': {hint}") from error
        if first["type"] == "missing":
            raise ConfigError(f"{source}: '{key}' is missing") from error
        raise ConfigError(f"{source}: '{key}': {first['msg'].lower()}; got {first['input']!r}") from error


def read_request(file: Path | None, typed: Mapping[str, Any], options: Sequence[str]) -> Config:
    """Reads what the user asks for: a file, what was typed over it, and ``KEY=VALUE`` after ``--set`` over both.

    Args:
        file: a TOML file, such as ``--print-config`` prints.
        typed: values as `Config` has them, None where nothing was typed.
        options: the texts after ``--set``.

    Raises:
        ConfigError: if a key or value is wrong, or no recipe is named.
    """
    typed = {key: value for key, value in typed.items() if value is not None}
    if {"epochs", "steps"} <= typed.keys():
        raise ConfigError("--epochs and --steps exclude each other: give one of them")
    try:
        values = from_toml(_read(file), source=str(file)) if file else {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text") from error
    recipe = typed.get("recipe", values.get("recipe"))
    if recipe is None:
        raise ConfigError("name a RECIPE: one that `ppgen list` shows, or your own as my_model.py:recipe")
    if ":" in str(recipe) and "recipe" not in typed:
        raise ConfigError(f"the recipe of {file} is code: name it on the command line too, ppgen train {recipe} ...")
    return read_config(merge(values, typed, _typed_options(options)), source=str(file or "the command line"))


def _read(file: Path) -> str:
    if file.is_file() and (size := file.stat().st_size) > 4 * LARGEST:
        raise ConfigError(f"{file} has {size:,} bytes, which no configuration has")
    return file.read_text()


def _typed_options(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for (key, separator, _), text in zip(pairs, texts, strict=True):
        if not key.strip() or not separator:
            raise ConfigError(f"expected --set KEY=VALUE; got '{text}'")
    return {key.strip(): value.strip() for key, _, value in pairs}


def merge(file: Mapping[str, Any], typed: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Lays what was typed over the values of a file, and ``--set`` over both.

    The file may be that of a run: of what that run came to on its machine only its number of threads, which changes
    bits, is kept.

    >>> merge({"recipe": "vae", "steps": 9, "data": {"name": "usps"}}, {"epochs": 2, "data": {"root": "d"}}, {})
    {'recipe': 'vae', 'data': {'name': 'usps', 'root': 'd'}, 'epochs': 2, 'options': {}}
    """
    length = {"epochs", "steps"}
    dropped = {"resolved"} | (length if length & typed.keys() or "epochs" in options else set())
    merged = {key: value for key, value in file.items() if key not in dropped}
    resolved = file.get("resolved", {})
    if isinstance(resolved, dict) and "threads" in resolved:
        merged["threads"] = resolved["threads"]
    merged |= typed
    for key, values in (("data", typed.get("data", {})), ("options", options)):
        if isinstance(file.get(key, {}), dict):  # else it is wrong, which `read_config` says
            merged[key] = {**file.get(key, {}), **values}
    return merged


def from_toml(text: str, *, source: str, most: int = LARGEST) -> dict[str, Any]:
    """Returns the values of a TOML text.

    Raises:
        ConfigError: if it is no TOML, or larger or deeper than a configuration is.
    """
    _refuse_excess(text, source, most)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise ConfigError(f"{source} is no TOML: {error}") from error


def _refuse_excess(text: str, source: str, most: int) -> None:
    """Refuses, before it is parsed, what the parser would take long for or give up on."""
    if len(text) > most:
        raise ConfigError(f"{source} has {len(text):,} characters; at most {most:,} are expected")
    plain = _QUOTED.sub("_", text)
    deepest = depth = 0
    for character in plain:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    dots = max(part.count(".") for part in re.split(r"[\n=,\[\]{}]", plain))
    if max(deepest, dots) > DEEPEST:
        raise ConfigError(f"{source} is more than {DEEPEST} levels deep, which no configuration is")


def _writable(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_writable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Returns the versions that a run's bits depend on."""
    from importlib.metadata import version

    import torch

    names = {"ppgen": "ppgen", "pyro": "pyro-ppl", "numpy": "numpy"}
    # torch's own word names the build too: 2.11.0+cpu
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name, distribution in names.items():
        try:
            found[name] = version(distribution)
        except ModuleNotFoundError:
            found[name] = "unknown"
    return found
