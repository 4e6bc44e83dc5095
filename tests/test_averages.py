"""Averaged weights, with the running statistics that belong to them."""

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from own_games import Nothing
from run_helpers import go_on, reports_and_checkpoints, tiny
from torch import Tensor

from ppgen import Trainer, models, nn
from ppgen.errors import CheckpointError
from ppgen.evaluation.simulated import samples_of
from ppgen.objectives import GAN
from ppgen.runs import Run

DECAY = 0.9


def normalised(*, critic_steps: int = 1, **options: Any) -> Trainer:
    """A game of a generator with batch normalisation, on numbers far from 0."""
    torch.manual_seed(0)
    network = nn.generator([2], (3,), hidden=(8,), normalization="batch")
    objective = GAN(nn.critic((3,), hidden=(8,), normalization="batch"), critic_steps=critic_steps)
    optimizer = functools.partial(torch.optim.SGD, lr=0.05)
    settings: Any = {"average": DECAY, "device": "cpu", "compile": "off", **options}
    return Trainer(models.Generator(network, (3,), 2), Nothing(), objective, optimizer, **settings)


def rows() -> dict[str, Tensor]:
    return {"x": 3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) + 5}


def trained(steps: int = 12, **options: Any) -> Trainer:
    trainer = normalised(**options)
    list(trainer.fit(rows(), steps=steps))
    return trainer


STATISTICS = ["running_mean", "running_var"]


def statistics(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in trainer._buffers.items() if name.endswith(tuple(STATISTICS))}


def network_of(trainer: Trainer) -> torch.nn.Module:
    model: Any = trainer.model
    network: torch.nn.Module = model.network
    return network


def latents() -> Tensor:
    return torch.randn(20, 2, generator=torch.Generator().manual_seed(2))


def drawn(trainer: Trainer) -> Tensor:
    """What the model draws in evaluation, always of the same latents."""
    with trainer.evaluating():
        found: Tensor = network_of(trainer)(latents())
    return found.clone()


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_statistics_follow_the_formula_of_the_weights(critic_steps: int) -> None:
    trainer = normalised(critic_steps=critic_steps)
    trainer.setup(rows())
    expected = {name: tensor.clone() for name, tensor in statistics(trainer).items()}
    weights = {name: leaf.detach().clone() for name, leaf in trainer.leaves.items() if name.startswith("model")}
    assert len(expected) == 4
    for step in range(12):
        list(trainer.fit(rows(), steps=1))
        weight = max(1 - DECAY, 9 / (10 + step))
        for name, average in expected.items():
            average += weight * (statistics(trainer)[name] - average)
        for name, average in weights.items():
            average += weight * (trainer.leaves[name].detach() - average)
    own = {name: tensor.clone() for name, tensor in statistics(trainer).items()}
    assert all(not torch.allclose(own[name], average, rtol=1e-3) for name, average in expected.items())  # control
    with trainer.evaluating():
        for name, average in {**expected, **weights}.items():
            torch.testing.assert_close((trainer._buffers | trainer.leaves)[name].detach(), average)
    assert all(torch.equal(tensor, own[name]) for name, tensor in statistics(trainer).items())


def test_draws_of_averaged_weights_are_those_with_their_own_statistics() -> None:
    trainer = trained()
    network, average = network_of(trainer), trainer._average.tensors
    prefix = "model.network."
    by_hand = nn.generator([2], (3,), hidden=(8,), normalization="batch").eval()
    names = dict(by_hand.named_parameters()) | dict(by_hand.named_buffers())
    by_hand.load_state_dict({name: average.get(prefix + name, tensor) for name, tensor in names.items()})
    with torch.no_grad():
        own = by_hand(latents()).clone()
        raw = {name: tensor for name, tensor in network.named_buffers() if name.endswith(tuple(STATISTICS))}
        by_hand.load_state_dict(raw, strict=False)
        with_raw = by_hand(latents())
    torch.testing.assert_close(drawn(trainer), own)
    assert (drawn(trainer) - with_raw).abs().max() > 1e-3  # control


def test_a_state_holds_and_restores_the_statistics() -> None:
    trainer = trained(6)
    state = trainer.state_dict()
    assert {name for name in state["average"] if name.endswith(tuple(STATISTICS))} == statistics(trainer).keys()
    other = normalised()
    for one in (trainer, other):
        one.load_state_dict(state)
        list(one.fit(rows(), steps=6))
    assert torch.equal(drawn(trainer), drawn(other))
    assert all(torch.equal(other._average.tensors[name], tensor) for name, tensor in trainer._average.tensors.items())


def test_a_state_of_an_older_version_is_read_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained()
    state = trainer.state_dict()
    state["average"] = {name: tensor for name, tensor in state["average"].items() if "running_" not in name}
    other = normalised()
    other.setup(rows())
    other.load_state_dict(state)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "of an older version, without averages of running statistics" in said[0]
    raw = statistics(trainer)
    assert all(torch.equal(other._average.tensors[name], tensor) for name, tensor in raw.items())
    del state["average"][next(name for name in state["average"] if name.startswith("model"))]
    with pytest.raises(CheckpointError, match="the checkpoint is of another program: parameters differ"):
        other.load_state_dict(state)


def test_without_an_average_nothing_is_kept() -> None:
    trainer = trained(average=None)
    assert trainer._average.tensors == {}
    with torch.no_grad():
        expected = network_of(trainer).eval()(latents())
    assert torch.equal(drawn(trainer), expected)


def test_a_phase_that_is_left_out_leaves_no_trace_in_the_average() -> None:
    trainer = trained(3, nonfinite="skip")
    before = {name: tensor.clone() for name, tensor in trainer._average.tensors.items()}
    list(trainer.fit({"x": torch.full((50, 3), torch.nan)}, steps=1))
    assert trainer.skipped > 0
    critic = [name for name in before if name.startswith("objective") and "running_" not in name]
    assert all(torch.equal(trainer._average.tensors[name], before[name]) for name in critic)
    assert all(tensor.isfinite().all() for tensor in trainer._average.tensors.values())


def test_spectral_norms_vectors_are_no_statistics() -> None:
    torch.manual_seed(0)
    network = nn.generator([2], (3,), hidden=(8,), normalization="spectral")
    pair: Any = (models.Generator(network, (3,), 2), Nothing(), GAN(nn.critic((3,), hidden=(8,))))
    trainer = Trainer(*pair, average=DECAY, device="cpu", compile="off")
    list(trainer.fit(rows(), steps=3))
    assert trainer._average.tensors.keys() == trainer.leaves.keys()
    assert len(trainer._buffers) > 0


@pytest.mark.slow
def test_a_compiled_step_averages_as_an_eager_one() -> None:
    eager, compiled = trained(12), trained(12, compile="on")
    assert compiled.compiled
    for name, tensor in eager._average.tensors.items():
        torch.testing.assert_close(compiled._average.tensors[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_samples_what_a_straight_one_does(tmp_path: Path) -> None:
    config = tiny("dcgan", options={"average": DECAY}, steps=20)
    runs: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        reports_and_checkpoints(patch, reports=4, checkpoints=4)
        for name, stops in (("straight", []), ("stopped", [7])):
            for stop in stops:
                go_on(tmp_path / name, config, until=stop)
            runs.append(go_on(tmp_path / name, config))
    one, other = (samples_of(run.trainer, run.data, 10) for run in runs)
    assert torch.equal(one, other)
    assert any("running_var" in name for name in runs[0].trainer.state_dict()["average"])
