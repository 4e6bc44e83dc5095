"""The export to ArviZ: what is in it, that both generations of ArviZ read it, and that it cannot be misused.

``python tests/test_arviz.py`` writes the fixture of the installed ArviZ anew.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import arviz
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam

from ppgen import programs
from ppgen.errors import ConfigError, StorageError
from ppgen.evaluation.arviz import container, to_arviz, to_netcdf
from ppgen.guides import Label
from ppgen.models import M2
from ppgen.nn.likelihoods import likelihood
from ppgen.nn.networks import decoder, encoder
from ppgen.objectives import ELBO
from ppgen.training import Trainer

FIXTURES = Path(__file__).parent / "fixtures"
OLD = arviz.__version__.startswith("0.")
GROUPS = {"posterior", "posterior_predictive", "prior", "prior_predictive", "observed_data", "log_weights"}


def model(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


def wide_guide(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def evidence(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).numpy()  # type: ignore[no-any-return]


def trainer(model: Any, guide: Any) -> Trainer:
    return Trainer(model, guide, ELBO(), device="cpu", compile="off")


def export(model: Any, guide: Any, columns: Any, **options: Any) -> Any:
    return to_arviz(trainer(model, guide), columns, **options)


def group_names(data: Any) -> set[str]:
    return set(data.groups()) if OLD else set(data.children)


def with_groups(data: Any, *names: str, **more: str) -> Any:
    """Those groups of an export, and more of them under new names."""
    groups = {new: data[old] for new, old in {**dict(zip(names, names, strict=True)), **more}.items()}
    return container(groups if OLD else {name: group.to_dataset() for name, group in groups.items()})


def m2() -> Trainer:
    shape = (2, 3)
    bernoulli = likelihood("bernoulli", shape)
    return trainer(
        M2(decoder([4, 3], shape, hidden=(8,)), bernoulli, 4, 3),
        Label(encoder(shape, 3, hidden=(8,)), encoder(shape, 8, hidden=(8,), others=(3,)), 3),
    )


def images(rows: int = 12) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(rows, 2, 3).round(), "y": torch.randint(0, 3, (rows,))}


# ---------------------------------------------------------------------------------------------------- what is in it


def test_groups_dimensions_and_coordinates_of_a_classifier() -> None:
    columns = images()
    data = to_arviz(m2(), columns, draws=7, rows=slice(4, 9))
    assert group_names(data) == GROUPS | {"constant_data"}
    y, z, x = data["posterior"]["y"], data["posterior"]["z"], data["posterior_predictive"]["x"]
    assert y.dims == ("chain", "draw", "data")
    assert y.shape == (1, 7, 5)
    assert y.dtype == np.int64
    assert set(np.unique(y)) <= {0, 1, 2}
    assert z.dims == ("chain", "draw", "data", "z_dim_0")
    assert z.shape == (1, 7, 5, 4)
    assert x.dims == ("chain", "draw", "data", "x_dim_0", "x_dim_1")
    assert x.shape == (1, 7, 5, 2, 3)
    assert data["prior"]["z"].dims == z.dims
    assert data["prior_predictive"]["x"].dims == x.dims
    assert data["log_weights"]["log_weight"].dims == ("chain", "draw", "data")
    for name in group_names(data):
        assert list(data[name].coords["data"].values) == [4, 5, 6, 7, 8]
        assert all(dim in data[name].coords for variable in data[name].data_vars.values() for dim in variable.dims)
    assert np.array_equal(data["observed_data"]["x"], columns["x"][4:9])
    assert np.array_equal(data["constant_data"]["y"], columns["y"][4:9])
    assert "y" not in data["observed_data"]
    assert data["posterior"].attrs["inference_library"] == "ppgen"


def test_the_version_of_ppgen_is_told_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 1.2")
    data = export(model, guide, {"x": torch.arange(3.0)}, draws=2)
    assert data["posterior"].attrs["inference_library_version"] == "ppgen 1.2"


def test_the_model_observes_what_its_likelihood_makes_of_the_data() -> None:
    def levels(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(4, logits=z), obs=(4 * x).round())

    x = torch.tensor([0.0, 0.26, 1.0])
    data = export(levels, guide, {"x": x}, draws=3)
    assert list(data["observed_data"]["x"].values) == [0, 1, 4]


@pytest.mark.parametrize(
    ("rows", "numbers"), [(None, range(6)), ([4, 1], [4, 1]), ([-1], [5]), (slice(None, None, 2), [0, 2, 4])]
)
def test_rows_are_chosen_and_numbered(rows: Any, numbers: Any) -> None:
    x = torch.arange(6.0)
    data = export(model, guide, {"x": x}, draws=2, rows=rows)
    assert list(data["observed_data"].coords["data"].values) == list(numbers)
    assert list(data["observed_data"]["x"].values) == list(numbers)


def test_a_label_that_the_guide_does_not_draw_stays_an_observation() -> None:
    def regression(x: torch.Tensor, y: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    columns = {"x": torch.arange(5.0), "y": torch.arange(5.0)}
    data = export(regression, AutoNormal(regression), columns, draws=3)
    assert data["observed_data"]["y"].dims == ("data",)
    assert group_names(data) == GROUPS


def test_a_column_both_observed_and_drawn_is_refused() -> None:
    columns = images()
    with pytest.raises(ConfigError, match="'y' is observed by the model and drawn by the guide"):
        to_arviz(m2(), columns, draws=2, label=None)
    assert "y" in to_arviz(m2(), {"x": columns["x"]}, draws=2, label=None)["posterior"]


# --------------------------------------------------------------------------------------------------- users' programs


def several(x: torch.Tensor, counts: torch.Tensor) -> None:
    """Global latents, two observed sites, a plate left of the data, something computed, a factor."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.deterministic("half", rate / 2)
    pyro.factor("penalty", -rate)
    sensors = pyro.plate("sensors", 2, dim=-2)
    with sensors:
        offset = pyro.sample("offset", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("counts", dist.Poisson(rate), obs=counts)
        with sensors:
            pyro.sample("x", dist.Normal(z + offset.sum(-1), 1.0), obs=x.T)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("positional", [False, True])
def test_global_latents_plates_and_several_observed_sites(autoguide: Any, positional: bool) -> None:
    columns = {"x": torch.randn(5, 2), "counts": torch.ones(5)}
    batch = tuple(columns.values()) if positional else columns
    data = export(several, autoguide(several), batch, draws=4, rows=None if positional else slice(5))
    dims = {name: variable.dims[2:] for name, variable in data["posterior"].data_vars.items()}
    # the plate at dim -2 leaves an empty dimension right of it
    assert dims == {"rate": (), "half": (), "offset": ("sensors", "offset_dim_0", "offset_dim_1"), "z": ("data",)}
    assert set(data["posterior_predictive"].data_vars) == {"x", "counts"}
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "sensors", "data")
    assert data["posterior_predictive"]["counts"].dims == ("chain", "draw", "data")
    assert data["log_weights"]["log_weight"].shape == (1, 4, 5)
    assert data["log_weights"]["global_log_weight"].dims == ("chain", "draw")
    assert np.allclose(data["posterior"]["half"] * 2, data["posterior"]["rate"])
    assert np.array_equal(data["observed_data"]["x"], columns["x"].T)


