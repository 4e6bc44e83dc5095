"""What a run notices while it trains adversaries: lost modes, saturated and blind critics, how samples change."""

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pyro
import pyro.distributions as dist
import pytest
import torch
from own_games import Generator, Nothing
from run_helpers import go_on, records, reports_and_checkpoints, tiny

from ppgen import ELBO, monitoring
from ppgen.configuration import Config
from ppgen.data import load
from ppgen.errors import CheckpointError, StorageError
from ppgen.evaluation import collapse, curves, pictures
from ppgen.evaluation.collapse import CERTAIN, FIRST_STEP, KINDS, PATIENCE, noticed
from ppgen.evaluation.simulated import samples_of
from ppgen.evaluation.validation import spread, validated
from ppgen.models import VAE
from ppgen.nn import MLP, likelihood
from ppgen.runs import Run
from ppgen.training import Trainer

GAME = f"{Path(__file__).with_name('own_games.py')}:game"
Record = dict[str, Any]


def played(folder: Path, *, until: int | None = None, steps: int = 120, **options: Any) -> Run:
    """Plays the game with 12 reports, which all count from step 50 on, and 4 checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        reports_and_checkpoints(patch, reports=12, checkpoints=4)
        patch.setattr(collapse, "FIRST_STEP", 50)
        config: Record = {"compile": "off", "device": "cpu", "data": {"name": "ring"}, "options": options}
        return go_on(folder, Config(recipe=GAME, steps=steps, **config), until=until)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---------------------------------------------------------------------------------------------- games that collapse


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (
            {"scale": 0.01, "mean": 1.0, "critic_rate": 0.1, "plays": False},
            "modes lost",
            "step 100: modes lost: samples lie 0.01",
        ),
        (
            {"mean": 30.0, "critic_rate": 0.1},
            "critic saturated",
            "critic saturated: the critic tells 100.0 % of rows right and ",
        ),
        ({"scale": 0.3, "blind": True}, "critic blind", "has only guessed so far, while samples lie 0."),
        ({"scale": 0.7, "plays": False}, None, ""),
        ({"scale": 0.7, "blind": True}, None, ""),
        ({}, None, ""),
    ],
    ids=["frozen to a point", "disjoint supports", "blind", "frozen but spread", "blind but right", "healthy"],
)
def test_a_collapse_is_named_once(
    options: Record, kind: str | None, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = played(tmp_path / "run", **options)
    found = [record["collapse"] for record in run.folder.metrics() if "collapse" in record]
    assert found == ([] if kind is None else [kind])
    lines = [line for line in warned(caplog) if any(name in line for name in KINDS)]
    assert len(lines) == len(found)
    assert all(said in line and "\n" not in line for line in lines)


def test_a_resumed_run_notices_and_draws_what_a_straight_one_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: Record = {"scale": 0.01, "mean": 1.0, "critic_rate": 0.1, "plays": False}
    played(tmp_path / "straight", **options)
    for stop in (60, 64, 110, None):  # at a checkpoint, within a window, after the collapse was named
        played(tmp_path / "stopped", until=stop, **options)
    assert len([line for line in warned(caplog) if "modes lost" in line]) == 2
    kinds = [[r.get("collapse") for r in records(tmp_path / name)] for name in ("straight", "stopped")]
    assert [kind.count("modes lost") for kind in kinds] == [1, 1]
    drawn = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "samples").iterdir()}
        for name in ("straight", "stopped")
    ]
    assert sorted(drawn[0]) == [f"step-{step:08d}.png" for step in (30, 60, 90, 120)]
    assert drawn[0] == drawn[1]


# ------------------------------------------------------------------------------------------ records, made by hand


def healthy(count: int = 30) -> list[Record]:
    """Reports of a game that goes well, every 100 steps: the critic's lead shrinks, samples fill the ring."""
    return [
        {
            "step": 100 * (i + 1),
            "loss/critic": 1.2 + 0.05 * (-1) ** i,
            "loss/model": 0.9 + 0.05 * (-1) ** i,
            "gradient_norm/critic": 1.0,
            "gradient_norm/model": 1.0 / (i + 1),
            "critic_accuracy": 0.6 + 0.3 / (i + 1),
            "spread": 1.0 - 0.9 / (i + 1),
            "modes": min(8, i),
        }
        for i in range(count)
    ]


