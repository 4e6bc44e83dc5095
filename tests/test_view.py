"""The unifying view says of every objective what its players are; the page in the docs is that of the code."""

import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen import Trainer, objectives
from ppgen import nn as networks
from ppgen.objectives import Objective, SemiSupervised, Stock
from ppgen.objectives.adversarial import VALUES
from ppgen.objectives.view import VIEWS, markdown, rows, value_rows

PAGE = Path(__file__).parents[1] / "docs" / "games.md"
WITH_GUIDE = {"BiGAN", "AAE", "AVB", "VAEGAN"}


class Model(nn.Module):
    """A line of two numbers, with a class or a generator that moves it, and noise that is none of the guide's."""

    def __init__(self, *extra: str, noise: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.extra = extra
        self.noise = noise

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for name in self.extra:
                z = z + pyro.sample(name, dist.Categorical(torch.ones(3)), obs=y if name == "y" else None).unsqueeze(-1)
            pyro.sample("x", dist.Normal(self.weight * z, self.noise).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight * x, 1.0).to_event(1))


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        pass


def made(kind: type[Objective]) -> Objective:
    """An objective with a critic of the size that it wants, where it wants one."""
    name = kind.__name__
    if kind is Stock:
        return Stock(pyro.infer.Trace_ELBO())
    if not kind.__module__.startswith("ppgen.objectives.adversarial"):
        return kind()
    outputs = 4 if name in ("ACGAN", "MADGAN") else 1
    inputs: dict[str, Any] = {"others": [2]} if name in ("BiGAN", "AVB") else {}
    shape = (4,) if name == "PacGAN" else (2,)
    critic: Any = networks.critic(shape, outputs=outputs, hidden=(4,), **inputs)
    return kind(critic)  # type: ignore[call-arg]


def test_every_objective_has_a_view() -> None:
    exported = {
        value for value in vars(objectives).values() if isinstance(value, type) and issubclass(value, Objective)
    }
    assert set(VIEWS) == exported - {Objective}


@pytest.mark.parametrize("kind", [kind for kind in VIEWS if kind is not SemiSupervised], ids=lambda kind: kind.__name__)
def test_the_players_are_those_of_the_objective(kind: type[Objective]) -> None:
    name = kind.__name__
    extra = {"ACGAN": ["y"], "MADGAN": ["component"]}.get(name, [])
    adversarial = kind.__module__.startswith("ppgen.objectives.adversarial")
    guide = Guide() if not adversarial or name in WITH_GUIDE or name == "InfoGAN" else Nothing()
    trainer = Trainer(Model(*extra, noise=1.0), guide, made(kind), compile="off")
    trainer.setup({"x": torch.randn(6, 2)})
    assert set(trainer._players) == set(VIEWS[kind].players)
    report, *_ = trainer.fit({"x": torch.randn(6, 2)}, steps=1)
    assert {key.partition("/")[2] or "all" for key in report if key.startswith("loss")} == set(VIEWS[kind].players)


def test_the_page_is_generated_from_the_code() -> None:
    found = re.search(r"<!-- measured: begin -->\n(.*)<!-- measured: end -->", PAGE.read_text(), re.DOTALL)
    assert found is not None
    assert found.group(1).strip() == markdown().strip()


def test_every_player_and_value_function_has_words() -> None:
    assert all(player and minimised for _, player, minimised, _ in rows())
    assert sum(bool(divergence) for *_, divergence in rows()) == len(VIEWS)
    assert [name for name, divergence in value_rows() if divergence] == list(VALUES)
