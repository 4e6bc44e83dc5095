"""What all adversarial objectives share."""

from torch import Tensor

from ppgen.objectives.base import Objective
from ppgen.programs import Batch, Program


class Game(Objective):
    """An objective with a critic of its own, to whom densities are of no concern."""

    def explain(self, model: Program, guide: Program, batch: Batch) -> str | None:
        """See `Objective.explain`: there are no densities that could say more than the gradients do."""
        return None

    def own_parameters(self) -> dict[str, Tensor]:
        """Returns the objective's own parameters by name."""
        return {f"objective.{name}": p for name, p in self.named_parameters() if p.requires_grad}
