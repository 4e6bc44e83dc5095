"""One run of a program, with what it did at every site."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine

from ppgen.programs.calling import Program
from ppgen.randomness import forked


@contextlib.contextmanager
def aside(seed: int | None = None) -> Iterator[None]:
    """Within it programs run to be looked at: no random stream moves, and nothing is checked or differentiated.

    With a seed, what is seen does not depend on where the streams are, so that a training that goes on sees the same.
    """
    with forked(seed), pyro.validation_enabled(False), torch.no_grad():
        yield


def traced(
    program: Program, args: Sequence[Any], kwargs: Mapping[str, Any], *, param_only: bool = False
) -> poutine.Trace:
    """Returns the trace of a run; where derivatives are not recorded, programs may take some themselves all the same.

    A Langevin step or the gradient of a decoder within a program fails then, so it is run again with derivatives
    recorded, which are dropped from its draws.
    """
    handler = poutine.trace(program, param_only=param_only)
    if torch.is_grad_enabled():
        return handler.get_trace(*args, **kwargs)
    try:
        return handler.get_trace(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        trace = _recorded(handler, args, kwargs, error)
    trace.detach_()
    return trace


def _recorded(handler: Any, args: Sequence[Any], kwargs: Mapping[str, Any], error: RuntimeError) -> poutine.Trace:
    try:
        with torch.enable_grad():
            return handler.get_trace(*args, **kwargs)
    except Exception:
        # what fails both ways has another reason
        raise error from None
