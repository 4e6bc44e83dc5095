"""Every block of code and every command on the project's pages runs as it stands, page by page, from a fresh folder.

Budgets are cut by `CUT` alone, which is appended to the commands, and by `shorter` in Python. What is not run is parsed
with the names of recipes, options, data sets and run folders resolved, or stands in `NOT_RUN` with the reason.
"""

import contextlib
import io
import itertools
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from cli_helpers import command
from pages import PAGES, ROOT, Block, blocks, commands
from PIL import Image

from benchmarks.__main__ import main as benchmarks
from ppgen import data
from ppgen.cli import commands as ppgen

NOT_RUN = {
    "python3 -m venv": "makes an environment; .ci/run does so",
    ".venv/bin/pip": "installs; .ci/run does so",
    "pip install": "installs libraries that no test needs",
    ".venv/bin/pre-commit": "changes the clone",
    ".venv/bin/pytest": "is what runs here",
    ".venv/bin/ruff": "a stage of .ci/run",
    ".venv/bin/mypy": "a stage of .ci/run",
    "bash .ci/run": "runs this",
}
CUT = {
    "train": ["--steps", "2", "--compile", "off", "--threads", "1"],
    "train nuts": ["--set", "draws=10", "--set", "warmup=10", "--set", "chains=1", "--threads", "1"],
    "sweep": ["--steps", "2", "--seeds", "0", "--compile", "off", "--threads", "1", "--jobs", "1"],
    "compare": [
        "--steps",
        "2",
        "--number",
        "1000",
        *("--set", "draws=10"),
        *("--set", "warmup=10", "--set", "chains=1"),
    ],
    "estimators": ["--draws", "1000", "--burn-in", "0", "--rows", "2", "--compile", "off"],
    "evaluate": ["--particles", "2", "--samples", "100"],
}
QUICK = {"README.md", "examples/README.md", "docs/judging.md"}
"""Pages whose commands run without --slow, too; those of the others are parsed."""
SLOW = {"sweep", "estimators"}
"""Commands that start processes of their own, or compare a dozen things: they run with --slow only."""


def shorter(text: str) -> str:
    """Training loops in Python take a tenth of the steps."""
    return re.sub(r"\b(steps|every)=([\d_]+)", lambda found: f"{found[1]}={int(found[2]) // 10}", text)