def test_a_reparametrised_latent_is_no_observation() -> None:
    def plain(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Delta(z), obs=x)

    decentred = pyro.poutine.reparam(plain, {"z": LocScaleReparam(0.0)})
    data = export(decentred, AutoNormal(decentred), {"x": torch.arange(3.0)}, draws=2)
    assert set(data["posterior"].data_vars) == {"mean", "z_decentered", "z"}
    assert set(data["observed_data"].data_vars) == {"x"}
    assert np.array_equal(data["posterior"]["z"], data["posterior"]["mean"] + data["posterior"]["z_decentered"])
    assert np.array_equal(data["posterior_predictive"]["x"], data["posterior"]["z"])


def test_a_program_without_a_plate() -> None:
    def whole(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x)]).to_event(1), obs=x)

    data = export(whole, AutoNormal(whole), (torch.arange(3.0),), draws=2)
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "x_dim_0")
    assert set(data["log_weights"].data_vars) == {"global_log_weight"}


def test_names_that_a_file_cannot_hold(tmp_path: Path) -> None:
    def awkward(x: torch.Tensor) -> None:
        with pyro.plate("draw", len(x)):
            pyro.sample("inner/z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    data = export(awkward, AutoNormal(awkward), {"x": torch.arange(3.0)}, draws=2, rows=[2, 0])
    data = arviz.from_netcdf(str(to_netcdf(data, tmp_path / "awkward.nc")))
    assert data["posterior"]["inner.z"].dims == ("chain", "draw", "draw_plate")
    assert list(data["observed_data"].coords["draw_plate"].values) == [2, 0]


def test_an_improper_prior_leaves_the_prior_out() -> None:
    def improper(x: torch.Tensor) -> None:
        flat = dist.ImproperUniform(dist.constraints.real, torch.Size(), torch.Size())
        mean = pyro.sample("mean", flat)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def its_guide(x: torch.Tensor) -> None:
        pyro.sample("mean", dist.Normal(x.mean(), 1.0))

    data = export(improper, its_guide, {"x": torch.arange(3.0)}, draws=2)
    assert group_names(data) == GROUPS - {"prior", "prior_predictive"}


def test_a_program_that_subsamples_by_itself_is_refused() -> None:
    def subsampling(x: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as chosen:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[chosen])

    with pytest.raises(ConfigError, match="plate 'data' to hold the 6 rows given; got 2"):
        export(subsampling, AutoNormal(subsampling), {"x": torch.arange(6.0)}, draws=2)
    assert (
        export(subsampling, AutoNormal(subsampling), {"x": torch.arange(2.0)}, draws=2)["observed_data"]["x"].size == 2
    )


def test_shapes_that_change_from_draw_to_draw_are_refused() -> None:
    def changing(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        size = int(torch.randint(1, 9, ()))
        pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1), obs=torch.zeros(size))

    with pytest.raises(ConfigError, match="site 'z' does not have one shape"):
        export(changing, lambda x: None, {"x": torch.arange(3.0)}, draws=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": 0}, "at least 1 draw; got 0"), ({"rows": [7]}, "rows from 0 to 5"), ({"rows": []}, "at least 1 row")],
)
def test_bad_options_get_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export(model, guide, {"x": torch.arange(6.0)}, **options)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- truth