def spoilt(last: int, **values: Any) -> list[Record]:
    """Healthy reports, whose last ones have other values; a function of how long it lasts stands for its value."""
    found = healthy()
    for age, record in enumerate(found[-last:]):
        changed = {name.replace("__", "/"): v(age) if callable(v) else v for name, v in values.items()}
        record.update(changed)
    return found


growing: Callable[[int], float] = lambda age: 5.0 + age  # noqa: E731

CASES: dict[str, tuple[list[Record], str | None]] = {
    "healthy": (healthy(), None),
    "no records": ([], None),
    "spread falls": (spoilt(PATIENCE, spread=0.29), "modes lost"),
    "spread falls too shortly": (spoilt(PATIENCE - 1, spread=0.29), None),
    "spread falls too little": (spoilt(PATIENCE, spread=0.31), None),
    "three of eight modes": (spoilt(3, modes=3), "modes lost"),
    "four of eight modes": (spoilt(3, modes=4), None),
    "three of eight modes twice": (spoilt(2, modes=3), None),
    "vanishing gradient": (spoilt(CERTAIN, critic_accuracy=1.0, gradient_norm__model=9e-4), "critic saturated"),
    "vanishing gradient, unsure critic": (spoilt(CERTAIN, critic_accuracy=0.98, gradient_norm__model=9e-4), None),
    "sure critic, gradient left": (spoilt(CERTAIN, critic_accuracy=1.0, gradient_norm__model=2e-3), None),
    "sure critic too shortly": (spoilt(CERTAIN - 1, critic_accuracy=1.0, gradient_norm__model=9e-4), None),
    "growing loss": (spoilt(CERTAIN, critic_accuracy=1.0, loss__model=growing), "critic saturated"),
    "growing loss of the critic": (spoilt(CERTAIN, critic_accuracy=1.0, loss__critic=growing), None),
    "a critic of several": (spoilt(CERTAIN, critic_accuracy=1.0, **{"loss__critic_z": growing}), None),
    "guesses, wrong spread": (spoilt(30, critic_accuracy=0.505, spread=2.5), "critic blind"),
    "guesses, right spread": (spoilt(30, critic_accuracy=0.505, spread=1.0), None),
    "guesses, but not from the start": (spoilt(29, critic_accuracy=0.505, spread=2.5), None),
    "not finite": (spoilt(30, critic_accuracy=None, spread=None, modes=None), None),
    "no critic at all": ([{"step": 100 * i, "loss": 1.0 + i} for i in range(30)], None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_records_show(case: str) -> None:
    found, kind = CASES[case]
    what = noticed(found)
    assert (what.kind if what else None) == kind
    if found and kind:
        assert what is not None
        assert what.remedy
        assert noticed([{**found[0], "collapse": kind}, *found[1:]]) is None, "it is named once"
        assert noticed([{**found[0], "collapse": "another"}, *found[1:]]) == what
        early = [{**record, "step": FIRST_STEP - len(found) + i} for i, record in enumerate(found)]
        assert noticed(early) is None, "nothing counts before there was time to learn"


# ----------------------------------------------------------------------------------------------- validation rows


def trainer_of(scale: float, mean: float = 0.0) -> Trainer:
    return Trainer(Generator(2, scale=scale, mean=mean), Nothing(), ELBO(), device="cpu", compile="off")


def test_samples_are_compared_with_validation_rows() -> None:
    ring = load("ring")
    before = torch.get_rng_state()
    found = {scale: validated(trainer_of(scale), ring) for scale in (1e-4, 0.7, 7.0)}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(values.keys() == {"spread", "mmd", "modes", "modes_of_data"} for values in found.values())
    assert all(values["modes_of_data"] == 8 for values in found.values())
    # two draws of N(0, s^2 I) in the plane are s sqrt(pi) apart on average, two rows of the ring 2 cot(pi / 16) / 8;
    # without the tails of the draws, some 6 % less
    exact = {scale: scale * math.sqrt(math.pi) / (0.25 / math.tan(math.pi / 16)) for scale in found}
    assert all(0.8 < found[scale]["spread"] / exact[scale] < 1.05 for scale in found)
    assert found[0.7]["mmd"] < 0.05 < 0.3 < min(found[1e-4]["mmd"], found[7.0]["mmd"])
    assert found[1e-4]["modes"] == 0 < found[0.7]["modes"]


def test_the_spread_of_samples_of_the_data_is_one() -> None:
    x = load("grid").validation["x"]
    one, other = x[:500], x[500:]
    assert abs(spread(one, other) - 1) < 0.05
    assert abs(spread(one, one) - 1) < 1e-12
    assert spread(one[:1].expand(500, 2), other) == 0


def student(degrees: int, size: int, seed: int, rows: int = 300) -> torch.Tensor:
    """Draws of Student's t in every column: of one degree of freedom, Cauchy's, which has no mean distance."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, size, generator=random)
    return normal / torch.randn(rows, size, degrees, generator=random).square().mean(-1).sqrt()


def mean_distance(points: torch.Tensor) -> float:
    return float(torch.pdist(points.double()).mean())


@pytest.mark.parametrize("size", [1, 2, 10, 50])
@pytest.mark.parametrize("degrees", [1, 2, 3])
def test_heavy_tails_are_no_lost_modes(degrees: int, size: int) -> None:
    """Neither of samples from the very distribution, nor of a generator that has its middle without its tails."""
    for seed in range(20):
        rows = student(degrees, size, seed)
        light = 1.4 * torch.randn(300, size, generator=torch.Generator().manual_seed(seed))
        for samples in (student(degrees, size, seed + 100), light):
            assert collapse.LEAST_SPREAD < 0.35 < spread(samples, rows) < collapse.RIGHT_SPREAD[1]
        # what has collapsed is seen
        assert spread(0.05 * student(degrees, size, seed + 100), rows) < 0.15


def test_mean_distances_would_raise_alarms_of_heavy_tails() -> None:
    """Negative control: the mean distance of Cauchy's draws is that of a few of them."""
    found = [mean_distance(student(1, 50, seed + 100)) / mean_distance(student(1, 50, seed)) for seed in range(40)]
    assert sum(value < collapse.LEAST_SPREAD for value in found) >= 3


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_the_spread_of_few_modes_is_that_of_their_mean_distance(name: str) -> None:
    data = load(name)
    x, y, rows = data.test["x"], data.test["y"], data.validation["x"][:300]
    for modes in (1, 2, 3, 4, len(data.classes or ())):
        samples = x[y < modes][:300]
        assert spread(samples, rows) == pytest.approx(mean_distance(samples) / mean_distance(rows), abs=0.02)


def test_columns_that_are_rarely_another_count(tmp_path: Path) -> None:
    rows = torch.eye(50).repeat(6, 1)
    assert spread(rows[:200], rows) == pytest.approx(1.0, abs=0.01)
    assert spread(rows[[0] * 200] + 1e-3 * torch.randn(200, 50), rows) < 0.1


def test_modes_left_are_said_beside_those_of_the_data() -> None:
    lost = [{**record, "modes_of_data": 8} for record in spoilt(3, modes=3)]
    found = noticed(lost)
    assert found is not None
    assert found.evidence == "3 of 8 modes that were covered are left; as many rows of the data cover 8"
    without = noticed(spoilt(3, modes=3))
    assert without is not None
    assert without.evidence == "3 of 8 modes that were covered are left"


def test_a_bernoulli_of_grey_images_is_compared_by_its_means() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(torch.full(x.shape, 0.25)).to_event(3), obs=x)

    trainer = Trainer(model, Nothing(), ELBO(), device="cpu", compile="off")
    digits = load("digits")
    assert samples_of(trainer, digits, 50).unique().tolist() == [0.25]
    grey = VAE(MLP(2, [], 64), likelihood("bernoulli", (1, 8, 8)), 2)
    drawn = samples_of(Trainer(grey, Nothing(), ELBO(), device="cpu", compile="off"), digits, 50)
    assert 0 < drawn.min() < drawn.max() < 1, "a likelihood that scores grey values is one too"
    assert samples_of(trainer, digits.binarized("static"), 50).unique().tolist() == [0.0, 1.0]


def test_a_pair_with_a_density_keeps_its_bound(tmp_path: Path) -> None:
    run = go_on(tmp_path / "run", tiny("vae"), until=5)
    keys = run.folder.metrics()[-1].keys()
    assert "validation_bound" in keys
    assert not {"spread", "mmd", "modes", "collapse"} & keys


# ------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("data", ["ring", "digits"])
def test_samples_over_time_differ_by_what_was_learnt_alone(tmp_path: Path, data: str) -> None:
    dataset = load(data)
    values = dataset.train["x"][0].numel()
    pairs = [Trainer(Generator(values, scale=s, mean=0.5), Nothing(), ELBO(), device="cpu") for s in (0.1, 0.1, 0.2)]
    one, same, other = (pictures.snapshot(pair, dataset, title="step 1") for pair in pairs)
    assert one == same
    assert one != other
    (tmp_path / "one.png").write_bytes(one)
    assert matplotlib.image.imread(tmp_path / "one.png").std() > 0.01


def test_two_values_are_drawn_over_the_data(tmp_path: Path) -> None:
    ring = load("ring")
    pictures.samples(trainer_of(0.1), ring, tmp_path / "samples.png")
    shown = matplotlib.image.imread(tmp_path / "samples.png")[..., :3]
    red, green, blue = (shown[..., channel] for channel in range(3))
    assert int((red - blue > 0.3).sum()) > 500, "samples"
    assert int(((abs(red - 0.72) < 0.02) & (abs(green - 0.77) < 0.02) & (abs(blue - 0.81) < 0.02)).sum()) > 500, "data"


def test_a_picture_of_all_samples_outside_says_so() -> None:
    ring = load("ring")
    assert pictures.snapshot(trainer_of(0.1, 30.0), ring, title="") != pictures.snapshot(
        trainer_of(0.1), ring, title=""
    )
    figure = pictures._points(ring.test["x"][:10], ring.test["x"][:10] + 30, title="", steady=True)
    assert figure.axes[0].get_xlabel() == "10 of 10 generated lie outside"


def test_an_empty_guide_has_no_reconstructions_and_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawn = pictures.draw_all(trainer_of(0.1), load("ring"), [], tmp_path)
    assert [path.name for path in drawn] == ["samples.png", "training.png"]
    assert warned(caplog) == []


def test_a_link_in_place_of_the_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "run/samples")
    with pytest.raises(CheckpointError, match=r"samples; got a symbolic link, which is refused"):
        monitoring.draw_samples(trainer_of(0.1), load("ring"), tmp_path / "run", step=7)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = load("ring")
    path = monitoring.draw_samples(trainer_of(0.1), ring, tmp_path, step=7)
    assert path == tmp_path / "samples/step-00000007.png"
    old = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"step-00000007.png: No space left.*ppgen resume") as caught:
        monitoring.draw_samples(trainer_of(0.5), ring, tmp_path, step=7)
    monkeypatch.undo()
    assert caught.value.exit_code == 6
    assert path.read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["samples"]


