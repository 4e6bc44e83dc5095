"""Games whose critic says more of a row than its side: which class it is of, or which generator made it."""

from typing import Any

from torch import Tensor, nn

from ppgen.errors import ConfigError
from ppgen.objectives.adversarial.gan import GAN
from ppgen.objectives.adversarial.sides import Draws
from ppgen.objectives.adversarial.values import named_loss
from ppgen.programs import Sites, number_of_states


class ACGAN(GAN):
    r"""The auxiliary classifier GAN: the critic also tells the class of a row, and the model helps it.

    Both the critic's and the model's loss have ``weight * -E[log C(y | x)]`` added: the critic's of labelled data and
    of the model's draws, the model's of its draws. Rows with label -1 do not count.

    Args:
        critic: from ``x`` to ``(rows, 1 + classes)``: the logit of the side, and those of the classes.
        label: the site of the class, in the model a discrete one.
        weight: of the classifier's losses.
        options: further ones of `GAN`.

    References:
        Odena, Olah, Shlens, 2017, arXiv:1610.09585.
    """

    def __init__(self, critic: nn.Module, *, label: str = "y", weight: float = 1.0, **options: Any) -> None:
        super().__init__(critic, **options)
        if self.pack > 1 or weight < 0:
            raise ConfigError(f"expected pack 1 and weight >= 0 for ACGAN; got pack {self.pack}, weight {weight}")
        self.label = label
        self.weight = weight

    def require_sites(self, simulated: Sites, inferred: Sites) -> None:
        """See `GAN.require_sites`."""
        super().require_sites(simulated, inferred)
        self.outputs = 1 + _states(self.label, simulated)

    def verdict(self, outputs: Tensor) -> Tensor:
        """See `GAN.verdict`."""
        return outputs[:, :1]

    def critic_loss(self, data: Tensor, model: Tensor, draws: tuple[Draws, Draws]) -> Tensor:
        """See `GAN.critic_loss`."""
        classes = named_loss(model[:, 1:], draws[1][self.label])
        if self.label in draws[0]:
            classes = classes + named_loss(data[:, 1:], draws[0][self.label])
        return super().critic_loss(data, model, draws) + self.weight * classes

    def model_loss(self, outputs: Tensor, draws: Draws) -> Tensor:
        """See `GAN.model_loss`."""
        return super().model_loss(outputs, draws) + self.weight * named_loss(outputs[:, 1:], draws[self.label])


class MADGAN(GAN):
    r"""Several generators, which the critic has to tell apart: they are driven to different parts of the data.

    The critic gives logits of "data" and of each generator. Its loss is their cross-entropy; the model's is
    ``-E log D(data | x)`` of its draws (``loss`` names other forms).

    Args:
        critic: from ``x`` to ``(rows, 1 + generators)``.
        component: the site of the model that names the generator, a discrete one.
        options: further ones of `GAN`.

    References:
        Ghosh, Kulharia, Namboodiri, Torr, Dokania, 2018, arXiv:1704.02906.
    """

    def __init__(self, critic: nn.Module, *, component: str = "component", **options: Any) -> None:
        super().__init__(critic, **options)
        if self.pack > 1:
            raise ConfigError(f"expected pack 1 for MADGAN; got {self.pack}")
        self.component = component

    def require_sites(self, simulated: Sites, inferred: Sites) -> None:
        """See `GAN.require_sites`."""
        super().require_sites(simulated, inferred)
        self.outputs = 1 + _states(self.component, simulated)

    def verdict(self, outputs: Tensor) -> Tensor:
        """See `GAN.verdict`."""
        return outputs[:, :1] - outputs[:, 1:].logsumexp(1, keepdim=True)

    def critic_loss(self, data: Tensor, model: Tensor, draws: tuple[Draws, Draws]) -> Tensor:
        """See `GAN.critic_loss`."""
        label = draws[1][self.component]
        return named_loss(data, label.new_zeros(len(data))) + named_loss(model, 1 + label)


def _states(name: str, simulated: Sites) -> int:
    if name not in simulated:
        raise ConfigError(f"expected a site '{name}' of the model, which the critic tells of; it has {list(simulated)}")
    return number_of_states(simulated[name])
