"""Who may import whom, what library code must not say, and how long it may be: read from the source, never run."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each area of ppgen and the areas it may import besides itself. A new module needs a line here.
BUILDING_BLOCKS = {"errors", "programs", "nn"}
STORAGE = {"errors", "files", "packing", "checkpoints"}
TRAINING = {
    "errors",
    "programs",
    "gradients",
    "objectives",
    "compilation",
    "devices",
    "distribution",
    "players",
    "precision",
    "processes",
    "randomness",
    "stepping",
    "streams",
    "state",
    "optimizers",
    "cautions",
    "divergence",
    "watching",
}
LIBRARY = (
    BUILDING_BLOCKS | STORAGE | TRAINING | {"data", "evaluation", "guides", "models", "sampling", "storage", "training"}
)
COMMAND_LINE = {
    "__init__",
    "devices",
    "recipes",
    "configuration",
    "runs",
    "failures",
    "display",
    "interruption",
    "launching",
    "places",
    "processes",
    "exports",
    "comparing",
    "cli_estimators",
    "cli_outcomes",
    "options",
    "catalogue",
    "grids",
    "sweeps",
    "tables",
}
SWEEPING = {"grids", "jobs", "backends", "tables", "failures", "display", "interruption", "launching"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "packing": {"errors", "files"},
    "checkpoints": {"errors", "files", "packing"},
    "storage": STORAGE,
    "compilation": {"errors", "randomness", "sharing"},
    "devices": {"errors"},
    "randomness": {"errors", "state"},
    "state": {"errors"},
    "optimizers": {"errors", "state"},
    "cautions": {"programs", "compilation", "randomness"},
    "divergence": {"errors", "programs", "compilation", "players"},
    "watching": {"errors", "programs", "compilation", "divergence", "players", "randomness"},
    "precision": {"errors"},
    "streams": {"errors"},
    "players": {"errors", "optimizers", "state"},
    "sharing": {"errors"},
    "normalization": set(),
    "launching": set(),
    "processes": {"errors", "launching"},
    "distribution": {"errors", "normalization", "processes", "sharing", "streams"},
    "stepping": {"errors", "compilation", "processes", "state", "streams"},
    "data": {"errors", "files", "streams"},
    "programs": {"errors", "randomness", "streams"},
    "nn": {"errors", "programs"},
    "models": BUILDING_BLOCKS,
    "guides": BUILDING_BLOCKS,
    "gradients": {"errors", "programs"},
    "objectives": {"errors", "programs", "gradients", "randomness"},
    "estimators": {*TRAINING, "files", "training"},
    "training": TRAINING,
    "evaluation": {"errors", "files", "programs", "data", "randomness", "streams"},
    "sampling": {
        "errors",
        "programs",
        "evaluation",
        "guides",
        "configuration",
        "devices",
        "processes",
        "randomness",
        "state",
        "streams",
        "recipes",
    },
    "recipes": LIBRARY,
    "comparison": {*LIBRARY, "recipes"},
    "comparing": {*STORAGE, "comparison", "configuration", "display", "places", "randomness", "recipes", "runs"},
    "estimating": {
        "errors",
        "configuration",
        "devices",
        "display",
        "estimators",
        "files",
        "places",
        "randomness",
        "recipes",
    },
    "cli_outcomes": {"devices", "display", "exports", "failures", "feature_files", "options", "processes", "runs"},
    "feature_files": {*LIBRARY, "exports", "runs"},
    "cli_estimators": {"configuration", "display", "estimating", "interruption", "options", "recipes"},
    "options": set(),
    "configuration": {"errors"},
    "places": {"errors", "configuration", "data", "processes", "recipes", "storage"},
    "monitoring": {*STORAGE, "storage", "data", "evaluation", "randomness"},
    "results": {*LIBRARY, "configuration", "places", "runs"},
    "progress": {"errors", "configuration", "players"},
    "runs": {*LIBRARY, "recipes", "configuration", "places", "monitoring", "progress", "results"},
    "failures": {"errors", "launching"},
    "measured": set(),
    "display": {"runs", "launching", "measured"},
    "interruption": {"failures", "display", "runs"},
    "exports": {*LIBRARY, "runs"},
    "catalogue": {*LIBRARY, "recipes", "configuration", "places", "runs", "display"},
    "grids": {"errors", "configuration", "places", "recipes", "runs"},
    "jobs": {"errors", "files", "storage", "configuration", "runs", "failures", "display", "interruption"},
    "backends": {"errors", "runs", "jobs"},
    "tables": {"errors", "runs", "grids", "display"},
    "sweeps": {*STORAGE, "storage", "devices", "places", "recipes", "runs", *SWEEPING},
    "cli": COMMAND_LINE,
    "__main__": {"cli"},
}
ONLY_TORCH = {"compilation", "distribution", "normalization", "processes", "sharing"}
SLOW_TO_IMPORT = {"arviz", "matplotlib", "pandas", "pyro", "scipy", "sklearn", "torch", "torchvision", "xarray"}
UNPICKLERS = {"cPickle", "cloudpickle", "dill", "joblib", "pickle", "shelve"}
# joblib hands arguments to worker processes of its own; its dump and load, and the rest, stay forbidden
HARMLESS_NAMES = {"joblib": {"Parallel", "delayed", "parallel_config"}}
LONGEST_FILE, LONGEST_FUNCTION = 400, 50

Sources = dict[str, str]  # dotted module name -> source; a package is named as ppgen.nn.__init__


def sources(root: Path) -> Sources:
    """Every file of the library by its import name, each once: the links are not followed."""
    found = {}
    for top, prefix in [("ppgen", ""), ("models", "ppgen."), ("guides", "ppgen.")]:
        for folder, _, files in os.walk(root / top):
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    found[prefix + ".".join(path.relative_to(root).with_suffix("").parts)] = path.read_text()
    return found


def area(module: str) -> str:
    """The part of ppgen that a module belongs to: `ppgen.nn.mlp` -> `nn`, `ppgen` itself -> `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def executed_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not the bodies of functions, nor `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (inner for statement in node.orelse for inner in ast.walk(statement))
            continue
        yield node
        yield from executed_at_import(node)


