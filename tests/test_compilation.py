"""Compiled equals eager; what cannot be compiled runs eagerly and says why."""

import contextlib
import functools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from test_training import MEAN, SCHEDULES, Game, assert_same, everything, game, mean_guide, mean_model, run
from torch import Tensor
from zoo import binary_rows, small_m2, small_vae

from ppgen import compilation, stepping
from ppgen.errors import ConfigError, DivergedError
from ppgen.objectives import ELBO, EnumeratedELBO, Objective
from ppgen.packing import pack, unpack
from ppgen.players import Optimizer, Player, without_denormals
from ppgen.stepping import Stepper
from ppgen.training import Trainer

ROOT = Path(__file__).resolve().parents[1]
adam = functools.partial(torch.optim.Adam, lr=0.01)

compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")
# what torch's compiler itself warns of
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def batches(rows: int = 12, *, count: int = 5) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from ({"x": binary_rows(rows, seed=seed)} for seed in range(count))


def regression(x: Tensor, y: Tensor | None = None) -> None:
    weight = pyro.sample("weight", dist.Normal(0.0, 2.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(weight * x, noise + 0.1), obs=y)


LINE = {"x": torch.linspace(-1, 1, 6), "y": 3 * torch.linspace(-1, 1, 6)}

CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[], Any], Callable[[], Iterator[Any]]]] = {
    "vae, batch norm, dropout, warm-up": (
        lambda: small_vae(batch_norm=True, dropout=0.3),
        lambda: ELBO(warmup=20, free_bits=0.01),
        batches,
    ),
    "m2": (lambda: small_m2(classes=4), EnumeratedELBO, batches),
    "plain functions": (lambda: (mean_model, mean_guide), ELBO, lambda: iter(lambda: MEAN, None)),
    "autoguide": (lambda: (regression, AutoNormal(regression)), ELBO, lambda: iter(lambda: LINE, None)),
    "stock": (lambda: (mean_model, mean_guide), Trace_ELBO, lambda: iter(lambda: MEAN, None)),
    "particles": (lambda: small_vae(), lambda: ELBO(particles=3, analytic_kl=False), batches),
}
DEFAULT = ["vae, batch norm, dropout, warm-up", "m2"]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What ppgen said, not torch's compiler."""
    return [record.getMessage() for record in caplog.records if record.name == "ppgen"]


def made(case: str, compile: Any) -> Trainer:
    pair, objective, _ = CASES[case]
    torch.manual_seed(0)
    # Adam makes steps of the noise in a gradient that is 0: that of a bias before a batch normalisation
    factory = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9) if "batch norm" in case else adam
    optimizer = Optimizer(factory, schedule=SCHEDULES["steps"], clip=5.0)
    return Trainer(*pair(), objective(), optimizer, average=0.9, device="cpu", compile=compile)


def train(trainer: Trainer, stream: Iterator[Any], steps: int) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in trainer.step(stream).items()} for _ in range(steps)]


def assert_close(one: Trainer, two: Trainer, *, tolerance: float = 2e-3) -> None:
    ours, theirs = everything(one), everything(two)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.startswith("random"):
            assert torch.equal(ours[name], tensor), "both take the same noise from the same stream"
        else:
            assert torch.allclose(ours[name].double(), tensor.double(), rtol=tolerance, atol=tolerance), name


@needs_compiler
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in DEFAULT else pytest.mark.slow) for case in CASES]
)
def test_compiled_equals_eager_and_resumes_exactly(case: str) -> None:
    compiled, eager = made(case, "on"), made(case, "off")
    stream = CASES[case][2]
    ours, theirs = stream(), stream()
    torch.manual_seed(1)
    found = train(compiled, ours, 20)
    state = compiled.state_dict()
    tensors, rest = pack(state)
    found += train(compiled, ours, 10)
    torch.manual_seed(1)
    expected = train(eager, theirs, 30)
    assert compiled.compiled
    for step, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == two.keys()
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4, abs=1e-4), step
    assert_close(compiled, eager)
    unlike = made(case, "off")
    torch.manual_seed(2)
    train(unlike, stream(), 30)
    with pytest.raises(AssertionError):
        assert_close(unlike, eager)
    # the same functions, in the trainer that has them: tensors of the state are other ones afterwards
    again = stream()
    for _ in range(20):
        next(again)
    resumed = made(case, "on")
    resumed.load_state_dict(unpack(tensors, rest))
    assert train(resumed, again, 10) == found[20:]
    assert_same(everything(compiled), everything(resumed))


