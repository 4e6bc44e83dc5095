#!/usr/bin/env bash
# Two of five float32 draws of torch's Gamma(0.01, 1) are one and the same number.
#
# One would guess: a draw of a small shape may be tiny, and float32, which reaches down to 1e-38 (1e-45 denormal), holds most
# of them.
#
# What happens: with shape a, a draw lies below t with a probability near t**a: at 0.01 that is 42 % for the smallest
# normal float32. torch clamps all of these to that number, 1.1755e-38, whose log density and gradient are then those of
# another point. In float64 it is 0.1 %. The mean of log x is -58.6 where digamma(0.01) = -100.6.
#
# It matters to sparse Dirichlet and Gamma guides (topic models): loss and gradient are off by tens of percent, no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.distributions import Gamma

print(f"torch {torch.__version__}")
exact = torch.digamma(torch.tensor(0.01, dtype=torch.float64)).item()
for dtype, low, high in ((torch.float32, 0.40, 0.45), (torch.float64, 0.0, 0.01)):
    torch.manual_seed(0)
    drawn = Gamma(torch.tensor(0.01, dtype=dtype), torch.tensor(1.0, dtype=dtype)).sample((100_000,))
    share = (drawn == torch.finfo(dtype).tiny).double().mean().item()
    mean = drawn.double().log().mean().item()
    print(f"{dtype}: {share:.1%} are {torch.finfo(dtype).tiny:.4e}; the mean logarithm is {mean:.1f}, exactly {exact:.1f}")
    assert low < share < high
PYTHON
