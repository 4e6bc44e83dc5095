"""Running the command line inside a test."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ppgen
from ppgen.cli import run

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ppgen.__file__).parents[1])}


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document; an error if there is anything else on it."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> str:
        """The one line that begins with "Error"."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error")]
        assert len(lines) == 1, self.err
        return lines[0]


def command(*arguments: object) -> Done:
    """Runs `ppgen ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def process(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Starts `ppgen ARGUMENTS` as a process of its own, apart from this one's signals, as a terminal would."""
    line = [sys.executable, "-m", "ppgen", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, start_new_session=True, **options
    )


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in a folder."""
    files = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {str(path): (found.st_size, found.st_mtime_ns) for path, found in files.items()}


QUICK = ["--compile", "off", "--set", "hidden=16", "--set", "evaluation_particles=3"]

MY_MODEL = '''
import pyro, pyro.distributions as dist, torch
from pyro.distributions import constraints
from torch import nn
from ppgen import ELBO

def regression(data, *, spread: float = 10.0):
    """Linear regression of the column target on x."""
    def model(x, target=None):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[-1]), spread).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("target", dist.Normal(x @ weights, 0.5), obs=target)

    def guide(x, target=None):
        loc = pyro.param("loc", torch.zeros(x.shape[-1]))
        scale = pyro.param("scale", torch.ones(x.shape[-1]), constraint=constraints.positive)
        pyro.sample("weights", dist.Normal(loc, scale).to_event(1))

    return model, guide, ELBO()

class Model(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.decoder = nn.Linear(2, size)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z).unflatten(-1, x.shape[1:])
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(x.dim() - 1), obs=x)

class Guide(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.encoder = nn.Linear(size, 4)

    def forward(self, x):
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

def small_vae(data):
    size = data.train["x"][0].numel()
    return Model(size), Guide(size), ELBO()

def fails(data):
    return small_vae(data)[5]
'''
