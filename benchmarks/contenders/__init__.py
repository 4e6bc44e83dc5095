"""Every way to train a work, by name."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.works import Work


@dataclass(frozen=True)
class Contender:
    """One way to train the works of some kinds.

    Attributes:
        name: what the user types.
        label: what the table says.
        by_kind: the function that builds its step, as "module:function" of this package, by kind of work.
        needs: libraries that must be installed.
        trains: False for what only does a part of the arithmetic and has no loss.
        rounding: share of the loss by which coarser arithmetic may move it.
        chunk: steps that it takes at a call.
        drift: share of the loss by which noisier gradients may move it in a few steps.
    """

    name: str
    label: str
    by_kind: dict[str, str]
    needs: tuple[str, ...] = ()
    trains: bool = True
    rounding: float = 0.0
    drift: float = 0.0
    chunk: int = 1

    def missing(self) -> tuple[str, ...]:
        """Returns the libraries it needs that are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)

    def build(self, work: Work) -> Callable[[], Any]:
        """Returns its step on a work: takes one (or a chunk), waits until it is done, and returns the loss of each."""
        module, _, function = self.by_kind[work.kind].partition(":")
        made: Callable[[], Any] = getattr(importlib.import_module(f"{__name__}.{module}"), function)(work)
        return made


def _both(function: str, **others: str) -> dict[str, str]:
    return {"vae": function, "m2": function, **others}


def _all(function: str, game: str, **others: str) -> dict[str, str]:
    return _both(function, iwae=function, **_games(game), **others)


def _games(function: str) -> dict[str, str]:
    return {"wgan-gp": f"wgan_gp:{function}", "wgan-gp-dcgan": f"wgan_gp:{function}"}


OURS, REFERENCE = "ppgen", "eager"
# ELBOs that take the divergence by Monte Carlo: the same expectation, from gradients with more noise
SAMPLED_DIVERGENCE = 0.02
_CONTENDERS = [
    Contender("ppgen", "ppgen, fp32", _all("own:full", "full", **{"vae-epoch": "epochs:trainer_full"})),
    Contender(
        "ppgen-bf16",
        "ppgen, bf16",
        _all("own:half", "half", **{"vae-epoch": "epochs:trainer_half"}),
        rounding=2e-3,
    ),
    Contender("ppgen-eager", "ppgen, not compiled", _all("own:eager", "uncompiled")),
    Contender("pyro", "Pyro SVI, TraceEnum_ELBO", {"m2": "pyro_svi:enumerated"}, drift=SAMPLED_DIVERGENCE),
    Contender("pyro-jit", "Pyro SVI, JitTraceEnum_ELBO", {"m2": "pyro_svi:jit_enumerated"}, drift=SAMPLED_DIVERGENCE),
    Contender("pyro-trace", "Pyro SVI, Trace_ELBO", {"vae": "pyro_svi:trace"}, drift=SAMPLED_DIVERGENCE),
    Contender("pyro-mean-field", "Pyro SVI, TraceMeanField_ELBO", {"vae": "pyro_svi:mean_field"}),
    Contender("pyro-jit-trace", "Pyro SVI, JitTrace_ELBO", {"vae": "pyro_svi:jit_trace"}, drift=SAMPLED_DIVERGENCE),
    Contender("pyro-renyi", "Pyro SVI, RenyiELBO", {"iwae": "pyro_svi:renyi"}),
    Contender(
        "eager",
        "PyTorch by hand, eager, fused Adam",
        _all("handwritten:eager", "eager", **{"vae-epoch": "epochs:plain"}),
    ),
    Contender("eager-joined", "PyTorch by hand, eager, inputs concatenated", {"m2": "handwritten:eager_joined"}),
    Contender("torch-compile", "PyTorch by hand, torch.compile, fused Adam", _all("handwritten:compiled", "compiled")),
    Contender("numpyro", "NumPyro, jitted", _both("numpyro_svi:build"), needs=("jax", "numpyro")),
    Contender(
        "numpyro-scan",
        "NumPyro, jitted, four steps at a call",
        _both("numpyro_svi:scanned"),
        needs=("jax", "numpyro"),
        chunk=4,  # CHUNK of that module, which needs JAX
    ),
    Contender("pythae", "pythae's trainer", {"vae-epoch": "epochs:pythae_trainer"}, needs=("pythae",)),
    Contender(
        "products",
        "its matrix products alone, fp32",
        _both("products:full", **{"vae-epoch": "epochs:products_full"}),
        trains=False,
    ),
    Contender(
        "products-bf16",
        "its matrix products alone, bf16",
        _both("products:half", **{"vae-epoch": "epochs:products_half"}),
        trains=False,
    ),
]
CONTENDERS = {contender.name: contender for contender in _CONTENDERS}