@needs_compiler
def test_a_compiled_game_keeps_players_apart_and_a_nan_out() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 30, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    compiled, eager = game("on", model=model), game("off", model=model)
    found = []
    for trainer in (compiled, eager):
        torch.manual_seed(1)
        found.append(train(trainer, iter(lambda: MEAN, None), 12))
    assert compiled.compiled
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)
    assert_close(compiled, eager)
    before = everything(compiled)
    bad = {"x": torch.tensor([1.0, torch.nan, 2.0])}
    with pytest.raises(DivergedError, match=r"at step 13: model site 'x', rows 1$"):
        compiled.step(iter([bad, bad]))
    after = everything(compiled)
    for name in before.keys() - {"random/torch"}:
        assert torch.equal(before[name], after[name]), name
    train(compiled, iter(lambda: MEAN, None), 1)
    assert not torch.equal(before["players/critic/leaves/critic.weight"], compiled.leaves["critic.weight"])


# ------------------------------------------------------------------------------------------ what cannot be compiled


class Counting(Objective):
    """A KL weight kept in Python, which a graph would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = ELBO()
        self.n = 0

    def loss(self, model: Any, guide: Any, batch: Any) -> Tensor:
        self.n += 1
        return self.bound.loss(model, guide, batch) * (1 / self.n)


def branching(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = 2.0 if mean > 0 else 1.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def reading(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, x.std().item()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


class Growing(Objective):
    """Takes another way from its second recording on."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = ELBO()
        self.seen: list[int] = []

    def loss(self, model: Any, guide: Any, batch: Any) -> Tensor:
        self.seen.append(1)
        loss = self.bound.loss(model, guide, batch)
        return loss + sum((loss * 0 for _ in self.seen), torch.zeros(()))


