"""How far a run has come: what a checkpoint says of it besides the training state, and how a run is made longer."""

import logging
import warnings
from typing import Annotated, Any

import pydantic
import torch

from ppgen.configuration import Config, identity
from ppgen.errors import CheckpointError, ConfigError
from ppgen.players import OptimizerLike, make_players

Number = Annotated[int, pydantic.Field(ge=0, le=2**53)]

State = dict[str, Any]
logger = logging.getLogger("ppgen")


class Progress(pydantic.BaseModel):
    """What a checkpoint of a run says besides its tensors.

    Attributes:
        state: the training state without its tensors, as `pack` writes it.
        position: how many batches have been drawn.
        seconds: how long the run has trained.
        identity: what makes the run this one and no other.
        metrics_size: bytes of ``metrics.jsonl``.
        rollbacks: how often it went back to a checkpoint.
        processes: how many have trained it.
        length: steps of the whole run, over which schedules went; None in checkpoints of older releases.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    state: Any
    position: Number
    seconds: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
    identity: dict[str, str]
    metrics_size: Number
    rollbacks: Number
    processes: Annotated[int, pydantic.Field(ge=1, le=2**53)] = 1
    length: Annotated[int, pydantic.Field(ge=1, le=2**53)] | None = None

    def require_identity(self, config: Config, *, source: str) -> None:
        """Checks that it is of the run of a configuration.

        Raises:
            CheckpointError: if not.
        """
        for key, value in identity(config).items():
            if (got := self.identity.get(key, value)) != value:
                raise CheckpointError(
                    f"{source} is of another run than its config.toml: expected {key} {value}; got {got}"
                )


def read_progress(values: State, *, source: str) -> Progress:
    """Checks what a checkpoint says.

    Raises:
        CheckpointError: if it is not what a run writes.
    """
    try:
        return Progress(**values)
    except (pydantic.ValidationError, TypeError) as error:
        raise CheckpointError(f"{source} is not that of a run: {_first(error)}") from error


def _first(error: Exception) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    found = error.errors()[0]
    return f"'{'.'.join(map(str, found['loc']))[:100]}': {found['msg'].lower()}"


def lengthened(config: Config, *, epochs: int | None, steps: int | None) -> Config:
    """Returns the configuration of a run that was asked for with another length from the start.

    Raises:
        ConfigError: if both are given, or the run has no steps to add to.
    """
    if epochs is None and steps is None:
        return config
    if epochs is not None and steps is not None:
        raise ConfigError("--epochs and --steps exclude each other: give one of them")
    if config.options.get("objective") == "nuts":
        raise ConfigError("expected no --epochs or --steps: a run that samples is as long as its draws, --set draws=N")
    options = dict(config.options)
    if epochs is not None and "epochs" in options:
        options["epochs"] = epochs
    return config.model_copy(update={"epochs": epochs, "steps": steps, "options": options})


def for_length(state: State, found: Progress, optimizer: OptimizerLike, *, steps: int, device: torch.device) -> State:
    """Returns the training state of a checkpoint with schedules that go over so many steps; says if that changes it."""
    if found.length in (None, steps):
        return state
    state, changed = rescheduled(state, optimizer, device, halved=found.rollbacks)
    if changed:
        logger.warning(
            "the learning rate depends on the length of the run: so far it was that of %d steps, from here on it is"
            " that of %d",
            found.length,
            steps,
        )
    return state


def rescheduled(
    state: State, optimizer: OptimizerLike, device: torch.device, *, halved: int = 0
) -> tuple[State, list[str]]:
    """Returns training state with schedules of another length, as far as they depend on it, and whose do.

    A schedule that says the same at this step for either length goes on as it is, to the bit.

    Args:
        state: as `Trainer.state_dict` makes it, with schedules of the length before.
        optimizer: for the length now.
        device: of the leaves.
        halved: how often the learning rate has been.
    """
    players: State = {}
    changed = []
    for name, player in state["players"].items():
        players[name] = player
        if player["schedule"] is None:
            continue
        fresh = _advanced(name, optimizer, device, count=player["schedule"]["last_epoch"], halved=halved)
        groups = player["optimizer"]["param_groups"]
        if fresh is None or len(fresh["optimizer"]["param_groups"]) != len(groups) or _same(fresh, player):
            continue
        changed.append(name)
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in fresh["optimizer"]["param_groups"]
        ]
        merged = [group | setting for group, setting in zip(groups, settings, strict=True)]
        moved = {"schedule": fresh["schedule"], "optimizer": player["optimizer"] | {"param_groups": merged}}
        players[name] = player | moved
    return state | {"players": players}, changed


def _advanced(name: str, optimizer: OptimizerLike, device: torch.device, *, count: int, halved: int) -> State | None:
    """The state of a player whose schedule has gone so many steps; None if it has none."""
    player = make_players({name: {"": torch.zeros(1, device=device, requires_grad=True)}}, _only(name, optimizer))[name]
    if player.schedule is None:
        return None
    player.scale_learning_rate(0.5**halved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the optimizer itself takes no step
        for _ in range(count):
            player.schedule.step()
    return player.state_dict()


def _only(name: str, optimizer: OptimizerLike) -> OptimizerLike:
    return {name: optimizer[name]} if isinstance(optimizer, dict) and name in optimizer else optimizer


def _same(one: State, other: State) -> bool:
    """Whether two players are at the same point of the same schedule."""
    rates = [[float(group["lr"]) for group in player["optimizer"]["param_groups"]] for player in (one, other)]
    return rates[0] == rates[1] and _plain(one["schedule"]) == _plain(other["schedule"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        # what torch counts for its own warnings says nothing of the rate
        return {key: _plain(item) for key, item in value.items() if key != "_is_initial"}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, torch.Tensor) else value
