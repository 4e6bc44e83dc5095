"""Configurations: what is asked for, as text and back, with every default filled in."""

import os
import random
from pathlib import Path
from typing import Any

import pydantic
import pytest

from ppgen import configuration, devices
from ppgen.configuration import Config, from_toml, identity, read_config
from ppgen.data import names
from ppgen.devices import free_cores, threads_for
from ppgen.errors import ConfigError
from ppgen.recipes import RECIPES, Entry, find
from ppgen.runs import resolve


def read(text: str) -> Config:
    return read_config(from_toml(text, source="run.toml"), source="run.toml")


# Text and back


def drawn(value: Any, annotation: str, chooser: random.Random) -> Any:
    """Another value of the kind of a default."""
    if "None" in annotation and chooser.random() < 0.4:
        return None
    if "Literal" in annotation:
        return value
    if "tuple[float" in annotation:
        return tuple(chooser.random() for _ in value)
    if "tuple" in annotation:
        return tuple(chooser.randrange(1, 600) for _ in range(chooser.randrange(1, 4)))
    if "int" in annotation:
        return chooser.randrange(1, 600)
    if "float" in annotation:
        return chooser.choice([chooser.random() / 2, 10 ** -chooser.uniform(1, 12), 1 / 3])
    return value


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10", 'my data/\u00e9\u4e2d "x".npz'])
def test_what_is_written_is_read_back(name: str, data: str) -> None:
    chooser = random.Random(f"{name}{data}")
    entry = find(name)
    for number in range(20):
        options = {key: drawn(value, entry.annotation(key), chooser) for key, value in entry.defaults(data).items()}
        resolved = configuration.Resolved(
            steps=7, device="cpu", precision="fp32", compiled=None, threads=1, fingerprint="ab", versions={"torch": "2"}
        )
        length: dict[str, Any] = chooser.choice([{}, {"steps": 3}, {"epochs": 3}])
        asked = Config(recipe=name, seed=number, options=options, data={"name": data, "labels": 5}, **length)  # type: ignore[arg-type]
        config = resolve(asked, entry).model_copy(update={"resolved": resolved})
        found = read(config.to_toml())
        assert identity(found) == identity(config)
        assert resolve(found, entry) == config
        assert resolve(found, entry).to_toml() == config.to_toml()


def test_texts_are_read_as_values_are(tmp_path: Path) -> None:
    """What is typed after --set comes to the same as the value itself."""
    entry = find("m2")
    typed = {"hidden": "32,16", "clip": "none", "average": "None", "z_dim": "3", "learning_rate": "1e-3"}
    values = {"hidden": (32, 16), "clip": None, "average": None, "z_dim": 3, "learning_rate": 1e-3}
    assert entry.resolve("digits", typed) == entry.resolve("digits", values)
    for text in ("32, 16", "(32,16)", "[32, 16]"):
        assert entry.resolve("digits", {"hidden": text})["hidden"] == (32, 16)
    assert entry.resolve("digits", {"hidden": "32"})["hidden"] == (32,)
    assert entry.resolve("digits", {"hidden": "()"})["hidden"] == ()


# Defaults


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_depend_on_the_data_and_what_is_given_goes_over_them(name: str) -> None:
    entry = find(name)
    for data, preset in entry.presets.items():
        assert data in names()
        resolved = resolve(Config(recipe=name, data={"name": data}), entry).options  # type: ignore[arg-type]
        assert resolved == entry.resolve() | dict(preset)
        given = resolve(Config(recipe=name, data={"name": data}, options={"learning_rate": 7.0}), entry).options  # type: ignore[arg-type]
        assert given == resolved | {"learning_rate": 7.0}
    assert len(entry.presets) >= 5 or name == "toy", "it ignores the data"
    assert resolve(Config(recipe=name), entry).options.keys() == entry.defaults().keys()


def test_labels_have_a_default_for_built_in_data_only(tmp_path: Path) -> None:
    own = tmp_path / "mine.npz"
    own.touch()
    entry = find("m2")
    assert entry.labels is not None
    assert resolve(Config(recipe="m2"), entry).data.labels == entry.labels
    assert resolve(Config(recipe="m2", data={"labels": 20}), entry).data.labels == 20  # type: ignore[arg-type]
    assert resolve(Config(recipe="m2", data={"name": str(own)}), entry).data.labels is None  # type: ignore[arg-type]
    assert resolve(Config(recipe="vae"), find("vae")).data.labels is None


def test_epochs_reach_the_recipe_and_steps_exclude_them() -> None:
    entry = find("vae")
    assert resolve(Config(recipe="vae", epochs=3), entry).options["epochs"] == 3
    assert resolve(Config(recipe="vae", epochs=3, options={"epochs": 5}), entry).options["epochs"] == 3
    with pytest.raises(ConfigError, match=r"run\.toml has both epochs and steps"):
        read('recipe = "vae"\nepochs = 1\nsteps = 2')


def test_paths_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").touch()
    (tmp_path / "digits").touch()
    asked = Config(recipe="vae", data={"name": "./mine.npz", "root": "there"})  # type: ignore[arg-type]
    config = resolve(asked, find("vae"))
    assert (config.data.name, config.data.root) == (str(tmp_path / "mine.npz"), str(tmp_path / "there"))
    assert (asked.data.name, asked.data.root) == ("./mine.npz", "there")
    assert resolve(Config(recipe="vae"), find("vae")).data.name == "digits"
    missing = Config(recipe="vae", data={"name": "digts"})  # type: ignore[arg-type]
    assert resolve(missing, find("vae")).data.name == "digts", "so that the nearest name can be suggested"


# Mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'recipe' is missing"),
        ("recipe = 3", "'recipe': .*; got 3"),
        ('recipe = "vae"\nsteps = 0', "'steps': .*; got 0"),
        ('recipe = "vae"\nsteps = true', "'steps': .*; got True"),
        ('recipe = "vae"\nsteps = 1.5', "'steps': .*; got 1.5"),
        ('recipe = "vae"\ncompile = "maybe"', "'compile': .*'auto'.*'on'.*'off'.*; got 'maybe'"),
        ('recipe = "vae"\non-nan = "stop"', "no key 'on-nan': did you mean 'on_nan'"),
        ('recipe = "vae"\ndata = "digits"', "'data'"),
        ('recipe = "vae"\noptions = 3', "'options'"),
        ('recipe = "vae"\n[data]\nlabls = 3', r"no key 'data\.labls': did you mean 'labels'"),
        ('recipe = "vae"\nxyzzy = 3', "no key 'xyzzy': there are format, recipe"),
        ('recipe = "vae"\nformat = 99', "format 99; this version of ppgen reads up to 1"),
        ("recipe", r"run\.toml is no TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(text)
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vae", {"z_dim": "two"}, "option 'z_dim': .*; got 'two'"),
        ("vae", {"z_dim": 0}, "option 'z_dim': .*; got 0"),
        ("vae", {"zdim": 3}, "recipe 'vae' has no option 'zdim': did you mean 'z_dim'"),
        ("vae", {"xyzzy": 3}, "has no option 'xyzzy': it has z_dim"),
        ("vae", {"hidden": "10,a"}, "option 'hidden': .*; got 'a'"),
        ("vae", {"hidden": "10,-5"}, "option 'hidden': .*; got -5"),
        ("vae", {"likelihood": "bernouli"}, "option 'likelihood': .*'bernoulli'.*; got 'bernouli'"),
        ("vae", {"learning_rate": "inf"}, "option 'learning_rate': .*; got "),
        ("vae", {"learning_rate": -1}, "option 'learning_rate': .*; got -1"),
        ("vae", {"average": 1.5}, "option 'average': .*; got 1.5"),
        ("vae", {"beta": None}, "option 'beta': .*; got None"),
        ("m2", {"dropout": 1}, "option 'dropout': .*; got 1"),
    ],
)
def test_mistakes_in_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(Config(recipe=name, options=options), find(name))
    assert "\n" not in str(caught.value)


def test_a_configuration_has_no_other_keys() -> None:
    with pytest.raises(pydantic.ValidationError):
        Config(recipe="vae", stpes=3)  # type: ignore[call-arg]


# Options of functions as users write them


def test_options_of_any_function_are_read() -> None:
    def mine(data: Any, width=16, sizes=(8, 4), rate: "Any" = 0.1, title: str | None = None, *, needed: int):  # type: ignore[no-untyped-def]
        return None

    mine.__annotations__["rate"] = "ImportedForTypeCheckersOnly"
    entry = Entry("mine.py:mine", mine)
    given = {"width": "32", "sizes": "3, 2", "rate": "0.5", "title": "none", "needed": "7"}
    # no annotation can be read here, so kinds are those of the defaults
    assert entry.resolve("", given) == {"width": 32, "sizes": (3, 2), "rate": 0.5, "title": None, "needed": "7"}
    with pytest.raises(ConfigError, match="needs option 'needed': give --set needed=VALUE"):
        entry.resolve("")
    with pytest.raises(ConfigError, match="option 'width'"):
        entry.resolve("", {"width": "wide", "needed": 1})
    config = resolve(Config(recipe="mine.py:mine", options=given), entry)
    assert resolve(read(config.to_toml()), entry) == config


# Threads


def test_threads_suit_the_work_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "free_cores", lambda: 16)
    assert threads_for(10_000, 100) == 1
    assert threads_for(100_000, 200) == 2
    assert threads_for(1_000_000, 200) == 8
    monkeypatch.setattr(devices, "free_cores", lambda: 3)
    assert threads_for(1_000_000, 200) == 3
    for text, expected in (("5", 5), ("0", 3), ("two", 3), ("", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert threads_for(1_000_000, 200) == expected


def test_free_cores_are_those_allowed_and_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda self: "max 100000")
    for load, expected in ((0.2, 8), (3.4, 5), (7.6, 1), (100.0, 1)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert free_cores() == expected
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    for quota, expected in (("250000 100000", 2), ("50000 100000", 1), ("nonsense", 8)):
        monkeypatch.setattr(Path, "read_text", lambda self, quota=quota: quota)
        assert free_cores() == expected
    monkeypatch.setattr(os, "getloadavg", lambda: (_ for _ in ()).throw(OSError()))
    assert free_cores() == 8


def test_a_run_is_repeated_with_its_threads_unless_others_are_typed() -> None:
    ran = {"recipe": "vae", "resolved": {"threads": 3}}
    assert configuration.merge(ran, {}, {})["threads"] == 3
    assert configuration.merge(ran, {"threads": 2}, {})["threads"] == 2
    assert "threads" not in configuration.merge({"recipe": "vae"}, {}, {})