def users_files(folder: Path) -> None:
    """What a page takes for granted: files of the user's own, the examples, and the model of the README."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    (folder / "my_images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "my_images" / f"{number}.png")
    np.savez(folder / "my_rows.npz", x=(pixels[:, None] / 255).astype(np.float32))
    (folder / "examples").symlink_to(ROOT / "examples")


class Reader:
    """Someone who works through a page in a folder of their own.

    Args:
        folder: empty but for the user's own files.
        run: names of commands of ppgen that are run, not only parsed.
    """

    def __init__(self, folder: Path, run: Collection[str]) -> None:
        self.folder, self.run = folder, run
        self.space: dict[str, Any] = {"__name__": "page"}
        self.printed = io.StringIO()
        self._promised: set[str] = set()

    def follow(self, block: Block) -> None:
        """Does what a block says."""
        if block.file:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "python":
            self._execute(shorter(block.text), block.place)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            assert block.language == "sh", f"{block.place}: expected sh, python or toml; got '{block.language}'"
            for words in commands(block.text):
                self._do(words, f"{block.place}: {' '.join(words)}")

    def _execute(self, text: str, place: str) -> None:
        with contextlib.redirect_stdout(self.printed):
            exec(compile(text, place, "exec"), self.space)

    def _do(self, words: list[str], place: str) -> None:
        if any(" ".join(words).startswith(start) for start in NOT_RUN):
            return
        if words[0] == "torchrun":
            self._parse(words[words.index("ppgen") + 1 :], place)
        elif words[:2] == ["python", "-c"]:
            self._execute(words[2], place)
        elif words[:3] == ["python", "-m", "benchmarks"]:
            assert not benchmarks.main([*words[3:], "--help"], "benchmarks", standalone_mode=False), place
        else:
            assert Path(words[0]).name == "ppgen", f"{place}: neither run nor listed"
            self._ppgen(words[1:], place)

    def _ppgen(self, words: list[str], place: str) -> None:
        of_a_run = words[0] in {"resume", "evaluate", "sample", "embed"}
        made = of_a_run and (self.folder / words[1]).exists()
        assert made or not of_a_run or words[1] in self._promised, f"{place}: no command above makes {words[1]}"
        if words[0] not in self.run or not at_hand(words) or (of_a_run and not made):
            self._parse(words, place)
            return
        done = command(*cut(words))
        assert done.code == 0, f"{place}: {done.err}"
        for name in options_of(words, "--out", "--arviz"):
            assert (self.folder / name).exists(), f"{place}: no {name}"

    def _parse(self, words: list[str], place: str) -> None:
        with click.Context(ppgen) as context:
            name, found, rest = ppgen.resolve_command(context, list(words))
            assert found is not None, f"{place}: there is no command {name}"
            found.make_context(name, rest)
        if words[0] == "train":
            shown = command(*words, "--print-config")
            assert shown.code == 0, f"{place}: {shown.err}"
            asked = tomllib.loads(shown.out)
            name = asked["data"]["name"]
            assert name in data.names() or Path(name).exists(), f"{place}: there are no data {name}"
            self._promised |= {f"runs/{asked['recipe']}-{name}-{asked['seed']}", *options_of(words, "--out")}


def options_of(words: Sequence[str], *names: str) -> list[str]:
    """Returns the values of options."""
    return [value for name, value in itertools.pairwise(words) if name in names]


def at_hand(words: Sequence[str]) -> bool:
    """Whether the data of a command are files in the folder, or need none."""
    offline = data.found(ROOT / "no such folder")
    return all(name in offline or Path(name).exists() for name in options_of(words, "--data"))


def cut(words: list[str]) -> list[str]:
    """Returns a command with the end of `CUT` that belongs to it; steps replace epochs."""
    if "--epochs" in words:
        place = words.index("--epochs")
        words = words[:place] + words[place + 2 :]
    return words + CUT.get("train nuts" if "objective=nuts" in words else words[0], [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder, in which Python finds the files that a page says to write."""
    users_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(folder: Path, page: str, request: pytest.FixtureRequest) -> None:
    deep = request.config.getoption("--slow")
    quick = set(ppgen.commands) - SLOW if page in QUICK else {"list", "show"}
    reader = Reader(folder, run=ppgen.commands if deep else quick)
    if page != "README.md":  # the others take its files for granted
        for block in blocks("README.md"):
            if block.file:
                reader.follow(block)
    for block in blocks(page):
        reader.follow(block)
    if page == "README.md":
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+) nats", reader.printed.getvalue())]
        assert len(losses) == 5
        assert losses[-1] < losses[0] - 2
        assert (folder / "samples.png").stat().st_size > 1_000
        assert (folder / "runs" / "m2-digits-0" / "reconstructions.png").exists()


WRONG = [
    ("sh", "ppgen train m2 --lables 3"),
    ("sh", "ppgen train m2 --set z_dmi=3"),
    ("sh", "ppgen train vae --data mnits"),
    ("sh", "ppgen evaluate runs/m2-digits-0"),
    ("sh", "ppgen trian m2"),
    ("sh", "python -m benchmarks --onyl m2-digits"),
    ("sh", "cat my_model.py"),
    ("python", "Model()"),
    ("toml", "seed = = 3"),
    ("", "ppgen list"),
]


@pytest.mark.parametrize(("language", "text"), WRONG)
def test_a_mistake_on_a_page_is_noticed(folder: Path, language: str, text: str) -> None:
    with pytest.raises((AssertionError, click.ClickException, NameError, tomllib.TOMLDecodeError)):
        Reader(folder, run=()).follow(Block(language, text, "page:1"))


def test_loops_comments_and_lines_that_go_on_are_read_as_a_shell_does() -> None:
    text = "for a in 0 1; do for b in x; do\n  f -$a $b \\\n    'c; d'  # why\ndone; done && g 'one\ntwo'\n# h\ni"
    assert commands(text) == [
        ["f", "-0", "x", "c; d"],
        ["f", "-1", "x", "c; d"],
        ["g", "one\ntwo"],
        ["i"],
    ]
