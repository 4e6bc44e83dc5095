"""What a comparison of gradient estimators found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppgen.errors import ConfigError
from ppgen.estimators.statistics import FLAGGED, Bias, Interval

ALL = "all"
"""The group of all parameters."""


@dataclass(frozen=True)
class Row:
    """What one estimator came to in one state of the parameters.

    Attributes:
        name: of the estimator.
        bound: what it is a gradient of, such as "ELBO" or "IWAE(5)".
        claims: whether it claims to be unbiased.
        particles: draws of a row behind one gradient.
        bias: against the reference.
        variance: of one gradient of the batch, summed over the parameters of a group: "all", "model", "guide".
        signal: norm of the gradient over the root of its variance, by group.
        seconds: of one gradient; None if not timed.
        cost: seconds in units of the score function's, in the same turns; None if there is nothing to divide by.
        compiled: whether it was timed compiled.
        draws: gradients behind bias and variance.
        adapts: whether it has a state, which was burnt in and then held.
    """

    name: str
    bound: str
    claims: bool
    particles: int
    bias: Bias
    variance: Mapping[str, Interval]
    signal: Mapping[str, float]
    seconds: float | None
    cost: float | None
    compiled: bool
    draws: int
    adapts: bool

    @property
    def work(self) -> dict[str, Interval]:
        """Variance times cost, by group: what a given precision takes, smaller is better. Empty if not timed."""
        return {} if self.cost is None else {name: found.scaled(self.cost) for name, found in self.variance.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "estimator": self.name,
            "bound": self.bound,
            "claims_unbiased": self.claims,
            "flagged": self.bias.flagged,
            "bias": self.bias.relative.as_dict(),
            "z": self.bias.z,
            "z_tensor": self.bias.tensor,
            "variance": {name: found.as_dict() for name, found in self.variance.items()},
            "signal_to_noise": dict(self.signal),
            "seconds": self.seconds,
            "cost": self.cost,
            "variance_times_cost": {name: found.as_dict() for name, found in self.work.items()},
            "compiled": self.compiled,
            "particles": self.particles,
            "draws": self.draws,
            "burnt_in": self.adapts,
        }


@dataclass(frozen=True)
class State:
    """All estimators in one state of the parameters.

    Attributes:
        steps: how many steps it was trained.
        references: by bound: "exact" or the estimator whose mean the reference is, and its standard error relative to
            the gradient's norm.
        rows: one for each estimator.
    """

    steps: int
    references: Mapping[str, tuple[str, float]]
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """Returns that of one estimator.

        Raises:
            ConfigError: if it was not compared.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"'{name}' was not compared; there are {', '.join(row.name for row in self.rows)}")

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        references = {bound: {"by": by, "relative_error": error} for bound, (by, error) in self.references.items()}
        return {"steps": self.steps, "references": references, "estimators": [row.as_dict() for row in self.rows]}


@dataclass(frozen=True)
class Comparison:
    """Gradient estimators side by side.

    Attributes:
        states: at initialisation and along training.
        refused: why others cannot treat the pair, by name.
        rows: of the batch; a variance times it is one of a datum.
        sites: the latents whose gradients are estimated.
        trained_with: by what the parameters were trained between the states; None if they were not.
        burn_in: steps that baselines and control variates were trained in each state before they were held.
    """

    states: tuple[State, ...]
    refused: Mapping[str, str]
    rows: int
    sites: tuple[str, ...]
    trained_with: str | None
    burn_in: int

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "rows": self.rows,
            "sites": list(self.sites),
            "trained_with": self.trained_with,
            "burn_in": self.burn_in,
            "flagged_above": FLAGGED,
            "states": [state.as_dict() for state in self.states],
            "refused": dict(self.refused),
        }
