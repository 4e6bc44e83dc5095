"""Running model and guide together."""

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError, DataError
from ppgen.programs.borders import border_of
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.dependencies import Reads
from ppgen.programs.joint import (
    LOCAL_PARTICLES,
    PARTICLES,
    Joint,
    Layout,
    log_prob_of,
    prune,
    require_plates,
    scaled,
)
from ppgen.programs.matching import require_match, require_same_sites
from ppgen.programs.paths import along_paths
from ppgen.programs.rows import (
    DataPlate,
    Structure,
    data_plate_of,
    find_rows,
    joined,
    plate_nesting,
    rows_of_guide,
)
from ppgen.programs.states import Chosen, Paths
from ppgen.programs.support import require_support
from ppgen.programs.tracing import aside, traced
from ppgen.randomness import all_random_states, draws_elsewhere, seed_all

logger = logging.getLogger("ppgen")

_RUNS = 5
"""How often a pair is run to find its plates if they may differ from run to run."""

Enumerated = bool | Collection[str]
"""Which discrete sites of the guide are enumerated: all, none, or those of these names."""


class _LocalPlate(pyro.plate):
    """A plate that only sites within certain other plates lie in."""

    def __init__(self, size: int, dim: int, within: frozenset[str]) -> None:
        super().__init__(LOCAL_PARTICLES, size, dim=dim)
        self.within = within

    def _process_message(self, msg: Any) -> None:
        if any(frame.name in self.within for frame in msg["cond_indep_stack"]):
            super()._process_message(msg)


def run(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    particles: int = 1,
    local_particles: int | None = None,
    enumerate_discrete: Enumerated = False,
    sampler: Callable[[Layout], Messenger | None] | None = None,
    versions: int = 1,
    labels: Mapping[str, Tensor] | None = None,
    structure: Structure | None = None,
    check: bool = True,
) -> Joint:
    """Runs the guide, then the model on the guide's draws.

    Args:
        model: the generative program.
        guide: the inference program.
        batch: the columns; those whose name a model site bears are observed there.
        particles: independent draws, vectorised by a plate left of all others; 1 adds no dimension.
        local_particles: draws of what lies in the data plate given one draw of what lies outside; None if the two are
            not told apart.
        enumerate_discrete: which discrete sites of the guide are enumerated, each in a dimension of its own; if any,
            those that only the model has are summed out.
        sampler: makes, for the layout of the run, a handler that draws sites of the guide in its own way.
        versions: how many versions of the draws the sampler makes.
        labels: guide sites that are conditioned on given values, so that the guide yields their log probability.
        structure: the plates of the pair, if they are known; else they are found by further runs.
        check: whether model and guide have to match.

    Raises:
        ConfigError: if model and guide do not match.
    """
    structure = structure or structure_of(model, guide, batch)
    columns = {k: v for k, v in batch.items() if k not in labels} if labels else batch
    inference = poutine.condition(guide, data=dict(labels)) if labels else guide
    layout = Layout(structure.nesting, particles, local_particles, versions, structure.rows)
    handler = sampler(layout) if sampler else None
    joints, paths = list[Joint](), Paths()
    while not joints or paths.advance():
        # outermost, so that it sees sites as all plates leave them; the model replays what it drew
        with handler or contextlib.nullcontext(), particle_plates(layout):
            pair = _enumerating(model, inference, enumerate_discrete, layout.rank, paths)
            guide_trace, model_trace = traces_of(*pair, batch, columns)
        # only now: subsample indices drawn by the guide had to reach the model
        joints.append(Joint(prune(model_trace), prune(guide_trace), layout))
    if paths.names and versions > 1:
        raise ConfigError(
            f"site '{paths.names[0]}' is enumerated sequentially, one run a state, and control variates need all of"
            ' them in one run: mark it "parallel", or take another estimator for the other sites'
        )
    joint = along_paths(joints) if len(joints) > 1 else joints[0]
    if check:
        require_same_sites(joint)
    return joint


@contextlib.contextmanager
def particle_plates(layout: Layout) -> Iterator[None]:
    """Within it, programs draw as many particles as the layout says."""
    with contextlib.ExitStack() as stack:
        dim = -1 - layout.nesting
        if layout.local is not None and layout.local > 1:
            if layout.rows is None:
                raise ConfigError(
                    "expected an observed site in a data plate, with pyro.plate('data', len(x)); got none"
                )
            stack.enter_context(_LocalPlate(layout.local, dim, layout.rows.names))
            dim -= 1
        if layout.particles > 1:
            stack.enter_context(pyro.plate(PARTICLES, layout.particles, dim=dim))
        yield


def _enumerating(model: Program, guide: Program, which: Enumerated, rank: int, paths: Paths) -> tuple[Program, Program]:
    """Returns model and guide such that discrete sites of the guide are enumerated, and those of the model alone."""
    if not which:
        return model, guide
    names = None if which is True else which
    drawn = Chosen(lambda name: names is None or name in names, rank=rank, paths=paths)
    alone = Chosen(lambda name: name not in drawn.names, rank=rank)
    return poutine.enum(alone(model)), poutine.enum(paths(drawn(guide)), first_available_dim=-1 - rank)


