"""The guide's log probability of its own draws, with its parameters held fixed."""

import contextlib
from collections.abc import Iterator

import pyro
import torch
from pyro import poutine

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.joint import Joint, log_prob_of, prune
from ppgen.programs.parameters import modules_of
from ppgen.programs.running import particle_plates


@contextlib.contextmanager
def _detached_parameters(program: Program) -> Iterator[None]:
    """Within it, what the program computes carries no derivative with respect to its parameters."""
    modules = [part for module in modules_of(program) for part in module.modules()]
    saved = [dict(module._parameters) for module in modules]
    store = pyro.get_param_store()
    state = dict(store._params)
    try:
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = parameter.detach()  # type: ignore[assignment]
        for name, tensor in state.items():
            store._params[name] = tensor.detach()
        yield
    finally:
        for module, parameters in zip(modules, saved, strict=True):
            module._parameters.update(parameters)
        store._params.update(state)


def with_frozen_guide(joint: Joint, guide: Program, batch: Batch) -> Joint:
    """Returns the run with the guide's log probabilities as functions of its draws alone, not of its parameters.

    Those of enumerated sites stay as they are.
    """
    args, kwargs = arguments(guide, batch)
    with _detached_parameters(guide), particle_plates(joint.layout):
        trace = poutine.trace(poutine.replay(guide, trace=joint.guide)).get_trace(*args, **kwargs)
    for name in joint.enumerated:
        trace.nodes[name] = joint.guide.nodes[name]
    return Joint(joint.model, prune(trace), joint.layout)


def require_repeatable(joint: Joint, guide: Program, batch: Batch) -> None:
    """Checks that the guide gives its draws the same log probability when it is run on them again.

    Raises:
        ConfigError: if not: it draws at random outside sample sites, as dropout does.
    """
    with torch.no_grad():
        again = with_frozen_guide(joint, guide, batch)
        for name in joint.latents:
            one, two = (log_prob_of(run.guide.nodes[name]) for run in (joint, again))
            if not torch.allclose(one, two, rtol=1e-3, atol=1e-4):
                raise ConfigError(
                    f"the guide's log probability of its site '{name}' differs when it is run again (dropout?): take"
                    " gradient=total"
                )
