"""``python -m tests.fuzzing --programs 10000 --seed 0``: checks random programs and prints a table."""

import argparse
import json
import sys
from pathlib import Path

from .generator import describe
from .shrinking import shrunk
from .source import program
from .table import markdown, summary
from .verdicts import Verdict
from .workers import verdicts


def main() -> int:
    """Checks programs; the exit status is 1 if one is wrong."""
    given = _arguments()
    numbers = [given.only] if given.only is not None else range(given.first, given.first + given.programs)
    jobs = [(given.seed, number, given.compile) for number in numbers]
    found: dict[int, Verdict] = {}
    for number, one in verdicts(jobs, given.workers):
        found[number] = one
        if one.kind == "wrong":
            _tell(given, number, one)
        if len(found) % 100 == 0:
            sys.stderr.write(f"{len(found)} of {len(jobs)} programs\n")
    counted = summary(dict(sorted(found.items())))
    sys.stdout.write(markdown(counted) + "\n")
    if given.out:
        given.out.write_text(json.dumps({"seed": given.seed, **counted}, indent=2) + "\n")
    return 1 if counted["wrong"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--programs", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--seed", type=int, default=0, help="of all programs")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", type=int, help="the number of the one program to check")
    parser.add_argument("--compile", action="store_true", help="compile one program in 40 as well")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="print wrong programs as they are")
    parser.add_argument("--out", type=Path, help="where the table goes, as JSON")
    return parser.parse_args()


def _tell(given: argparse.Namespace, number: int, found: Verdict) -> None:
    described = describe(given.seed, number, compile=given.compile)
    if given.shrink:
        described, found = shrunk(described, found)
    compiled = " --compile" if given.compile else ""
    lines = [
        f"program {number} is wrong: {found.check}: {found.reason}",
        f"python -m tests.fuzzing --seed {given.seed} --only {number}{compiled}\n",
        program(described),
        f"# estimator: {described.estimator}, autoguide: {described.auto or 'none'}\n\n",
    ]
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
