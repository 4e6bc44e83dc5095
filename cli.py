"""Run the command line from a clone that is not installed: `python cli.py train m2`."""

from ppgen.__main__ import main

if __name__ == "__main__":
    main()
