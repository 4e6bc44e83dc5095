"""The generative adversarial network, and what differs from it by settings alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.game import Game
from ppgen.objectives.adversarial.penalties import GradientPenalty
from ppgen.objectives.adversarial.sides import Draws, Inputs, column_of, judged, packed, require_single_rows, shown
from ppgen.objectives.adversarial.values import Value, ValueName, require_critic, value_of
from ppgen.objectives.base import Losses, Metrics, Phase
from ppgen.programs import Batch, Program, Sites


class GAN(Game):
    r"""A game between a critic, which tells data from draws of the model, and the model, which makes that hard.

    A step is ``critic_steps`` phases of the critic and one of the model. The critic compares two joint distributions
    of the ``sites``: on the model's side all of them are drawn by the model; on the data's side they are columns of
    the batch, and what is no column is drawn by the guide (`BiGAN`). The model's density is never asked for: its data
    site may be a ``Delta``. Draws have to have a pathwise derivative.

    Players are "critic" and "model", or "autoencoder" (model and guide) where the guide plays. Losses are means over
    rows of the value function (nats for the logistic ones). Metrics: mean outputs of the critic on either side,
    "critic_real" and "critic_fake", and the share of rows that it tells right, "critic_accuracy".

    Args:
        critic: from the sites, in their order, ``(rows, *event)`` each, to outputs ``(rows, 1)``; integers of a
            discrete site come as ``(rows, states)`` of 0 and 1.
        loss: "minimax", "non-saturating", "least-squares", "hinge" or "wasserstein"; or a `Value`.
        sites: what the critic compares.
        given: sites of the model that have the values of the batch's columns (a conditional GAN's labels).
        critic_steps: phases of the critic for one of the model, each on a batch of its own.
        smoothing: one-sided label smoothing: how far the data's target lies below 1.
        noise: standard deviation of Gaussian noise on the columns that the critic sees, on both sides.
        noise_steps: over how many steps the noise fades to 0; 0 for noise that stays.
        pack: how many rows the critic judges together, side by side along the first dimension of a row.
        penalty: weight of the gradient penalty; 0 for none. The critic then has to judge every row by itself, without
            batch normalisation (`layer` normalisation will do) or minibatch discrimination.
        clip: largest absolute value of the critic's parameters; None for any.
        unroll: steps of gradient descent that the critic takes ahead of the model's loss, which is differentiated
            through them.
        unroll_rate: learning rate of these steps.

    Raises:
        ConfigError: if an option is out of its range.

    References:
        Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio, 2014, arXiv:1406.2661. Noise:
        Soenderby, Caballero, Theis, Shi, Huszar, 2017, arXiv:1610.04490.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from ppgen import Trainer
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta((z + loc).unsqueeze(-1), event_dim=1), obs=x)
        >>> def guide(x):
        ...     pass
        >>> trainer = Trainer(model, guide, GAN(torch.nn.Linear(1, 1)))
        >>> report, *_ = trainer.fit({"x": 2 + torch.randn(100, 1)}, steps=10)
        >>> [name for name in report if "loss" in name]
        ['loss/critic', 'loss/model']
    """

    critic: nn.Module

    def __init__(
        self,
        critic: nn.Module,
        *,
        loss: ValueName | Value = "non-saturating",
        sites: Sequence[str] = ("x",),
        given: Sequence[str] = (),
        critic_steps: int = 1,
        smoothing: float = 0.0,
        noise: float = 0.0,
        noise_steps: int = 0,
        pack: int = 1,
        penalty: float = 0.0,
        clip: float | None = None,
        unroll: int = 0,
        unroll_rate: float = 0.1,
    ) -> None:
        super().__init__()
        _require_positive(critic_steps=critic_steps, pack=pack)
        _require_not_negative(noise=noise, noise_steps=noise_steps, unroll=unroll, unroll_rate=unroll_rate)
        if clip is not None and clip <= 0:
            raise ConfigError(f"expected clip > 0; got {clip}")
        if not sites:
            raise ConfigError("expected at least one site that the critic compares; got none")
        self.critic = require_critic(critic)
        self.value = value_of(loss, smoothing=smoothing)
        self.outputs = 1
        self.sites = tuple(sites)
        self.given = tuple(given)
        self.critic_steps = critic_steps
        self.noise = noise
        self.noise_steps = noise_steps
        self.pack = pack
        self.penalty = GradientPenalty(penalty)
        self.clip = clip
        self.unroll = unroll
        self.unroll_rate = unroll_rate
        self._inferred: tuple[str, ...] = ()

    # ------------------------------------------------------------------------------------------------- the contract

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if model, guide or critic do not suit the game.
        """
        programs.report_unused_columns(batch, model, guide)
        column_of(batch, self.sites[0])
        with programs.strictly_checked():
            self._inferred = tuple(name for name in self.sites if name not in batch)
            # a guide that does not play runs too, so that parameters that nobody would train are noticed
            simulated, inferred = programs.simulate(model, batch, given=self.given), programs.infer(guide, batch)
            self.require_sites(simulated, inferred)
            programs.require_pathwise(simulated, program="model")
            sides = self._sides(simulated, inferred, batch)
            for name in self.sites:
                _require_same(name, *(self._shown(side, simulated)[self.sites.index(name)] for side in sides))
            if len(batch[self.sites[0]]) < self.pack:
                raise ConfigError(f"expected at least {self.pack} rows a batch, which the critic judges together")
            inputs = [packed(self._shown(side, simulated), self.pack) for side in sides]
            for side in inputs:
                judged(self.critic, side, self.outputs)
            if self.penalty.weight:
                data, fake = inputs
                require_single_rows(self.critic, data, fake, lambda *rows: self.verdict(self._outputs(rows)))

    def require_sites(self, simulated: Sites, inferred: Sites) -> None:
        """Checks that the programs have the sites that the game is about.

        Raises:
            ConfigError: if not.
        """
        for name in (*self.sites, *self.given):
            if name not in simulated:
                raise ConfigError(f"the model has no site '{name}', which {type(self).__name__} is about")
        for name in self._inferred:
            if name not in inferred:
                raise ConfigError(
                    f"site '{name}', which the critic compares, is neither a column of the data nor a site of the guide"
                )

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The critic's parameters, and those of the model (and of the guide, where it plays).

        Raises:
            ConfigError: if the guide has parameters and does not play.
        """
        critic = self.own_parameters()
        if self._inferred:
            return {"critic": critic, "autoencoder": programs.leaves(model, guide)}
        apart = programs.separate_leaves(model, guide, batch)
        if apart["guide"]:
            name = next(iter(apart["guide"])).removeprefix("store.")
            raise ConfigError(
                f"the guide has parameters ('{name}'), which {type(self).__name__} does not"
                " train: give a guide without sites, or take BiGAN"
            )
        return {"critic": critic, "model": apart["model"]}

    def phases(self) -> Sequence[Phase]:
        """The critic's phases, then the one of the programs."""
        return (self._critic_phase,) * self.critic_steps + (self._programs_phase,)

    # ---------------------------------------------------------------------------------------------------- the losses

    def verdict(self, outputs: Tensor) -> Tensor:
        """Returns ``(rows, 1)``: positive where the critic's outputs ``(rows, outputs)`` speak for the data's side."""
        return outputs

    def critic_loss(self, data: Tensor, model: Tensor, draws: tuple[Draws, Draws]) -> Tensor:
        """Returns the critic's loss by its outputs ``(rows, outputs)`` on either side, without penalties.

        Args:
            data: outputs on the data's side.
            model: outputs on the model's side.
            draws: what all sites were on the data's side, and on the model's; those of the model more than compared.
        """
        return self.value.critic(self.verdict(data), self.verdict(model))

    def model_loss(self, outputs: Tensor, draws: Draws) -> Tensor:
        """Returns the loss of what draws the model's side."""
        return self.value.model(self.verdict(outputs))

    def extra_loss(self, guide: Program, simulated: Sites, batch: Batch) -> tuple[Tensor, Metrics]:
        """Returns what is added to the losses of all players, and metrics of it; nothing, unless a game says so."""
        return torch.zeros(()), {}

    def _critic_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        self._clip_parameters()
        with torch.no_grad():
            simulated, inferred = self._drawn(model, guide, batch)
        sides = self._sides(simulated, inferred, batch)
        inputs = self._inputs(sides, simulated)
        data, fake = (self._outputs(side) for side in inputs)
        loss = self.critic_loss(data, fake, sides)
        if self.penalty.weight:
            loss = loss + self.penalty.of(lambda *rows: self.verdict(self._outputs(rows)), *inputs)
        extra, metrics = self.extra_loss(guide, simulated, batch)
        found = self.value.metrics(self.verdict(data.detach()), self.verdict(fake.detach()))
        return {"critic": loss + extra}, metrics | found

    def _programs_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        self._clip_parameters()
        simulated, inferred = self._drawn(model, guide, batch)
        sides = self._sides(simulated, inferred, batch)
        data, fake = self._inputs(sides, simulated)
        ahead = self._ahead((data, fake), sides) if self.unroll else None
        loss = self.model_loss(self._outputs(fake, ahead), sides[1])
        if self._inferred:
            loss = loss + self.value.guide(self.verdict(self._outputs(data, ahead)))
        extra, metrics = self.extra_loss(guide, simulated, batch)
        return {"autoencoder" if self._inferred else "model": loss + extra}, metrics

    def _outputs(self, inputs: Inputs, parameters: dict[str, Tensor] | None = None) -> Tensor:
        found: Any = self.critic(*inputs) if parameters is None else functional_call(self.critic, parameters, inputs)
        return found  # type: ignore[no-any-return]

    def _ahead(self, inputs: tuple[Inputs, Inputs], sides: tuple[Draws, Draws]) -> dict[str, Tensor]:
        """Returns the critic's parameters some steps of gradient descent ahead, as functions of the draws."""
        parameters: dict[str, Tensor] = {n: p for n, p in self.critic.named_parameters() if p.requires_grad}
        for _ in range(self.unroll):
            data, fake = (self._outputs(side, parameters) for side in inputs)
            loss = self.critic_loss(data, fake, sides)
            gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
            moved = zip(parameters.items(), gradients, strict=True)
            parameters = {name: leaf - self.unroll_rate * gradient for (name, leaf), gradient in moved}
        return parameters

    def _clip_parameters(self) -> None:
        if self.clip is not None:
            with torch.no_grad():
                for parameter in self.critic.parameters():
                    parameter.clamp_(-self.clip, self.clip)

    # ----------------------------------------------------------------------------------------------------- the draws

    def _drawn(self, model: Program, guide: Program, batch: Batch) -> tuple[Sites, Sites]:
        simulated = programs.simulate(model, batch, given=self.given)
        return simulated, programs.infer(guide, batch) if self._inferred else {}

    def _sides(self, simulated: Sites, inferred: Sites, batch: Batch) -> tuple[Draws, Draws]:
        """Returns what the sites are on the data's side, and on the model's, where all of the model's are."""
        data = {n: batch[n] for n in simulated if n in batch}
        data |= {name: programs.rows_of(inferred[name]) for name in self._inferred}
        local = {n for n, site in simulated.items() if n in self.sites or len(site["fn"].batch_shape) == 1}
        return data, {name: programs.rows_of(simulated[name]) for name in simulated if name in local}

    def _shown(self, side: Draws, simulated: Sites) -> Inputs:
        return tuple(shown(side[name], simulated[name]) for name in self.sites)

    def _inputs(self, sides: tuple[Draws, Draws], simulated: Sites) -> tuple[Inputs, Inputs]:
        """Returns what the critic sees of either side: noisy and packed."""
        data, fake = (self._shown(side, simulated) for side in sides)
        if self.noise:
            data, fake = (self._noisy(inputs, sides[0]) for inputs in (data, fake))
        return packed(data, self.pack), packed(fake, self.pack)

    def _noisy(self, inputs: Inputs, data: Draws) -> Inputs:
        scale: Any = self.noise
        if self.noise_steps:
            scale = self.noise * (1 - self.step / self.noise_steps).clamp(min=0.0)
        columns = [name not in self._inferred and data[name].is_floating_point() for name in self.sites]
        return tuple(
            value + scale * torch.randn_like(value) if noisy else value
            for value, noisy in zip(inputs, columns, strict=True)
        )


