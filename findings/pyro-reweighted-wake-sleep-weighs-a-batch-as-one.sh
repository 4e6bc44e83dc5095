#!/usr/bin/env bash
# Pyro's ReweightedWakeSleep gives a batch one importance weight, not one to each of its rows.
#
# One would guess: in a model whose rows are independent within a vectorized pyro.plate, each row has importance weights
# of its own, as in the paper (Bornschein and Bengio, 2014, arXiv:1406.2751) and as Pyro's RenyiELBO(alpha=0) has it. The
# wake loss of K particles is then the importance-weighted bound of every row, summed.
#
# What happens: log weights are summed over the plate first, so that K particles are K whole batches. On four rows with
# K = 10 the wake loss is about 10 nats, where the bound of rows is 6.8 and the exact -log p 6.2. The larger the batch,
# the more a single particle takes all the weight, and the nearer the loss comes to the plain ELBO.
#
# It matters to whoever trains a wake-sleep guide in minibatches: more particles do next to nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pyro-ppl==1.9.2
"$folder/env/bin/python" - <<'PYTHON'
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ReweightedWakeSleep

K, REPEATS = 10, 1000
x = torch.tensor([0.5, -1.0, 2.0, 0.1])


def model(observations=None):
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(observations=None):
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Normal(0.0, 1.5))


def bound(of_rows):
    proposal = dist.Normal(0.0, 1.5)
    z = proposal.sample((REPEATS, K, 4))
    weights = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(x) - proposal.log_prob(z)
    weights = weights if of_rows else weights.sum(-1, keepdim=True)
    return -float((weights.logsumexp(1) - torch.tensor(float(K)).log()).sum(-1).mean())


torch.manual_seed(0)
loss = ReweightedWakeSleep(num_particles=K, insomnia=1.0, max_plate_nesting=1)
found = sum(float(loss.loss(model, guide)[0]) for _ in range(REPEATS)) / REPEATS
rows, one = bound(True), bound(False)
exact = -float(dist.Normal(0.0, 1.25**0.5).log_prob(x).sum())
print(f"pyro {pyro.__version__}, torch {torch.__version__}")
print(f"wake loss {found:.2f}; rows weighed one by one {rows:.2f}, as one {one:.2f}; exact -log p {exact:.2f}")
assert abs(found - one) < 0.6 and found > rows + 2
PYTHON
