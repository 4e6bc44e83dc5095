"""Wake-sleep and reweighted wake-sleep: model and guide are trained by losses of their own."""

import torch
from torch import Tensor

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.objectives.densities import log_p, log_q
from ppgen.programs import Batch, Joint, Program
from ppgen.programs.latents import DetachedDraws, dream, require_densities, require_dreams, require_separate_sites
from ppgen.programs.ownership import separate_leaves, trained_leaves


class WakeSleep(Objective):
    r"""The wake-sleep algorithm, for discrete and continuous latents alike: no gradient passes through a draw.

    Two phases, each with a loss in nats per datum. Wake: the model is trained on the guide's latents of data,
    ``-E_q(z|x)[log p(x, z)]``. Sleep: the guide is trained on latents and data that the model dreams,
    ``-E_p(x, z)[log q(z | x)]``; of its batch only the shapes count, and the columns that the model does not observe.

    Players are "model" and "guide". The metric "bound" is the evidence lower bound of the wake phase, which neither
    loss measures.

    Args:
        particles: draws of the latents for each datum in the wake phase, vectorised.

    Raises:
        ConfigError: if model and guide share a parameter or one has none, an observed site is not a column of its name,
            or the guide has no density at latents that it did not draw.

    References:
        Hinton, Dayan, Frey, Neal, 1995, "The wake-sleep algorithm for unsupervised neural networks", Science 268.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from ppgen import Trainer
        >>> from ppgen.objectives.wake_sleep import WakeSleep
        >>> def model(x):
        ...     weight, bias = pyro.param("weight", torch.tensor(1.0)), pyro.param("bias", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Bernoulli(logits=weight * z + bias), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.0)) * x))
        >>> trainer = Trainer(model, guide, WakeSleep())
        >>> report, *_ = trainer.fit({"x": torch.tensor([0.0, 1.0, 1.0])}, steps=10)
        >>> sorted(report)
        ['bound', 'gradient_norm/guide', 'gradient_norm/model', 'loss/guide', 'loss/model', 'step']
    """

    def __init__(self, *, particles: int = 1) -> None:
        super().__init__()
        _require_particles(particles)
        self.particles = particles

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`."""
        programs.report_unused_columns(batch, model, guide)
        joint = self.check(model, guide, batch)
        require_separate_sites(joint)
        _check_dreams(joint, model, guide, batch)

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The model's parameters and the guide's.

        Raises:
            ConfigError: if one of them has none, so that a phase has nothing to train.
        """
        found = separate_leaves(model, guide, batch)
        for role, leaves in found.items():
            if not leaves:
                raise ConfigError(
                    f"WakeSleep trains the model awake and the guide asleep; got a {role} without parameters: take"
                    " ReweightedWakeSleep, which trains the other alone"
                )
        return found

    def phases(self) -> tuple[Phase, ...]:
        """Wake, then sleep with the model that wake has changed."""
        return (self._wake, self._sleep)

    def _wake(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        with DetachedDraws():
            joint = self.joint(model, guide, batch, particles=self.particles)
        generative, recognition = log_p(joint), log_q(joint)
        return {"model": -generative.mean()}, {"bound": (generative - recognition).detach().mean()}

    def _sleep(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        return {"guide": sleep_loss(model, guide, batch)}, {}


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep: the guide's draws stand for the posterior by their importance weights.

    With ``K`` draws from the guide, ``w_k = p(x, z_k) / q(z_k | x)`` and ``v_k = w_k / sum_j w_j`` (no gradient), one
    phase with two losses, in nats per datum: the model's ``-sum_k v_k log p(x, z_k)``, whose gradient is that of the
    K-sample bound, and the guide's ``wake * -sum_k v_k log q(z_k | x) + sleep * -E_p(x, z)[log q(z | x)]``. Weights are
    taken row by row; a latent outside the data plate has one weight for all rows.

    Players are "model" and "guide". The metric "bound" is the K-sample bound.

    Args:
        particles: ``K``, vectorised.
        wake: weight of the guide's wake phase; 0 for plain wake-sleep with a reweighted model.
        sleep: weight of the guide's sleep phase; 0 for "wake-wake", which needs no dreams.

    Raises:
        ConfigError: as `WakeSleep`; also for weights of a latent outside a data plate that is subsampled, which no
            scale makes right.

    References:
        Bornschein, Bengio, 2014, arXiv:1406.2751; Le, Kosiorek, Siddharth, Teh, Wood, 2018, arXiv:1805.10469.
    """

    def __init__(self, *, particles: int = 5, wake: float = 0.5, sleep: float = 0.5) -> None:
        super().__init__()
        _require_particles(particles)
        if wake < 0 or sleep < 0 or wake + sleep == 0:
            raise ConfigError(f"expected wake, sleep >= 0, not both 0; got {wake}, {sleep}")
        self.particles = particles
        self.wake = wake
        self.sleep = sleep

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`."""
        programs.report_unused_columns(batch, model, guide)
        joint = self.check(model, guide, batch)
        require_separate_sites(joint)
        outside = [name for name in joint.latents if not joint.is_local(name)]
        if outside and self.particles > 1 and joint.plate and joint.plate.size != joint.plate.rows:
            raise ConfigError(
                f"latent '{outside[0]}' lies outside the data plate '{joint.plate.name}', which is subsampled"
                f" ({joint.plate.rows} of {joint.plate.size}): its importance weights would need all rows; take"
                " WakeSleep, or full batches"
            )
        programs.require_one_weight(joint, whole=bool(outside), linear=self.particles == 1)
        if self.sleep:
            _check_dreams(joint, model, guide, batch)

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The model's parameters and the guide's; of one that has none, there is no player."""
        return trained_leaves(model, guide, batch)

    def phases(self) -> tuple[Phase, ...]:
        """One phase: both losses at the same parameters."""
        return (self._phase,)

    def _phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        with DetachedDraws():
            joint = self.joint(model, guide, batch, particles=self.particles)
        generative, recognition = log_p(joint, scaled=False), log_q(joint, scaled=False)
        if any(not joint.is_local(name) for name in joint.latents):
            generative, recognition = generative.total(), recognition.total()
        weights = (generative - recognition).detach()
        parts = [-self.wake * recognition.mean(weights)] if self.wake else []
        parts += [self.sleep * sleep_loss(model, guide, batch)] if self.sleep else []
        losses = {"model": -generative.mean(weights), "guide": torch.stack(parts).sum()}
        trained = {player: loss for player, loss in losses.items() if loss.requires_grad}
        return trained, {"bound": weights.log_mean()}


def sleep_loss(model: Program, guide: Program, batch: Batch) -> Tensor:
    """Returns ``-log q(z | x)`` of one dream for each row of ``batch``, in nats per datum."""
    return -log_q(dream(model, guide, batch)).mean()


def _check_dreams(joint: Joint, model: Program, guide: Program, batch: Batch) -> None:
    require_dreams(joint, batch)
    require_densities(joint)
    with programs.checked():
        dreamed = dream(model, guide, batch)
        for name in dreamed.latents:
            try:
                dreamed.log_q(name)
            except ValueError as error:
                kinds = [type(trace.nodes[name]["fn"]).__name__ for trace in (dreamed.guide, dreamed.model)]
                raise ConfigError(
                    f"guide site '{name}' ({kinds[0]}) has no density at what the model ({kinds[1]}) dreams: give it a"
                    " distribution on the same values"
                ) from error


def _require_particles(particles: int) -> None:
    if particles < 1:
        raise ConfigError(f"expected particles >= 1; got {particles}")
