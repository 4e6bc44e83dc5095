"""What is drawn where a program observes: data alone, in their own shape, whatever else stands in the program."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppgen import ELBO, Trainer
from ppgen.evaluation import to_arviz
from ppgen.programs import Call, generate, reconstruct, rows_of, simulate
from ppgen.programs.description import describe
from ppgen.programs.encoding import encode
from ppgen.programs.latents import dream
from ppgen.programs.priors import draw_prior

ROWS = 6
IMAGES = torch.bernoulli(torch.full((ROWS, 1, 8, 8), 0.5), generator=torch.Generator().manual_seed(1))
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def _own_store() -> Any:
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def shapes(drawn: Any) -> Shapes:
    return {name: tuple(value.shape) for name, value in drawn.items()}


def images(x: Tensor) -> None:
    weight = pyro.param("weight", torch.ones(2, 64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        p = pyro.deterministic("p", torch.sigmoid(z @ weight).view(-1, 1, 8, 8))
        pyro.sample("x", dist.Bernoulli(p).to_event(3), obs=x)


def images_guide(x: Tensor) -> None:
    scale = pyro.param("width", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.deterministic("hidden", x.flatten(1)[:, :5])
        pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))


@pytest.mark.parametrize("rows", [None, 4, 6, 9])
def test_a_deterministic_site_in_the_data_plate_leaves_data_their_shape(rows: int | None) -> None:
    n = rows or ROWS
    wanted = {"z": (n, 2), "p": (n, 1, 8, 8), "x": (n, 1, 8, 8)}
    assert shapes(generate(images, {"x": IMAGES}, rows)) == wanted
    means = generate(images, {"x": IMAGES}, rows, mean=["x", "p"])
    assert shapes(means) == wanted
    assert torch.equal(means["x"], means["p"])
    assert shapes(generate(images, (IMAGES,), rows)) == wanted
    assert shapes(generate(images, Call((), {"x": IMAGES}), rows)) == wanted


def test_everything_that_draws_data_leaves_them_their_shape() -> None:
    batch = {"x": IMAGES}
    wanted = {"z": (ROWS, 2), "p": (ROWS, 1, 8, 8), "x": (ROWS, 1, 8, 8)}
    assert shapes(reconstruct(images, images_guide, batch)) == wanted
    assert shapes(reconstruct(images, images_guide, batch, mean=["x"])) == wanted
    simulated = simulate(images, batch)
    assert {name: tuple(rows_of(site).shape) for name, site in simulated.items()} == {
        name: shape for name, shape in wanted.items() if name != "p"
    }
    dreamed = dream(images, images_guide, batch)
    assert dreamed.latents == ["z"]
    assert shapes({n: s["value"] for n, s in dreamed.model.nodes.items() if s["type"] == "sample"}) == wanted
    assert dreamed.log_q("z").shape == (ROWS,)
    assert shapes({name: site["value"] for name, site in draw_prior(images, batch, ["z"]).items()}) == {"z": (ROWS, 2)}
    assert shapes(encode(images_guide, batch)) == {"hidden": (ROWS, 5), "z": (ROWS, 2)}


def test_arviz_names_the_rows_of_deterministic_sites() -> None:
    trainer = Trainer(images, images_guide, ELBO(), compile="off")
    trainer.setup({"x": IMAGES})
    drawn = to_arviz(trainer, {"x": IMAGES}, draws=3)
    for group in ("posterior", "prior"):
        assert drawn[group]["p"].dims == ("chain", "draw", "data", "p_dim_0", "p_dim_1", "p_dim_2")
        assert drawn[group]["p"].shape == (1, 3, ROWS, 1, 8, 8)
    for group in ("posterior_predictive", "prior_predictive"):
        assert drawn[group]["x"].shape == (1, 3, ROWS, 1, 8, 8)


def partly(x: Tensor, known: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean * torch.ones(3), 1.0).to_event(1), obs=x, obs_mask=known)


def test_rows_that_are_not_known_are_drawn_by_the_model_and_reconstructed_by_the_guide() -> None:
    known = torch.tensor([True, False, True, True, False])
    batch = {"x": torch.full((5, 3), 99.0), "known": known}
    drawn = generate(partly, batch)
    assert shapes(drawn) == {"mean": (), "x_observed": (5, 3), "x_unobserved": (5, 3), "x": (5, 3)}
    mixed = torch.where(known[:, None], drawn["x_observed"], drawn["x_unobserved"])
    assert torch.equal(drawn["x"], mixed)
    assert drawn["x"].abs().max() < 10  # nothing of the data is left
    guided = torch.arange(15.0).view(5, 3)

    def guide(x: Tensor, known: Tensor) -> None:
        pyro.sample("mean", dist.Delta(torch.tensor(0.0)))
        with pyro.plate("data", len(x)), poutine.mask(mask=~known):
            pyro.sample("x_unobserved", dist.Delta(guided, event_dim=1))

    found = reconstruct(partly, guide, batch)["x"]
    assert torch.equal(found[~known], guided[~known])
    assert found[known].abs().max() < 10


def unsized(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)  # nothing but what it observes says how many there are
        pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y)
        pyro.sample("w", dist.Normal(z, 1.0), obs=x)


def nested(x: Tensor, known: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=known):
        z = pyro.sample("z", dist.Normal(shift, 1.0))
        with pyro.plate("inner", 3, dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)
        pyro.factor("soft", -z.square())


PLAIN = {"x": torch.zeros(4), "y": torch.zeros(4, dtype=torch.int64)}
INNER = {"x": torch.zeros(4, 3), "known": torch.ones(4) > 0}
CASES: list[tuple[Any, dict[str, Tensor], Shapes]] = [
    (unsized, PLAIN, {"z": (7,), "x": (7,), "y": (7,), "w": (7,)}),
    (nested, INNER, {"shift": (), "z": (7,), "x": (3, 7)}),
]


@pytest.mark.parametrize(("model", "batch", "wanted"), CASES, ids=["plate without size", "plate in plate"])
def test_other_programs_draw_as_many_rows_as_are_asked_for(
    model: Any, batch: dict[str, Tensor], wanted: Shapes
) -> None:
    drawn = generate(model, batch, 7)
    assert shapes(drawn) == wanted
    if "y" in batch:
        assert drawn["y"].dtype == torch.int64
        assert drawn["x"].std() > 0.1  # a draw for each row, not one of all
    clamped = generate(model, batch, 7, given={"z": torch.full((7,), 100.0)})
    assert clamped["z"].eq(100).all()
    assert (clamped["w" if "w" in clamped else "x"] - 100).abs().max() < 10


def test_a_description_tells_data_from_what_is_none() -> None:
    def model(x: Tensor) -> None:
        images(x)
        pyro.factor("soft", torch.tensor(0.0))

    roles = {site.name: site.role for site in describe(model, images_guide, {"x": IMAGES}).sites}
    assert roles == {"z": "latent", "p": "deterministic", "x": "observed", "soft": "factor", "hidden": "deterministic"}


def test_conditioned_latents_are_drawn_as_pyro_draws_them() -> None:
    """`poutine.uncondition` frees what a program was conditioned on, and so does generation."""

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    conditioned = poutine.condition(model, data={"shift": torch.tensor(5.0)})
    values = {float(generate(conditioned, {"x": torch.zeros(3)})["shift"]) for _ in range(3)}
    assert len(values) == 3


def test_an_autoguide_of_a_model_with_deterministic_sites() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", weight * torch.ones(len(x), 2))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    batch = {"x": torch.zeros(5, 2)}
    assert shapes(reconstruct(model, AutoNormal(model), batch)) == {"weight": (), "mean": (5, 2), "x": (5, 2)}
