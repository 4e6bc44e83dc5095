"""The project's pages as programs: their blocks of code, and the commands of a block of shell."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
SEPARATORS = frozenset(";&\n")

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: what stands behind the fence.
        text: its lines.
        place: page and line, for messages.
    """

    language: str
    text: str
    place: str

    @property
    def file(self) -> str | None:
        """The name in its first line, ``# NAME.py``, if it is a file to write and not lines to run."""
        named = _FILE.match(self.text)
        return named[1] if named else None


def blocks(page: str) -> list[Block]:
    """Returns the blocks of a page in order."""
    text = (ROOT / page).read_text()
    lines = [text[: found.start()].count("\n") + 2 for found in _FENCE.finditer(text)]
    found = _FENCE.findall(text)
    return [Block(language, code, f"{page}:{line}") for line, (language, code) in zip(lines, found, strict=True)]


def commands(text: str) -> list[list[str]]:
    """Returns the words of every command of a block of shell in order, loops unrolled."""
    bare = re.sub(r"(^|\s)#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(bare, posix=True, punctuation_chars="".join(SEPARATORS))
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    return list(_statements([*lexer, ";"]))


def _statements(words: Sequence[str]) -> Iterator[list[str]]:
    while words:
        if words[0] == "for":
            name, values, body, words = _loop(words)
            for value in values:
                yield from _statements([word.replace(f"${name}", value) for word in body])
            continue
        end = next(place for place, word in enumerate(words) if SEPARATORS.issuperset(word))
        if end:
            yield list(words[:end])
        words = words[end + 1 :]


def _loop(words: Sequence[str]) -> tuple[str, Sequence[str], Sequence[str], Sequence[str]]:
    """Returns the name, the values and the body of the loop in front, and the words behind it."""
    head = next(place for place, word in enumerate(words) if SEPARATORS.issuperset(word))
    depth = 0
    for end, word in enumerate(words):
        depth += (word == "for") - (word == "done")
        if not depth:
            return words[1], words[3:head], words[head + 2 : end], words[end + 1 :]
    raise ValueError(f"expected 'done' after 'for {words[1]}'; got none")