def structure_of(model: Program, guide: Program, batch: Batch) -> Structure:
    """Returns what plates a pair has, and which of them run along the rows.

    The pair is run, and the model once more on another number of rows, without moving any random stream: once, and a
    few times more if the programs read a value or draw one of NumPy's or Python's, which may decide what plates there
    are. The answer is the same wherever the random streams are, so that a training that goes on finds it again.
    """
    with aside():
        # parameters are made by the first run, and start as the caller's seed has it
        traces_of(model, guide, batch)
        found = []
        for seed in range(_RUNS):
            seed_all(seed)
            before = all_random_states()
            with Reads() as reads:
                guide_trace, model_trace = traces_of(model, guide, batch)
            moved = draws_elsewhere(before)
            seed_all(seed)
            rows = find_rows(model, batch, model_trace)
            if rows is not None:
                rows = rows_of_guide(guide_trace, model_trace, rows)
            found.append(Structure(plate_nesting(guide_trace, model_trace), rows))
            if not (reads.found or moved):
                break
    return functools.reduce(joined, found)


def traces_of(
    model: Program, guide: Program, batch: Batch, columns: Batch = None
) -> tuple[poutine.Trace, poutine.Trace]:
    """Runs the guide, on ``columns`` if they are told apart from the batch, then the model on its draws."""
    try:
        args, kwargs = arguments(guide, batch if columns is None else columns)
        guide_trace = traced(guide, args, kwargs)
        args, kwargs = arguments(model, batch)
        return guide_trace, traced(poutine.replay(model, trace=guide_trace), args, kwargs)
    except ConfigError as error:
        # Pyro adds the shapes of all sites to what is raised within one
        raise ConfigError(str(error).partition("\n")[0]) from error


def left_to_the_model(model: Program, guide: Program, batch: Batch) -> frozenset[str]:
    """Returns the discrete sites of the model that the guide leaves to it, without moving any random stream."""
    with aside():
        guide_trace, model_trace = traces_of(model, guide, batch)
    return frozenset(
        name
        for name, site in prune(model_trace).nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in guide_trace.nodes
        if site["fn"].has_enumerate_support
    )


def data_plate(model: Program, batch: Batch) -> DataPlate | None:
    """Returns the data plate of a model, by running it without moving any random stream."""
    args, kwargs = arguments(model, batch)
    with aside():
        trace = traced(model, args, kwargs)
        return data_plate_of(trace, find_rows(model, batch, trace))


def check(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    labels: Mapping[str, Tensor] | None = None,
    summing: bool = False,
    structure: Structure | None = None,
) -> Joint:
    """Runs a pair once with Pyro's validation on, so that wrong shapes and values are named by their site.

    ``summing`` says that discrete sites that only the model has are going to be summed out, ``structure`` what plates
    the pair has, if that is known.

    Raises:
        ConfigError: if model and guide do not match.
        DataError: if a value lies outside the support of its distribution.
    """
    with pyro.validation_enabled(True), torch.no_grad():
        joint = run(model, guide, batch, labels=labels, structure=structure, check=False)
        require_match(joint, summing=summing)
        for site in joint.model.nodes.values():
            if site["type"] == "sample":
                require_support(site)
        _report_local_sampling(joint)
        for trace in (joint.guide, joint.model):
            try:
                trace.compute_log_prob()
            except ValueError as error:
                raise DataError(" ".join(str(error).split("\n")[:2])) from error
            for site in trace.nodes.values():
                if site["type"] == "sample" and "log_prob" in site:
                    require_plates(site, site["log_prob"].shape, site["log_prob"].dim())
    return joint


def _report_local_sampling(joint: Joint) -> None:
    sites = [site for trace in (joint.guide, joint.model) for site in trace.nodes.values() if site["type"] == "sample"]
    names = [site["name"] for site in sites if not site["is_observed"] and site["infer"].get("num_samples")]
    if names:
        logger.info(
            "num_samples of site '%s' is left out: every state is summed exactly, or drawn once for each particle",
            names[0],
        )


def first_nonfinite(
    model: Program, guide: Program, batch: Batch, *, labels: Mapping[str, Tensor] | None = None
) -> str | None:
    """Says at which site and rows of the batch a value or log probability is not finite; None if all are."""
    with torch.no_grad():
        joint = run(model, guide, batch, labels=labels, check=False)
    for role, trace in (("guide", joint.guide), ("model", joint.model)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            try:
                bad = ~(scaled(site, log_prob_of(site)).isfinite())
            except ValueError as error:
                return f"{role} site '{name}' ({str(error).splitlines()[0]})"
            if bad.any():
                rows = bad.nonzero()[:, -1].unique().tolist() if bad.dim() and joint.is_local(name) else []
                cause = border_of(site, bad)
                where = f"{role} site '{name}'" + (f", rows {_shortened(rows)}" if rows else "")
                return where + (f" ({cause})" if cause else "")
    return None


def _shortened(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
