"""The continuous latents of each row as one vector without constraints, as samplers want them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program
from ppgen.programs.joint import Joint
from ppgen.programs.latents import at


def require_continuous_rows(joint: Joint) -> None:
    """Checks that every latent is continuous, lies in the data plate, and has a support that stays the same.

    Raises:
        ConfigError: if not.
    """
    for name in joint.latents:
        site = joint.model.nodes.get(name) or joint.guide.nodes[name]
        support = site["fn"].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support.is_discrete:
            raise ConfigError(
                f"latent '{name}' is discrete, and a sampler that follows gradients moves only continuous ones: take"
                " WakeSleep or ReweightedWakeSleep"
            )
        if not joint.is_local(name):
            raise ConfigError(
                f"latent '{name}' lies outside the data plate, and only latents of each row are moved: take WakeSleep,"
                " or a bound such as ELBO"
            )
        if any(isinstance(bound, Tensor) for bound in vars(support).values()):
            raise ConfigError(
                f"the support of latent '{name}' ({type(site['fn']).__name__}) is computed, so it may change with other"
                " latents: sample it from a distribution with a fixed support and transform the draw"
            )


class RowVectors:
    """Turns the latents of a joint run into one unconstrained vector a row and draw, and back.

    Args:
        joint: a run in which each latent is continuous and local.
        model: the generative program.
        batch: that of the run.
        fixed: further sites that every later run takes over, such as the indices of subsampling plates.
    """

    def __init__(self, joint: Joint, model: Program, batch: Batch, *, fixed: Mapping[str, Tensor]) -> None:
        self.joint = joint
        self.model = model
        self.batch = batch
        self.fixed = fixed
        self._transforms = {name: biject_to(joint.model.nodes[name]["fn"].support) for name in joint.latents}
        self._start = {name: self._transforms[name].inv(joint.guide.nodes[name]["value"]) for name in joint.latents}

    def start(self) -> Tensor:
        """Returns the run's own latents: ``(particles, batch, dims)``."""
        rows = [self._rows(name) for name in self._start]
        return torch.cat([value.reshape(*value.shape[:2], -1) for value in rows], -1)

    def at(self, position: Tensor, *, guide: Program | None = None) -> Joint:
        """Returns the run at ``(particles, batch, dims)`` vectors."""
        return self._run(self._split(position), guide)

    def log_density(self, position: Tensor) -> Tensor:
        """Returns ``log p(x, z)`` in unconstrained coordinates, of each draw and row: ``(particles, batch)``."""
        free = self._split(position)
        joint = self._run(free, None)
        scale = joint.plate.scale if joint.plate else 1.0
        local = [name for name in (*joint.observed, *joint.latents) if joint.is_local(name)]
        total = sum((joint.reduce(name, joint.log_p(name)) for name in local), position.new_zeros(())) / scale
        for name, value in free.items():
            total = total + joint.reduce(name, self._log_volume(name, value, joint))
        return total.expand(position.shape[:2])

    def _run(self, free: Mapping[str, Tensor], guide: Program | None) -> Joint:
        values = {name: self._transforms[name](value) for name, value in free.items()}
        return at(self.joint, {**self.fixed, **values}, self.model, self.batch, guide=guide)

    def _log_volume(self, name: str, value: Tensor, joint: Joint) -> Tensor:
        transform = self._transforms[name]
        log_volume: Tensor = transform.log_abs_det_jacobian(value, transform(value))
        plates = self._plates(name)
        return log_volume.flatten(plates).sum(-1) if log_volume.dim() > plates else log_volume

    def _plates(self, name: str) -> int:
        """How many dimensions on the left of a site's value are draws and plates."""
        return len(self.joint.guide.nodes[name]["fn"].batch_shape)

    def _rows(self, name: str) -> Tensor:
        """The start of a latent: ``(particles, batch, inner plates..., event...)``."""
        value: Tensor = self._start[name]
        rank = self.joint.nesting + self.joint.vectorized
        value = value.reshape((1,) * (rank - self._plates(name)) + value.shape)
        value = value if self.joint.vectorized else value.unsqueeze(0)
        rows: Tensor = value.movedim(self.joint.nesting, 1)
        return rows

    def _split(self, position: Tensor) -> dict[str, Tensor]:
        shapes = {name: self._rows(name).shape for name in self._start}
        parts = position.split([shape[2:].numel() for shape in shapes.values()], -1)
        return {
            name: part.reshape(shape).movedim(1, self.joint.nesting).reshape(self._start[name].shape)
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }
