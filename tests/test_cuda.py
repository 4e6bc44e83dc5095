"""What only a GPU can show; skipped where there is none."""

import copy
import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import binary_rows, small_m2, small_vae

from ppgen.objectives import ELBO, EnumeratedELBO
from ppgen.precision import choose_precision
from ppgen.training import Trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch's compiler recommends settings
]
adam = functools.partial(torch.optim.Adam, lr=0.01)


def batches() -> Iterator[dict[str, Tensor]]:
    while True:
        yield from ({"x": binary_rows(24, seed=seed)} for seed in range(4))


def trained(pair: Any, objective: Any, *, device: str, steps: int = 12, **options: Any) -> tuple[Trainer, list[float]]:
    torch.manual_seed(0)
    model, guide = copy.deepcopy(pair)
    trainer = Trainer(model, guide, objective, adam, device=device, **options)
    drawn = batches()
    losses = [float(trainer.step(drawn)["loss"]) for _ in range(steps)]
    return trainer, losses


@pytest.mark.parametrize("name", ["vae", "m2"])
def test_a_captured_step_equals_an_eager_one(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    pair = small_vae() if name == "vae" else small_m2()
    objective = ELBO if name == "vae" else EnumeratedELBO
    eager, losses = trained(pair, objective(), device="cuda", compile="off")
    captured, found = trained(pair, objective(), device="cuda", compile="on")
    assert captured.compiled
    assert "captured" not in caplog.text
    torch.testing.assert_close(found, losses, rtol=1e-3, atol=1e-3)
    for key, leaf in eager.leaves.items():
        torch.testing.assert_close(captured.leaves[key], leaf, rtol=1e-2, atol=1e-2)


def test_a_gpu_gives_what_a_cpu_gives() -> None:
    """In the mean over many particles, since the two draw different noise."""
    pair = small_m2()
    means = {}
    for device in ("cpu", "cuda"):
        _, losses = trained(pair, EnumeratedELBO(particles=200), device=device, steps=30, compile="off")
        means[device] = sum(losses[-10:]) / 10
    assert means["cuda"] == pytest.approx(means["cpu"], rel=0.02)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_low_precision_trains_and_leaves_torchs_settings_alone(precision: str) -> None:
    if choose_precision("auto", torch.device("cuda")) == "fp32":
        pytest.skip("needs compute capability 8.0")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _, exact = trained(small_vae(), ELBO(), device="cuda", compile="off")
    _, losses = trained(small_vae(), ELBO(), device="cuda", compile="off", precision=precision)
    torch.testing.assert_close(losses, exact, rtol=5e-2, atol=5e-2)
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
