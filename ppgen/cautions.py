"""What is said once of a pair that trains, though not as one may think."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet, Distribution, Gamma

from ppgen import programs
from ppgen.compilation import preserved
from ppgen.programs import Batch, Program, Store
from ppgen.randomness import forked

SMALLEST_SHAPE = 0.08
"""Below it, more than 0.1 % of the draws of a Gamma or Dirichlet (.09 % at .08, .2 % at .07, 42 % at .01) are the
smallest number that float32 has, by which it stands for all smaller ones."""
SMALLEST_UPPER_SHAPE = 0.43
"""Below it, the same share of a Beta's draws is the number next to 1: there float32 is coarser."""

logger = logging.getLogger("ppgen")


class Cautions:
    """Looks at a pair at its beginning and at each report, never within a step.

    Args:
        model: the generative program.
        guide: the inference program.
        objective: what is optimised.
    """

    def __init__(self, model: Program, guide: Program, objective: nn.Module) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self._said: set[str] = set()
        self._watched = True

    def look(self, batch: Batch, store: Store, buffers: Mapping[str, Tensor]) -> None:
        """Warns of shapes of Gamma, Beta and Dirichlet sites of the guide that are too small for float32.

        A guide that has no such site when it is first looked at is not looked at again. Nothing changes.
        """
        if not self._watched:
            return
        try:
            with forked(), preserved(list(buffers.values())), store.unchanged(), store.active():
                sites = [site for part in _parts_of(batch) for site in self._trace(part).nodes.items()]
        except Exception:
            # a guide that needs more than its columns is not to fail by being looked at
            self._watched = False
            return
        shapes = {
            name: found
            for name, site in sites
            if site["type"] == "sample" and (found := _shapes(site["fn"])) is not None
        }
        self._watched = bool(shapes)
        for name, (kind, smallest, limit) in shapes.items():
            if smallest < limit:
                self._say(name, _too_small(name, kind, smallest, limit))

    def _trace(self, batch: Batch) -> Any:
        args, kwargs = programs.arguments(self.guide, batch)
        with torch.no_grad(), programs.evaluation_mode(self.guide), programs.quiet():
            return poutine.trace(self.guide).get_trace(*args, **kwargs)

    @contextlib.contextmanager
    def watching(self, rows: int) -> Iterator[None]:
        """Within it, warns of batch normalisation that mixes the rows of several particles."""
        particles = max((int(getattr(part, "particles", 1) or 1) for part in self.objective.modules()), default=1)
        parts = {"model": self.model, "guide": self.guide}
        hooks = [
            part.register_forward_pre_hook(self._mixing(f"{role}.{name}", rows, particles))
            for role, program in parts.items()
            for outer in programs.modules_of(program)
            for name, part in outer.named_modules()
            if particles > 1 and isinstance(part, nn.modules.batchnorm._BatchNorm)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mixing(self, name: str, rows: int, particles: int) -> Any:
        def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if module.training and len(given[0]) >= rows * particles:
                self._say(
                    "batch normalisation",
                    f"batch normalisation '{name}' takes its statistics of the rows of all {particles} particles"
                    f" together ({len(given[0])} of a batch of {rows}), so that particles and rows depend on each"
                    " other and the bound is one of another model: use layer normalisation (nn.LayerNorm) there",
                )

        return look

    def _say(self, what: str, sentence: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s", sentence)


def _parts_of(batch: Batch) -> list[Batch]:
    """Returns the batches that a batch is made of, labelled and unlabelled rows say."""
    if isinstance(batch, Mapping) and batch and all(isinstance(part, Mapping) for part in batch.values()):
        return list(batch.values())
    return [batch]


def _too_small(name: str, kind: str, smallest: float, limit: float) -> str:
    return (
        f"guide site '{name}' is a {kind} of shape {smallest:.3g}, whose draws float32 does not hold below {limit}:"
        " they are cut off at the border of the support, and loss and gradient are off; keep the shape above it"
        f" (constraints.greater_than({limit})), draw the logarithm or logit instead (LogNormal, a transformed"
        " Normal), or use float64"
    )


def _shapes(distribution: Any) -> tuple[str, float, float] | None:
    """Returns kind, smallest shape and its limit, of a distribution that is drawn through Gammas in float32."""
    while not isinstance(distribution, (Gamma, Beta, Dirichlet)):
        inner = getattr(distribution, "base_dist", None)
        if not isinstance(inner, Distribution):
            return None
        distribution = inner
    found: dict[str, Tensor] = {"concentration": _shape(distribution)}
    limits: Mapping[str, float] = {"concentration": SMALLEST_SHAPE}
    if found["concentration"].dtype != torch.float32:
        return None
    name, kind = "concentration", type(distribution).__name__
    if isinstance(distribution, Beta):
        found = {"concentration1": distribution.concentration1, "concentration0": distribution.concentration0}
        limits = {"concentration1": SMALLEST_SHAPE, "concentration0": SMALLEST_UPPER_SHAPE}
        name = min(found, key=lambda key: float(found[key].min()) / limits[key])
    return kind, float(found[name].min()), limits[name]


def _shape(distribution: Any) -> Tensor:
    shape: Tensor = distribution.concentration1 if isinstance(distribution, Beta) else distribution.concentration
    return shape
