"""Pictures: that they show what the model says, for every kind of data."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppgen import programs
from ppgen.data import Dataset
from ppgen.errors import ConfigError, StorageError
from ppgen.evaluation import pictures
from ppgen.evaluation.curves import curves_of
from ppgen.guides import DiagonalGaussian, Label
from ppgen.models import M2, VAE
from ppgen.nn import MLP, decoder, encoder, likelihood


class Pair:
    def __init__(self, model: Any, guide: Any) -> None:
        self.model, self.guide = model, guide
        self.device = torch.device("cpu")
        self.store = programs.Store()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        with self.store.active(), programs.quiet(), torch.no_grad():
            yield


def dataset(shape: tuple[int, ...], *, classes: tuple[str, ...] | None = None, low: float = 0.0) -> Dataset:
    x = torch.rand(60, *shape) * (1 - low) + low
    columns = {"x": x} if classes is None else {"x": x, "y": torch.arange(60) % len(classes)}
    return Dataset("toy", columns, columns, columns, classes, "none", "0" * 64, ())


def vae(shape: tuple[int, ...], kind: str = "bernoulli") -> Pair:
    chosen = likelihood(kind, shape, scale=0.1, levels=8)
    return Pair(
        VAE(MLP(2, [8], chosen.features), chosen, 2),
        DiagonalGaussian(encoder(shape, 4, hidden=(8,)), 2),
    )


def m2(shape: tuple[int, ...], classes: int) -> Pair:
    model = M2(decoder([2, classes], shape, hidden=(8,)), likelihood("bernoulli", shape), 2, classes)
    return Pair(
        model, Label(encoder(shape, classes, hidden=(8,)), encoder(shape, 4, hidden=(8,), others=[classes]), classes)
    )


def shown(path: Path) -> Any:
    """Reads a picture back: (height, width, 3) in [0, 1]."""
    return matplotlib.image.imread(path)[..., :3]


def has_colour(image: Any) -> bool:
    """Whether a picture has saturated pixels, which ink and grey do not have."""
    return bool((image.max(-1) - image.min(-1) > 0.6).any())


class Stripes:
    """Class c is an image whose column c is lit by the style; says what was asked of it."""

    def __init__(self) -> None:
        self.styles: list[Tensor] = []

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y)
            style = pyro.sample("style", dist.Uniform(0.3, 0.9))
            self.styles.append(style)
            lit = (torch.arange(3) == y[:, None]) * style[:, None]
            pyro.sample("x", dist.Normal(lit[:, None, None].expand(-1, 1, 3, 3), 0.01).to_event(3), obs=x)


def stripes_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x[:, 0].sum(1) * 100))
        pyro.sample("style", dist.Delta(x.amax((1, 2, 3))))


def mosaic_of(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Notes the images that are laid out."""
    noted: list[Tensor] = []
    original = pictures._mosaic

    def note(images: Tensor, **options: Any) -> Any:
        noted.append(images)
        return original(images, **options)

    monkeypatch.setattr(pictures, "_mosaic", note)
    return noted


def test_a_column_a_class_and_a_style_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = mosaic_of(monkeypatch)
    data = dataset((1, 3, 3), classes=("left", "middle", "right"))
    pictures.samples(Pair(Stripes(), stripes_guide), data, tmp_path / "samples.png", rows=4)
    (images,) = noted
    assert images.shape == (4, 3, 3, 3, 1)  # rows, classes, height, width, channels
    for c in range(3):
        lit = images[:, c, :, c, 0]
        assert (lit > 0.29).all()
        assert (images[:, c].sum((1, 2, 3)) - lit.sum(1)).abs().max() < 1e-6
    styles = images.amax((2, 3, 4))
    assert torch.allclose(styles, styles[:, :1].expand(4, 3))
    assert styles[:, 0].unique().numel() == 4


