"""The objective: what turns a model, a guide and a batch into losses."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import EnergyDistance, RenyiELBO, ReweightedWakeSleep, TraceTailAdaptive_ELBO
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.gradients import Estimator, Plan
from ppgen.programs import Batch, Joint, Program, Structure
from ppgen.randomness import forked

Losses = dict[str, Tensor]
Metrics = dict[str, Tensor]
Phase = Callable[[Program, Program, Batch], tuple[Losses, Metrics]]
"""A pure function ``(model, guide, batch) -> (losses by player, metrics)``: what is compiled.

Whatever changes from step to step (a KL weight, a temperature) is computed from ``Objective.step``, never from
Python state.
"""

logger = logging.getLogger("ppgen")


class Objective(nn.Module):
    """What is optimised: subclass it and write `loss`, or `players` and `phases` for a game.

    An objective may own parameters (a critic, a baseline). It is callable as Pyro's own ELBOs are, so it goes into
    ``pyro.infer.SVI(model, guide, optimizer, loss=objective)`` as well.

    Attributes:
        step: int64 scalar tensor, the number of steps taken; kept by the trainer.
    """

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._structure: dict[tuple[Program, Program], Structure] = {}

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """Returns the loss in nats per datum: the program's total divided by the full size of the data plate.

        Raises:
            TypeError: if there is no one loss, but one for each player.
        """
        name = type(self).__name__
        if type(self).phases is Objective.phases:
            raise TypeError(f"{name} defines neither loss nor phases")
        raise TypeError(f"{name} has a loss for each of its players: train with ppgen.Trainer")

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """Runs the pair once, with checks on, so that all its parameters exist and wrong shapes are named."""
        programs.report_unused_columns(batch, model, guide)
        self.check(model, guide, batch)

    def check(self, model: Program, guide: Program, batch: Batch, *, labels: dict[str, Tensor] | None = None) -> Joint:
        """Runs the pair once with checks on, and remembers what plates it has."""
        structure = self._structure[model, guide] = programs.structure_of(model, guide, batch)
        return programs.check(model, guide, batch, labels=labels, summing=self.sums_out, structure=structure)

    @property
    def sums_out(self) -> bool:
        """Whether discrete sites that only the model has are summed out."""
        return False

    def explain(self, model: Program, guide: Program, batch: Batch) -> str | None:
        """Says at which site and rows a log probability is not finite; None if all are."""
        return programs.first_nonfinite(model, guide, batch)

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Returns the leaf tensors that each loss trains; one player, "all", unless overridden.

        What gradient estimators train (baselines, control variates) is a player of its own, "estimator". It is called
        once, inside the pair's parameter store, after model and guide have run on ``batch``.
        """
        own: dict[str, Tensor] = {f"objective.{name}": p for name, p in self.named_parameters() if p.requires_grad}
        theirs = {id(p) for module in self.modules() if isinstance(module, Plan) for p in module.parameters()}
        estimator = {name: p for name, p in own.items() if id(p) in theirs}
        rest = {name: p for name, p in own.items() if id(p) not in theirs}
        # a baseline's network may be a part of the guide too
        leaves = {name: p for name, p in programs.leaves(model, guide).items() if id(p) not in theirs}
        players = {"all": leaves | rest}
        return players | {"estimator": estimator} if estimator else players

    def phases(self) -> Sequence[Phase]:
        """Returns the phases of one step, in order; one unless overridden."""
        return (self._only_phase,)

    def _only_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        return {"all": self.loss(model, guide, batch)}, {}

    def share_clock(self) -> None:
        """Makes every objective inside this one read this one's step."""
        for module in self.modules():
            if isinstance(module, (Objective, Estimator)):
                module.step = self.step

    def joint(self, model: Program, guide: Program, batch: Batch, **options: Any) -> Joint:
        """Runs model and guide together, remembering what plates the pair has."""
        if (model, guide) not in self._structure:
            self._structure[model, guide] = programs.structure_of(model, guide, batch)
        return programs.run(model, guide, batch, structure=self._structure[model, guide], **options)

    def forward(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the loss of one call ``(model, guide, *args, **kwargs)``, as Pyro's ELBOs are called.

        Arguments by name alone are columns, of which a program takes those that it asks for; else both programs are
        given all arguments, as Pyro does. A call that records gradients counts as a step.
        """
        self.share_clock()
        loss = self.loss(model, guide, programs.Call(args, kwargs) if args and kwargs else kwargs or args)
        if torch.is_grad_enabled():
            self.step.add_(1)
        return loss


class Stock(Objective):
    """One of Pyro's own ELBOs in the place of an objective, in nats per datum.

    Those without ``differentiable_loss`` train through ``loss_and_grads``, eagerly.

    Raises:
        ConfigError: if it is one that compiles by itself, or has no value.
    """

    def __init__(self, elbo: Any) -> None:
        super().__init__()
        if (name := type(elbo).__name__).startswith("Jit"):
            raise ConfigError(
                f"expected an ELBO of Pyro's that leaves compiling to the trainer; got {name}: take"
                f" {name.removeprefix('Jit')}"
            )
        if isinstance(elbo, TraceTailAdaptive_ELBO):
            raise ConfigError(f"Pyro's {name} has a gradient but no value, so that nobody sees it diverge: take Renyi")
        self.elbo = elbo
        self._sizes: dict[Any, int] = {}

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`; the ELBO decides by itself which models it accepts.

        Raises:
            ConfigError: if it does not accept this pair.
        """
        programs.report_unused_columns(batch, model, guide)
        self._require_observations(guide, batch)
        name = type(self.elbo).__name__
        self._sizes.clear()
        with programs.checked():
            joint = self._run(model, guide, batch)
            self._require_pathwise(joint)
            try:
                self._evaluate(model, guide, batch)
            except (NotImplementedError, ValueError) as error:
                reason = next(iter(str(error).splitlines()), "") or "a site without a pathwise derivative, say"
                raise ConfigError(f"Pyro's {name} does not accept this pair: {reason}") from error
        plate = joint.plate
        if isinstance(self.elbo, (RenyiELBO, ReweightedWakeSleep)) and plate and plate.size != plate.rows:
            logger.warning(
                "Pyro's %s takes the scale of the plate '%s' (%d of %d rows) into a logarithm, where its value is no"
                " bound: take IWAE, Renyi or ReweightedWakeSleep of ppgen.objectives, or all rows in every step",
                *(name, plate.name, plate.rows, plate.size),
            )

    def _require_pathwise(self, joint: Joint) -> None:
        """Without pathwise draws its gradient is that of infinitely many particles: none at order 0."""
        for name in joint.latents if isinstance(self.elbo, RenyiELBO) else ():
            if not programs.has_pathwise(joint.guide.nodes[name]):
                raise ConfigError(
                    f"Pyro's RenyiELBO has no right gradient for guide site '{name}', whose draws have no pathwise"
                    " derivative: take IWAE or Renyi of ppgen.objectives, with an estimator"
                )

    def _require_observations(self, guide: Program, batch: Batch) -> None:
        """Pyro's own reweighted wake-sleep gives a guide its dreams by an argument of that name."""
        if not isinstance(self.elbo, ReweightedWakeSleep) or self.elbo.insomnia == 1:
            return
        args, kwargs = programs.arguments(guide, batch)
        if kwargs.get("observations") is None and not any(isinstance(argument, Mapping) for argument in args):
            raise ConfigError(
                "Pyro's ReweightedWakeSleep with insomnia < 1 gives the guide its dreams as an argument 'observations',"
                " a dict by site; got a batch without it: take insomnia=1, or ppgen.objectives.ReweightedWakeSleep,"
                " which puts dreams in the place of columns"
            )

    def _run(self, model: Program, guide: Program, batch: Batch) -> Joint:
        """Runs the pair once, without moving any random stream."""
        with forked(), torch.no_grad():
            joint = programs.run(model, guide, batch, check=False)
        for site in joint.model.nodes.values():
            if site["type"] == "sample":
                programs.require_support(site)
        shapes = [leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        self._sizes[(model, *shapes)] = joint.plate.size if joint.plate else 1
        return joint

    def _size(self, model: Program, guide: Program, batch: Batch) -> int:
        shapes = [leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        if (key := (model, *shapes)) not in self._sizes:
            self._run(model, guide, batch)
        return self._sizes[key]

    def loss(self, model: Program, guide: Program, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        args, kwargs = programs.arguments(model, batch)
        differentiable = self.elbo if isinstance(self.elbo, EnergyDistance) else None
        differentiable = getattr(self.elbo, "differentiable_loss", differentiable)
        if differentiable is None:
            loss = self._by_gradients(model, guide, args, kwargs)
        else:
            with programs.without_host_reads(self.elbo):
                loss = differentiable(model, guide, *args, **kwargs)
        return loss / self._size(model, guide, batch)

    def _evaluate(self, model: Program, guide: Program, batch: Batch) -> None:
        args, kwargs = programs.arguments(model, batch)
        value = self.elbo if isinstance(self.elbo, EnergyDistance) else self.elbo.loss
        value(model, guide, *args, **kwargs)

    def _by_gradients(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Tensor:
        # loss_and_grads leaves gradients behind; a linear function with these gradients stands for the loss
        leaves = programs.leaves(model, guide).values()
        for leaf in leaves:
            leaf.grad = None
        pair = programs.registered(model, "model"), programs.registered(guide, "guide")
        value = self.elbo.loss_and_grads(*pair, *args, **kwargs)
        # reweighted wake-sleep has a loss of the model and one of the guide
        value = sum(value) if isinstance(value, tuple) else value
        linear = torch.zeros(())
        for leaf in leaves:
            if leaf.grad is not None:
                linear = linear + (leaf * leaf.grad).sum()
                leaf.grad = None
        loss: Tensor = linear - linear.detach() + value
        return loss


def as_objective(objective: Any) -> Objective:
    """Returns an `Objective` as it is, one of Pyro's ELBOs wrapped in `Stock`.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(objective, Objective):
        return objective
    if hasattr(objective, "loss_and_grads") or isinstance(objective, EnergyDistance):
        return Stock(objective)
    raise TypeError(f"expected an Objective or one of Pyro's ELBOs; got {type(objective).__name__}")