def test_each_log_weight_belongs_to_its_draw_and_row() -> None:
    x = torch.tensor([-1.0, 0.0, 2.5])
    data = export(model, wide_guide, {"x": x}, draws=50)
    z = torch.tensor(data["posterior"]["z"].values)
    expected = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x) - dist.Normal(x / 2, 1.0).log_prob(z)
    actual = data["log_weights"]["log_weight"].values
    assert np.allclose(actual, expected, atol=1e-5)
    assert not np.allclose(actual, expected.flip(1), atol=1e-2)
    assert not np.allclose(actual, expected.flip(2), atol=1e-2)


@pytest.mark.parametrize(("chosen", "exact"), [(guide, True), (wide_guide, False)])
def test_log_weights_are_the_evidence_where_the_guide_is_exact(chosen: Any, exact: bool) -> None:
    x = torch.tensor([-1.0, 0.0, 2.5])
    weights = export(model, chosen, {"x": x}, draws=2000)["log_weights"]["log_weight"].values[0]
    assert np.allclose(weights, evidence(x), atol=1e-5) == exact
    bound = np.logaddexp.reduce(weights, axis=0) - math.log(len(weights))
    assert np.allclose(bound, evidence(x), atol=0.05)


def test_log_weights_agree_with_the_other_estimate_of_them() -> None:
    x = torch.tensor([-1.0, 0.0, 2.5])
    here = export(model, wide_guide, {"x": x}, draws=4000)["log_weights"]["log_weight"].values[0]
    there = programs.log_weights(model, wide_guide, {"x": x}, particles=4000).local.numpy()

    def z_scores(one: Any, other: Any) -> Any:
        return np.abs(one.mean(0) - other.mean(0)) / np.sqrt((one.var(0) + other.var(0)) / len(one))

    assert (z_scores(here, there) < 4.5).all()
    assert (z_scores(here + 0.1, there) > 4.5).all()


def test_predictive_draws_follow_the_latents_and_prior_draws_do_not_follow_the_data() -> None:
    x = torch.linspace(-3, 3, 7)
    data = export(model, guide, {"x": x}, draws=3000)
    error = 4.5 / math.sqrt(3000)
    residual = (data["posterior_predictive"]["x"] - data["posterior"]["z"]).values[0]
    assert np.abs(residual.mean(0)).max() < error
    assert np.abs(residual.var(0) - 1).max() < error * math.sqrt(2)
    predicted = data["posterior_predictive"]["x"].values[0].mean(0)
    assert np.abs(predicted - x.numpy() / 2).max() < error * math.sqrt(1.5)
    unconditional = data["prior_predictive"]["x"].values[0].mean(0)
    assert np.abs(unconditional).max() < error * math.sqrt(2)
    assert np.abs(predicted).max() > 1


def test_draws_are_seeded_and_move_no_stream_outside() -> None:
    x = {"x": torch.arange(3.0)}
    before = torch.get_rng_state()
    first, again, other = (export(model, guide, x, draws=5, seed=seed)["posterior"]["z"] for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_trained_parameters_are_used_and_none_are_left_behind() -> None:
    def shifted(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.1))

    trained = trainer(model, shifted)
    x = {"x": torch.full((20,), 4.0)}
    untrained = to_arviz(trained, x, draws=50)["posterior"]["z"].mean()
    list(trained.fit(x, steps=1000))
    assert abs(untrained) < 0.1
    assert to_arviz(trained, x, draws=50)["posterior"]["z"].mean() > 0.5
    assert not list(pyro.get_param_store().keys())


# ----------------------------------------------------------------------------------------------------------- honesty


def criteria() -> list[Callable[..., Any]]:
    return [arviz.loo, arviz.waic] if OLD else [arviz.loo]


