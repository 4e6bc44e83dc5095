"""The state of a trainer: what it holds, what a refused one leaves, and optimizers that can and cannot be used."""

import collections
import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from brute_force import two_layers
from test_failing_steps import everything
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._pytree import tree_map
from zoo import binary_rows, small_vae

from ppgen import guides
from ppgen.errors import CheckpointError, ConfigError
from ppgen.objectives import ELBO, IWAE, WGANGP
from ppgen.players import Optimizer
from ppgen.sampling import Sampler, Sampling
from ppgen.state import plain, require_whole
from ppgen.training import Trainer

PLAIN = (bool, int, float, str, type(None))
ADAM: Any = torch.optim.Adam
NOTHING: Any = lambda made: None  # noqa: E731
STEPS: Any = lr_scheduler.StepLR
X = {"x": torch.tensor([2.0, 3.0, 4.0])}
eager = functools.partial(Trainer, device="cpu", compile="off")
adam = functools.partial(torch.optim.Adam, lr=0.01)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor([[0.5, 0.2]]))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * slope.sum(), pyro.param("scale", torch.tensor(0.2)).exp()))


def run(trainer: Trainer, steps: int, batch: Any) -> list[float]:
    stream = iter(lambda: batch, None)
    return [sum(float(v) for k, v in trainer.step(stream).items() if k.startswith("loss")) for _ in range(steps)]


