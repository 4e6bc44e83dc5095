"""`ppgen` and `python -m ppgen`."""

import signal
import sys

from ppgen.cli import run


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    code = run()
    if code == 128 + signal.SIGINT:
        # Python takes a second to end after torch: an impatient Ctrl-C would only show a traceback of that
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
