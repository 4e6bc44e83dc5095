"""The adversarial autoencoder: critics make the guide's draws, over all data together, look like the prior's."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ppgen import programs
from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.game import Game
from ppgen.objectives.adversarial.sides import Draws, Inputs, column_of, judged, shown
from ppgen.objectives.adversarial.values import ValueName, require_critic, value_of
from ppgen.objectives.base import Losses, Metrics, Phase
from ppgen.objectives.prior_matching import reconstruction
from ppgen.programs import Batch, Joint, Program, Sites
from ppgen.programs.priors import draw_prior
from ppgen.randomness import forked


class AAE(Game):
    r"""The adversarial autoencoder.

    ``loss = -E_q[log p(x | z)] + weight * sum of the critics' games``: each critic compares draws of some latent sites,
    on one side the guide's for rows of data, on the other the model's own from the prior, whatever can be drawn. The
    paper's squared error is the likelihood of a Gaussian of fixed scale. A category of the guide enters the decoder and
    the critic by its probabilities; the programs have to take these in the place of its integers (`ppgen.nn.one_hot`
    does).

    A step is ``critic_steps`` phases of the critics and one of model and guide; the players are "critic" and
    "autoencoder". At the best critic its output is ``log q(z) - log p(z)``, the ratio of aggregate posterior and prior.
    Metrics: "reconstruction" (nats per datum) and those of `GAN`, where "real" is the guide's side; by site if there
    are several critics.

    Args:
        critic: from the latents, in the order of the guide, ``(rows, *event)`` each, to ``(rows, 1)``; or critics by
            the names of their sites, joined by commas: ``{"z": ..., "y": ...}``.
        loss: of the games; see `GAN`.
        given: latent sites of the model that have the values of the batch's columns when the prior is drawn; where a
            critic names such a site, it is told the label with the latents on both sides.
        critic_steps: phases of the critics for one of the autoencoder.
        weight: of the games.
        smoothing: one-sided label smoothing, of the guide's side.

    Raises:
        ConfigError: if an option is out of its range.

    References:
        Makhzani, Shlens, Jaitly, Goodfellow, Frey, 2015, arXiv:1511.05644.

    >>> AAE(torch.nn.Linear(2, 1)).weight
    1.0
    """

    def __init__(
        self,
        critic: nn.Module | Mapping[str, nn.Module],
        *,
        loss: ValueName = "non-saturating",
        given: Sequence[str] = (),
        critic_steps: int = 1,
        weight: float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if critic_steps < 1 or weight < 0:
            raise ConfigError(f"expected critic_steps >= 1 and weight >= 0; got {critic_steps}, {weight}")
        named = critic if isinstance(critic, Mapping) else {"": critic}
        if not named:
            raise ConfigError("expected at least one critic; got none")
        self._sites = {name: tuple(part.strip() for part in name.split(",") if part.strip()) for name in named}
        # a critic of all latents has no name of its own, which a module must have
        self.critics = nn.ModuleDict({name or "latents": require_critic(one) for name, one in named.items()})
        self.value = value_of(loss, smoothing=smoothing)
        self.given = tuple(given)
        self.critic_steps = critic_steps
        self.weight = weight

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """See `Objective.setup`.

        Raises:
            ConfigError: if model, guide or critics do not suit the game.
        """
        programs.report_unused_columns(batch, model, guide)
        for name in self.given:
            column_of(batch, name)
        with programs.strictly_checked():
            joint = self._first_run(model, guide, batch)
            if not joint.observed:
                raise ConfigError("expected a site of the model that observes data, which AAE reconstructs; got none")
            self._name_sites(joint)
            inferred = {name: joint.guide.nodes[name] for name in joint.latents}
            prior = self._prior(model, batch)
            for name, critic in self.critics.items():
                data, drawn = (self._inputs(name, side, prior, batch) for side in (inferred, prior))
                for site, one, other in zip(self._sites[name], data, drawn, strict=True):
                    if one.shape != other.shape:
                        raise ConfigError(
                            f"expected draws of site '{site}' from the guide of the shape that the prior's have,"
                            f" {tuple(other.shape)}; got {tuple(one.shape)}"
                        )
                judged(critic, data, 1)

    def _first_run(self, model: Program, guide: Program, batch: Batch) -> Joint:
        """Runs the pair for the first time; what it does not take is told in one line, without Pyro's table."""
        try:
            with forked():
                inferred = programs.infer(guide, batch)
            if not inferred:
                raise ConfigError(
                    "expected a guide with a site, whose draws critics compare with the prior's; got none"
                )
            drawn = ", ".join(f"{name} {tuple(site['value'].shape)}" for name, site in inferred.items())
        except ConfigError as error:
            raise ConfigError(str(error).splitlines()[0]) from error
        try:
            return self._joint(model, guide, batch)
        except ConfigError as error:
            raise ConfigError(str(error).splitlines()[0]) from error
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"expected programs that take the guide's draws, {drawn}, a category as its probabilities"
                f" (ppgen.nn.one_hot does); got {reason}"
            ) from error

    def _name_sites(self, joint: Joint) -> None:
        latents = [name for name in joint.latents if name in joint.model.nodes]
        if not latents:
            raise ConfigError("expected a latent site of the model that the guide draws; got none")
        if "" in self._sites:
            self._sites = {"latents": tuple(latents)}
        for names in self._sites.values():
            for name in names:
                if name not in latents and name not in self.given:
                    raise ConfigError(
                        f"expected critics of latents that the guide draws ({', '.join(latents)}); got '{name}'"
                    )

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """The critics' parameters, and those of model and guide."""
        return {"critic": self.own_parameters(), "autoencoder": programs.leaves(model, guide)}

    def phases(self) -> Sequence[Phase]:
        """The critics' phases, then the one of model and guide."""
        return (self._critic_phase,) * self.critic_steps + (self._autoencoder_phase,)

    def _critic_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        with torch.no_grad():
            inferred, prior = programs.infer(guide, batch), self._prior(model, batch)
        losses: list[Tensor] = []
        metrics: Metrics = {}
        for name, critic in self.critics.items():
            one, other = (critic(*self._inputs(name, side, prior, batch)) for side in (inferred, prior))
            losses.append(self.value.critic(one, other))
            found = self.value.metrics(one.detach(), other.detach())
            metrics |= {key if len(self.critics) == 1 else f"{key}/{name}": value for key, value in found.items()}
        return {"critic": torch.stack(losses).sum()}, metrics

    def _autoencoder_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        joint = self._joint(model, guide, batch)
        with torch.no_grad():
            prior = self._prior(model, batch)
        error = reconstruction(joint)
        games = [
            self.value.guide(critic(*self._inputs(name, joint.guide.nodes, prior, batch)))
            for name, critic in self.critics.items()
        ]
        loss = error + self.weight * torch.stack(games).sum()
        return {"autoencoder": loss}, {"reconstruction": error.detach()}

    def _joint(self, model: Program, guide: Program, batch: Batch) -> Joint:
        return self.joint(model, guide, batch, sampler=lambda layout: programs.Relaxed())

    def _prior(self, model: Program, batch: Batch) -> Sites:
        names = {name for names in self._sites.values() for name in names}
        return draw_prior(model, batch, sorted(names), given=self.given)

    def _inputs(self, critic: str, side: Sites, prior: Sites, batch: Batch) -> Inputs:
        names = self._sites[critic]
        drawn: Draws = {n: batch[n] if n in self.given else programs.rows_of(side[n]) for n in names}
        return tuple(shown(drawn[name], prior[name]) for name in names)
