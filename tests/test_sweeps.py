"""Sweeps: the grid, the table, and a sweep that was stopped or killed ends as one that was not."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import MY_MODEL, QUICK, Done, command, process, snapshot
from scipy import stats

from ppgen import backends
from ppgen.configuration import Config
from ppgen.errors import ConfigError, DataError
from ppgen.grids import Grid, as_text, numbers
from ppgen.jobs import Leash, leave_signals_to_the_sweep
from ppgen.recipes import RECIPES, Entry
from ppgen.runs import Run
from ppgen.storage import RunFolder
from ppgen.tables import Mean

SHORT = ["--steps", 2, *QUICK]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*backends.ADDRESSES.values(), "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of a short run."""
    monkeypatch.setattr(Run, "write_pictures", lambda self: [])


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `ppgen sweep vae` as a process of its own; what is left of it ends with the test."""
    begun: list[subprocess.Popen[str]] = []

    def started(*arguments: object) -> "subprocess.Popen[str]":
        begun.append(process("sweep", "vae", *QUICK, *arguments))
        return begun[-1]

    yield started
    for running in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def swept(*arguments: object) -> Done:
    """A sweep in this process, one run at a time."""
    return command("sweep", *arguments, "--jobs", 1)


def parameters(run: Path | str) -> bytes:
    """The tensors of the last checkpoint."""
    return (max(Path(run).glob("step-*")) / "state.safetensors").read_bytes()


def grid_of(
    *sets: str, entry: Entry = RECIPES["vae"], seeds: str = "0", labels: str | None = None, **asked: Any
) -> Grid:
    options = {text.partition("=")[0]: text.partition("=")[2] for text in sets}
    return Grid.of(Config(recipe="vae", options=options, **asked), entry, sets, seeds=seeds, labels=labels)


# --------------------------------------------------------------------------------------------------- the grid


def test_a_grid_is_every_combination_of_values_and_seeds() -> None:
    grid = grid_of("z_dim=10,50", "learning_rate=1e-3,0.01", "beta=2", seeds="0-1,7", labels="10,100")
    points = grid.points(RECIPES["vae"])
    assert len(points) == 2 * 2 * 2 * 3
    assert points[0].folder == "labels=10,z_dim=10,learning_rate=0.001/seed-0"
    assert points[-1].folder == "labels=100,z_dim=50,learning_rate=0.01/seed-7"
    assert len({point.folder for point in points}) == len(points)
    last = points[-1].config
    assert (last.seed, last.data.labels, last.options["z_dim"], last.options["beta"]) == (7, 100, 50, 2.0)
    assert points[-1].setting == {"labels": 100, "z_dim": 50, "learning_rate": 0.01}
    assert points[-1].title == "labels=100 z_dim=50 learning_rate=0.01 seed 7"


def test_without_axes_there_are_seeds_only() -> None:
    points = grid_of("z_dim=3", seeds="2-3", labels="9").points(RECIPES["vae"])
    assert [point.folder for point in points] == ["seed-2", "seed-3"]
    assert [point.config.data.labels for point in points] == [9, 9]


def test_an_option_that_is_a_list_has_one_value_a_time() -> None:
    grid = grid_of("hidden=400,200", "hidden=50", "z_dim=2", "z_dim=3,4")
    assert grid.axes == {"hidden": ("400,200", "50"), "z_dim": ("2", "3", "4")}
    assert [point.config.options["hidden"] for point in grid.points(RECIPES["vae"])][::3] == [(400, 200), (50,)]
    assert not grid_of("hidden=400,200").axes
    assert grid_of("decoder_hidden=4,2", "decoder_hidden=none").axes == {"decoder_hidden": ("4,2", "none")}


@pytest.mark.parametrize("value", ["../../outside", "a/b", "a b", "a;b", "a=b", "", "x" * 300, "..", "ä"])
def test_a_value_makes_a_plain_name(value: str) -> None:
    def recipe(data: Any, *, word: str = "a") -> None: ...

    entry = Entry("own", recipe)
    names = [p.folder.split("/")[0] for p in grid_of(f"word={value},a_b", entry=entry).points(entry)]
    assert names[1] == "word=a_b"
    assert names[0] != names[1]
    assert Path(names[0]).name == names[0]
    assert len(names[0]) < 100


def test_a_request_reads_back_as_it_was_written() -> None:
    grid = grid_of("z_dim=10,50", "clip=none,5", seeds="1,3", labels="10,20", steps=7, threads=2)
    read = Grid.from_toml(grid.to_toml(), source="it")
    assert read.points(RECIPES["vae"]) == grid.points(RECIPES["vae"])
    assert read.to_toml() == grid.to_toml()
    assert read.joined(grid, place="it").to_toml() == grid.to_toml()


@pytest.mark.parametrize(
    ("text", "found"), [("0-9", range(10)), ("0,3,5-7", (0, 3, 5, 6, 7)), ("4", (4,)), (" 1 , 2 - 3 ", (1, 2, 3))]
)
def test_seeds(text: str, found: Any) -> None:
    assert numbers(text, option="--seeds") == tuple(found)


@pytest.mark.parametrize("text", ["", "x", "3-1", "-1", "1-", "1,,2", "0.5", "1..3", "٣", "0-99999999999"])
def test_seeds_that_are_none_name_what_was_typed(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds") as raised:
        numbers(text, option="--seeds")
    assert f"got '{text}'" in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "3-1"], "expected --seeds such as 0-9 or 0,3,5-7; got '3-1'"),
        (["--seeds", "0-3,2"], "expected every value of --seeds once; got 2 twice"),
        (["--set", "z_dim=2,02"], "expected every value of --set z_dim once; got 2 twice"),
        (["--labels", "10,10"], "expected every value of --labels once; got 10 twice"),
        (["--labels", "few"], "expected --labels such as"),
        (["--set", "z_dim=2,two"], "option 'z_dim'"),
        (["--set", "z_dm=2,3"], "did you mean 'z_dim'?"),
        (["--set", "z_dim"], "expected --set KEY=VALUE; got 'z_dim'"),
        (["--epochs", "2", "--set", "epochs=2,3"], "--epochs and --set epochs=... exclude each other"),
        (["--jobs", "0"], "--jobs"),
        (["--backend", "slurm"], "expected --backend loky, dask or ray; got 'slurm'"),
        (["--scheduler", "tcp://x:1"], "--scheduler needs --backend dask or --backend ray"),
        (["--device", "tpu"], "tpu"),
        (["--data", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = command("sweep", "vae", *arguments)
    assert done.code == 2, done.err
    assert words in done.error
    assert not list(tmp_path.glob("runs/*/sweep.toml"))


def test_an_unknown_recipe() -> None:
    assert "there is no recipe 'va'" in command("sweep", "va").error


# -------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_students_t_distribution(count: int) -> None:
    values = np.random.default_rng(count).normal(50, 3, count)
    found = Mean.of(values.tolist())
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    normal = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert found.low is not None
    assert found.low < normal[0] - 1e-3  # the normal distribution's is too narrow for few seeds


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert Mean.of([3.0]) == Mean(3.0, None, None, 1)
    assert Mean.of([3.0, 3.0]) == Mean(3.0, 3.0, 3.0, 2)
    assert Mean.of([3.0, None]).value is None
    assert Mean.of([3.0, math.inf]).value is None
    with pytest.raises(DataError):
        Mean.of([])


@pytest.mark.usefixtures("no_pictures")
def test_the_table_has_a_row_a_setting() -> None:
    arguments = ["m2", *SHORT, "--labels", "50,100", "--seeds", "0-1", "--out", "out"]
    done = swept(*arguments)
    assert done.code == 0, done.err
    assert "m2 on digits, 4 runs" in done.out
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.split()}
    document = swept(*arguments, "--json").document
    row = document["settings"][1]
    assert row["setting"] == {"labels": 100}
    values = [run["result"]["test"]["accuracy"]["value"] for run in document["runs"][2:]]
    assert row["test"]["accuracy"] == Mean.of(values).as_dict()
    assert rows["100"].split()[1:6] == ["2", f"{100 * np.mean(values):.1f}", "±", rows["100"].split()[4], "%"]
    assert f"{100 * row['baselines']['label_spreading']['value']:.1f} %" in rows["100"]
    assert "4/4  labels=100 seed 1: accuracy" in done.err
    assert "failed" not in done.out


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_has_no_interval() -> None:
    done = swept("vae", *SHORT, "--seeds", 0, "--out", "out")
    assert done.code == 0, done.err
    assert "±" not in done.out.split("Means")[0]
    assert "nan" not in done.out
    assert (
        swept("vae", *SHORT, "--seeds", 0, "--out", "out", "--json").document["settings"][0]["test"]["nll"]["low"]
        is None
    )


# ------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two seeds in two worker processes that nothing interrupted, with `document.json` in it."""
    folder = tmp_path_factory.mktemp("straight") / "sweep"
    done = command("sweep", "vae", "--steps", 400, *QUICK, "--seeds", "0-2", "--jobs", 2, "--out", folder, "--json")
    assert done.code == 0, done.err
    (folder / "document.json").write_text(done.out)
    return folder


