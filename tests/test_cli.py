"""The command line: every command does what it says, and says what it does."""

import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import ENVIRONMENT, MY_MODEL, QUICK, command, snapshot

COMMANDS = ["list", "show", "train", "sweep", "resume", "evaluate", "sample"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="module")
def m2_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of m2 on digits, with `document.json` beside it."""
    folder = tmp_path_factory.mktemp("runs") / "m2"
    done = command("train", "m2", "--steps", 12, *QUICK, "--out", folder, "--json")
    assert done.code == 0, done.err
    (folder.parent / "document.json").write_text(done.out)
    (folder.parent / "messages.txt").write_text(done.err)
    return folder


# ---------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, option: str) -> None:
    done = command(name, option)
    assert done.code == 0
    assert done.err == ""
    assert f"Usage: ppgen {name}" in done.out


def test_help_names_every_command_and_no_command_is_a_usage_error() -> None:
    done = command("--help")
    assert done.code == 0
    assert all(name in done.out for name in COMMANDS)
    assert command().code == 2


def test_version() -> None:
    assert command("--version").out.startswith("ppgen ")


def test_help_takes_less_than_half_a_second() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ppgen", "--help"], env=ENVIRONMENT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


@pytest.mark.parametrize(("arguments", "imported"), [(["--help"], False), (["train", "-h"], False), (["list"], True)])
def test_torch_is_imported_when_it_is_needed(arguments: list[str], imported: bool) -> None:
    code = f"import sys; from ppgen.cli import run; run({arguments}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == imported


# ---------------------------------------------------------------------------------------------- list and show


def test_list_shows_what_there_is(tmp_path: Path) -> None:
    done = command("list", "--data-root", tmp_path)
    assert done.code == 0
    assert "arXiv:1406.5298" in done.out
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.split()}
    assert {"m2", "vae", "digits", "mnist", "elbo", "iwae", "nuts", "relax", "vimco"} <= rows.keys()
    assert rows["digits"].endswith("yes   ")
    assert rows["mnist"].rstrip().endswith("no")
    labels = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    labels.parent.mkdir(parents=True)
    labels.touch()
    assert "mnist" in command("list", "--data-root", tmp_path).out
    assert " mnist             70,000 handwritten digits, 28 x 28" in command("list", "--data-root", tmp_path).out
    found = [line for line in command("list", "--data-root", tmp_path).out.splitlines() if line.startswith("  mnist")]
    assert found[0].rstrip().endswith("yes")


def test_show_tells_sites_plates_parameters_and_options() -> None:
    done = command("show", "m2", "--set", "z_dim=7")
    assert done.code == 0, done.err
    lines = {line.split()[0]: line.split() for line in done.out.splitlines() if line.split()}
    assert lines["z"] == ["z", "latent", "Normal", "Normal", "7", "data"]
    assert lines["y"] == ["y", "observed", "where", "known", "Categorical", "Categorical", "number", "data"]
    assert lines["x"] == ["x", "observed", "Bernoulli", "-", "1", "x", "8", "x", "8", "data"]
    from ppgen.recipes import RECIPES

    assert lines["alpha"] == ["alpha", "float", str(RECIPES["m2"].defaults("digits")["alpha"])]
    assert "arXiv:1406.5298" in done.out


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    "arguments",
    [
        ["m2"],
        ["vae", "--data", "mnist"],
        ["vae", "--epochs", "7", "--set", "hidden=20,10", "--set", "clip=5"],
        ["m2", "--labels", "50", "--steps", "9", "--on-nan", "skip", "--set", "average=none", "--data-root", "d"],
    ],
)
def test_a_printed_configuration_reads_back_as_it_is(arguments: list[str], tmp_path: Path) -> None:
    first = command("train", *arguments, "--print-config")
    assert first.code == 0, first.err
    tomllib.loads(first.out)
    Path("c.toml").write_text(first.out)
    assert command("train", arguments[0], "--config", "c.toml", "--print-config").out == first.out
    assert command("train", "--config", "c.toml", "--print-config").out == first.out
    # and what is typed beside it is not lost
    assert command("train", "--config", "c.toml", "--print-config", "--seed", "5").out != first.out
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_set_is_over_options_is_over_the_file_is_over_defaults() -> None:
    file = 'recipe = "vae"\nseed = 3\nsteps = 8\ndevice = "cpu"\n'
    file += '[data]\nname = "mnist"\n[options]\nz_dim = 4\nbeta = 2.0\n'
    Path("c.toml").write_text(file)

    def printed(*arguments: object) -> dict[str, object]:
        return tomllib.loads(command("train", "--config", "c.toml", "--print-config", *arguments).out)

    plain, typed = printed(), printed("--seed", 4, "--epochs", 2, "--set", "beta=3")
    assert (plain["seed"], plain["steps"], plain["device"]) == (3, 8, "cpu")
    # the data set's own default, which is not the recipe's
    own = {"z_dim": 4, "beta": 2.0, "binarization": "dynamic"}
    assert plain["options"] == {**dict(plain["options"]), **own}  # type: ignore[call-overload]
    assert (typed["seed"], typed["epochs"], typed.get("steps")) == (4, 2, None)
    assert typed["options"]["beta"] == 3.0  # type: ignore[index]
    assert typed["data"]["name"] == "mnist"  # type: ignore[index]


def test_threads_are_those_asked_for_and_are_kept() -> None:
    before = torch.get_num_threads()
    try:
        for out, expected, arguments in (
            ("one", 2, ["vae", "--threads", 2]),
            ("again", 2, ["--config", "one/config.toml"]),
            ("other", 1, ["--config", "one/config.toml", "--threads", 1]),
        ):
            done = command("train", *arguments, "--steps", 1, *QUICK, "--out", out)
            assert done.code == 0, done.err
            assert tomllib.loads(Path(out, "config.toml").read_text())["resolved"]["threads"] == expected
    finally:
        torch.set_num_threads(before)


def test_the_configuration_of_a_run_repeats_it(m2_run: Path) -> None:
    done = command("train", "--config", m2_run / "config.toml", "--out", "again", "--json")
    assert done.code == 0, done.err
    first = json.loads((m2_run.parent / "document.json").read_text())
    varying = {"run": "", "seconds": 0}
    assert done.document | varying == first | varying


# ------------------------------------------------------------------------------------------------ training


def test_the_document_of_a_training(m2_run: Path) -> None:
    document = json.loads((m2_run.parent / "document.json").read_text())
    keys = ["run", "recipe", "data", "labels", "seed", "configuration", "steps", "seconds"]
    keys += ["compiled", "test", "baselines"]
    assert list(document) == keys
    assert document["run"] == str(m2_run)
    assert (document["recipe"], document["data"], document["labels"]) == ("m2", "digits", 100)
    assert (document["seed"], document["steps"], document["compiled"]) == (0, 12, False)
    assert set(document["test"]) == {"accuracy", "nll"}
    assert set(document["test"]["nll"]) == {"value", "stderr", "particles"}
    assert {"logistic_regression", "nearest_neighbour"} <= set(document["baselines"])
    for found in (document["test"]["accuracy"], *document["baselines"].values()):
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert json.loads((m2_run / "result.json").read_text()) == document
    assert {"samples.png", "reconstructions.png", "training.png"} <= {path.name for path in m2_run.iterdir()}


def test_what_a_training_says_on_the_way(m2_run: Path) -> None:
    said = (m2_run.parent / "messages.txt").read_text()
    card, how, lines = said.index("fingerprint"), said.index("steps are not compiled; cpu"), said.index("step 12 ")
    assert card < how < lines
    told = [line for line in said.splitlines() if line.startswith("step ")]
    assert 10 <= len(told) <= 20
    assert all(word in told[-1] for word in ("epoch", "bound", "nats", "accuracy", "images/s", "left"))
    assert max(map(len, said.splitlines())) < 200


def test_without_json_the_result_is_a_table_and_says_how_to_go_on() -> None:
    done = command("train", "vae", "--steps", 3, *QUICK, "--out", "out")
    assert done.code == 0, done.err
    assert "NLL, at most" in done.out
    assert "(3 particles)" in done.out
    assert "accuracy" not in done.out
    for text in ("out/samples.png", "ppgen resume out", "ppgen evaluate out", "ppgen sample out"):
        assert text in done.out


def test_a_recipe_without_labels_leaves_accuracy_out() -> None:
    document = command("train", "vae", "--steps", 2, *QUICK, "--json").document
    assert set(document["test"]) == {"nll"}
    assert "baselines" not in document
    assert document["run"].endswith("runs/vae-digits-0")
    assert command("train", "vae", "--steps", 2, *QUICK, "--json").document["run"].endswith("vae-digits-0-2")


def test_data_of_the_user_and_its_label_column() -> None:
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.random((90, 5)), np.arange(90) % 3])
    np.savetxt("t.csv", table, delimiter=",", header="a,b,c,d,e,kind", comments="", fmt="%.6g")
    options = ["--labels", 9, "--label-column", "kind", "--steps", 3, *QUICK, "--json"]
    done = command("train", "m2", "--data", "t.csv", *options)
    assert done.code == 0, done.err
    assert done.document["labels"] == 9
    assert "accuracy" in done.document["test"]
    sampled = command("sample", done.document["run"], "-n", 4, "--label", "2")
    assert sampled.code == 0, sampled.err
    with np.load("m2-t-0-samples.npz") as found:
        assert found["x"].shape == (4, 5)
        assert found["y"].tolist() == [2] * 4


# ------------------------------------------------------------------------------- resume, evaluate, sample


def test_a_finished_run_is_judged_again(m2_run: Path) -> None:
    before = (m2_run / "step-00000012" / "state.safetensors").read_bytes()
    done = command("resume", m2_run, "--json")
    assert done.code == 0, done.err
    assert done.document == json.loads((m2_run.parent / "document.json").read_text())
    assert "finished" in done.err
    assert (m2_run / "step-00000012" / "state.safetensors").read_bytes() == before


def test_evaluate_agrees_with_train_and_writes_nothing(m2_run: Path) -> None:
    before = snapshot(m2_run)
    m2_run.chmod(0o555)
    try:
        done = command("evaluate", m2_run, "--json")
    finally:
        m2_run.chmod(0o755)
    assert done.code == 0, done.err
    assert done.document == json.loads((m2_run.parent / "document.json").read_text())
    assert snapshot(m2_run) == before


def test_evaluate_measures_what_is_asked(m2_run: Path) -> None:
    done = command("evaluate", m2_run, "--measure", "elbo", "--measure", "nll", "--particles", 2, "--json")
    test = done.document["test"]
    assert set(test) == {"nll", "elbo"}
    assert test["nll"]["particles"] == 2
    assert -test["elbo"]["value"] >= test["nll"]["value"]
    assert "ELBO" in command("evaluate", m2_run, "--measure", "elbo", "--particles", 1).out


def test_evaluate_exports_to_arviz(m2_run: Path) -> None:
    import arviz as az

    done = command("evaluate", m2_run, "--measure", "nll", "--particles", 1, "--arviz", "a.nc")
    assert done.code == 0, done.err
    assert "a.nc" in done.err
    data = az.from_netcdf("a.nc")
    assert data["posterior"]["z"].sizes["draw"] == 100


def test_samples_are_reproducible_and_of_the_label_asked(m2_run: Path) -> None:
    for name, seed in (("a.npz", 1), ("b.npz", 1), ("c.npz", 2)):
        done = command("sample", m2_run, "-n", 6, "--label", "3", "--out", name, "--seed", seed)
        assert done.code == 0, done.err
        assert done.out == f"Wrote 6 samples to {name}\n"
    a, b, c = (dict(np.load(name)) for name in ("a.npz", "b.npz", "c.npz"))
    assert {name: array.shape for name, array in a.items()} == {
        "x": (6, 1, 8, 8),
        "y": (6,),
        "x_mean": (6, 1, 8, 8),
    }
    assert a["y"].tolist() == [3] * 6
    assert set(np.unique(a["x"])) <= {0.0, 1.0}
    assert len(np.unique(a["x_mean"])) > 2
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["x"], c["x"])


def test_samples_as_picture_and_as_array(m2_run: Path) -> None:
    from PIL import Image

    assert command("sample", m2_run, "-n", 5).out == "Wrote 5 samples to m2-samples.png\n"
    with Image.open("m2-samples.png") as picture:
        assert picture.size == (3 * 60 + 4, 2 * 60 + 4)  # a grid of 3 x 2, each 56 pixels and 4 between
        assert len(np.unique(np.asarray(picture))) > 10
    assert command("sample", m2_run, "-n", 5, "--out", "x.npy").code == 0
    assert np.load("x.npy").shape == (5, 1, 8, 8)


# ------------------------------------------------------------------------------------------- users' recipes


@pytest.fixture
def my_model(tmp_path: Path) -> str:
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    return "my_model.py"


def test_a_users_regression_on_the_users_data(my_model: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    target = (x @ [1.0, -2.0] + 0.5 * rng.normal(size=300)).astype(np.float32)
    np.savez("points.npz", x=x, target=target)
    recipe = f"{my_model}:regression"
    options = ["--data", "points.npz", "--epochs", 3, "--compile", "off", "--set", "spread=5"]
    done = command("train", recipe, *options, "--json", "--out", "out")
    assert done.code == 0, done.err
    assert "Running the code of my_model.py." in done.err
    assert done.document["recipe"] == recipe
    assert tomllib.loads(Path("out/config.toml").read_text())["options"] == {"spread": 5.0}
    assert command("sample", "out", "--recipe", recipe, "-n", 7).code == 0
    with np.load("out-samples.npz") as found:
        assert found["target"].shape == (7,)
    shown = command("show", recipe, "--data", "points.npz")
    assert "Linear regression of the column target on x" in shown.out
    assert "spread" in shown.out


def test_a_users_vae_and_naming_its_recipe_again(my_model: str) -> None:
    recipe = f"{my_model}:small_vae"
    trained = command("train", recipe, "--epochs", 1, "--compile", "off", "--json", "--out", "out")
    assert trained.code == 0, trained.err
    refused = command("evaluate", "out")
    assert refused.code == 2
    assert f"--recipe {recipe}" in refused.error
    assert "Running" not in refused.err
    again = command("evaluate", "out", "--recipe", recipe, "--json")
    assert again.document == trained.document


def test_a_failure_in_the_users_code_is_placed_there(my_model: str) -> None:
    done = command("train", f"{my_model}:fails")
    assert done.code == 2
    line = MY_MODEL.splitlines().index("    return small_vae(data)[5]") + 1
    assert done.error.startswith(f"Error: my_model.py, line {line}: IndexError")
    Path("broken.py").write_text("def recipe(data)\n    return 1\n")
    assert command("train", "broken.py:recipe").error.startswith("Error: broken.py, line 1: SyntaxError")


def test_code_named_in_a_file_is_not_run() -> None:
    Path("evil.py").write_text("open('harm', 'w')\ndef recipe(data): pass\n")
    Path("c.toml").write_text('recipe = "evil.py:recipe"\n')
    done = command("train", "--config", "c.toml")
    assert done.code == 2
    assert "evil.py:recipe" in done.error
    assert not Path("harm").exists()


def test_a_reader_that_leaves_early_is_no_error(m2_run: Path) -> None:
    line = f"{sys.executable} -m ppgen list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
