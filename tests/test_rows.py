"""What a row is and what weighs it: plates along the rows, scales, masks, auxiliary sites, parameters by position.

The toy: z ~ N(0, 1), x ~ N(z, 1/2), guide N(0.7 x, 0.6), of which every figure is known.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppgen import ELBO, IWAE, Renyi, Trainer, programs, to_arviz
from ppgen.data import Batches
from ppgen.errors import ConfigError
from ppgen.evaluation import elbo, negative_log_likelihood
from ppgen.objectives import ReweightedWakeSleep, as_objective
from ppgen.programs import Program

X = torch.tensor([0.5, -1.0, 2.0, 0.1])
EVIDENCE = dist.Normal(0.0, math.sqrt(1.25)).log_prob(X)
NLL = 1.5565


def kl() -> Tensor:
    found: Tensor = 0.5 * (0.6**2 + (0.7 * X).square() - 1) - math.log(0.6)
    return found


def exact_elbo() -> Tensor:
    """E_q[log p(x | z)] - KL of every row of the toy."""
    found: Tensor = dist.Normal(0.7 * X, 0.5).log_prob(X) - 0.6**2 / (2 * 0.5**2) - kl()
    return found


Pair = tuple[Program, Program]


def toy(
    *,
    scale: Any = 1.0,
    of_latent: float = 1.0,
    latents: str = "data",
    of_guide: str | None = None,
    sized: bool = True,
) -> Pair:
    def plate(name: str, x: Tensor) -> Any:
        return pyro.plate(name, len(x)) if sized else pyro.plate(name)

    def model(x: Tensor) -> None:
        plates = {name: plate(name, x) for name in dict.fromkeys((latents, "data"))}
        with poutine.scale(scale=scale):
            with plates[latents], poutine.scale(scale=of_latent):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            with plates["data"]:
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with poutine.scale(scale=scale), plate(of_guide or latents, x), poutine.scale(scale=of_latent):
            pyro.sample("z", dist.Normal(0.7 * x, 0.6))

    return model, guide


def trained(model: Program, guide: Program) -> Trainer:
    return Trainer(model, guide, ELBO(), compile="off", device="cpu")


def nll(pair: Pair, **options: Any) -> Tensor:
    return negative_log_likelihood(trained(*pair), {"x": X}, particles=20_000, **options).float()


def loss(objective: Any, pair: Pair) -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        return float(objective.loss(*pair, {"x": X}))


# ------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(
    "pair",
    [toy(scale=0.1), toy(scale=10.0), toy(of_latent=0.2), toy(scale=torch.tensor([1.0, 2.0, 0.5, 3.0]))],
    ids=["annealed", "N/B by hand", "of one site", "of each row"],
)
def test_a_likelihood_does_not_depend_on_a_scale(pair: Pair) -> None:
    assert torch.allclose(nll(pair), -EVIDENCE, atol=0.02)
    found = elbo(trained(*pair), {"x": X}, particles=5_000).float()
    assert torch.allclose(found, exact_elbo(), atol=0.05)


def test_log_weights_for_arviz_do_not_depend_on_a_scale() -> None:
    plain, scaled = (to_arviz(trained(*toy(scale=scale)), {"x": X}, draws=3) for scale in (1.0, 10.0))
    ones, others = (torch.tensor(d["log_weights"]["log_weight"].values) for d in (plain, scaled))
    assert torch.allclose(ones, others, atol=1e-5)


def test_a_scale_of_data_is_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ppgen")
    nll(toy(scale=0.1))
    assert len([r for r in caplog.records if "poutine.scale" in r.message and "'x'" in r.message]) == 1
    caplog.clear()
    nll(toy())
    assert not caplog.records


def test_a_scale_stands_outside_the_logarithm_of_a_bound() -> None:
    assert abs(loss(IWAE(particles=20_000), toy(scale=25.0)) - 38.91) < 0.1
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = -float((weights * EVIDENCE).mean())
    assert abs(loss(IWAE(particles=20_000), toy(scale=weights)) - expected) < 0.02
    # the control: with the scale inside, the bound is another number by far
    joint = programs.run(*toy(scale=25.0), {"x": X}, particles=20_000)
    inside = sum(joint.reduce(name, joint.log_p(name)) for name in ("x", "z")) - joint.reduce("z", joint.log_q("z"))
    assert abs(-float((inside.logsumexp(0) - math.log(20_000)).mean()) - 38.91) > 5


@pytest.mark.parametrize("gradient", ["total", "sticking-the-landing", "doubly-reparameterized"])
@pytest.mark.parametrize("objective", [IWAE, functools.partial(Renyi, alpha=0.5)])
def test_a_scale_multiplies_the_gradient_of_a_bound(objective: Any, gradient: Any) -> None:
    def moved(scale: float) -> Tensor:
        loc = torch.tensor(0.2, requires_grad=True)

        def guide(x: Tensor) -> None:
            with poutine.scale(scale=scale), pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.7 * x + pyro.param("loc", loc), 0.6))

        model, _ = toy(scale=scale)
        with programs.Store().active():
            torch.manual_seed(0)
            made = objective(particles=7, gradient=gradient)
            made.setup(model, guide, {"x": X})
            torch.manual_seed(0)
            losses, _ = made.phases()[0](model, guide, {"x": X})
            (found,) = torch.autograd.grad(losses.get("guide", losses.get("all")), [pyro.param("loc").unconstrained()])
        return found

    assert torch.allclose(moved(3.0), 3.0 * moved(1.0), rtol=1e-4)


def test_rows_that_are_scaled_in_parts_make_no_bound_of_several_draws() -> None:
    with pytest.raises(ConfigError, match="'x' and 'z' are scaled differently"):
        loss(IWAE(particles=2), toy(of_latent=0.2))
    assert abs(loss(ELBO(particles=20_000), toy(of_latent=0.2)) + float((exact_elbo() + 0.8 * kl()).mean())) < 0.02


# ------------------------------------------------------------------------------------------------------- plates


@pytest.mark.parametrize(
    "pair",
    [
        toy(latents="latents"),
        toy(latents="latents", of_guide="data"),
        toy(of_guide="mine"),
        toy(sized=False),
        toy(latents="latents", sized=False),
    ],
    ids=["two plates", "guide in the other", "a plate of the guide's", "unsized", "two unsized"],
)
def test_plates_along_the_rows_are_one(pair: Pair) -> None:
    assert torch.allclose(nll(pair), -EVIDENCE, atol=0.02)
    assert abs(loss(IWAE(particles=20_000), pair) - NLL) < 0.01
    assert abs(loss(ELBO(particles=20_000), pair) + float(exact_elbo().mean())) < 0.02


def test_a_plate_without_a_size_counts_the_rows_of_stock_elbos_too() -> None:
    stock = as_objective(Trace_ELBO(num_particles=5_000, vectorize_particles=True, max_plate_nesting=1))
    assert abs(loss(stock, toy(sized=False)) + float(exact_elbo().mean())) < 0.05


def test_a_guide_that_copies_the_data_is_no_better_for_it() -> None:
    model, _ = toy(latents="latents")

    def guide(x: Tensor) -> None:
        with pyro.plate("latents", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5))

    assert torch.allclose(nll((model, guide)), -EVIDENCE, atol=0.05)


def test_rows_may_lie_along_another_dimension() -> None:
    x = torch.stack([X, X + 1, X - 0.5], 1)

    def model(x: Tensor) -> None:
        rows, features = pyro.plate("rows", len(x), dim=-2), pyro.plate("features", x.shape[1], dim=-1)
        with rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with features:
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0.9 * x.mean(1, keepdim=True), 0.4))

    covariance = torch.ones(3, 3) + 0.25 * torch.eye(3)
    exact = -dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    found = negative_log_likelihood(trained(model, guide), {"x": x}, particles=20_000).float()
    assert torch.allclose(found, exact, atol=0.02)
    with torch.no_grad():
        assert abs(float(IWAE(particles=20_000).loss(model, guide, {"x": x}) - exact.mean())) < 0.01


def test_plates_that_nobody_can_tell_apart_are_refused() -> None:
    def model() -> None:
        with pyro.plate("latents", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(z, 0.5), obs=X)

    def guide() -> None:
        with pyro.plate("latents", 4):
            pyro.sample("z", dist.Normal(0.7 * X, 0.6))

    with pytest.raises(ConfigError, match="'data' and 'latents' are equally long"):
        programs.log_weights(model, guide, ())
    torch.manual_seed(0)
    with torch.no_grad():  # a sum over all rows need not tell them apart, and neither need one weight for all
        assert abs(float(ELBO(particles=20_000).loss(model, guide, ())) + float(exact_elbo().mean())) < 0.02
        assert abs(float(IWAE(particles=100_000).loss(model, guide, ())) - NLL) < 0.02


@pytest.mark.parametrize("sequential", [False, True])
def test_a_program_without_a_plate_is_one_datum_whatever_the_number_of_particles(sequential: bool) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for row in pyro.plate("data", len(x)) if sequential else range(len(x)):
            pyro.sample(f"x_{row}", dist.Normal(z, 0.5), obs=x[row])

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.94 * x.mean(), 0.25))

    covariance = torch.ones(4, 4) + 0.25 * torch.eye(4)
    exact = -float(dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(X))
    for particles in (1, 8):
        losses = [float(ELBO(particles=particles).loss(model, guide, {"x": X})) for _ in range(200)]
        assert abs(sum(losses) / 200 - exact) < 0.15
    assert abs(loss(IWAE(particles=20_000), (model, guide)) - exact) < 0.02


def test_a_subsampled_plate_keeps_its_scale_beside_one_of_the_programs() -> None:
    def model(x: Tensor) -> None:
        with poutine.scale(scale=0.5), pyro.plate("data", 400, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with poutine.scale(scale=0.5), pyro.plate("data", 400, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(0.7 * x, 0.6))

    assert abs(loss(IWAE(particles=20_000), (model, guide)) - 0.5 * NLL) < 0.01
    assert torch.allclose(nll((model, guide)), -EVIDENCE, atol=0.02)


# ------------------------------------------------------------------------------------------------------- batches

ROWS = torch.randn(280, 1, generator=torch.Generator().manual_seed(3)) + 1


def shared(x: Tensor, *, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(mean, 1.0).expand([1]).to_event(1), obs=x)


def by_hand(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with poutine.scale(scale=280 / len(x)), pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).expand([1]).to_event(1), obs=x)


def normal(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))


def fitted(model: Program, batches: Any, *, steps: int = 5, guide: Any = normal) -> Trainer:
    rate = functools.partial(torch.optim.Adam, lr=0.02)
    trainer = Trainer(model, guide, ELBO(), rate, compile="off", device="cpu")
    for _ in trainer.fit(batches, steps=steps, every=steps):
        pass
    return trainer


def shuffled(rows: int) -> Iterator[dict[str, Tensor]]:
    while True:
        yield {"x": ROWS[torch.randperm(280)[:rows]]}


def test_a_shared_latent_needs_to_be_told_how_many_rows_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'mean' is shared by all rows.*subsample_size.*all rows in every step"):
        fitted(shared, shuffled(100))
    # one weight for all rows is none of a batch, told or not
    rate = functools.partial(torch.optim.Adam, lr=0.02)
    trainer = Trainer(shared, normal, IWAE(particles=3), rate, compile="off", device="cpu")
    with pytest.raises(ConfigError, match="needs all 280 rows, and a batch has 100"):
        list(trainer.fit(Batches({"x": ROWS}, 100), steps=1))


def test_rows_that_count_for_others_are_those_of_a_subsampled_plate() -> None:
    for objective in (ELBO(), Trace_ELBO()):
        losses = []
        for model in (shared, functools.partial(shared, size=280)):
            torch.manual_seed(0)
            rate = functools.partial(torch.optim.SGD, lr=1e-3)
            trainer = Trainer(model, normal, objective, rate, compile="off", device="cpu")
            losses.append([report["loss"] for report in trainer.fit(Batches({"x": ROWS}, 100), steps=5, every=1)])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (functools.partial(shared, size=280), lambda: Batches({"x": ROWS}, 100)),
        (by_hand, lambda: Batches({"x": ROWS}, 100)),
        (shared, lambda: Batches({"x": ROWS}, 100)),
        (shared, lambda: {"x": ROWS}),
        (shared, lambda: Batches({"x": ROWS}, 280)),
        (shared, lambda: shuffled(280)),
    ],
    ids=["subsampled", "scaled by hand", "counted", "one batch", "all in other orders", "all, nobody knows"],
)
def test_the_posterior_of_a_shared_latent_is_as_wide_as_all_rows_say(
    model: Program, batches: Callable[[], Any]
) -> None:
    trainer = fitted(model, batches(), steps=1_200)
    exact = 1 / math.sqrt(280 + 0.01)
    assert abs(trainer.param_store["scale"].item() / exact - 1) < 0.3  # in batches unscaled: 0.67


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5).expand([1]).to_event(1) if x.dim() > 2 else dist.Normal(z, 0.5), obs=x)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal])
def test_parameters_of_single_rows_need_all_rows_in_one_order(kind: Any) -> None:
    x = ROWS[:20, 0]

    def other_orders() -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"x": x[torch.randperm(20)]}

    for batches in (Batches({"x": x}, 20), Batches({"x": x}, 5), other_orders()):
        with pytest.raises(ConfigError, match=r"'z.*parameters of its own for each row"):
            fitted(local, batches, guide=kind(local))
    fitted(local, {"x": x}, guide=kind(local))


def test_a_row_number_leads_to_the_parameters_of_the_row() -> None:
    x = ROWS[:20, 0]

    def model(x: Tensor, number: Tensor) -> None:
        with pyro.plate("data", 20, subsample=number):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def plates(x: Tensor, number: Tensor) -> Any:
        return pyro.plate("data", 20, subsample=number, dim=-1)

    guide = AutoNormal(model, create_plates=plates)
    columns = {"x": x, "number": torch.arange(20)}
    trainer = fitted(model, Batches(columns, 5), guide=guide, steps=1_500)
    means = guide.locs.z.detach()
    assert torch.corrcoef(torch.stack([means, 0.8 * x]))[0, 1] > 0.98  # -.02 where rows get each other's
    assert trainer.steps == 1_500
    # all numbers at once are taken for a plate that is not subsampled, in which parameters go by position
    with pytest.raises(ConfigError, match="parameters of its own for each row"):
        fitted(model, Batches(columns, 20), guide=AutoNormal(model, create_plates=plates))
    # without the plates, the autoguide draws row numbers of its own
    with pytest.raises(ConfigError, match="parameters of its own for each row"):
        fitted(model, Batches(columns, 5), guide=AutoNormal(model))


def test_an_encoder_takes_any_batches() -> None:
    encoder = torch.nn.Sequential(torch.nn.Linear(1, 300), torch.nn.ReLU(), torch.nn.Linear(300, 2))

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = encoder

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                mean, log_scale = self.network(x.unsqueeze(-1)).unbind(-1)
                pyro.sample("z", dist.Normal(mean, log_scale.exp()))

    fitted(local, Batches({"x": ROWS[:, 0]}, 100), guide=Encoder())


@pytest.mark.parametrize("rows", [20, 7])
def test_an_autoguide_of_rows_is_not_evaluated_on_rows_without_parameters(rows: int) -> None:
    x = ROWS[:20, 0]
    trainer = fitted(local, {"x": x}, guide=AutoNormal(local))
    with pytest.raises(ConfigError, match="parameters of latent 'z' for each row that it was trained on"):
        negative_log_likelihood(trainer, {"x": ROWS[40 : 40 + rows, 0]})
    assert to_arviz(trainer, {"x": x}, draws=2)["posterior"]["z"].shape == (1, 2, 20)


# ------------------------------------------------------------------------------------------------- masks, auxiliaries


def test_log_q_counts_where_the_latent_does() -> None:
    x, known = X, torch.tensor([True, False, True, False])

    def model(x: Tensor, known: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=known)

    guide = AutoNormal(model, init_loc_fn=pyro.infer.autoguide.init_to_value(values={}))
    batch = {"x": x, "known": known}
    trainer = Trainer(model, guide, ELBO(), functools.partial(torch.optim.Adam, lr=0.05), compile="off", device="cpu")
    reports = list(trainer.fit(batch, steps=1_500, every=1_500))
    assert reports
    exact = -float(dist.Normal(0.0, 1.0).log_prob(x)[known].sum()) / 4
    with trainer.evaluating():
        found = float(ELBO(particles=500).loss(model, guide, batch))
    assert abs(found - exact) < 0.02  # it has no end where log q counts in every row


def test_a_mask_of_the_guide_alone_is_refused() -> None:
    model, guide = toy()

    def masked(x: Tensor) -> None:
        with poutine.mask(mask=x > 0):
            guide(x)

    with pytest.raises(ConfigError, match="'z' is masked in the guide"):
        Trainer(model, masked, ELBO(), device="cpu").setup({"x": X})


def auxiliary(*, marked: bool = True, reverse: bool = False) -> Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)
            if reverse:
                pyro.sample("a", dist.Normal(z, 0.5))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.6 * x, 0.5), infer={"is_auxiliary": marked})
            pyro.sample("z", dist.Normal(0.5 * x + 0.3 * a, 0.5))

    return model, guide


@pytest.mark.parametrize("objective", [ELBO(), IWAE(particles=3)], ids=["elbo", "iwae"])
def test_an_auxiliary_site_needs_a_reverse_density(objective: Any) -> None:
    with pytest.raises(ConfigError, match="'a' is auxiliary, and the model has no reverse density"):
        Trainer(*auxiliary(), objective, device="cpu").setup({"x": X})
    with pytest.raises(ConfigError, match="reverse density"):
        nll(auxiliary())
    with pytest.raises(ConfigError, match="'a' is not in the model"):
        Trainer(*auxiliary(marked=False), objective, device="cpu").setup({"x": X})


def test_with_a_reverse_density_an_auxiliary_site_gives_a_bound() -> None:
    pair = auxiliary(reverse=True)
    assert torch.allclose(nll(pair), -EVIDENCE, atol=0.03)
    assert loss(ELBO(particles=5_000), pair) > NLL
    assert abs(loss(IWAE(particles=20_000), pair) - NLL) < 0.02


@pytest.mark.parametrize("volume", [True, False])
def test_noise_is_a_latent_in_other_coordinates_if_the_volume_comes_along(volume: bool) -> None:
    model, _ = toy()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            log_density = torch.full((len(x),), -math.log(0.6)) if volume else torch.zeros(len(x))
            pyro.sample("z", dist.Delta(0.7 * x + 0.6 * noise, log_density=log_density))

    if volume:
        assert torch.allclose(nll((model, guide)), -EVIDENCE, atol=0.02)
        assert abs(loss(ELBO(particles=20_000), (model, guide)) + float(exact_elbo().mean())) < 0.02
    else:
        with pytest.raises(ConfigError, match="log_density"):
            Trainer(model, guide, ELBO(), device="cpu").setup({"x": X})


# ------------------------------------------------------------------------------------------------------- shapes


def test_events_of_different_shapes_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.7 * x.unsqueeze(-1), 0.6).to_event(1))

    with pytest.raises(ConfigError, match=r"'z' has events of shape \(3,\) in the model and \(1,\) in the guide"):
        Trainer(model, guide, ELBO(), device="cpu").setup({"x": X})


def test_a_latent_lies_in_the_same_plates_in_both() -> None:
    model, _ = toy()

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.mean(), 0.6))

    with pytest.raises(ConfigError, match=r"'z' has 4 of them .* in the model and one of it in the guide"):
        Trainer(model, guide, ELBO(), device="cpu").setup({"x": X})


def test_a_part_of_a_row_is_no_weight_of_it() -> None:
    x = torch.stack([X, X + 1, X - 0.5], 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 3, subsample_size=2, dim=-2) as chosen:
                pyro.sample("x", dist.Normal(z, 0.5), obs=x.T[chosen])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.9 * x.mean(1), 0.4))

    with pytest.raises(ConfigError, match="'x' lies in a plate that is subsampled within a row"):
        IWAE(particles=3).loss(model, guide, {"x": x})
    assert math.isfinite(float(ELBO().loss(model, guide, {"x": x})))


def test_reweighted_wake_sleep_weighs_rows_by_importance_and_not_by_scale() -> None:
    def bound(scale: float) -> float:
        torch.manual_seed(0)
        model, guide = toy(scale=scale)
        objective = ReweightedWakeSleep(particles=200, sleep=0.0)
        with torch.no_grad():
            return float(objective.phases()[0](model, guide, {"x": X})[1]["bound"])

    assert abs(bound(25.0) - 25 * bound(1.0)) < 1e-2