def test_a_run_of_a_sweep_is_an_ordinary_run(straight: Path) -> None:
    trained = command("train", "vae", "--steps", 400, *QUICK, "--seed", 1, "--threads", 1, "--out", "one", "--json")
    document = json.loads((straight / "document.json").read_text())
    run = document["runs"][1]
    assert run["seed"] == 1
    assert run["result"]["test"] == trained.document["test"]
    assert parameters(run["run"]) == parameters("one")
    configs = [tomllib.loads((Path(place) / "config.toml").read_text()) for place in (run["run"], "one")]
    assert configs[0] == configs[1]
    assert configs[0]["threads"] == configs[0]["resolved"]["threads"] == 1
    judged = command("evaluate", run["run"], "--particles", 3, "--json")
    assert judged.document["test"] == run["result"]["test"]
    assert document["runs"][0]["result"]["test"] != run["result"]["test"]  # another seed does differ


def test_a_finished_sweep_trains_nothing_and_shows_its_table_again(straight: Path) -> None:
    before = {path: stamp for path, stamp in snapshot(straight).items() if "seed-" in path}
    done = swept("vae", "--steps", 400, *QUICK, "--seeds", "0-2", "--out", straight, "--json")
    assert "3 of them are finished already" in done.err
    assert done.document == json.loads((straight / "document.json").read_text())
    assert {path: stamp for path, stamp in snapshot(straight).items() if "seed-" in path} == before