REFUSED: dict[str, tuple[Any, Callable[[], Any], str]] = {
    "python counter": (mean_model, Counting, r"a Python value changes from step to step"),
    "growing": (mean_model, Growing, r"from step to step"),
    "branch": (branching, ELBO, r"reads the value of a tensor.*test_compilation.py:\d+: scale = 2.0 if mean > 0"),
    "item": (reading, ELBO, r"reads the value of a tensor.*test_compilation.py:\d+: mean = .*x.std\(\).item\(\)"),
    "stock with gradients": (mean_model, RenyiELBO, r"\(.item\(\), if, float\(\)\)|reads the value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_frozen_stays_eager_and_says_why(case: str, caplog: pytest.LogCaptureFixture) -> None:
    model, objective, reason = REFUSED[case]
    losses = []
    for mode in ("auto", "off"):
        torch.manual_seed(0)
        trainer = Trainer(model, mean_guide, objective(), adam, device="cpu", compile=mode)  # type: ignore[arg-type]
        if mode == "auto":
            trainer.decide(True)  # as after a plan that found it worth while
        losses.append(run(trainer, MEAN, 6))
        assert trainer.compiled is False
    if case not in ("python counter", "growing"):
        assert losses[0] == losses[1]
    (line,) = messages(caplog)
    assert "training eagerly, the step cannot be compiled" in line
    assert "\n" not in line
    with pytest.raises(ConfigError, match=r"the step cannot be compiled: ") as caught:
        run(Trainer(model, mean_guide, objective(), adam, device="cpu", compile="on"), MEAN, 2)
    caught.match(reason)
    assert "\n" not in str(caught.value)


def test_a_constant_in_python_is_no_reason() -> None:
    """Negative control of the comparison of two recordings."""
    state = torch.zeros(3)

    def function(x: Tensor) -> list[Tensor]:
        state.add_(x.sum() * 0.5 + torch.tensor([1.0, 2.0, 3.0]))
        return [state * 2]

    one = compilation.record(function, [torch.ones(2)])
    two = compilation.record(function, [torch.zeros(2)])
    assert one.difference(two) is None
    assert one.lift(two)[0] is state


def test_without_a_compiler_training_is_eager(caplog: pytest.LogCaptureFixture) -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        trainer = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu")
        trainer.decide(True)
        run(trainer, MEAN, 4)
        assert trainer.compiled is False
        (line,) = messages(caplog)
        assert "no working C++ compiler was found" in line
        assert "\n" not in line
        with pytest.raises(ConfigError, match=r"no working C\+\+ compiler"):
            run(Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on"), MEAN, 2)


Corruption = Callable[[list[Tensor], list[Tensor]], None]


def fake_compilation(monkeypatch: pytest.MonkeyPatch, corrupt: Corruption | None = None) -> list[int]:
    """Has the eager function in the place of a compiled one, spoilt by ``corrupt``; counts compilations."""
    compilations: list[int] = []

    def compile_function(function: Any, inputs: Any, state: list[Tensor]) -> Any:
        compilations.append(1)
        with compilation.preserved(state):
            function(*inputs)

        def call(*tensors: Tensor) -> list[Tensor]:
            results = list(function(*tensors))
            if corrupt is not None:
                with torch.no_grad():
                    corrupt(state, results)
            return results

        return call

    monkeypatch.setattr(stepping, "compile_function", compile_function)
    return compilations


def wrong_loss(state: list[Tensor], results: list[Tensor]) -> None:
    results[0] = results[0] * 1.01


def wrong_move(state: list[Tensor], results: list[Tensor]) -> None:
    state[0].add_(0.01)


@pytest.mark.parametrize("corrupt", [wrong_loss, wrong_move])
def test_a_wrong_compiled_step_is_caught(
    corrupt: Corruption, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_compilation(monkeypatch, corrupt)
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu")
    trainer.decide(True)
    torch.manual_seed(0)
    losses = run(trainer, MEAN, 4)
    assert trainer.compiled is False
    assert "compiled and eager" in caplog.text
    assert "at step 2" in caplog.text
    eager = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="off")
    torch.manual_seed(0)
    assert run(eager, MEAN, 4) == losses, "the step that was checked is the eager one"
    with pytest.raises(ConfigError, match="compiled and eager"):
        run(Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on"), MEAN, 4)


def test_a_right_compiled_step_is_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Negative control of the checked steps."""
    fake_compilation(monkeypatch)
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on")
    run(trainer, MEAN, 12)
    assert trainer.compiled
    assert messages(caplog) == []


def test_a_schedule_of_more_than_the_learning_rate_stays_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph holds the momentum of its recording."""
    compilations = fake_compilation(monkeypatch)
    for cycles in (True, False):
        schedule = functools.partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20, cycle_momentum=cycles
        )
        trainer = Trainer(mean_model, mean_guide, ELBO(), Optimizer(adam, schedule=schedule), device="cpu")
        trainer.decide(True)
        run(trainer, MEAN, 4)
        assert trainer.compiled is not cycles
    assert len(compilations) == 1
    assert len(messages(caplog)) == 1
    assert "changes more of the optimizer than its learning rate" in caplog.text


# -------------------------------------------------------------------------------------------------------- the decision


@contextlib.contextmanager
def unchanged(trainer: Trainer) -> Iterator[None]:
    before = everything(trainer)
    yield
    after = everything(trainer)
    assert before.keys() == after.keys()
    assert_same(before, after)


def test_auto_compiles_where_the_run_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, steps, expected in [(0.001, 100, False), (0.001, 10**7, True), (10.0, 100, True), (10.0, None, False)]:
        monkeypatch.setattr(stepping, "_seconds", lambda phase, batch, seconds=seconds: phase(batch) and seconds)
        for taken in (0, 3):
            model, guide = small_vae(batch_norm=True)
            trainer = Trainer(model, guide, ELBO(), adam, total_steps=steps, average=0.9, device="cpu")
            batch = {"x": binary_rows(6)}
            trainer.setup(batch)
            if taken:
                trainer._stepper.compiled = False
                run(trainer, batch, taken)
                trainer._stepper.compiled = None
            with unchanged(trainer):
                trainer.plan(batch)
            assert trainer.compiled is expected, (seconds, steps)


def test_a_graph_too_large_to_compile_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "_seconds", lambda phase, batch: 100.0)
    monkeypatch.setattr(stepping, "estimated_seconds", lambda operations: 0.0 if operations == 0 else 121.0)
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, total_steps=10**6, device="cpu")
    trainer.plan(MEAN)
    assert trainer.compiled is False
    monkeypatch.setattr(stepping, "estimated_seconds", lambda operations: 0.0 if operations == 0 else 119.0)
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, total_steps=10**6, device="cpu")
    trainer.plan(MEAN)
    assert trainer.compiled is True