def imports(module: str, nodes: Iterator[ast.AST], known: Sources) -> set[str]:
    """The dotted names that import statements among `nodes` name, relative ones resolved."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            home = ".".join(part for part in (base, node.module) if part)
            inner = {f"{home}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if name in known or f"{name}.__init__" in known}
            found |= modules | ({home} if inner - modules else set())
    return found


def forbidden_imports(known: Sources) -> list[str]:
    """Imports against MAY_IMPORT, by module."""
    found = []
    for module, source in known.items():
        here = area(module)
        if here == "__init__":
            continue  # it re-exports, and only lazily: see slow_imports
        if here not in MAY_IMPORT:
            found.append(f"{module}: no rule in MAY_IMPORT for {here!r}")
            continue
        for name in sorted(imports(module, ast.walk(ast.parse(source)), known)):
            top = name.split(".")[0]
            if top == "ppgen" and area(name) not in MAY_IMPORT[here] | {here}:
                found.append(f"{module} imports {name}")
            if here in ONLY_TORCH and top not in {*sys.stdlib_module_names, "torch", "ppgen"}:
                found.append(f"{module} imports {name}")
    return found


def slow_imports(known: Sources, start: str) -> list[str]:
    """Slow modules that importing `start` would import, directly or through ppgen's own modules."""
    found, waiting, seen = [], [start], set()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in known:
            continue
        seen.add(module)
        for name in sorted(imports(module, executed_at_import(ast.parse(known[module])), known)):
            if name.split(".")[0] in SLOW_TO_IMPORT:
                found.append(f"{module} imports {name}")
            parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 2)]
            waiting += [*parents, *(f"{parent}.__init__" for parent in parents)]
    return found