def test_reconstructions_stand_below_their_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = mosaic_of(monkeypatch)
    y = torch.arange(30) % 3
    x = (torch.arange(3) == y[:, None]).float()[:, None, None].expand(-1, 1, 3, 3) * torch.rand(30, 1, 1, 1)
    columns = {"x": x.contiguous(), "y": (y + 1) % 3}  # wrong labels must not be looked at
    data = Dataset("toy", columns, columns, columns, ("a", "b", "c"), "none", "0" * 64, ())
    pictures.reconstructions(Pair(Stripes(), stripes_guide), data, tmp_path / "r.png", columns=6)
    (images,) = noted
    assert images.shape == (2, 6, 3, 3, 1)
    assert torch.allclose(images[0], images[1])
    assert images[0].flatten(1).unique(dim=0).shape[0] == 6


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 8, 8), "bernoulli"),
        ((3, 6, 5), "bernoulli"),
        ((3, 4, 4), "gaussian"),
        ((1, 4, 4), "gaussian-full"),
        ((1, 4, 4), "categorical"),
        ((6, 7), "bernoulli"),
        ((16,), "bernoulli"),
        ((2,), "gaussian"),
        ((1,), "gaussian-fixed"),
        ((5,), "categorical"),
        ((2, 4, 4), "gaussian"),
    ],
)
def test_every_kind_of_data_is_drawn(shape: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    pair, data = vae(shape, kind), dataset(shape, low=-1.0 if kind.startswith("gaussian") else 0.0)
    pictures.samples(pair, data, tmp_path / "samples.png")
    pictures.reconstructions(pair, data, tmp_path / "reconstructions.png")
    assert shown(tmp_path / "samples.png").std() > 0.01
    assert shown(tmp_path / "reconstructions.png").std() > 0.01


def test_a_model_may_observe_flattened_images(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(probs=torch.full((16,), 0.3)).to_event(1), obs=x.flatten(1).round())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    drawn = [tmp_path / "samples.png", tmp_path / "reconstructions.png"]
    pictures.samples(Pair(model, guide), dataset((1, 4, 4)), drawn[0])
    pictures.reconstructions(Pair(model, guide), dataset((1, 4, 4)), drawn[1])
    assert all(shown(path).size for path in drawn)


def test_categorical_levels_are_brought_to_the_unit_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = mosaic_of(monkeypatch)
    pictures.samples(vae((1, 4, 4), "categorical"), dataset((1, 4, 4)), tmp_path / "s.png")
    assert noted[0].shape == (10, 10, 4, 4, 1)
    assert torch.allclose(noted[0].unique(), torch.arange(8) / 7)


def test_colour_is_kept(tmp_path: Path) -> None:
    class Red:
        def __call__(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(0.8, 1.0))
                rgb = torch.stack([z, 0 * z, 0 * z], -1)[..., None, None].expand(-1, 3, 4, 4)
                pyro.sample("x", dist.Normal(rgb, 0.1).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(0.8, 1.0))

    pictures.samples(Pair(Red(), guide), dataset((3, 4, 4)), tmp_path / "red.png")
    assert has_colour(shown(tmp_path / "red.png"))
    pictures.samples(vae((1, 4, 4)), dataset((1, 4, 4)), tmp_path / "grey.png")
    assert not has_colour(shown(tmp_path / "grey.png"))


def test_global_latents_come_from_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = mosaic_of(monkeypatch)

    def model(x: Tensor) -> None:
        level = pyro.sample("level", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(level.expand(len(x), 1, 2, 2), 0.1).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("level", dist.Delta(pyro.param("level_value", torch.tensor(0.75))))

    pictures.samples(Pair(model, guide), dataset((1, 2, 2)), tmp_path / "s.png")
    assert torch.equal(noted[0], torch.full((10, 10, 2, 2, 1), 0.75))


def test_class_names_of_any_kind_and_number(tmp_path: Path) -> None:
    names = ("T-shirt/top", "$x_$ and $", "足", "b", *(f"class {i}" for i in range(60)))
    pair, data = m2((1, 4, 4), len(names)), dataset((1, 4, 4), classes=names)
    pictures.samples(pair, data, tmp_path / "s.png", rows=2)
    height, width, _ = shown(tmp_path / "s.png").shape
    assert width > 10 * height


def test_pictures_move_no_stream_and_repeat(tmp_path: Path) -> None:
    pair, data = m2((1, 4, 4), 3), dataset((1, 4, 4), classes=("a", "b", "c"))
    before = torch.get_rng_state()
    both: tuple[Any, ...] = (pictures.samples, pictures.reconstructions)
    for draw in both:
        for name, seed in (("first", 0), ("again", 0), ("other", 1)):
            draw(pair, data, tmp_path / f"{name}.png", seed=seed)
        assert np.array_equal(shown(tmp_path / "first.png"), shown(tmp_path / "again.png"))
        assert not np.array_equal(shown(tmp_path / "first.png"), shown(tmp_path / "other.png"))
    assert torch.equal(torch.get_rng_state(), before)


def test_model_without_x_is_refused(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("pixels", dist.Normal(torch.zeros(len(x), 1, 2, 2), 1.0).to_event(3), obs=x)

    with pytest.raises(ConfigError, match="data site 'x' to draw; got sites pixels"):
        pictures.samples(Pair(model, lambda x: None), dataset((1, 2, 2)), tmp_path / "s.png")


# ------------------------------------------------------------------------------------------------ training curves


def test_curves_are_the_numbers_of_the_records() -> None:
    records: list[dict[str, Any]] = [
        {"step": 10, "seconds": 1.0, "loss": 3.0, "cross_entropy": 1.0, "note": "x", "flag": True},
        {"step": 20, "seconds": 2.0, "loss": float("nan"), "validation_nll": 2.5, "images_per_second": 9},
        {"step": 30, "epoch": 3, "loss": 2.0, "cross_entropy": 0.5},
    ]
    assert list(curves_of(records).items()) == [
        ("loss", [(10, 3.0), (30, 2.0)]),
        ("validation_nll", [(20, 2.5)]),
        ("cross_entropy", [(10, 1.0), (30, 0.5)]),
    ]


@pytest.mark.parametrize("keys", [0, 1, 2, 7])
def test_training_is_drawn(keys: int, tmp_path: Path) -> None:
    records = [{"step": s, "seconds": 0.1, **{f"key_{k}": s * k for k in range(keys)}} for s in range(100)]
    pictures.training(records, tmp_path / "t.png")
    assert shown(tmp_path / "t.png").std() > 0.01
    pictures.training([], tmp_path / "t.png")


def test_picture_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*missing/t.png: "):
        pictures.training([{"step": 1, "loss": 1.0}], tmp_path / "missing" / "t.png")
