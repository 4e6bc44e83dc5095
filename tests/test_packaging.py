"""The wheel holds ppgen and nothing else, whatever became of the two links in the checkout."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import wheel_contents

ROOT = Path(__file__).resolve().parents[1]
LINKS = {"ppgen/models": "../models", "ppgen/guides": "../guides"}
SHIPPED = ["ppgen", "models", "guides"]
needs_links = pytest.mark.skipif(
    all((ROOT / link).is_file() for link in LINKS),
    reason="git wrote the links as text here (core.symlinks=false)",
)
SOURCES = [*SHIPPED, "tests", "cli.py", "pyproject.toml", "README.md", "LICENSE"]


def listed_packages() -> dict[str, Path]:
    """The packages that pyproject.toml names, each with its folder."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = settings["package-dir"]
    return {name: Path(folders.get(name, name.replace(".", "/"))) for name in settings["packages"]}


def packages_in(root: Path) -> dict[str, Path]:
    """The packages that lie in the tree, links not followed."""
    found = {}
    for top in SHIPPED:
        for file in (root / top).rglob("__init__.py"):
            folder = file.parent.relative_to(root)
            if not any((root / link) in file.parents for link in LINKS):
                prefix = "" if top == "ppgen" else "ppgen."
                found[prefix + ".".join(folder.parts)] = folder
    return found


def copy_of_the_tree(destination: Path) -> Path:
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, destination / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(ROOT / name, destination / name)
    return destination


def build_wheel(clone: Path) -> set[str]:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (clone / "dist").glob("*.whl")
    return wheel_contents.names(str(wheel))


def python_files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*.py")}


def test_the_list_of_packages_is_the_tree() -> None:
    assert listed_packages() == packages_in(ROOT)


def test_a_package_that_is_not_listed_is_noticed(tmp_path: Path) -> None:
    clone = copy_of_the_tree(tmp_path)
    (clone / "models" / "unlisted").mkdir()
    (clone / "models" / "unlisted" / "__init__.py").touch()
    assert packages_in(clone).keys() - listed_packages().keys() == {"ppgen.models.unlisted"}


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {file.parent for top in SHIPPED for file in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


@needs_links
@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_the_links_are_relative(link: str, target: str) -> None:
    assert (ROOT / link).readlink() == Path(target)
    assert (ROOT / link).resolve() == ROOT / Path(target).name


@pytest.mark.parametrize("links", ["linked", "absent", "text"])
def test_the_wheel_holds_only_ppgen(tmp_path: Path, links: str) -> None:
    clone = copy_of_the_tree(tmp_path)
    for link, target in LINKS.items():
        (clone / link).unlink(missing_ok=True)
        if links == "linked":
            (clone / link).symlink_to(target)
        elif links == "text":  # what git writes with core.symlinks=false
            (clone / link).write_text(target)
    contents = build_wheel(clone)
    assert wheel_contents.problems(contents) == []
    expected = {f"ppgen/{name}" for name in python_files(ROOT / "ppgen")}
    for top in ["models", "guides"]:
        expected |= {f"ppgen/{top}/{name}" for name in python_files(ROOT / top)}
    assert {name for name in contents if name.endswith(".py")} == expected


@pytest.mark.parametrize(
    "stranger",
    ["models/__init__.py", "guides/gaussian.py", "tests/test_packaging.py", "cli.py", "ppgen/run.pt", "ppgen.pth"],
)
def test_a_stranger_in_the_wheel_is_noticed(stranger: str) -> None:
    good = {*wheel_contents.NEEDED, "ppgen-0.1.0.dist-info/METADATA", "ppgen-0.1.0.dist-info/licenses/LICENSE"}
    assert wheel_contents.problems(good) == []
    assert wheel_contents.problems({*good, stranger}) == [f"does not belong in the wheel: {stranger}"]


def test_a_missing_file_is_noticed() -> None:
    assert wheel_contents.problems(wheel_contents.NEEDED - {"ppgen/py.typed"}) == [
        "missing from the wheel: ppgen/py.typed"
    ]


@needs_links
@pytest.mark.parametrize("name", ["models", "guides"])
def test_a_clone_that_is_not_installed_imports_the_same_files(name: str) -> None:
    code = f"from importlib.util import find_spec; print(find_spec('ppgen.{name}').submodule_search_locations[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert python_files(Path(done.stdout.strip())) == python_files(ROOT / name)
    assert Path(done.stdout.strip()) == ROOT / "ppgen" / name


def test_every_public_name_is_where_the_package_says() -> None:
    import ppgen

    assert [name for name in ppgen.__all__ if not callable(getattr(ppgen, name))] == []
    assert set(ppgen.__all__) <= set(dir(ppgen))
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = ppgen.Trainr