def test_a_program_that_cannot_generate_trains_without_samples(tmp_path: Path) -> None:
    def model(x: torch.Tensor) -> None:
        raise RuntimeError("no")

    trainer = Trainer(model, Nothing(), ELBO(), device="cpu", compile="off")
    assert monitoring.draw_samples(trainer, load("ring"), tmp_path, step=7) is None
    assert os.listdir(tmp_path) == []


def test_curves_of_players_share_panels_where_they_are_compared(tmp_path: Path) -> None:
    found = [{**record, "critic_real": 1.0, "critic_fake": -1.0} for record in spoilt(3, modes=3)]
    found[-1]["collapse"] = "modes lost"
    groups = curves.grouped(curves.curves_of(found))
    assert {title: list(lines) for title, lines in groups.items()} == {
        "loss of the critic": ["loss/critic"],
        "loss of the model": ["loss/model"],
        "spread": ["spread"],
        "modes": ["modes"],
        "gradient norm": ["critic", "model"],
        "critic accuracy": ["critic_accuracy"],
        "critic output": ["data", "model"],
    }
    assert curves.collapses(found) == [(3000, "modes lost")]
    curves.training(found, tmp_path / "with.png")
    curves.training(healthy(), tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    alone = curves.grouped({"loss": [(1, 1.0)], "gradient_norm": [(1, 1.0)]})
    assert list(alone) == ["loss", "gradient norm"]