def harmless(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import takes nothing but harmless names from a module that can also unpickle."""
    return isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} <= HARMLESS_NAMES.get(
        node.module or "", set()
    )


def forbidden_words(module: str, source: str) -> list[str]:
    """What library code must not contain: assert, bare except, print, unpickling."""
    found = []
    for node in ast.walk(ast.parse(source)):
        what = ""
        if isinstance(node, ast.Assert):
            what = "assert (gone under python -O): raise an error of ppgen.errors"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            what = "bare except"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            unpicklers = set() if harmless(node) else {name.split(".")[0] for name in imports(module, iter([node]), {})}
            unpicklers &= UNPICKLERS
            what = f"import of {', '.join(unpicklers)}" if unpicklers else ""
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            what = f"{called}()" if called in {"print", "torch.load"} else ""
            if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords):
                what = "allow_pickle"
        if what:
            found.append(f"{module}:{getattr(node, 'lineno', 0)}: {what}")
    return found


def too_long(module: str, source: str) -> list[str]:
    """Files and functions over the limit; a docstring does not count towards its function."""
    lines = len(source.splitlines())
    found = [f"{module}: {lines} lines"] if lines > LONGEST_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) is not None else node.lineno - 1
            length = (node.end_lineno or 0) - (start or 0)
            if length > LONGEST_FUNCTION:
                found.append(f"{module}.{node.name}: {length} lines")
    return found


LIBRARY_SOURCES = sources(ROOT)


def test_nothing_imports_what_it_may_not() -> None:
    found = forbidden_imports(LIBRARY_SOURCES)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ppgen.objectives.elbo", "from ppgen.models.vae import VAE"),
        ("ppgen.objectives.elbo", "from ..guides import gaussian"),
        ("ppgen.models.vae", "import ppgen.objectives"),
        ("ppgen.models.vae", "from ppgen import objectives"),
        ("ppgen.models.vae", "def later():\n    from ppgen.training import Trainer"),
        ("ppgen.data.images", "from ppgen import programs"),
        ("ppgen.compilation", "import pyro"),
        ("ppgen.nn.mlp", "from ppgen import Trainer"),
        ("ppgen.recipes.m2", "from ppgen.runs import load_run"),
        ("ppgen.runs", "from . import cli"),
        ("ppgen.novelty", "import torch"),
    ],
)
def test_a_forbidden_import_is_noticed(module: str, line: str) -> None:
    modules = ["objectives.__init__", "programs", "guides.__init__", "guides.gaussian", "cli", "runs", "__init__"]
    known = {f"ppgen.{name}": "" for name in modules}
    assert forbidden_imports(known) == []
    assert len(forbidden_imports({**known, module: line})) == 1


@pytest.mark.parametrize("line", ["from ppgen.nn import MLP", "from . import layers", "import torch, ppgen.programs"])
def test_a_permitted_import_is_let_through(line: str) -> None:
    assert forbidden_imports({"ppgen.nn.__init__": "", "ppgen.nn.mlp": line, "ppgen.nn.layers": ""}) == []


@pytest.mark.parametrize("start", ["ppgen.__init__", "ppgen.__main__", "ppgen.cli"])
def test_the_command_line_starts_without_slow_imports(start: str) -> None:
    assert slow_imports(LIBRARY_SOURCES, start) == []


@pytest.mark.parametrize(
    ("line", "slow"),
    [
        ("import torch.nn", True),
        ("from ppgen.nn.mlp import MLP", True),
        ("from ppgen import nn", True),
        ("class A:\n    from pyro import sample", True),
        ("try:\n    import sklearn\nexcept ImportError:\n    pass", True),
        ("if TYPE_CHECKING:\n    import torch", False),
        ("def later():\n    import torch", False),
        ("import click", False),
    ],
)
def test_a_slow_import_is_noticed_and_a_late_one_is_let_through(line: str, slow: bool) -> None:
    known = {"ppgen.__init__": "", "ppgen.nn.__init__": "from .mlp import MLP", "ppgen.nn.mlp": "from torch import nn"}
    assert bool(slow_imports({**known, "ppgen.cli": line}, "ppgen.cli")) == slow


@pytest.mark.parametrize("module", sorted({"ppgen.__init__", "ppgen.__main__"} & LIBRARY_SOURCES.keys()))
def test_importing_it_really_loads_nothing_slow(module: str) -> None:
    code = f"import sys, {module.removesuffix('.__init__')}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ppgen" in done.stdout.split()
    assert SLOW_TO_IMPORT & set(done.stdout.split()) == set()


@pytest.mark.parametrize("module", sorted(LIBRARY_SOURCES))
def test_library_code_keeps_the_rules(module: str) -> None:
    source = LIBRARY_SOURCES[module]
    found = forbidden_words(module, source) + too_long(module, source)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "assert True",
        "try:\n    pass\nexcept:\n    pass",
        "import pickle",
        "import joblib",
        "from joblib import load",
        "from joblib import Parallel, load",
        "from joblib import *",
        "from joblib.numpy_pickle import Parallel",
        "torch.load('x', weights_only=True)",
        "np.load('x', allow_pickle=True)",
        "def f():\n    print('x')",
    ],
)
def test_a_forbidden_word_is_noticed(source: str) -> None:
    assert len(forbidden_words("ppgen.bad", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "# print(x)",
        "'assert'",
        "from joblib import Parallel, delayed",
        "np.load('x', allow_pickle=False)",
        "self.print()",
    ],
)
def test_a_harmless_word_is_let_through(source: str) -> None:
    assert forbidden_words("ppgen.good", source) == []


@pytest.mark.parametrize(("lines", "count"), [(48, 0), (51, 1)])
def test_long_functions_are_noticed_and_docstrings_do_not_count(lines: int, count: int) -> None:
    source = 'def f():\n    """One.' + "\n" * 60 + '"""\n' + "    x = 1\n" * lines
    assert len(too_long("ppgen.bad", source)) == count
    assert len(too_long("ppgen.bad", "def f():\n" + "    x = 1\n" * lines)) == count


def test_long_files_are_noticed() -> None:
    assert too_long("ppgen.good", "x = 1\n" * 400) == []
    assert len(too_long("ppgen.bad", "x = 1\n" * 401)) == 1