def test_the_decision_falls_by_itself_at_the_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = fake_compilation(monkeypatch)
    monkeypatch.setattr(stepping, "_seconds", lambda phase, batch: 100.0)
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu")
    list(trainer.fit(MEAN, steps=1))
    assert trainer.compiled is None
    list(trainer.fit(MEAN, steps=5))
    assert trainer.compiled is True
    assert len(compilations) == 1
    without_length = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu")
    run(without_length, MEAN, 3)
    assert without_length.compiled is False


def test_batches_of_an_unusual_shape_run_eagerly_after_a_resume_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def note(state: list[Tensor], results: list[Tensor]) -> None:
        calls.append(1)

    fake_compilation(monkeypatch, note)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mixed = [{"x": x}, {"x": x}, {"x": x[:2]}]

    def trainer() -> Trainer:
        return Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on")

    whole = trainer()
    list(whole.fit(mixed, steps=6))
    assert len(calls) == 3, "steps 2, 4 and 5"
    part = trainer()
    part.load_state_dict(whole.state_dict())
    calls.clear()
    list(part.fit([mixed[2], mixed[0]], steps=2))
    assert len(calls) == 1


def test_a_further_shape_is_compiled_once_it_keeps_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = fake_compilation(monkeypatch)
    monkeypatch.setattr(stepping, "REPEATED", 3)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mixed = [{"x": x}, {"x": x[:2]}]
    whole = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on")
    list(whole.fit(mixed, steps=5))
    assert len(compilations) == 1, "the shorter batch came twice"
    part = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on")
    part.load_state_dict(whole.state_dict())
    list(part.fit([mixed[1], mixed[0]], steps=1))
    assert len(compilations) == 2, "what came before a resume counts too"
    list(whole.fit([mixed[1], mixed[0]], steps=10))
    assert len(compilations) == 3
    assert whole._stepper.compiling_seconds > 0


def test_batches_that_are_all_of_another_kind_leave_a_state_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compilation(monkeypatch)
    monkeypatch.setattr(stepping, "MOST_KINDS", 4)

    def guide(x: Tensor, strength: float) -> None:
        mean_guide(x)

    def model(x: Tensor, strength: float) -> None:
        with poutine.scale(scale=strength):
            mean_model(x)

    batches = [{"x": torch.tensor([1.0, 2.0, 3.0]), "strength": 1 / step} for step in range(1, 10)]
    trainer = Trainer(model, guide, ELBO(), adam, device="cpu", compile="on")
    list(trainer.fit(batches, steps=9))
    assert [len(seen) for seen in trainer.state_dict()["stepper"]["seen"].values()] == [4]


def test_every_compiled_function_is_checked_at_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu")
    list(trainer.fit(MEAN, steps=4))
    fake_compilation(monkeypatch, wrong_loss)
    trainer.decide(True)
    list(trainer.fit(MEAN, steps=1))
    assert trainer.steps == 5
    assert trainer.compiled is False


