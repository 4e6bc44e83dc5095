#!/usr/bin/env bash
# The ELBO of Pyro's AutoNormal for a model with obs_mask has no bottom.
#
# One would guess: pyro.sample(..., obs=x, obs_mask=known) makes the values that are not known latent, AutoNormal draws
# them, and the loss is the ELBO of the rest.
#
# What happens: the model's latent counts where the value is not known, and the guide's counts everywhere. Where the value
# is known the guide's log density stands alone in the loss, which its scale lowers without end: after 3,000 steps on two
# rows the loss is about -3 (the exact negative evidence is +1.43), the scale of the known row's "unobserved" value above 40
# and growing.
#
# It matters to whoever imputes with an autoguide: the loss looks ever better, and never converges.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pyro-ppl==1.9.2
"$folder/env/bin/python" - <<'PYTHON'
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal


def model():
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        known = torch.tensor([True, False])
        pyro.sample("x", dist.Normal(z, 0.5), obs=torch.tensor([1.0, 0.0]), obs_mask=known)


torch.manual_seed(0)
guide = AutoNormal(model)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
losses = [svi.step() for _ in range(4000)]
early, late = (sum(losses[start : start + 200]) / 200 for start in (800, 3800))
exact = -float(dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(1.0)))
scales = guide.scales.x_unobserved.tolist()
print(f"pyro {pyro.__version__}, torch {torch.__version__}")
print(f"exact -log p {exact:.2f}; loss about step 900 {early:.2f}, about step 3,900 {late:.2f}; scales {scales}")
assert late < early - 1 and late < 0 < exact and scales[0] > 20 > scales[1]
PYTHON
