"""An adversarial game as small as can be, as a user would write it in a file of his own."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen import programs
from ppgen.data import Dataset
from ppgen.objectives.base import Losses, Metrics, Objective, Phase
from ppgen.programs import Batch, Program
from ppgen.recipes import Recipe
from ppgen.recipes.adversaries import players_adam


class Generator(nn.Module):
    """Points ``scale * z + mean``, which a `Delta` observes."""

    def __init__(self, values: int, *, scale: float, mean: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((values,), scale))
        self.mean = nn.Parameter(torch.full((values,), mean))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x[0].numel()), 1.0).to_event(1))
            drawn = (self.scale * z + self.mean).reshape(x.shape)
            pyro.sample("x", dist.Delta(drawn, event_dim=x.dim() - 1), obs=x)


class Nothing(nn.Module):
    """A guide without sites."""

    def forward(self, x: Tensor) -> None: ...


class Game(Objective):
    """The minimax game of Goodfellow et al., whose generator has no gradient left where the critic is sure."""

    def __init__(self, values: int, *, plays: bool, blind: bool) -> None:
        super().__init__()
        self.critic = nn.Linear(values, 1)
        self.plays, self.sight = float(plays), float(not blind)

    def setup(self, model: Program, guide: Program, batch: Batch) -> None:
        """No density is needed."""

    def explain(self, model: Program, guide: Program, batch: Batch) -> str | None:
        """No density says more."""
        return None

    def players(self, model: Program, guide: Program, batch: Batch) -> dict[str, dict[str, Tensor]]:
        return {"critic": dict(self.critic.named_parameters()), "model": programs.leaves(model, guide)}

    def phases(self) -> tuple[Phase, ...]:
        return (self._critic_phase, self._model_phase)

    def _outputs(self, model: Program, batch: Batch) -> tuple[Tensor, Tensor]:
        drawn = programs.simulate(model, batch)["x"]["value"]
        return self.sight * self.critic(batch["x"].flatten(1)), self.sight * self.critic(drawn.flatten(1))

    def _critic_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        real, drawn = self._outputs(model, batch)
        right = torch.cat([real > 0, drawn <= 0]).float().mean()
        loss = functional.softplus(-real).mean() + functional.softplus(drawn).mean()
        return {"critic": loss}, {"critic_accuracy": right}

    def _model_phase(self, model: Program, guide: Program, batch: Batch) -> tuple[Losses, Metrics]:
        return {"model": -self.plays * functional.softplus(self._outputs(model, batch)[1]).mean()}, {}


def game(
    data: Dataset,
    *,
    scale: float = 0.7,
    mean: float = 0.0,
    plays: bool = True,
    blind: bool = False,
    critic_rate: float = 1e-3,
) -> Recipe:
    """The game, with a generator that starts with this scale and mean, and maybe stays there."""
    values = data.train["x"][0].numel()
    return Recipe(
        Generator(values, scale=scale, mean=mean),
        Nothing(),
        Game(values, plays=plays, blind=blind),
        data,
        optimizer=players_adam(1e-3, critic_rate),
    )