@pytest.mark.parametrize(
    "all_of_them", [pytest.param(True, id="group"), pytest.param(False, id="parent", marks=pytest.mark.slow)]
)
def test_a_killed_sweep_goes_on_where_it_was(all_of_them: bool, straight: Path, start: Start) -> None:
    arguments = ["--steps", 400, "--seeds", "0-2", "--out", "out"]
    running = start(*arguments, "--jobs", 2)
    wait_for(running, lambda: len(results("out")) >= 1 and len(checkpoints("out")) >= 1)
    os.killpg(running.pid, signal.SIGKILL) if all_of_them else running.kill()
    running.wait(timeout=60)  # its output stays open as long as an idle worker lives
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in results("out")}
    begun = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/config.toml")}
    done = swept("vae", *QUICK, *arguments, "--json")
    assert done.code == 0, done.err
    assert before
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in begun} == begun  # resumed, not begun again
    document = json.loads((straight / "document.json").read_text())
    assert [run["result"]["test"] for run in done.document["runs"]] == [
        run["result"]["test"] for run in document["runs"]
    ]
    for seed in range(3):
        assert parameters(f"out/seed-{seed}") == parameters(straight / f"seed-{seed}")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_lets_every_run_keep_a_checkpoint(number: int, start: Start) -> None:
    running = start("--steps", 100_000, "--seeds", "0-1", "--out", "out", "--jobs", 2)
    wait_for(running, lambda: len(list(Path("out").glob("*/metrics.jsonl"))) == 2)
    os.killpg(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number, err
    assert (out, err.count("Traceback")) == ("", 0)
    last = "Stopped; 0 of 2 runs are finished. Go on with the same command and --out out"
    assert err.splitlines()[-1] == last
    assert len(checkpoints("out")) == 2
    assert not Path("out", "running").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_sweep_with_a_remedy(start: Start) -> None:
    running = start("--steps", 100_000, "--seeds", "0-1", "--out", "out", "--jobs", 2)
    wait_for(running, lambda: len(list(Path("out").glob("*/metrics.jsonl"))) == 2)
    children = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(running.pid)], capture_output=True, text=True
    )
    workers = [
        int(line.split()[0]) for line in children.stdout.splitlines() if "loky" in line and "tracker" not in line
    ]
    os.kill(workers[0], signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err.splitlines()[-1].startswith("Error: a worker process was killed, perhaps for want of memory: repeat")


@pytest.mark.usefixtures("no_pictures")
def test_what_a_kill_left_before_there_was_a_configuration_is_no_hindrance() -> None:
    Path("out").mkdir()
    Path("out/.lock").touch()
    assert swept("vae", *SHORT, "--seeds", "0", "--out", "out").code == 0
    Path("out/seed-1/.tmp-0123").mkdir(parents=True)
    Path("out/seed-1/.lock").touch()
    Path("out/seed-2").mkdir()
    assert swept("vae", *SHORT, "--seeds", "1-2", "--out", "out").code == 0
    assert len(results("out")) == 3
    # begun, but without a checkpoint; and finished, but not judged
    for path in results("out"):
        path.unlink()
    for step in Path("out/seed-0").glob("step-*"):
        shutil.rmtree(step)
    Path("out/seed-0/metrics.jsonl").unlink()
    assert swept("vae", *SHORT, "--seeds", "0-2", "--out", "out").code == 0
    assert len(results("out")) == 3


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_fails_does_not_end_the_sweep() -> None:
    arguments = ["vae", "--steps", 5, *QUICK, "--set", "learning_rate=1e30,1e-3", "--seeds", "0-1", "--out", "out"]
    done = swept(*arguments)
    assert done.code == 5
    assert "1/4  learning_rate=1e+30 seed 0: failed: the loss is not finite at step 2" in done.err
    assert "Failed" in done.out
    assert "4/4  learning_rate=0.001 seed 1: NLL" in done.err
    again = swept(*arguments, "--json")
    assert again.code == 5
    runs, settings = again.document["runs"], again.document["settings"]
    assert [run.get("exit_code") for run in runs] == [5, 5, None, None]
    assert "not finite" in runs[0]["error"]
    assert [(row["runs"], row["failed"]) for row in settings] == [(0, 2), (2, 0)]
    assert settings[0]["seconds"] is None


def test_the_users_own_recipe_trains_in_workers_and_its_errors_have_a_place(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(
        MY_MODEL
        + """
def moody(data, *, mood: str = "good"):
    if mood == "bad":
        raise RuntimeError("no")
    print("a word on standard output")
    return small_vae(data)
"""
    )
    options = ["my_model.py:moody", "--steps", 2, "--compile", "off", "--set", "mood=good,bad", "--seeds", 0]
    done = command("sweep", *options, "--jobs", 2, "--json")
    assert done.code == 2, done.err
    good, bad = done.document["runs"]
    assert good["result"]["steps"] == 2
    assert bad["error"].startswith("my_model.py, line ")
    assert Path(good["run"]).relative_to(tmp_path) == Path("runs/sweep-my_model-moody-digits/mood=good/seed-0")
    assert command("resume", good["run"], "--recipe", "my_model.py:moody").code == 0


CHANGES = {
    "--steps 3": "steps is 2 there; got 3",
    "--set hidden=17": "hidden is 16 there; got an axis of several values",
    "--set beta=3": "beta is 1.0 there; got 3.0",
    "--set beta=3,4": "beta is 1.0 there; got an axis of several values",
    "--labels 20": "data labels is unset there; got 20",
    "--threads 3": "threads is 1 there; got 3",
    "--device cpu": "device is auto there; got cpu",
}


@pytest.mark.usefixtures("no_pictures")
def test_a_request_may_add_seeds_and_values_and_nothing_else() -> None:
    start = ["vae", *SHORT, "--set", "z_dim=2,3", "--out", "out"]
    assert swept(*start, "--seeds", "0").code == 0
    before = snapshot(Path("out/z_dim=2/seed-0"))
    done = swept("vae", *SHORT, "--set", "z_dim=3,4", "--seeds", "1", "--out", "out", "--json")
    assert "6 runs; 2 of them are finished already" in done.err
    assert [row["setting"]["z_dim"] for row in done.document["settings"]] == [2, 3, 4]
    assert all(row["runs"] == 2 for row in done.document["settings"])
    after = snapshot(Path("out/z_dim=2/seed-0"))
    assert {path: after[path] for path in before if not path.endswith(".lock")} == {
        path: stamp for path, stamp in before.items() if not path.endswith(".lock")
    }
    for change, words in CHANGES.items():
        refused = swept(*start, *change.split())
        assert refused.code == 2
        assert words in refused.error
        assert "choose another --out" in refused.error
    other = swept("m2", *SHORT, "--out", "out")
    assert (other.code, "recipe is vae there; got m2" in other.error) == (2, True)


def test_another_sweep_in_the_folder_is_waited_for_by_nobody() -> None:
    Path("out").mkdir()
    with RunFolder("out").lock():
        done = swept("vae", *SHORT, "--out", "out")
    assert done.code == 75
    assert "in use by another process" in done.error


def test_processes_that_train_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "torchrun started 2" in swept("vae", *SHORT, "--out", "out").error


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert "holds something else than a sweep" in swept("vae", "--out", tmp_path).error
    assert "got the file" in swept("vae", "--out", tmp_path / "notes.txt").error


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 99", "format 99"),
        ("format = 1\nseeds = 3", "seeds"),
        ("format = 1", "'seeds' is missing"),
        ("x", "is no TOML"),
        ("", "format"),
    ],
)
def test_a_damaged_request_is_one_line(text: str, words: str) -> None:
    Path("out").mkdir()
    Path("out/sweep.toml").write_text(text)
    done = swept("vae", *SHORT, "--out", "out")
    assert done.code == 2
    assert words in done.error


