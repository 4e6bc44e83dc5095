"""The benchmark command: that contenders are checked, timed fairly and shown; and that the compiled step is fast."""

import dataclasses
import functools
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last, so that it hides no installed ppgen

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import checking, contenders, growth, measuring, report, timing, works  # noqa: E402
from benchmarks.contenders import (  # noqa: E402
    CONTENDERS,
    Contender,
    epochs,
    handwritten,
    own,
    products,
    pyro_svi,
    wgan_gp,
)
from ppgen.errors import ConfigError, StorageError  # noqa: E402

SMALL_VAE = works.Work("small-vae", "vae", x=30, hidden=(24, 16), z=5, batch=40)
SMALL_M2 = works.Work("small-m2", "m2", x=30, hidden=(24,), z=5, batch=40, labelled=20, classes=3)
SMALL = {"vae": SMALL_VAE, "m2": SMALL_M2}
GAMES = {
    "wgan-gp": works.Work("small-game", "wgan-gp", x=36, hidden=(24, 16), z=5, batch=40),
    "wgan-gp-dcgan": works.Work("small-dcgan", "wgan-gp-dcgan", x=64, hidden=(2, 4), z=5, batch=20),
}
WITHOUT_COMPILING = ["ppgen-eager", "pyro", "pyro-trace", "pyro-mean-field", "eager", "eager-joined"]
WITHOUT_COMPILING += ["numpyro", "numpyro-scan"]


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    yield
    pyro.clear_param_store()


def compare(
    work: works.Work, build: Callable[[works.Work], Callable[[], Any]], name: str = "other", *, drift: float = 0.0
) -> None:
    """Checks a contender of a work as the command does, with more noise averaged out."""
    work = dataclasses.replace(work, references=20)
    expected = measuring.references(CONTENDERS["eager"], work)
    checking.check(name, checking.losses(build(work), work), expected, tolerance=work.tolerance, drift=drift)


@pytest.mark.parametrize("name", WITHOUT_COMPILING)
@pytest.mark.parametrize("kind", ["vae", "m2"])
def test_contenders_compute_the_same_losses(kind: str, name: str) -> None:
    contender = CONTENDERS[name]
    if kind not in contender.by_kind:
        pytest.skip("not a contender of this kind")
    if missing := contender.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    compare(SMALL[kind], contender.build, name, drift=contender.drift)


@pytest.mark.parametrize("kind", ["wgan-gp", pytest.param("wgan-gp-dcgan", marks=pytest.mark.slow)])
def test_contenders_play_the_same_game(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgan_gp, "LEARNING_RATE", 1e-3)
    work = dataclasses.replace(GAMES[kind], calls=4)
    compare(work, CONTENDERS["ppgen-eager"].build)
    monkeypatch.setattr(wgan_gp, "penalty", wgan_gp.functional_penalty)
    compare(work, wgan_gp.eager)


