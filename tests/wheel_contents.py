"""What a wheel of ppgen must and must not hold; also a command: `python tests/wheel_contents.py FILE.whl`."""

import sys
import zipfile
from collections.abc import Iterable

NEEDED = {"ppgen/__init__.py", "ppgen/py.typed", "ppgen/models/__init__.py", "ppgen/guides/__init__.py"}


def names(wheel: str) -> set[str]:
    """The files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def problems(files: Iterable[str]) -> list[str]:
    """One line for each file that does not belong in the wheel or is missing from it."""
    files = set(files)
    strangers = [name for name in files if not _belongs(name)]
    found = [f"does not belong in the wheel: {name}" for name in sorted(strangers)]
    return found + [f"missing from the wheel: {name}" for name in sorted(NEEDED - files)]


def _belongs(name: str) -> bool:
    top, _, rest = name.partition("/")
    if top == "ppgen":
        return rest.endswith(".py") or rest == "py.typed"
    return top.startswith("ppgen-") and top.endswith(".dist-info") and bool(rest)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument, the wheel; got " + (" ".join(sys.argv[1:]) or "none"))
    contents = names(sys.argv[1])
    if lines := problems(contents):
        sys.exit("\n".join(lines))
    sys.stdout.write(f"{len(contents)} files, none but ppgen's own\n")