@pytest.mark.usefixtures("no_pictures")
def test_warnings_of_runs_are_passed_on_once_and_a_damaged_result_is_judged_again() -> None:
    arguments = ["vae", *SHORT, "--seeds", "0-1", "--out", "out"]
    assert swept(*arguments).code == 0
    for path in results("out"):
        path.write_text("{")
    for path in Path("out").glob("*/config.toml"):
        path.write_text(path.read_text().replace('pyro = "', 'pyro = "0.'))
    done = swept(*arguments, "--json")
    assert done.code == 0
    assert done.err.count("versions have changed") == 1
    assert len(done.document["runs"]) == 2


def test_the_threads_of_runs_share_the_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppgen import sweeps

    monkeypatch.setattr(sweeps, "threads_for_judging", lambda: 16)
    monkeypatch.setattr(sweeps, "free_cores", lambda: 16)

    def settled(out: str, grid: Grid, jobs: int | None) -> tuple[int | None, int | None]:
        Path(out).mkdir(exist_ok=True)
        found, count = sweeps._settled(RunFolder(out), grid, jobs=jobs, local=True)
        return found.base.threads, count

    assert settled("a", grid_of(seeds="0-9", device="cpu"), 4) == (4, 4)
    assert settled("b", grid_of(seeds="0-99", device="cpu"), None) == (1, 16)
    assert settled("c", grid_of(seeds="0-1", device="cpu"), None) == (8, 16)
    assert settled("d", grid_of(seeds="0-9", device="cpu", threads=3), 4) == (3, 4)
    # a sweep that goes on keeps its own, since threads change bits
    assert settled("a", grid_of(seeds="0-9", device="cpu"), 16) == (4, 16)


