"""Log importance weights: the quantity most objectives and measures are short reductions of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program
from ppgen.programs.joint import PARTICLES, DataPlate, frames, run


@dataclass(frozen=True)
class LogWeights:
    """Log importance weights ``log p - log q`` in nats, local terms kept apart from global ones.

    Attributes:
        local: ``(particles, batch)``, per datum: without the N/B scale of a subsampled plate.
        global_: ``(particles,)``.
        plate: the data plate, None if the program has none (all terms are then global).
    """

    local: Tensor
    global_: Tensor
    plate: DataPlate | None


def log_weights(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    particles: int = 1,
    enumerate_discrete: bool = False,
    nesting: int | None = None,
) -> LogWeights:
    """Draws from the guide and returns the log weights of the draws.

    With ``enumerate_discrete``, discrete local sites of the guide are summed out of each weight:
    ``w = sum_y p(x, y, z_y) / q(z_y | x, y)``, whose mean over draws is ``p(x)`` as well.

    Raises:
        ConfigError: if an enumerated site is global or lies in a plate inside the data plate.

    References:
        Burda, Grosse, Salakhutdinov, 2015, arXiv:1509.00519.
    """
    joint = run(model, guide, batch, particles=particles, enumerate_discrete=enumerate_discrete, nesting=nesting)
    own = {joint.plate.name if joint.plate else "", PARTICLES}
    for name in joint.enumerated:
        if not joint.is_local(name) or frames(joint.guide.nodes[name]) - own:
            raise ConfigError(
                f"site '{name}' cannot be summed out of a weight: it does not lie in the data plate alone"
            )
    terms = [(name, joint.log_p(name)) for name in (*joint.observed, *joint.latents) if name in joint.model.nodes]
    proposed = [name for name in joint.latents if name not in joint.enumerated]
    terms += [(name, -joint.log_q(name)) for name in (*proposed, *joint.factors)]
    local = [joint.sum_inner_plates(term) for name, term in terms if joint.is_local(name)]
    global_ = [joint.reduce(name, term) for name, term in terms if not joint.is_local(name)]
    rows = joint.plate.rows if joint.plate else 0
    scale = joint.plate.scale if joint.plate else 1.0
    total = sum(local, torch.zeros(())) / scale
    if enumerated := tuple(range(-total.dim(), -1 - joint.vectorized)):
        total = total.logsumexp(enumerated)
    return LogWeights(
        local=total.expand(particles, rows), global_=sum(global_, torch.zeros(())).expand(particles), plate=joint.plate
    )