def weaker_penalty(work: works.Work, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    monkeypatch.setattr(wgan_gp, "PENALTY", 5.0)
    return wgan_gp.uncompiled(work)


def fewer_critic_steps(work: works.Work, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    monkeypatch.setattr(wgan_gp, "CRITIC_STEPS", 4)
    return wgan_gp.uncompiled(work)


def slower(work: works.Work, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    monkeypatch.setattr(wgan_gp, "LEARNING_RATE", 2e-3)
    return wgan_gp.uncompiled(work)


def idle_generator(work: works.Work, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """The right losses, but the generator does not learn."""
    right = wgan_gp.generator_loss

    def loss(*args: Any) -> torch.Tensor:
        value = right(*args)
        return value.detach() + 0 * value

    monkeypatch.setattr(wgan_gp, "generator_loss", loss)
    return wgan_gp.eager(work)


@pytest.mark.parametrize("build", [weaker_penalty, fewer_critic_steps, slower, idle_generator])
def test_a_contender_that_plays_another_game_is_an_error(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wgan_gp, "LEARNING_RATE", 5e-3)
    work = dataclasses.replace(GAMES["wgan-gp"], batch=200, calls=12)
    references = measuring.references(CONTENDERS["eager"], work)
    with pytest.raises(checking.DifferentLossError, match=r"contender 'other' .* got"):
        checking.check("other", checking.losses(build(work, monkeypatch), work), references, tolerance=work.tolerance)


def wrong_prior(work: works.Work) -> Callable[[], float]:
    class Wrong(pyro_svi.VAE):
        def latent(self, like: torch.Tensor) -> pyro.distributions.TorchDistribution:
            prior: pyro.distributions.TorchDistribution = super().latent(like).expand(())
            return pyro.distributions.Normal(prior.base_dist.loc, 1.5 * prior.base_dist.scale).to_event(1)

    programs = Wrong(work, "wrong")
    elbo = pyro_svi.vectorised(work)
    svi = pyro.infer.SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": works.LEARNING_RATE}), elbo)
    batches = handwritten.endless(work)
    return lambda: float(svi.step(next(batches)["x"]))


def half_gradients(work: works.Work) -> Callable[[], float]:
    """The right loss, but only the decoder learns."""

    def loss(weights: handwritten.Parameters, batch: Any) -> torch.Tensor:
        fixed = {"encoder": [w.detach() for w in weights["encoder"]], "decoder": weights["decoder"]}
        return handwritten.vae_loss(fixed, batch)

    advance = handwritten.stepping(loss, handwritten.parameters(work, factored=False))
    batches = handwritten.endless(work)
    return lambda: advance(next(batches)).item()


def other_learning_rate(work: works.Work) -> Callable[[], float]:
    step = handwritten.build(work)
    return lambda: (step(), step())[0]


def other_weights(work: works.Work) -> Callable[[], float]:
    weights = handwritten.parameters(work, factored=True)
    with torch.no_grad():
        weights["decoder"][-1].add_(0.1)
    advance = handwritten.stepping(handwritten.vae_loss, weights)
    batches = handwritten.endless(work)
    return lambda: advance(next(batches)).item()


@pytest.mark.parametrize(
    ("build", "where"),
    [(wrong_prior, "first"), (other_weights, "first"), (other_learning_rate, "last"), (half_gradients, "last")],
)
def test_a_contender_that_computes_something_else_is_an_error(build: Callable[..., Any], where: str) -> None:
    with pytest.raises(checking.DifferentLossError, match=f"contender 'other' .* nats in its {where} steps; got"):
        # the effect of a few steps is small at the usual batch
        compare(dataclasses.replace(SMALL_VAE, batch=400, calls=20, tolerance=0.0), build)


def test_a_loss_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(checking.DifferentLossError):
        checking.check("nan", [float("nan")], [[1.0], [1.1]], tolerance=1.0)


def test_a_single_reference_leaves_the_tolerance_alone() -> None:
    checking.check("near", [100.9], [[100.0]], tolerance=0.01)
    with pytest.raises(checking.DifferentLossError):
        checking.check("far", [101.1], [[100.0]], tolerance=0.01)


def test_times_are_those_of_the_counted_steps() -> None:
    now = 0.0
    durations = {"quick": itertools.cycle([9.0, 2.0, 1.0, 3.0]), "slow": itertools.cycle([0.5, 20.0, 30.0, 10.0])}
    calls: list[str] = []

    def step(name: str) -> Callable[[], None]:
        def take() -> None:
            nonlocal now
            calls.append(name)
            now += next(durations[name])

        return take

    steps = {name: step(name) for name in durations}
    found = timing.interleave(steps, rounds=8, turn=4, skip=1, clock=lambda: now)
    # the first step of a turn, 9.0 and 0.5, is left out
    assert found == {"quick": timing.Timing(1.0, 2.0, 24), "slow": timing.Timing(10.0, 20.0, 24)}
    turns = [name for name, _ in itertools.groupby(calls)]
    assert {"quick", "slow"} == {calls[0], *turns}
    rounds = [calls[start : start + 8] for start in range(0, 64, 8)]
    assert all(part.count("quick") == 4 for part in rounds)
    assert len({part[0] for part in rounds}) == 2


def test_a_call_of_several_steps_is_divided_by_them() -> None:
    now = itertools.count(0.0, 8.0)
    found = timing.interleave({"four": float}, rounds=2, chunks={"four": 4}, clock=lambda: next(now))
    assert found["four"].minimum == found["four"].median == 2.0


def test_losses_of_several_steps_at_a_call_are_told_apart() -> None:
    chunks = iter([torch.tensor([3.0, 2.0]), torch.tensor([1.5, 1.25])])
    assert checking.losses(lambda: next(chunks), dataclasses.replace(SMALL_VAE, calls=3)) == [3.0, 2.0, 1.5]


@pytest.mark.parametrize("work", [SMALL_VAE, SMALL_M2, works.WORKS["vae-400-20"]])
def test_the_products_alone_are_those_of_the_hand_written_step(work: works.Work) -> None:
    def counted(step: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            step()
        return int(counter.get_total_flops())

    alone = counted(products.build(work))
    assert alone == products.operations(work)
    assert alone + one_hot_products(work) == counted(handwritten.build(work))


def one_hot_products(work: works.Work) -> int:
    """What a hand-written step does besides: forward and for the weights, and for z's gradient none."""
    widths = [outputs[0] for inputs, outputs in work.networks().values() if len(inputs) == 2]
    return sum(2 * 2 * (work.labelled + work.classes) * work.classes * width for width in widths)


ROWS = [
    measuring.Row("ppgen", "ppgen, fp32", timing.Timing(0.002, 0.0025, 160), 1.0, 12.0),
    measuring.Row("pyro", "Pyro SVI", timing.Timing(0.011, 0.0125, 160), 5.5, 0.25),
    measuring.Row("numpyro", "NumPyro, jitted", reason="not installed: jax, numpyro"),
]
ABOUT = {
    "date": "2030-01-02",
    "processor": "A Processor",
    "bf16": True,
    "cores": 4,
    "threads": 2,
    "load": 0.1,
    "python": "3.11.0",
    "versions": {"torch": "2.11"},
}


def test_the_table_has_minimum_median_ratio_and_what_is_missing() -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(report.table("m2-digits", ROWS))
    text = console.export_text()
    assert "m2-digits: M2 64-128-16, 10 labels enumerated, batch 100 unlabelled + 100 labelled" in text
    lines = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines() if "│" in line]
    assert lines[0] == ["ppgen, fp32", "2.00", "2.50", "1.00", "12.0"]
    assert lines[1] == ["Pyro SVI", "11.00", "12.50", "5.50", "0.2"]
    assert lines[2][:2] == ["NumPyro, jitted", "not installed: jax, numpyro"]


def test_an_epoch_is_told_in_seconds() -> None:
    assert report.headings("vae-epoch")[0][1] == "minimum, s per epoch"
    assert report.cells(ROWS[1], report.headings("vae-epoch")[1])[1:3] == ["0.01", "0.01"]


def test_the_json_document_holds_everything() -> None:
    found = json.loads(json.dumps(report.document({"m2-digits": ROWS}, ABOUT)))
    assert found["machine"]["processor"] == "A Processor"
    (work,) = found["works"]
    assert (work["work"], work["unit"]) == ("m2-digits", "step")
    assert work["contenders"][1]["timing"] == {"minimum": 0.011, "median": 0.0125, "count": 160}
    assert work["contenders"][1]["ratio"] == 5.5
    assert work["contenders"][2]["timing"] is None


def test_the_document_keeps_what_stands_around_the_table(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write(path, report.markdown({"m2-digits": ROWS}, ABOUT))
    text = path.read_text()
    assert text.startswith("before\n\n<!-- ")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    assert "| Pyro SVI | 11.00 | 12.50 | 5.50 | 0.2 |" in text
    assert text.count("A Processor (with AVX512-BF16), 2 of 4 cores") == 1


def test_the_processors_time_is_said_to_be_such() -> None:
    assert "load 0.1 at the start; the processor's time; Python" in report.conditions({**ABOUT, "clock": "processor"})
    assert "processor's time" not in report.conditions({**ABOUT, "clock": "wall"})


def test_a_document_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("no markers")
    with pytest.raises(StorageError, match=r"expected the lines .* got a document without them"):
        report.write(path, "table")
    assert path.read_text() == "no markers"
    with pytest.raises(StorageError, match="cannot read the document"):
        report.write(tmp_path / "none.md", "table")


def test_the_page_of_the_documentation_has_a_place_for_the_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def test_what_is_not_installed_is_reported_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Contender("absent", "Absent", {"vae": "absent:build"}, needs=("no_such_library",))
    able = {name: CONTENDERS[name] for name in ("eager", "products", "pyro")} | {"absent": absent}
    said: list[str] = []
    rows = {row.contender: row for row in measuring.measure(SMALL_VAE, able, rounds=3, say=said.append)}
    assert list(rows) == ["eager", "products", "absent"]  # this Pyro is for M2 only
    assert rows["absent"].reason == "not installed: no_such_library"
    assert rows["absent"].timing is None
    assert rows["eager"].timing is not None
    assert rows["eager"].timing.count == 3 * (SMALL_VAE.turn - SMALL_VAE.skip)
    assert rows["eager"].ratio is None  # without ppgen
    assert said[0] == "small-vae: reference"


def test_ratios_are_of_minima_to_those_of_ppgen(monkeypatch: pytest.MonkeyPatch) -> None:
    able = {"ppgen": dataclasses.replace(CONTENDERS["ppgen-eager"], name="ppgen"), "eager": CONTENDERS["eager"]}
    rows = measuring.measure(SMALL_VAE, able, rounds=3, say=lambda _: None)
    minima = [row.timing.minimum for row in rows if row.timing]
    assert [row.ratio for row in rows] == [1.0, minima[1] / minima[0]]


def test_a_contender_that_is_wrong_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders.own, "build", lambda work: other_weights(work))
    wrong = dataclasses.replace(CONTENDERS["ppgen"], by_kind={"vae": "own:build"})
    with pytest.raises(checking.DifferentLossError, match="contender 'ppgen'"):
        measuring.measure(dataclasses.replace(SMALL_VAE, batch=400), {"ppgen": wrong}, rounds=1, say=lambda _: None)


def test_every_contender_names_functions_that_are_there() -> None:
    for contender in CONTENDERS.values():
        if not contender.missing():
            for place in contender.by_kind.values():
                module, _, function = place.partition(":")
                found = __import__(f"benchmarks.contenders.{module}", fromlist=[function])
                assert callable(getattr(found, function)), place


def test_names_are_chosen_in_the_known_order_and_unknown_ones_refused() -> None:
    assert command.chosen("c, a", ["a", "b", "c"], "--only") == ["a", "c"]
    assert command.chosen("", ["a", "b"], "--only") == ["a", "b"]
    with pytest.raises(ConfigError, match="expected --only of a, b; got 'd'"):
        command.chosen("d", ["a", "b"], "--only")


def ran(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_prints_json_alone_and_the_table_beside_it() -> None:
    done = ran("--only", "m2-digits", "--contenders", "eager,products", "--rounds", "2", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["threads"] == 1
    assert [row["contender"] for row in found["works"][0]["contenders"]] == ["eager", "products"]
    assert "PyTorch by hand" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "4096"], "expected --threads from 1 to "),
        (["--threads", "2", "--clock", "processor"], "expected --threads 1 with --clock processor; got 2"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], message: str) -> None:
    done = ran(*options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("contender", ["ppgen", "pythae"])
def test_an_epoch_of_a_contender_goes_through_all_rows(contender: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := CONTENDERS[contender].missing():
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.delenv("PPGEN_DATA", raising=False)
    monkeypatch.setattr(epochs, "ROWS", 800)
    monkeypatch.setattr(own, "trainer", functools.partial(own.trainer, compile="off"))
    work = dataclasses.replace(SMALL_VAE, kind="vae-epoch", name="small-epoch")
    expected = [epochs.plain(work)() for _ in range(5)]
    (found,) = checking.losses(CONTENDERS[contender].build(work), dataclasses.replace(work, calls=1))
    checking.check(contender, [found], [[loss] for loss in expected], tolerance=1e-3)
    short = epochs.plain(work)
    short()
    with pytest.raises(checking.DifferentLossError):  # a second epoch has another loss
        checking.check("second", [short()], [[loss] for loss in expected], tolerance=1e-3)


def growing(scale: float) -> dict[str, Any]:
    points = [{"minimum": scale * value, "median": 1.0, "startup": 1.0, "peak": 2e8 * scale} for value in (1, 2, 3)]
    return {"title": "rows", "base": "VAE", "values": [1, 10, 100], "contenders": {"ppgen": points, "pyro": points}}


def test_growth_is_drawn_one_picture_for_each_size(tmp_path: Path) -> None:
    first, second = growth.draw({"batch": growing(0.01), "classes": growing(0.02)}, tmp_path, ABOUT)
    assert (first.name, second.name) == ("batch.png", "classes.png")
    assert first.read_bytes()[:4] == b"\x89PNG"
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(("axis", "value"), [("particles", 2), ("classes", 3), ("data", 200)])
def test_a_point_of_growth_is_of_its_size(axis: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = (known for known in growth.AXES if known.name == axis)
    small = dataclasses.replace(found, work=SMALL[found.work.kind])
    losses = {}
    for contender in ("ppgen-eager", "pyro"):
        torch.manual_seed(0)
        losses[contender] = growth.step_of(small, value, contender)()
        pyro.clear_param_store()
    assert losses["ppgen-eager"] == pytest.approx(losses["pyro"], rel=0.05)
    point = growth.measure_point(small, value, "ppgen-eager")
    assert 0 < point["minimum"] <= point["median"]
    assert point["peak"] > 1e8


def test_compiled_step_is_faster_than_pyro() -> None:
    """Guards against losing the compiled path: the real ratio is above 5, which a busy machine may blur."""
    work = works.WORKS["m2-digits"]
    steps = {"ppgen": own.build(work), "pyro": CONTENDERS["pyro"].build(work)}
    for step in steps.values():
        for _ in range(3):
            step()
    found = timing.interleave(steps, rounds=8, turn=6, skip=2)
    assert found["pyro"].minimum > 2 * found["ppgen"].minimum
