#!/usr/bin/env bash
# poutine.uncondition draws a pyro.deterministic of a plate anew, with the plate's dimension twice.
#
# One would guess: poutine.uncondition frees what is data. A pyro.deterministic site is no data; it stays what was
# computed.
#
# What happens: pyro.deterministic is an observed Delta whose own shape is that of the value. uncondition takes the
# observation away, the site is sampled, and the plate expands the Delta, which counts its dimension among the event's: in a
# plate of 6 the value has shape (6, 6), and so has all that is computed from it, data included.
#
# It matters to whoever generates data by unconditioning the model that was trained, one with a named intermediate value in
# the data plate: no error, only a wrong shape, which then broadcasts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pyro-ppl==1.9.2
"$folder/env/bin/python" - <<'PYTHON'
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine


def model(x):
    with pyro.plate("data", 6):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        z = pyro.deterministic("named", z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


conditioned, free = (
    poutine.trace(program).get_trace(torch.zeros(6)).nodes for program in (model, poutine.uncondition(model))
)
print(f"pyro {pyro.__version__}, torch {torch.__version__}")
for site in ("named", "x"):
    print(f"{site}: {tuple(conditioned[site]['value'].shape)}, unconditioned {tuple(free[site]['value'].shape)}")
    assert conditioned[site]["value"].shape == (6,) and free[site]["value"].shape == (6, 6)
PYTHON
