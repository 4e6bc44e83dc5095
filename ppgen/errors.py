"""What can go wrong through no fault of ppgen, each with the exit code of the command line."""

OWN = "__ppgen_recipe__"
"""The name that marks a module of the user's own recipes; what goes wrong in its package is no fault of ppgen."""


class PpgenError(Exception):
    """An error that the user can mend: shown as one line, without a traceback."""

    exit_code = 1


class ConfigError(PpgenError, ValueError):
    """A wrong name, option or combination of options."""

    exit_code = 2


class DataError(PpgenError, ValueError):
    """Data that cannot be what the user meant."""

    exit_code = 3


class CheckpointError(PpgenError):
    """No usable checkpoint, or one that does not belong to this run."""

    exit_code = 4


class DivergedError(PpgenError, ArithmeticError):
    """A loss or gradient that is not finite."""

    exit_code = 5


class StorageError(PpgenError, OSError):
    """A disk that is full, read-only or failing."""

    exit_code = 6


class FolderInUseError(PpgenError):
    """Another process holds the run folder."""

    exit_code = 75