class WGAN(GAN):
    """The Wasserstein GAN: a critic with clipped parameters estimates the distance; train it with RMSProp at 5e-5.

    Args:
        critic: as `GAN` has it, without a batch normalisation that would undo the clipping.
        clip: largest absolute value of its parameters.
        critic_steps: phases of the critic for one of the model.
        options: further ones of `GAN`.

    References:
        Arjovsky, Chintala, Bottou, 2017, arXiv:1701.07875, algorithm 1.
    """

    def __init__(self, critic: nn.Module, *, clip: float = 0.01, critic_steps: int = 5, **options: Any) -> None:
        super().__init__(critic, loss="wasserstein", clip=clip, critic_steps=critic_steps, **options)


class WGANGP(GAN):
    """The Wasserstein GAN with a gradient penalty in place of clipping; train it with Adam at 1e-4, betas 0 and 0.9.

    Args:
        critic: as `GAN` has it, without batch normalisation: the penalty is on the gradient of single rows.
        penalty: weight of the penalty.
        critic_steps: phases of the critic for one of the model.
        options: further ones of `GAN`.

    References:
        Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, 2017, arXiv:1704.00028, algorithm 1.
    """

    def __init__(self, critic: nn.Module, *, penalty: float = 10.0, critic_steps: int = 5, **options: Any) -> None:
        super().__init__(critic, loss="wasserstein", penalty=penalty, critic_steps=critic_steps, **options)


