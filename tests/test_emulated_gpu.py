"""Every recipe on an emulated GPU: nothing is left behind on the CPU, and no step makes the host wait.

What only a real one shows (kernels, streams, captured graphs) is in test_cuda.py.
"""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from emulated_gpu import CUDA, OnDevice, emulated
from run_helpers import GAMES, TINY, tiny
from torch import Tensor, nn

from ppgen import ELBO, Trainer
from ppgen.packing import pack, unpack
from ppgen.runs import Run

READING = {"wgan"}
"""Recipes whose optimizer, RMSprop, reads its learning rate for every tensor, where torch does not take all at once."""


@pytest.mark.parametrize("recipe", sorted(TINY | GAMES))
def test_a_recipe_trains_and_no_step_waits(tmp_path: Path, recipe: str) -> None:
    with emulated() as device:
        run = Run.create(tiny(recipe, steps=4).model_copy(update={"device": "cuda"}), tmp_path / "run")
        assert isinstance(run.trainer, Trainer)
        for step in range(1, 4):
            if step == 2:  # in the first one optimizers make their state, and what is looked at once is looked at
                device.waits.clear()
            run.trainer.step(run.batches)
        assert recipe in READING or not device.waits
        run.trainer.check_finite()
        assert all(isinstance(leaf, OnDevice) for leaf in run.trainer.leaves.values())


class Pair(nn.Module):
    """A linear VAE with something wrong in it, if asked for."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.wrong = wrong
        self.left_behind = torch.zeros(3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), device=x.device), 1.0))
            loc = z.unsqueeze(-1) * self.weight
            if self.wrong == "a tensor":
                loc = loc + self.left_behind
            if self.wrong == "a read":
                loc = loc * self.weight.detach().sum().item()
            if self.wrong == "a stack":
                torch.stack([self.weight.sum(), torch.zeros(())])
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros((), device=x.device))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x)]))


def trained(wrong: str, **options: Any) -> Trainer:
    trainer = Trainer(Pair(wrong), guide, ELBO(), device="cuda", compile="off", **options)
    batches = iter(lambda: {"x": torch.ones(4, 3)}, None)
    for _ in range(3):
        trainer.step(batches)
    return trainer


@pytest.mark.parametrize("wrong", ["a tensor", "a stack"])
def test_what_stays_on_the_cpu_is_refused(wrong: str) -> None:
    with emulated(), pytest.raises(RuntimeError, match="same device"):
        trained(wrong)


def test_a_read_by_the_host_is_noticed() -> None:
    waits = {}
    for wrong in ("", "a read"):
        with emulated() as device:
            trained(wrong)
            waits[wrong] = device.waits.total()
    assert waits["a read"] >= waits[""] + 3


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_judging_takes_whole_float32_products(precision: str) -> None:
    allowed = []
    with emulated():
        trainer = trained("", precision=precision)
        assert torch.backends.cudnn.allow_tf32, "torch's own default"
        with trainer.evaluating():
            allowed += [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]
    assert allowed == [False, False]
    assert torch.backends.cudnn.allow_tf32


def test_the_device_has_a_random_stream_of_its_own() -> None:
    with emulated():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        one = torch.randn(3, device="cuda")
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(0)
        assert torch.equal(torch.randn(3, device="cuda").cpu(), one.cpu())
        assert one.device == CUDA


def test_a_state_goes_from_one_device_to_the_other_and_back() -> None:
    """Step counters lie on a GPU where it trains, and on the CPU where it does not."""
    with emulated():
        there = trained("").state_dict()
        counters = [moment["step"] for moment in there["players"]["all"]["optimizer"]["state"].values()]
        assert all(isinstance(counter, OnDevice) for counter in counters)
        taken = _on_cpu(there)
    batches = iter(lambda: {"x": torch.ones(4, 3)}, None)
    here = Trainer(Pair(), guide, ELBO(), device="cpu", compile="off")
    here.load_state_dict(taken)
    here.step(batches)
    assert here.steps == 4
    kept = here.state_dict()
    with emulated():
        again = Trainer(Pair(), guide, ELBO(), device="cuda", compile="off")
        again.load_state_dict(kept)
        again.step(batches)
        assert again.steps == 5
        assert all(isinstance(leaf, OnDevice) for leaf in again.leaves.values())


def _on_cpu(state: dict[str, Any]) -> Any:
    tensors, rest = pack(state)
    return unpack({name: tensor.cpu() for name, tensor in tensors.items()}, rest)
