#!/usr/bin/env bash
# Pyro's AutoNormalMessenger starts at infinity for a HalfCauchy scale, where AutoNormal starts at a number.
#
# One would guess: the two mean-field autoguides differ in how they are built (one by running the model, one as a handler
# of it), and start alike: near the prior's median, or wherever the ELBO is finite.
#
# What happens: AutoNormal searches for a start at which the model's density is finite. The messenger takes the prior's
# mean where there is one to ask for, and falls back to the median only if asking raises or gives NaN. The mean of a
# HalfCauchy is infinite, which is neither: the location is infinite, the first loss is not a number, and the second
# step raises for a parameter that is NaN, with no word about the start.
#
# It matters to whoever turns a hierarchical model over to the messenger guides: a HalfCauchy on the group scale is the
# textbook prior there. init_loc_fn=init_to_median cures it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pyro-ppl==1.9.2
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger, init_to_median

y = torch.tensor([0.5, -1.0, 2.0, 0.1])


def model():
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("groups", 4):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def first_loss(kind, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = kind(model, **options)
    loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).evaluate_loss()
    starts = [float(value) for name, value in guide.named_parameters() if "loc" in name]
    return loss, starts


print(f"pyro {pyro.__version__}, torch {torch.__version__}")
found = {
    "AutoNormal": first_loss(AutoNormal),
    "AutoNormalMessenger": first_loss(AutoNormalMessenger),
    "AutoNormalMessenger, init_to_median": first_loss(AutoNormalMessenger, init_loc_fn=init_to_median),
}
for name, (loss, starts) in found.items():
    print(f"{name}: loss {loss:.3f}, location {starts}")
losses = [loss for loss, _ in found.values()]
assert math.isfinite(losses[0]) and not math.isfinite(losses[1]) and math.isfinite(losses[2])
assert found["AutoNormalMessenger"][1] == [math.inf]
PYTHON