def test_loo_and_waic_find_nothing_to_lie_about() -> None:
    data = export(model, wide_guide, {"x": torch.linspace(-2, 2, 20)}, draws=500)
    for criterion in criteria():
        with pytest.raises(TypeError):
            criterion(data)


@pytest.mark.filterwarnings(
    "ignore:Estimated shape parameter:UserWarning", "ignore:For one or more samples:UserWarning"
)
def test_loo_and_waic_would_lie_about_the_same_numbers_under_the_other_name() -> None:
    x = torch.linspace(-2, 2, 20)
    data = export(model, wide_guide, {"x": x}, draws=500)
    spoilt = with_groups(data, "posterior", log_likelihood="log_weights")
    for criterion in criteria():
        result = criterion(spoilt)
        value = result.iloc[0] if OLD else result.elpd
        assert abs(value - evidence(x).sum()) > 1


# ------------------------------------------------------------------------------------------------------------- plots


@pytest.fixture
def _without_windows() -> Iterator[None]:
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.usefixtures("_without_windows")
@pytest.mark.parametrize("group", ["posterior", "prior"])
@pytest.mark.filterwarnings("ignore:Variables x in .* look binary:UserWarning")
def test_predictive_checks_can_be_plotted(group: str) -> None:
    data = to_arviz(m2(), images(), draws=20)
    if OLD:
        arviz.plot_ppc(data, group=group, num_pp_samples=5)
    else:
        arviz.plot_ppc_dist(data, group=f"{group}_predictive", num_samples=5, backend="matplotlib")


# ------------------------------------------------------------------------------------------------------------- files


def assert_same(one: Any, other: Any) -> None:
    assert group_names(one) == group_names(other)
    for group in group_names(one):
        assert set(one[group].data_vars) == set(other[group].data_vars)
        for name, variable in one[group].data_vars.items():
            assert variable.dims == other[group][name].dims
            assert variable.dtype == other[group][name].dtype
            assert np.allclose(variable, other[group][name], rtol=1e-5)
            for dim in variable.dims:
                assert np.array_equal(variable.coords[dim], other[group][name].coords[dim])


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    data = to_arviz(m2(), images(), draws=3, rows=[3, 1])
    path = to_netcdf(data, tmp_path / "run.nc")
    read = arviz.from_netcdf(str(path))
    assert_same(data, read)
    assert read["posterior"].attrs == data["posterior"].attrs
    assert read["log_weights"]["log_weight"].attrs["units"] == "nat"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.nc"]
    with pytest.raises(AssertionError):
        assert_same(to_arviz(m2(), images(), draws=3, rows=[3, 2]), read)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = export(model, guide, {"x": torch.arange(3.0)}, draws=2)
    path = tmp_path / "run.nc"
    to_netcdf(data, path)
    to_netcdf(data, path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(data), "to_netcdf", full)
    with pytest.raises(StorageError, match=r"cannot write .*run.nc: No space left on device"):
        to_netcdf(data, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.nc"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = export(model, guide, {"x": torch.arange(3.0)}, draws=2)
    with pytest.raises(StorageError, match="nowhere"):
        to_netcdf(data, tmp_path / "nowhere" / "run.nc")


def test_large_files_are_compressed(tmp_path: Path) -> None:
    def zeros(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x))))

    def certain(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x))))
            pyro.sample("x", dist.Categorical(torch.tensor([1.0, 0.0])), obs=x)

    data = export(certain, zeros, {"x": torch.zeros(3000)}, draws=100)
    assert sum(group.nbytes for group in data.values()) > 5e6
    path = to_netcdf(data, tmp_path / "large.nc")
    assert sum(group.nbytes for group in data.values()) > 5e6
    assert path.stat().st_size < 1e6
    assert_same(data, arviz.from_netcdf(str(path)))


def for_fixture() -> Any:
    data = export(model, guide, {"x": torch.arange(6.0)}, draws=3, rows=[1, 4])
    return with_groups(data, "posterior", "observed_data", "log_weights")


def test_files_of_both_generations_of_arviz_are_read_alike() -> None:
    files = [FIXTURES / "arviz-0.23.nc", FIXTURES / "arviz-1.x.nc"]
    old, new = (arviz.from_netcdf(str(file)) for file in files)
    assert_same(old, new)
    assert group_names(new) == {"posterior", "observed_data", "log_weights"}
    assert new["posterior"]["z"].dims == ("chain", "draw", "data")
    assert list(new["posterior"].coords["data"].values) == [1, 4]
    assert list(new["observed_data"]["x"].values) == [1.0, 4.0]
    assert np.allclose(old["log_weights"]["log_weight"], evidence(torch.tensor([1.0, 4.0])), atol=1e-5)
    assert all(file.stat().st_size < 50_000 for file in files)


if __name__ == "__main__":
    to_netcdf(for_fixture(), FIXTURES / ("arviz-0.23.nc" if OLD else "arviz-1.x.nc"))