@pytest.mark.parametrize("factory", [torch.optim.Adam, torch.optim.SGD])
def test_a_learning_rate_of_0_moves_nothing(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = torch.ones(3, requires_grad=True)
    player = Player("all", {"leaf": leaf}, Optimizer(functools.partial(factory, lr=0.1)))
    still = torch.tensor([1.0, -2.0, 0.0])  # one with a gradient of 0 throughout
    player.update([still], player.norm([still]))
    moved = leaf.detach().clone()
    player.optimizer.param_groups[0]["lr"].fill_(0.0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    player.update([still], player.norm([still]))
    assert torch.equal(leaf, moved)
    player.optimizer.param_groups[0]["lr"].fill_(0.1)
    player.update([still], player.norm([still]))
    assert not torch.equal(leaf, moved)


def test_numbers_too_small_for_a_normal_float_are_0() -> None:
    tiny = torch.tensor([1e-39, -1e-44, 0.0, 1e-37, -3.0, torch.inf])
    assert without_denormals(tiny).tolist() == [0.0, 0.0, 0.0, tiny[3].item(), -3.0, torch.inf]
    assert without_denormals(torch.tensor([torch.nan])).isnan().all()
    assert without_denormals(torch.tensor([3])).tolist() == [3]


def test_scalars_are_computed_once() -> None:
    step, x = torch.tensor(3.0), torch.randn(40)

    def graph(function: Any) -> compilation.Graph:
        recorded = compilation.record(function, [x])
        recorded.compute_scalars_once()
        return recorded

    def once(recorded: compilation.Graph) -> int:
        return sum("realize" in str(node.target) for node in recorded.module.graph.nodes)

    corrected = graph(lambda x: [x * (1 - 0.9**step).sqrt(), x + 0.9**step])
    assert once(corrected) == 2
    assert torch.equal(corrected.module(x)[0], x * (1 - 0.9**step).sqrt())
    assert once(graph(lambda x: [x * 2.0, x.sum() * step])) == 0


@needs_compiler
def test_compiled_graphs_are_kept_on_disk_between_runs(tmp_path: Path) -> None:
    code = """
import logging, torch
from torch._dynamo.utils import counters
from ppgen.compilation import compile_function
moved = torch.zeros(7)
def function(x):
    moved.add_(x.sum())
    return [x.sin() * 3]
print(compile_function(function, [torch.ones(5)], [moved])(torch.ones(5))[0])
print("hits", counters["inductor"]["fxgraph_cache_hit"])
"""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said[0].splitlines()[-1] == "hits 0"
    assert said[1].splitlines()[-1] == "hits 1"


def test_the_decision_of_a_run_is_resumed() -> None:
    for decided in (True, False, None):
        stepper = Stepper("auto")
        stepper.load_state_dict({"compiled": decided, "seen": {}})
        assert stepper.compiled is decided
    forced = Stepper("off")
    forced.load_state_dict({"compiled": True, "seen": {}})
    assert forced.compiled is False


def test_loading_a_state_forgets_functions_of_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = fake_compilation(monkeypatch)
    trainer = Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu", compile="on")
    run(trainer, MEAN, 4)
    state = trainer.state_dict()
    losses = run(trainer, MEAN, 3)
    trainer.load_state_dict(state)
    assert run(trainer, MEAN, 3) == losses
    assert len(compilations) == 2


def test_a_statement_of_the_user_is_found_in_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "ppgen" / "examples"
    folder.mkdir(parents=True)
    source = "def function(x):\n    return [x * 2 if x.sum() > 0 else x]\n"
    (folder / "mine.py").write_text(source)
    space: dict[str, Any] = {}
    exec(compile(source, str(folder / "mine.py"), "exec"), space)
    with pytest.raises(compilation.CompileError, match=r"mine.py:2: return \[x \* 2 if"):
        compilation.record(space["function"], [torch.ones(2)])


def test_warnings_of_eager_training_are_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    run(Trainer(mean_model, mean_guide, ELBO(), adam, device="cpu"), MEAN, 3)
    assert Game().critic.weight.requires_grad
    assert messages(caplog) == []


@needs_compiler
def test_draws_that_nothing_uses_still_move_the_random_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(6.0)

    def noisy(rows: Tensor) -> list[Tensor]:
        torch.nn.functional.dropout(rows, 0.5)  # unused: the compiler would leave it out
        return [(rows * torch.randn(6)).sum()]

    def results() -> tuple[float, float]:
        function = compilation.compile_function(noisy, [x], [])
        torch.manual_seed(3)
        eager = noisy(x)[0]
        torch.manual_seed(3)
        compiled = function(x)
        assert len(compiled) == 1
        return float(eager), float(compiled[0])

    eager, compiled = results()
    assert eager == pytest.approx(compiled, rel=1e-5)
    monkeypatch.setattr(compilation.Graph, "keep_noise", lambda graph: None)
    eager, compiled = results()
    assert eager != pytest.approx(compiled, rel=1e-2), "negative control"


@needs_compiler
def test_draws_in_the_order_of_a_tensor_that_the_compiler_lays_out_are_the_eager_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.arange(20.0).reshape(5, 4)

    def draws(rows: Tensor) -> list[Tensor]:
        like = (rows.T * 2).expand(3, 4, 5)  # dimensions lie in memory in another order, and one lies nowhere
        noise = [torch.rand_like(like), torch.randn_like(like), torch.randint_like(like, 9)]
        return [*noise, torch.randint_like(like, -9, 9)]

    def results() -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        function = compilation.compile_function(draws, [x], [])
        torch.manual_seed(3)
        eager = draws(x)
        torch.manual_seed(3)
        return eager, function(x)

    eager, compiled = results()
    for one, two in zip(eager, compiled, strict=True):
        assert torch.equal(one, two)
    monkeypatch.setattr(compilation, "DRAWS_LIKE", {})
    eager, compiled = results()
    for one, two in zip(eager, compiled, strict=True):
        assert not torch.equal(one, two), "negative control"


def penalised(weights: list[Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """A gradient penalty of a perceptron, and its gradients."""

    def function(x: Tensor) -> list[Tensor]:
        rows = x.detach().requires_grad_()
        leaves = [weight.detach().requires_grad_() for weight in weights]
        hidden = torch.nn.functional.leaky_relu(rows @ leaves[0], 0.2)
        outputs = torch.relu(hidden @ leaves[1]) @ leaves[2]
        (slope,) = torch.autograd.grad(outputs.sum(), rows, create_graph=True)
        return [x.detach() for x in torch.autograd.grad((slope.norm(dim=1) - 1).square().mean(), leaves)]

    return function


def products(graph: compilation.Graph) -> int:
    graph.module.graph.eliminate_dead_code()
    return sum(node.target is torch.ops.aten.mm.default for node in graph.module.graph.nodes)


def test_products_with_second_derivatives_that_are_zero_are_left_out() -> None:
    torch.manual_seed(0)
    function = penalised([torch.randn(5, 7), torch.randn(7, 6), torch.randn(6, 1)])
    x = torch.randn(4, 5)
    graph, whole = compilation.record(function, [x]), compilation.record(function, [x])
    graph.leave_out_zeros()
    graph.module.recompile()
    for found, expected in zip(graph.module(x), function(x), strict=True):
        assert torch.equal(found, expected)
        assert expected.abs().sum() > 0
    # forwards three; the slope three; its gradient two for each weight, but one for the last, which nothing lies above
    assert products(graph) == 3 + 3 + 5
    assert products(whole) > products(graph), "negative control"


def test_a_zero_that_is_written_to_is_kept() -> None:
    def function(x: Tensor) -> list[Tensor]:
        plain, seen, kept = torch.zeros(3), torch.zeros(3, 3), torch.zeros(3)
        plain.copy_(x)
        seen[0].add_(x)
        rows = x * 1
        total = rows + kept
        rows.mul_(2)
        return [plain * x, seen @ seen, total, kept * x + rows]

    x = torch.tensor([1.0, 2.0, 3.0])
    graph = compilation.record(function, [x])
    graph.leave_out_zeros()
    graph.module.recompile()
    for found, expected in zip(graph.module(x), function(x), strict=True):
        assert torch.equal(found, expected)
    graph.module.graph.eliminate_dead_code()
    assert torch.ops.aten.mul.Tensor in {node.target for node in graph.module.graph.nodes}