def same(one: Any, two: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(same(part, two[key]) for key, part in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def not_plain(state: Any, place: str = "state") -> list[str]:
    """Where a state holds something else than tensors, numbers, text and plain containers."""
    if type(state) in (dict, list, tuple):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        keys = [f"{place}: key {k!r}" for k, _ in parts if type(k) not in (int, str)]
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return keys + [found for key, part in parts for found in not_plain(part, f"{place}.{key}")]
    return [] if type(state) in (*PLAIN, Tensor) else [f"{place}: {type(state).__name__}"]


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --------------------------------------------------------------------------------------------------------- round trips


class Line(nn.Module):
    """``x = a z + b`` of a Gaussian ``z``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([0.7, -1.2])), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(self.a * z + self.b, event_dim=1), obs=x)


def of_nvil() -> tuple[Any, Any, Any, Any]:
    case = two_layers()
    return case.model, case.guide, ELBO(estimator="nvil", particles=2), {"x": case.x}


def of_game() -> tuple[Any, Any, Any, Any]:
    critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    return Line(), guides.Nothing(), WGANGP(critic, critic_steps=2), {"x": torch.randn(6, 2)}


def of_normalisation() -> tuple[Any, Any, Any, Any]:
    return *small_vae(batch_norm=True, dropout=0.3), IWAE(particles=2), {"x": binary_rows(6)}


def of_stock() -> tuple[Any, Any, Any, Any]:
    return model, guide, pyro.infer.TraceGraph_ELBO(), X


SCHEDULES: dict[str, Any] = {
    "none": None,
    "steps": functools.partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
    "milestones": functools.partial(lr_scheduler.MultiStepLR, milestones=[2, 5, 6], gamma=0.5),
    "cosine": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=10),
    "one cycle": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "restarts": functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
    "lambda": functools.partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "in sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer, 0.5), lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5)],
        milestones=[3],
    ),
}
SYSTEMS: dict[str, Callable[[], tuple[Any, Any, Any, Any]]] = {
    "nvil": of_nvil,
    "game": of_game,
    "batch normalisation": of_normalisation,
    "stock": of_stock,
}


def made(system: str, schedule: str = "steps", factory: Any = adam) -> tuple[Trainer, Any]:
    torch.manual_seed(0)
    pair_model, pair_guide, objective, batch = SYSTEMS[system]()
    optimizer = Optimizer(factory, schedule=SCHEDULES[schedule], clip=5.0)
    return eager(pair_model, pair_guide, objective, optimizer, average=0.9), batch


@pytest.mark.parametrize(
    ("system", "schedule"),
    [*((system, "steps") for system in SYSTEMS), *(("stock", schedule) for schedule in SCHEDULES)],
)
def test_a_state_goes_through_torchs_own_files_and_training_goes_on(system: str, schedule: str) -> None:
    whole, batch = made(system, schedule)
    run(whole, 4, batch)
    state = whole.state_dict()
    assert not_plain(state) == []
    loaded = saved_and_loaded(state)
    assert same(state, loaded)
    losses = run(whole, 4, batch)
    for before_setup in (True, False):
        part, _ = made(system, schedule)
        if not before_setup:
            run(part, 2, batch)
        part.load_state_dict(loaded)
        assert run(part, 4, batch) == losses
        assert same(part.state_dict(), whole.state_dict())


def test_numbers_of_numpy_and_containers_of_others_become_plain() -> None:
    odd = {
        "a": np.float64(0.5),
        "b": collections.OrderedDict(c=collections.Counter([1, 1])),
        "d": torch.Size([2]),
        "e": nn.Parameter(torch.ones(1)),
        "f": np.ones(2),
    }
    assert not_plain(odd) != [], "negative control"
    assert not_plain(plain(odd)) == []
    assert plain(odd)["b"] == {"c": {1: 2}}
    with pytest.raises(ConfigError, match=r"in state\.x\.0, which is saved; got a Linear"):
        plain({"x": [nn.Linear(1, 1)]})
    factory = functools.partial(torch.optim.Adam, lr=np.float64(0.01), betas=(np.float64(0.9), np.float64(0.99)))
    trainer, batch = made("stock", "none", factory)
    run(trainer, 2, batch)
    assert not_plain(saved_and_loaded(trainer.state_dict())) == []


def test_the_state_of_a_sampler_goes_through_torchs_own_files() -> None:
    def gaussian(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def sampler() -> Sampler:
        found = Sampler(gaussian, Sampling(draws=6, warmup=4, chains=2))
        found.setup(X)
        return found

    whole = sampler()
    list(whole.fit(iter([X]), steps=10))
    state = whole.state_dict()
    assert len(state["chains"]) == 1
    assert not_plain(state) == []
    list(whole.fit(iter([X])))
    part = sampler()
    part.load_state_dict(saved_and_loaded(state))
    list(part.fit(iter([X])))
    assert same(part.state_dict(), whole.state_dict())
    before = part.state_dict()
    for nonsense in (None, {}, {"steps": 1, "chains": [{}]}, {"steps": 1, "chains": [None]}):
        with pytest.raises(CheckpointError):
            part.load_state_dict(nonsense)  # type: ignore[arg-type]
        assert same(part.state_dict(), before)
    shorter = {**before["chains"][0], "draws": {"mean": torch.zeros(2)}}
    with pytest.raises(CheckpointError, match="of lengths"):
        part.load_state_dict({**before, "chains": [before["chains"][1], shorter]})
    longer = Sampler(gaussian, Sampling(draws=7, warmup=4, chains=2))
    longer.setup(X)
    with pytest.raises(CheckpointError, match="it has 6 draws of mean; expected 7 of mean"):
        longer.load_state_dict(before)
    assert same(part.state_dict(), before)


# ----------------------------------------------------------------------------------------------------------- refusals


def changed(state: Any, path: str, value: Any) -> Any:
    """A state with another value at a path; without that entry if the value is `...`."""
    name, _, rest = path.partition("/")
    key: Any = int(name) if name.isdigit() else name
    copy = list(state) if isinstance(state, (list, tuple)) else dict(state)
    if not rest and value is ...:
        del copy[key]
    else:
        copy[key] = value if not rest else changed(copy[key], rest, value)
    return copy


DAMAGE: dict[str, Any] = {
    **dict.fromkeys(("steps", "skipped", "stepper", "players", "average", "buffers", "store", "random"), ...),
    "steps ": -1,
    "steps  ": "4",
    "steps   ": True,
    "players/all": None,
    "players/all/leaves": {},
    "players/all/leaves/store.slope": torch.zeros(7),
    "players/all/leaves/store.slope ": [0.0],
    "players/all/optimizer": ...,
    "players/all/optimizer/state": 3,
    "players/all/optimizer/state/0": None,
    "players/all/optimizer/state/0/exp_avg": torch.zeros(7),
    "players/all/optimizer/state/0/exp_avg ": ...,
    "players/all/optimizer/state/0/step": "one",
    "players/all/optimizer/state/9": {},
    "players/all/optimizer/param_groups": [],
    "players/all/optimizer/param_groups/0/params": [],
    "players/all/optimizer/param_groups/0/lr": None,
    "players/all/optimizer/param_groups/0/betas": 0.9,
    "players/all/optimizer/param_groups/0/amsgrad": True,
    "players/all/schedule": None,
    "players/all/schedule/last_epoch": ...,
    "players/all/kinds": {"optimizer": "AdamW", "schedule": "StepLR"},
    "average ": {"store.slope": torch.zeros(1, 2)},
    "average/store.slope": torch.zeros(3),
    "buffers ": {"model.mean": torch.zeros(2)},
    "store ": {"x": 3},
    "random/torch": torch.zeros(3, dtype=torch.uint8),
    "random/torch ": ...,
    "random/numpy": ("MT19937", torch.zeros(3), 1, 0, 0.0),
    "random/python": (3, (1, 2), None),
    "stepper/compiled": "yes",
    "stepper/seen": {0: {"shape": "often"}},
}


@pytest.mark.parametrize("path", DAMAGE)
def test_a_state_that_is_none_is_refused_and_changes_nothing(path: str) -> None:
    trainer, batch = made("stock")
    run(trainer, 3, batch)
    bad = changed(trainer.state_dict(), path.strip(), DAMAGE[path])
    run(trainer, 1, batch)
    before = trainer.state_dict()
    with pytest.raises(CheckpointError) as caught:
        trainer.load_state_dict(bad)
    assert "\n" not in str(caught.value)
    assert same(before, trainer.state_dict())
    fresh, _ = made("stock")
    start = [leaf.clone() for leaf in fresh.objective.parameters()]
    with pytest.raises(CheckpointError):  # noqa: PT012 (at once, or else at the end of setup)
        fresh.load_state_dict(bad)
        fresh.setup(batch)
    assert fresh.leaves == {}
    assert all(map(torch.equal, start, fresh.objective.parameters()))


@pytest.mark.parametrize("nonsense", [None, {}, [], 3, "state", {"steps": 1}, torch.zeros(3)])
def test_what_is_no_state_at_all_is_refused(nonsense: Any) -> None:
    trainer, batch = made("stock")
    with pytest.raises(CheckpointError, match="as state_dict returns it; got"):
        trainer.load_state_dict(nonsense)
    run(trainer, 1, batch)
    before = everything(trainer)
    with pytest.raises(CheckpointError, match="as state_dict returns it; got"):
        trainer.load_state_dict(nonsense)
    assert same(before, everything(trainer))


def test_a_state_refused_at_the_end_of_setup_is_refused_again_and_can_be_replaced() -> None:
    trainer, batch = made("stock")
    run(trainer, 3, batch)
    good = trainer.state_dict()
    fresh, _ = made("stock")
    fresh.load_state_dict(changed(good, "players/all/leaves/store.slope", torch.zeros(7)))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="shape"):
            fresh.setup(batch)
        assert fresh.leaves == {}
    trainer.load_state_dict(good)
    losses = run(trainer, 2, batch)
    fresh.load_state_dict(good)
    assert run(fresh, 2, batch) == losses


OTHERS: dict[str, tuple[Any, Any]] = {
    "Adam to AdamW": (torch.optim.Adam, torch.optim.AdamW),
    "Adam to SGD": (torch.optim.Adam, torch.optim.SGD),
    "SGD to Adam": (torch.optim.SGD, torch.optim.Adam),
    "amsgrad on": (torch.optim.Adam, functools.partial(torch.optim.Adam, amsgrad=True)),
    "amsgrad off": (functools.partial(torch.optim.Adam, amsgrad=True), torch.optim.Adam),
    "momentum on": (torch.optim.SGD, functools.partial(torch.optim.SGD, momentum=0.9)),
    "momentum off": (functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD),
    "uphill": (torch.optim.SGD, functools.partial(torch.optim.SGD, maximize=True)),
    "nesterov": (
        functools.partial(torch.optim.SGD, momentum=0.9),
        functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    ),
    "other groups": (
        torch.optim.Adam,
        lambda leaves, lr: torch.optim.Adam([{"params": leaves[:1]}, {"params": leaves[1:]}], lr=lr),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_state_of_another_kind_of_optimizer_is_refused(case: str) -> None:
    one, other = (made("stock", "none", functools.partial(kind, lr=0.01))[0] for kind in OTHERS[case])
    run(one, 2, X)
    run(other, 1, X)
    before = everything(other)
    with pytest.raises(CheckpointError, match="the checkpoint is of another optimizer: "):
        other.load_state_dict(one.state_dict())
    assert same(before, everything(other))


def test_the_state_of_another_schedule_is_refused_and_numbers_may_differ() -> None:
    one, other = made("stock", "steps")[0], made("stock", "cosine")[0]
    run(one, 2, X)
    state = one.state_dict()
    other.setup(X)
    with pytest.raises(CheckpointError, match="its schedule is StepLR; expected CosineAnnealingLR"):
        other.load_state_dict(one.state_dict())
    faster = eager(
        model,
        guide,
        pyro.infer.TraceGraph_ELBO(),
        Optimizer(functools.partial(torch.optim.Adam, lr=0.5, betas=(0.5, 0.9)), schedule=SCHEDULES["steps"]),
        average=0.9,
    )
    faster.load_state_dict(state)
    losses = run(faster, 3, X)
    one.load_state_dict(state)
    assert run(one, 3, X) == losses, "the rate is that of the state"


def test_a_state_without_kinds_is_still_read() -> None:
    """As earlier versions wrote it."""
    trainer, batch = made("stock")
    run(trainer, 2, batch)
    state = changed(trainer.state_dict(), "players/all/kinds", ...)
    state = changed(state, "random/numpy/1", trainer.state_dict()["random"]["numpy"][1].numpy())
    require_whole(state)
    trainer.load_state_dict(state)
    run(trainer, 1, batch)


# ----------------------------------------------------------------------------------------------------------- optimizers

USABLE: dict[str, Any] = {
    **{
        name: getattr(torch.optim, name)
        for name in ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop")
    },
    **{name: getattr(torch.optim, name) for name in ("Rprop", "SGD")},
    **{
        f"Adam, {option}": functools.partial(ADAM, **{option: True})
        for option in ("foreach", "fused", "capturable", "differentiable", "amsgrad")
    },
    "SGD, foreach": functools.partial(torch.optim.SGD, foreach=True, momentum=0.9),
    "RMSprop, capturable": functools.partial(torch.optim.RMSprop, capturable=True),
}


@pytest.mark.parametrize("name", USABLE)
def test_an_optimizer_trains_and_goes_on(name: str) -> None:
    factory = functools.partial(USABLE[name], lr=0.01)
    whole, batch = made("stock", "steps", factory)
    run(whole, 2, batch)
    state = saved_and_loaded(whole.state_dict())
    losses = run(whole, 3, batch)
    assert len(set(losses)) == 3, "it trains"
    part, _ = made("stock", "steps", factory)
    part.load_state_dict(state)
    assert run(part, 3, batch) == losses
    assert same(part.state_dict(), whole.state_dict())


@pytest.mark.parametrize("option", ["foreach", "capturable", "differentiable"])
def test_ways_to_compute_a_step_compute_the_same_step(option: str) -> None:
    losses = [
        run(made("stock", "none", factory)[0], 3, X)
        for factory in (adam, functools.partial(ADAM, lr=0.01, **{option: True}))
    ]
    assert losses[0] == losses[1]


def test_sparse_gradients_are_gradients() -> None:
    class Embedded(nn.Module):
        def __init__(self, *, sparse: bool) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 1, sparse=sparse, _weight=torch.arange(5.0).unsqueeze(1) / 10)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.table(x.long()).squeeze(-1), 1.0))

    losses = []
    for sparse in (True, False):
        torch.manual_seed(0)
        losses.append(run(eager(model, Embedded(sparse=sparse), ELBO(), adam), 4, X))
    assert losses[0] == losses[1]


class _Own(torch.optim.Optimizer):
    """A user's own, without a learning rate."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"size": 0.01})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(group["size"] * parameter.grad.sign())


def test_an_optimizer_without_a_learning_rate_trains() -> None:
    trainer = eager(model, guide, ELBO(), _Own)
    run(trainer, 2, X)
    trainer.scale_learning_rate(0.5)
    trainer.load_state_dict(saved_and_loaded(trainer.state_dict()))


UNUSABLE: dict[str, tuple[Any, str, bool]] = {
    "LBFGS": (
        functools.partial(torch.optim.LBFGS, lr=1.0),
        "LBFGS cannot be used, since its step needs a closure",
        True,
    ),
    "LBFGS itself": (torch.optim.LBFGS, "needs a closure", True),
    "LBFGS by a function": (lambda leaves: torch.optim.LBFGS(leaves), "needs a closure", False),
    "SparseAdam": (torch.optim.SparseAdam, "gradients here are dense: use torch.optim.Adam", True),
    "Muon": (torch.optim.Muon, r"player 'all' cannot be made of its 2 parameters .*shapes", False),
    "a wrong option": (functools.partial(ADAM, rate=1), "player 'all' cannot be made", False),
    "a wrong value": (functools.partial(torch.optim.Adam, lr=-1.0), "player 'all' cannot be made", False),
    "Pyro's": (pyro.optim.Adam({"lr": 0.1}), "expected a factory of torch optimizers.*got a PyroOptim", True),
    "an optimizer": (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), "factory.*got a SGD", True),
    "a number": (0.1, "factory.*got a float", True),
    "a class of something": (dict, "factory.*got dict", True),
    "nothing made": (lambda leaves: None, "one that returns a NoneType", False),
    "plateau": (
        Optimizer(adam, schedule=functools.partial(lr_scheduler.ReduceLROnPlateau, patience=2)),
        "ReduceLROnPlateau cannot be used, since its step needs a metric: use",
        True,
    ),
    "plateau by a function": (
        Optimizer(adam, schedule=lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer)),
        "needs a metric",
        False,
    ),
    "a schedule": (
        Optimizer(
            adam,
            schedule=lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 3),  # type: ignore[arg-type]
        ),
        "factory of torch learning-rate schedulers.*got a StepLR",
        True,
    ),
    "Pyro's schedule": (
        Optimizer(
            adam, schedule=pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1}, "gamma": 1})
        ),
        "factory of torch learning-rate schedulers",
        True,
    ),
    "no schedule made": (Optimizer(adam, schedule=NOTHING), "returns a NoneType", False),
    "a schedule of another": (
        Optimizer(
            adam,
            schedule=lambda _: lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 3),
        ),
        "is that of another optimizer",
        False,
    ),
    "a wrong schedule": (
        Optimizer(adam, schedule=functools.partial(STEPS, steps=3)),
        "schedule of player 'all' cannot be made",
        False,
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_refused_with_the_remedy(name: str) -> None:
    given, message, at_once = UNUSABLE[name]
    if at_once:
        with pytest.raises(ConfigError, match=message):
            eager(model, guide, ELBO(), given)
        with pytest.raises(ConfigError, match=message):
            eager(model, guide, ELBO(), {"all": given})
        return
    trainer = eager(model, guide, ELBO(), given)
    with pytest.raises(ConfigError, match=message) as caught:
        trainer.setup(X)
    assert "\n" not in str(caught.value)
    assert trainer.leaves == {}


def test_tensors_of_a_loaded_state_are_not_shared() -> None:
    trainer, batch = made("stock")
    run(trainer, 2, batch)
    state = trainer.state_dict()
    copy = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, state)
    trainer.load_state_dict(state)
    run(trainer, 2, batch)
    assert same(state, copy)
