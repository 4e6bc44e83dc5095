#!/usr/bin/env bash
# Pyro's RenyiELBO trains a discrete guide with a gradient of exactly zero, without a word.
#
# One would guess: a guide whose draws have no reparametrized sampler is refused, or gets a score-function gradient, as
# with Trace_ELBO, whose surrogate has one.
#
# What happens: the loss is right, and loss_and_grads leaves a gradient of 0.0 on the guide's probability: the draw of a
# Bernoulli has no derivative, its log probability cancels, and no score term is added. Training runs, the loss falls as
# far as the model alone can take it, and the guide stays where it began.
#
# It matters to whoever swaps Trace_ELBO for the importance-weighted bound in a model with discrete latents.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pyro-ppl==1.9.2
"$folder/env/bin/python" - <<'PYTHON'
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch.distributions import constraints

x = torch.tensor([0.5, -1.0, 2.0, 0.1])


def model():
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)


def guide():
    p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Bernoulli(p))


def gradient(objective):
    pyro.clear_param_store()
    torch.manual_seed(0)
    objective.loss_and_grads(model, guide)
    return float(pyro.param("p").unconstrained().grad)


renyi, elbo = (
    gradient(kind(num_particles=5000, vectorize_particles=True, max_plate_nesting=1, **options))
    for kind, options in ((RenyiELBO, {"alpha": 0.0}), (Trace_ELBO, {}))
)
print(f"pyro {pyro.__version__}, torch {torch.__version__}")
print(f"gradient for the guide's probability: RenyiELBO(alpha=0) {renyi}, Trace_ELBO {elbo:.2f}")
assert renyi == 0 and elbo > 1
PYTHON
