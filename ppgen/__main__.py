"""`ppgen` and `python -m ppgen`."""

import sys

from ppgen.cli import run


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
