"""Monte Carlo EM: the model is trained on latents drawn from its own posterior by Hamiltonian Monte Carlo."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.densities import log_p, log_q
from ppgen.programs import Batch, Program
from ppgen.programs.latents import DetachedDraws, require_densities, require_separate_sites
from ppgen.programs.ownership import trained_leaves
from ppgen.programs.unconstrained import RowVectors, require_continuous_rows

LogDensity = Callable[[Tensor], Tensor]
"""From positions ``(..., dims)`` to log densities ``(...)``."""


class MonteCarloEM(Objective):
    r"""Monte Carlo EM for continuous latents of each row.

    The latents of a batch start where the guide draws them and are moved by Hamiltonian Monte Carlo, which leaves each
    row's posterior ``p(z | x)`` as it is. The model is then trained on ``-log p(x, z)``, nats per datum, and the guide
    (if it has parameters; one that draws from the prior will do) on ``-log q(z | x)`` of the moved latents, so that it
    starts ever closer to the posterior. With few moves the latents are still near the guide's draws, and what the
    model is trained on lies between its posterior and the guide.

    Constrained latents move in unconstrained coordinates. A model whose density is itself random (dropout) has no
    posterior to draw from.

    Args:
        leapfrog_steps: of one move.
        moves: proposals for each batch, each accepted or rejected row by row.
        particles: chains for each row, vectorised.
        step_size: largest one of the leapfrog, at the start.
        acceptance: mean probability of acceptance that the step size is adapted to.
        adaptation: by how much a step changes the log of the step size for each unit that the acceptance is off; 0
            keeps it.

    Attributes:
        log_step_size: scalar tensor; checkpoints keep it.

    Raises:
        ConfigError: for a latent that is discrete, or lies outside the data plate; and as `WakeSleep`.

    References:
        Kingma, Welling, 2013, arXiv:1312.6114, appendix E: 10 leapfrog steps, acceptance 0.9 (there, five updates of
        the weights follow a move; here, one). Neal, 2011, arXiv:1206.1901.
    """

    log_step_size: Tensor

    def __init__(
        self,
        *,
        leapfrog_steps: int = 10,
        moves: int = 1,
        particles: int = 1,
        step_size: float = 0.1,
        acceptance: float = 0.9,
        adaptation: float = 0.1,
    ) -> None:
        super().__init__()
        if min(leapfrog_steps, moves, particles) < 1:
            raise ConfigError(
                f"expected leapfrog_steps, moves, particles >= 1; got {leapfrog_steps}, {moves}, {particles}"
            )
        if step_size <= 0 or not 0 < acceptance < 1 or adaptation < 0:
            raise ConfigError(
                "expected step_size > 0, 0 < acceptance < 1, adaptation >= 0; got"
                f" {step_size}, {acceptance}, {adaptation}"
            )
        self.leapfrog_steps = leapfrog_steps
        self.moves = moves
        self.particles = particles
        self.acceptance = acceptance
        self.adaptation = adaptation
        self.register_buffer("log_step_size", torch.tensor(math.log(step_size)))

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`."""
        programs.report_unused_columns(batch, model, guide)
        joint = self.check(model, guide, batch)
        require_separate_sites(joint)
        require_continuous_rows(joint)
        require_densities(joint)

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The model's parameters, and the guide's if it has any."""
        return trained_leaves(model, guide, batch)

    def phases(self) -> tuple[Phase, ...]:
        """One phase: moves, then both losses."""
        return (self._phase,)

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        with DetachedDraws() as drawn:
            joint = self.joint(model, guide, batch, particles=self.particles)
        rows = RowVectors(joint, model, batch, fixed=drawn.indices)
        position, step_size, rates = rows.start(), self.log_step_size.exp(), []
        for _ in range(self.moves):
            position, rate = hamiltonian_move(rows.log_density, position, step_size, self.leapfrog_steps)
            rates.append(rate.mean())
        rate = torch.stack(rates).mean()
        with torch.no_grad():
            self.log_step_size.add_(self.adaptation * (rate - self.acceptance))
        moved = rows.at(position, guide=guide)
        losses = {"model": -log_p(moved).mean(), "guide": -log_q(moved).mean()}
        trained = {player: loss for player, loss in losses.items() if loss.requires_grad}
        return trained, {"acceptance": rate, "step_size": step_size}


def hamiltonian_move(
    log_density: LogDensity, position: Tensor, step_size: Tensor | float, leapfrog_steps: int
) -> tuple[Tensor, Tensor]:
    """Takes one step of a Markov chain, of many at once, that leaves a density as it is.

    Args:
        log_density: of positions ``(..., dims)``: ``(...)``.
        position: ``(..., dims)``.
        step_size: the largest; each chain draws its own between that and half of it, for a trajectory of the same
            length everywhere could lead back to where it began.
        leapfrog_steps: from a position to the one that is proposed.

    Returns:
        The new positions ``(..., dims)``, and the probability with which each proposal was to be accepted ``(...)``.
    """
    momentum = torch.randn_like(position)
    uniform = torch.rand_like(position[..., 0])
    step = step_size * (0.5 + 0.5 * torch.rand_like(position[..., :1]))
    value, slope = _value_and_slope(log_density, position)
    energy = value - 0.5 * momentum.square().sum(-1)
    proposal = position
    for _ in range(leapfrog_steps):
        momentum = momentum + 0.5 * step * slope
        proposal = proposal + step * momentum
        value, slope = _value_and_slope(log_density, proposal)
        momentum = momentum + 0.5 * step * slope
    # a trajectory that left all bounds is never accepted
    probability = (value - 0.5 * momentum.square().sum(-1) - energy).clamp(max=0.0).exp().nan_to_num(0.0)
    return torch.where((uniform < probability).unsqueeze(-1), proposal, position), probability


def _value_and_slope(log_density: LogDensity, position: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        position = position.detach().requires_grad_()
        value = log_density(position)
        (slope,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), slope