def test_a_leash_is_cut_when_the_sweep_is_stopped_or_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "running"
    file.write_text("mine")
    elsewhere = os.getpid() + 1
    held, orphan, itself = (
        Leash(file, "mine", elsewhere),
        Leash(file, "mine", elsewhere),
        Leash(file, "mine", os.getpid()),
    )
    assert not held.cut()
    assert Leash(file, "another", elsewhere).cut()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getppid", lambda: 1)
        assert orphan.cut()
        assert orphan.orphaned
        assert not itself.cut()  # a sweep in one process goes on without its shell
    file.unlink()
    time.sleep(0.25)
    assert held.cut()
    assert itself.cut()


def test_workers_leave_signals_to_the_sweep() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        leave_signals_to_the_sweep()
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def results(out: str) -> list[Path]:
    """The runs that are finished."""
    return sorted(Path(out).glob("*/result.json"))


def checkpoints(out: str) -> list[Path]:
    """Checkpoints after the start, of runs that are not finished."""
    return [
        path for path in Path(out).glob("*/step-*") if int(path.name[5:]) and not (path.parent / "result.json").exists()
    ]


def wait_for(running: "subprocess.Popen[str]", reached: Any) -> None:
    """Waits until a process has come so far."""
    deadline = time.monotonic() + 120
    while not reached():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --------------------------------------------------------------------------------------------------- backends


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_library_that_is_not_installed_is_named(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("dask.distributed", "ray.util.joblib"):
        monkeypatch.setitem(sys.modules, name, None)
    done = command("sweep", "vae", *SHORT, "--backend", backend, "--out", "out")
    assert done.code == 2
    assert done.error == f"Error: --backend {backend} is not installed: pip install 'ppgen[{backend}]'"
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "library"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_gives_the_same_numbers(backend: str, library: str, straight: Path, start: Start) -> None:
    pytest.importorskip(library)
    arguments = ["--steps", 400, "--seeds", "0-1", "--jobs", 2, "--backend", backend]
    running = start(*arguments, "--out", "out", "--json")
    out, err = running.communicate(timeout=200)
    assert running.returncode == 0, err
    expected = json.loads((straight / "document.json").read_text())["runs"][:2]
    assert [run["result"]["test"] for run in json.loads(out)["runs"]] == [run["result"]["test"] for run in expected]


def test_a_value_is_written_as_it_is_typed() -> None:
    assert [as_text(value) for value in (None, (1, 2), 1e-3, "a", True)] == ["none", "1,2", "0.001", "a", "True"]
