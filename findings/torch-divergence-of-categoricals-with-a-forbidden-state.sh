#!/usr/bin/env bash
# torch's KL divergence of Categoricals has a NaN gradient where a state is forbidden, though its value is right.
#
# One would guess: a logit of minus infinity forbids a state, as in masked attention; the state adds 0 to the divergence
# and 0 to its gradient.
#
# What happens: the value is finite and right. The backward pass multiplies 0 by infinity, and the gradients of all logits
# are NaN, allowed ones too. The same divergence written as sum(p * (log p - log q)) over the allowed states has the right
# gradient.
#
# It matters to whoever trains a discrete guide with masked logits through an analytic KL term (TraceMeanField_ELBO takes
# this one): the loss that is printed looks sound, and the parameters are NaN after one step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.distributions import Categorical, kl_divergence

logits = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
divergence = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(3)))
(gradient,) = torch.autograd.grad(divergence, logits)
allowed = logits.detach()[:2].requires_grad_()
by_hand = (allowed.softmax(0) * (allowed.log_softmax(0) + torch.tensor(3.0).log())).sum()
(right,) = torch.autograd.grad(by_hand, allowed)
print(f"torch {torch.__version__}")
print(f"divergence {divergence.item():.4f}, by hand {by_hand.item():.4f}")
print(f"gradient {gradient.tolist()}, by hand {[round(v, 4) for v in right.tolist()]}")
assert abs(divergence.item() - by_hand.item()) < 1e-6 and gradient.isnan().all() and right.isfinite().all()
PYTHON
