"""N processes compute what one computes, or say why they cannot; a killed one starts again and ends identical."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import ENVIRONMENT, command
from distributed_worker import ALIKE, REFUSED
from run_helpers import assert_same, outcome

from ppgen.distribution import rows_of
from ppgen.errors import ConfigError
from ppgen.processes import Processes
from ppgen.sharing import Recorder, SharedNoise, Sharing, layouts, shared_draws

WORKER = Path(__file__).with_name("distributed_worker.py")
CLOSE = 1e-6


def launch(count: int, *arguments: object, restarts: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    line = [*launcher, f"--max-restarts={restarts}", *map(str, arguments)]
    variables = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=280, check=False)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What so many processes wrote down of several checks, which they make in one go."""

    @functools.cache
    def by(count: int, *checks: str) -> dict[str, Any]:
        file = tmp_path_factory.mktemp("worker") / "found.json"
        done = launch(count, WORKER, file, *checks)
        assert file.exists(), done.stderr
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    return by


EVERYTHING = (
    *(f"alike:{name}" for name in ALIKE),
    *(f"refused:{name}" for name in REFUSED),
    "unequal:vae",
    "signals:",
)
FEW = ("vae", "m2", "score_function", "game")


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_equal_one(seen: Any, name: str) -> None:
    assert seen(2, *EVERYTHING)[f"alike:{name}"] < CLOSE


@pytest.mark.parametrize("name", FEW)
def test_four_processes_equal_one(seen: Any, name: str) -> None:
    assert seen(4, *(f"alike:{each}" for each in FEW))[f"alike:{name}"] < CLOSE


def test_a_compiled_step_equals_an_eager_one(seen: Any) -> None:
    assert seen(2, "compiled:vae")["compiled:vae"] < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m2", "dropout", "batch_norm", "game"])
def test_every_compiled_step_equals_an_eager_one(seen: Any, name: str) -> None:
    assert seen(2, f"compiled:{name}")[f"compiled:{name}"] < 10 * CLOSE


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_mean", "no mean over independent rows"),
        ("global_latent", "no mean over independent rows"),
        ("permutation", "it draws with randperm, which rows of several processes cannot share"),
        ("uneven", "a batch of 17 rows cannot be divided evenly among 2 processes: use 16"),
        ("independent_noise", "how many random numbers it draws depends on the number of rows"),
        ("minibatch_discrimination", "no mean over independent rows"),
        ("own_statistics", "keeps a statistic of the rows of its own process"),
    ],
)
def test_what_would_not_be_equal_is_refused(seen: Any, name: str, reason: str) -> None:
    found = seen(2, *EVERYTHING)[f"refused:{name}"]
    assert found.startswith("ConfigError")
    assert reason in found


def test_gradients_that_are_not_averaged_are_noticed(seen: Any) -> None:
    assert re.search("hold different values|would differ", seen(2, *EVERYTHING)["unequal:vae"])


def test_processes_learn_of_a_signal_at_the_same_step(seen: Any) -> None:
    numbers = seen(2, *EVERYTHING)["signals:"]
    assert numbers[:6] == [0] * 6
    assert numbers[-1] == 15
    assert numbers == sorted(numbers)


# --------------------------------------------------------------------------------------------------- the command line


def train(path: Path, count: int, *options: object, **launching: Any) -> "subprocess.CompletedProcess[str]":
    """Trains the mortal recipe for 40 steps."""
    asked = ["-m", "ppgen", "train", f"{WORKER}:mortal", "--steps", 40, "--compile", "off", "--device", "cpu"]
    return launch(count, *asked, "--out", path, *options, **launching)


def test_a_killed_process_starts_again_and_ends_identical(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = train(straight, 2)
    assert done.returncode == 0, done.stderr
    assert "2 processes of 1 thread" in done.stderr
    assert done.stdout.count("NLL") == 1
    done = train(killed, 2, restarts=1, KILLED_AT_STEP="23")
    assert done.returncode == 0, done.stderr
    assert "the connection to another process of this run was lost" in done.stderr
    assert "Going on at step" in done.stderr
    assert_same(outcome(straight), outcome(killed))

    resume = ["resume", killed, "--recipe", f"{WORKER}:mortal", "--json"]
    alone = command(*resume)
    assert alone.code == 4
    assert "the run was trained by 2 processes; got 1" in alone.error
    assert command(*resume, "--change-processes").document["steps"] == 40


def test_a_wrong_command_is_told_once(tmp_path: Path) -> None:
    done = train(tmp_path / "run", 2, "--steps", "-3")
    assert len(re.findall("^Error:", done.stderr, re.MULTILINE)) == 1
    assert done.returncode != 0


def test_batches_that_cannot_be_divided_are_told_once(tmp_path: Path) -> None:
    done = train(tmp_path / "run", 3)
    assert len(re.findall("^Error:", done.stderr, re.MULTILINE)) == 1
    assert "a batch of 100 rows cannot be divided evenly among 3 processes: use 99" in done.stderr
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- in one process


def rows_drawn(draw: Any, *, rank: int, rows: int = 4, size: int = 3) -> Any:
    """What one of several processes draws."""
    torch.manual_seed(0)
    with Recorder() as whole:
        draw(rows * size)
    with Recorder() as part:
        draw(rows)
    draws = shared_draws(part.draws, whole.draws, rows=frozenset({rows}), size=size)
    torch.manual_seed(0)
    with SharedNoise(Sharing(rank, size, draws, lambda tensor: tensor)):
        return draw(rows)


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: torch.randn(n, 2),
        lambda n: torch.rand(5, n),
        lambda n: torch.empty(n, 2).exponential_(),
        lambda n: torch.empty(2, n).t().normal_(),
        lambda n: torch.bernoulli(torch.full((n, 3), 0.4)),
        lambda n: torch.normal(torch.zeros(n, 2), 1.0),
        lambda n: torch.randint(7, (n,)),
        lambda n: torch.nn.functional.dropout(torch.ones(n, 6), 0.5),
        lambda n: torch.multinomial(torch.ones(n, 5), 1),
        lambda n: torch.multinomial(torch.ones(n, 5), 3, replacement=True),
    ],
)
def test_parts_of_a_draw_make_up_the_whole(draw: Any) -> None:
    torch.manual_seed(0)
    whole = draw(12)
    dim = whole.shape.index(12)
    parts = [rows_drawn(draw, rank=rank) for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim), whole)
    assert not torch.equal(torch.cat(parts[::-1], dim), whole)


def test_a_draw_that_no_row_has_a_share_in_is_the_same_everywhere() -> None:
    first, second = (rows_drawn(lambda n: torch.randn(7), rank=rank) for rank in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "draw", [lambda n: torch.randn(n + 1), lambda n: torch.randperm(n), lambda n: torch.randn(n, n + 1)]
)
def test_a_draw_that_rows_cannot_share_is_refused(draw: Any) -> None:
    with pytest.raises(ConfigError, match="which"):
        rows_drawn(draw, rank=0)


def test_a_draw_of_another_shape_than_before_is_refused() -> None:
    with Recorder() as recorder:
        torch.randn(4)
    draws = shared_draws(recorder.draws, recorder.draws, rows=frozenset({4}), size=2)
    with (
        SharedNoise(Sharing(0, 2, draws, lambda tensor: tensor)),
        pytest.raises(ConfigError, match="from step to step"),
    ):
        torch.rand(4)


def test_rows_are_shared_out_in_order() -> None:
    batch = {
        "labelled": {"x": torch.arange(4), "weight": torch.tensor(2.0)},
        "unlabelled": {"x": torch.arange(8), "y": None},
    }
    parts = [rows_of(batch, Processes(rank=rank, size=2)) for rank in range(2)]
    assert [part["labelled"]["x"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert [part["unlabelled"]["x"].tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert parts[1]["labelled"]["weight"] == 2
    assert parts[1]["unlabelled"]["y"] is None


def test_every_way_to_see_rows_in_a_dimension_is_found() -> None:
    assert layouts(12, frozenset({3})) == [(4, 3, 1), (2, 3, 2), (1, 3, 4)]
    assert layouts(5, frozenset({3})) == []
