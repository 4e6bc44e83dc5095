"""What came of one program: right, refused or wrong."""

import re
import signal
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

from ppgen import programs
from ppgen.errors import PpgenError

from .checks import Prepared, checks
from .description import Description
from .statistics import WrongError, require

SECONDS = 60
"""Of a processor, after which a program has taken too long."""
NAMED = re.compile(r"sites? |plates? |'[\w$]+'")


@dataclass(frozen=True)
class Verdict:
    """What came of one program.

    Attributes:
        kind: "right", "refused" or "wrong".
        check: which of the checks decided.
        reason: the message of a refusal without names, or what is wrong.
        stock: of a refusal, whether stock Pyro is right.
        expected: whether the program had to be refused.
    """

    kind: str
    check: str = ""
    reason: str = ""
    stock: bool = False
    expected: bool = False


def verdict(described: Description) -> Verdict:
    """Builds a program, checks it, and says what came of it."""
    check = "setup"
    try:
        with _TimeLimit(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*(ArviZ|alias_mapping).*")
            for name, run in checks(described):
                check = name
                run(described)
    except PpgenError as error:
        if not NAMED.search(str(error)):
            return Verdict("wrong", check, f"a refusal that names nothing: {error}")
        stock = not described.must_be_refused and check == "bound" and _is_right_in_pyro(described)
        return Verdict("refused", check, template(str(error)), stock, described.must_be_refused)
    except WrongError as error:
        return Verdict("wrong", check, str(error))
    except Exception as error:  # whatever else a program meets is a fault
        return Verdict("wrong", check, _raised(error))
    if described.must_be_refused:
        return Verdict("wrong", "refusal", "it was to be refused")
    return Verdict("right")


def _raised(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {message} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"


def template(message: str) -> str:
    """Returns a reason without the names and numbers of one program."""
    text = re.sub(r"'[^']*'", "'...'", " ".join(message.split()))
    return re.sub(r"(?<![A-Za-z])-?\d[\d.,e+-]*", "N", text)[:240]


def _is_right_in_pyro(described: Description) -> bool:
    """Whether the stock ELBO of Pyro's that is meant for such a program comes to the exact bound and its gradient."""
    try:
        with _TimeLimit(), warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            made = Prepared(described)
            with made.store.active():
                _compare_with_pyro(described, made)
    except Exception:  # it refuses as well, or fails
        return False
    return True


def _compare_with_pyro(described: Description, made: Prepared) -> None:
    exact = made.truth()[0].loss().item()
    size = 1 if described.plates == "sequential" else described.size
    discrete = any(site.is_discrete for site in described.model) and not described.branches_on_draws
    vectorized = not described.branches_on_draws and not described.auto
    kind: Any = TraceEnum_ELBO if discrete else Trace_ELBO
    elbo = kind(num_particles=100 if vectorized else 1, vectorize_particles=vectorized, max_plate_nesting=2)
    pair = (config_enumerate(made.model), config_enumerate(made.guide)) if discrete else (made.model, made.guide)
    args, kwargs = programs.arguments(made.model, made.given)
    with torch.no_grad():
        require(lambda: {"loss": elbo.loss(*pair, *args, **kwargs) / size}, {"loss": exact}, draws=12)


class _TimeLimit:
    """Raises after so many seconds of processor time."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGPROF, self._raise)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _raise(self, *_: object) -> None:
        raise WrongError(f"timeout: it takes longer than {SECONDS} seconds")