class PacGAN(GAN):
    """A GAN whose critic judges several rows together, and so sees a lack of variety.

    Args:
        critic: as `GAN` has it, of inputs ``pack`` times as large along their first dimension.
        pack: rows that are judged together.
        options: further ones of `GAN`.

    References:
        Lin, Khetan, Fanti, Oh, 2018, arXiv:1712.04086.
    """

    def __init__(self, critic: nn.Module, *, pack: int = 2, **options: Any) -> None:
        super().__init__(critic, pack=pack, **options)


class UnrolledGAN(GAN):
    """A GAN whose model plays against the critic as it will be some steps later.

    Args:
        critic: as `GAN` has it.
        unroll: steps ahead, of plain gradient descent.
        unroll_rate: their learning rate.
        options: further ones of `GAN`.

    References:
        Metz, Poole, Pfau, Sohl-Dickstein, 2017, arXiv:1611.02163.
    """

    def __init__(self, critic: nn.Module, *, unroll: int = 5, unroll_rate: float = 0.1, **options: Any) -> None:
        super().__init__(critic, unroll=unroll, unroll_rate=unroll_rate, **options)


class BiGAN(GAN):
    """Bidirectional GAN, also known as adversarially learned inference (ALI): the critic judges data with latents.

    The guide's latents of data stand against the model's data of latents; model and guide are one player. A guide that
    is deterministic (a ``Delta``) makes a BiGAN, one with noise ALI.

    Args:
        critic: from the sites, ``x`` and the latents, to outputs ``(rows, 1)``.
        sites: what the critic compares, data first.
        options: further ones of `GAN`.

    References:
        Donahue, Kraehenbuehl, Darrell, 2017, arXiv:1605.09782; Dumoulin et al., 2017, arXiv:1606.00704.
    """

    def __init__(self, critic: nn.Module, *, sites: Sequence[str] = ("x", "z"), **options: Any) -> None:
        super().__init__(critic, sites=sites, **options)


def _require_same(name: str, data: Tensor, model: Tensor) -> None:
    if data.shape != model.shape:
        raise ConfigError(
            f"expected draws of site '{name}' of the shape that the data have, {tuple(data.shape)};"
            f" got {tuple(model.shape)}"
        )


def _require_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ConfigError(f"expected {name} >= 1; got {value}")


def _require_not_negative(**options: float) -> None:
    for name, value in options.items():
        if value < 0:
            raise ConfigError(f"expected {name} >= 0; got {value}")
