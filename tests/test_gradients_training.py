"""Training with every estimator and bound: compiled equals eager, and resumed equals uninterrupted."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from brute_force import (
    Case,
    inner_plate,
    one_hot,
    one_layer,
    subsampled,
    two_layers,
    whole_site,
    with_gaussian,
    with_label,
)
from test_bounds_gradients import one_level, two_levels
from test_compilation import needs_compiler
from test_marginals import SERIES, chain, nothing
from test_training import assert_same, everything
from torch import Tensor

from ppgen import ELBO, Trainer
from ppgen.gradients import ESTIMATORS, GumbelSoftmax
from ppgen.objectives import CIWAE, IWAE, PIWAE, EnumeratedELBO, Objective, Renyi, VRMax
from ppgen.packing import pack, unpack

# what torch's compiler itself warns of
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

adam = functools.partial(torch.optim.Adam, lr=0.02)
# Adam makes steps of the rounding in a gradient that is 0: that of two particles that are the same
momentum = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9)


@dataclass(frozen=True)
class Setting:
    """A pair and what trains it."""

    case: Callable[[], Case]
    objective: Callable[[], Objective]


def hidden_states() -> Case:
    return Case(chain(), nothing, SERIES, {})


def _elbo(name: str) -> Callable[[], Objective]:
    return lambda: ELBO(estimator=name, particles=2)


SETTINGS: dict[str, Setting] = {
    name: Setting(one_hot if name == "enumerate" else two_layers, _elbo(name))
    for name in ESTIMATORS
    if name != "pathwise"
}
SETTINGS |= {
    "pathwise": Setting(one_level, lambda: ELBO(estimator="pathwise")),
    "annealed": Setting(
        one_layer, lambda: ELBO(estimator=GumbelSoftmax(temperature=1.0, final=0.3, anneal=8), analytic_kl=False)
    ),
    "relax, one-hot": Setting(one_hot, _elbo("relax")),
    "relax, inner plate": Setting(inner_plate, _elbo("relax")),
    "relax, global": Setting(whole_site, _elbo("relax")),
    "nvil, subsampled": Setting(lambda: subsampled(size=3), _elbo("nvil")),
    "mixture": Setting(
        lambda: with_label(first="y"), lambda: ELBO(estimator={"z1": "relax", "y": "enumerate"}, particles=2)
    ),
    "IWAE, vimco": Setting(two_layers, lambda: IWAE(particles=3, estimator="vimco")),
    "IWAE, nvil": Setting(two_layers, lambda: IWAE(particles=3, estimator="nvil")),
    "Renyi, leave-one-out": Setting(two_layers, lambda: Renyi(alpha=0.5, particles=3, estimator="leave-one-out")),
    "IWAE, enumerate": Setting(
        lambda: with_gaussian(first="y"), lambda: IWAE(particles=3, estimator="enumerate", gradient="total")
    ),
    "IWAE, doubly": Setting(two_levels, lambda: IWAE(particles=3, gradient="doubly-reparameterized")),
    "Renyi, doubly, enumerate": Setting(
        lambda: with_gaussian(first="y"),
        lambda: Renyi(particles=3, estimator="enumerate", gradient="doubly-reparameterized"),
    ),
    "IWAE, sticking": Setting(two_levels, lambda: IWAE(particles=3, gradient="sticking-the-landing")),
    "PIWAE": Setting(two_levels, lambda: PIWAE(particles=2, outer=3)),
    "VR-max": Setting(one_level, lambda: VRMax(particles=3)),
    "CIWAE": Setting(one_level, lambda: CIWAE(particles=3)),
    "hidden Markov model": Setting(hidden_states, EnumeratedELBO),
    "hidden Markov model, IWAE": Setting(hidden_states, lambda: IWAE(particles=1, estimator="enumerate")),
}
QUICK = ["relax", "IWAE, vimco"]


def batches(case: Case) -> Iterator[dict[str, Tensor]]:
    dims = tuple(1 for _ in case.x.shape[1:])
    rows = case.x if case.x is SERIES else case.x.repeat(4, *dims)
    while True:
        yield {"x": rows}


def trainer(setting: Setting, case: Case, *, compile: str, compares: bool = False) -> Trainer:
    torch.manual_seed(0)
    optimizer = momentum if compares else adam
    return Trainer(case.model, case.guide, setting.objective(), optimizer, device="cpu", compile=compile)  # type: ignore[arg-type]


def train(one: Trainer, stream: Iterator[Any], steps: int) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in one.step(stream).items()} for _ in range(steps)]


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_in_the_middle_is_uninterrupted_bit_by_bit(name: str) -> None:
    setting = SETTINGS[name]
    straight = trainer(setting, case := setting.case(), compile="off")
    torch.manual_seed(1)
    train(straight, batches(case), 6)
    tensors, rest = pack(straight.state_dict())
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    last = train(straight, batches(case), 6)
    fresh = setting.case()
    resumed = trainer(setting, fresh, compile="off")
    torch.manual_seed(7)
    resumed.load_state_dict(unpack(tensors, rest))
    assert train(resumed, batches(fresh), 6) == last
    assert_same(everything(straight), everything(resumed))


def test_baselines_and_control_variates_are_a_part_of_the_state() -> None:
    """Negative control: what they have learned is saved, and matters."""
    for name, part in (("moving-average", "mean"), ("nvil", "network"), ("rebar", "scale"), ("relax", "network")):
        setting = SETTINGS[name]
        straight = trainer(setting, case := setting.case(), compile="off")
        train(straight, batches(case), 6)
        tensors, rest = pack(straight.state_dict())
        own = [key for key in tensors if "plan" in key and part in key]
        assert own, (name, list(tensors))
        changed = {key: tensor + 1 if key in own else tensor.clone() for key, tensor in tensors.items()}
        last = train(straight, batches(case), 3)
        resumed = trainer(setting, fresh := setting.case(), compile="off")
        resumed.load_state_dict(unpack(changed, rest))
        train(resumed, batches(fresh), 3)
        assert len(last) == 3
        ours, theirs = everything(straight), everything(resumed)
        leaves = [key for key in ours if "guide" in key and "leaves" in key]
        assert leaves
        assert any(not torch.equal(ours[key], theirs[key]) for key in leaves), name


@needs_compiler
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SETTINGS])
def test_compiled_equals_eager(name: str) -> None:
    setting, found = SETTINGS[name], []
    for compile in ("on", "off"):
        one = trainer(setting, case := setting.case(), compile=compile, compares=True)
        torch.manual_seed(1)
        losses = train(one, batches(case), 12)
        assert one.compiled == (compile == "on")
        found.append((losses, everything(one)))
    for step, (ours, theirs) in enumerate(zip(found[0][0], found[1][0], strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), step
    for key, tensor in found[1][1].items():
        if key.startswith("random"):
            assert torch.equal(found[0][1][key], tensor), "both take the same noise from the same stream"
        else:
            assert torch.allclose(found[0][1][key].double(), tensor.double(), rtol=2e-3, atol=2e-3), key
    torch.manual_seed(2)
    unlike = train(trainer(setting, case := setting.case(), compile="off", compares=True), batches(case), 12)
    if name not in ("enumerate", "hidden Markov model", "hidden Markov model, IWAE"):  # these draw nothing
        assert unlike[-1] != pytest.approx(found[1][0][-1], rel=1e-4, abs=1e-4), "negative control: other noise"
