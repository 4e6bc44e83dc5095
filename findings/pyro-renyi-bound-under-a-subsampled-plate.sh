#!/usr/bin/env bash
# Pyro's RenyiELBO takes the scale N/B of a subsampled plate into the logarithm.
#
# One would guess: as Trace_ELBO does, RenyiELBO multiplies the bound of the rows seen by N/B, so that 4 of 40 rows give ten
# times the bound of these 4, an unbiased estimate of the bound of all.
#
# What happens: every log weight is multiplied by N/B before the average over particles, so what is computed is the log of
# an average of weights to the power 10. With ten particles the estimate is 2.3 per seen unit instead of 6.8, which lies
# far beyond log p itself (exact: 6.2): no bound any more, and its optimum is no maximum of any likelihood.
#
# It matters to whoever trains an importance-weighted autoencoder in Pyro with subsample_size: the reported bound looks
# better the smaller the batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pyro-ppl==1.9.2
"$folder/env/bin/python" - <<'PYTHON'
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO

K, REPEATS = 10, 3000
x = torch.tensor([0.5, -1.0, 2.0, 0.1])


def model(size):
    with pyro.plate("data", size, subsample_size=4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(size):
    with pyro.plate("data", size, subsample_size=4):
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.5))


torch.manual_seed(0)
bound = RenyiELBO(alpha=0.0, num_particles=K, vectorize_particles=True, max_plate_nesting=1)
whole, part = (sum(bound.loss(model, guide, size) for _ in range(REPEATS)) / REPEATS for size in (4, 40))
exact = -float(dist.Normal(0.0, 1.25**0.5).log_prob(x).sum())
print(f"pyro {pyro.__version__}, torch {torch.__version__}")
print(f"4 of 4 rows: {whole:.2f}; 4 of 40 rows, over ten: {part / 10:.2f}; exact -log p of the four {exact:.2f}")
assert exact < whole < 7.2 and part / 10 < 0.5 * exact
PYTHON
