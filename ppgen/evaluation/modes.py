"""Which modes of the data a generator's samples reach, and how evenly: mode collapse in numbers."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ppgen.data import Dataset
from ppgen.data.stacking import letters
from ppgen.errors import DataError
from ppgen.evaluation.classifier import Classifier, StackedClassifier, classifier_of
from ppgen.evaluation.intervals import Proportion

NEAR = 3.0
"""Standard deviations about a mode's centre, in the plane: so far reaches a mode of a Gaussian of two dimensions."""
SHARE = 1 - math.exp(-(NEAR**2) / 2)
"""The share of a Gaussian's draws within them, 98.9 %: of the rows of a class so many lie near its centre."""
FEWEST = 90
"""Rows of a class from which on such a share of its own rows is known."""


@dataclasses.dataclass(frozen=True)
class Modes:
    """What samples cover of the modes of the data.

    Attributes:
        covered: Modes with at least one sample (of high quality, where quality is known).
        total: Modes of the data.
        high_quality: Share of samples that lie near the centre nearest to them, as far out as 98.9 % of its class's
            train rows do, with its 95 % Wilson interval; None where modes are told by a classifier.
        divergence: KL(samples || data) over the modes, in nats; every sample counts for the mode nearest to it.
        samples: How many samples there were.
        covered_of_data: Modes that as many test rows cover, or all of them if they are fewer.
        high_quality_of_data: Share of these test rows that is of high quality.
    """

    covered: int
    total: int
    high_quality: Proportion | None
    divergence: float
    samples: int
    covered_of_data: int
    high_quality_of_data: float | None

    @property
    def floor(self) -> float:
        """The divergence that as many rows of the data have on average, in nats: (total - 1) / (2 samples)."""
        return (self.total - 1) / (2 * self.samples)

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        quality = None if self.high_quality is None else self.high_quality.as_dict()
        return {
            "covered": self.covered,
            "covered_of_data": self.covered_of_data,
            "total": self.total,
            "high_quality": quality,
            "high_quality_of_data": self.high_quality_of_data,
            "divergence": self.divergence,
            "divergence_of_data": self.floor,
            "samples": self.samples,
        }


@dataclasses.dataclass(frozen=True)
class _Components:
    """The labelled components of the data, in columns of standard deviation 1 within a component.

    Attributes:
        scale: Of each column (size,), by which it is divided.
        centres: (modes, size), scaled.
        radii: How far from its centre each component reaches (modes,), scaled.
        reach: (modes, modes) 3 standard deviations of component i along the line from its centre to that of j, scaled.
    """

    scale: Tensor
    centres: Tensor
    radii: Tensor
    reach: Tensor

    @classmethod
    def of(cls, data: Dataset) -> "_Components":
        rows = data.labelled()
        x, parts = rows["x"].double(), len(data.classes or ())
        members = [x[rows["y"] == label] for label in range(parts)]
        scale = _within(members, x)
        members = [part / scale for part in members]
        centres = torch.stack([part.mean(0) for part in members])
        reach = torch.stack([_reach(part, centre, centres) for part, centre in zip(members, centres, strict=True)])
        return cls(scale, centres, _radii(members, centres), reach)

    def near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the nearest component of every row (rows,), and whether the row lies near its centre."""
        distances, nearest = _distances(x.double() / self.scale, self.centres).min(-1)
        return nearest, distances <= self.radii[nearest]

    def touching(self) -> tuple[int, int] | None:
        """Returns two components that run into each other, if there are any."""
        distances = _distances(self.centres, self.centres).fill_diagonal_(torch.inf)
        pairs = torch.nonzero(distances <= self.reach + self.reach.T)
        return None if len(pairs) == 0 else (int(pairs[0, 0]), int(pairs[0, 1]))


def _within(members: list[Tensor], x: Tensor) -> Tensor:
    """Returns the standard deviation of each column within components (size,); a share of that over all where it is 0.

    A column that says of which component a row is leaves a generator a thousandth of its range.
    """
    within = torch.stack([part.var(0, correction=0) for part in members]).mean(0).sqrt()
    # of a constant, rounding leaves some deviation
    overall = torch.maximum(x.std(0, correction=0), 1e-3 * x.abs().amax(0))
    scale = torch.maximum(within, 1e-3 * overall)
    return torch.where(scale > 0, scale, 1.0)


def _reach(part: Tensor, centre: Tensor, centres: Tensor) -> Tensor:
    lines = torch.nn.functional.normalize(centres - centre, dim=1)
    return NEAR * ((part - centre) @ lines.T).square().mean(0).sqrt()


def _radii(members: list[Tensor], centres: Tensor) -> Tensor:
    """Returns how far from the centre `SHARE` of the rows of each component lie, of a small one those of all."""
    distances = [_distances(part, centre[None])[:, 0] for part, centre in zip(members, centres, strict=True)]
    # a row draws the mean towards itself: this is its distance from the mean of the others
    unseen = [found * (len(found) / max(1, len(found) - 1)) for found in distances]
    every = _quantile(torch.cat(unseen))
    return torch.stack([_quantile(found) if len(found) >= FEWEST else every for found in unseen])


def _quantile(distances: Tensor) -> Tensor:
    place = min(len(distances), math.ceil(SHARE * len(distances)))
    found: Tensor = distances.kthvalue(place).values
    return found


def has_known_modes(data: Dataset) -> bool:
    """Says whether modes belong to the data by construction: well separated labelled components, or stacked images.

    Example:
        >>> from ppgen.data import load
        >>> [has_known_modes(load(name)) for name in ("ring", "grid", "swiss-roll", "digits")]
        [True, True, False, False]
    """
    if letters(data) is not None:
        return True
    if data.classes is None or len(data.classes) < 2 or len(data.shape) != 1 or data.streamed:
        return False
    counts = torch.bincount(data.train["y"].clamp(min=-1) + 1, minlength=len(data.classes) + 1)
    return bool((counts[1:] > 0).all()) and _Components.of(data).touching() is None


def mode_coverage(samples: Tensor, data: Dataset, *, classifier: Classifier | StackedClassifier | None = None) -> Modes:
    """Counts the modes of the data that samples reach, and compares how often with the data.

    *Vectors*: every class of the data is a mode, with the mean of its train rows as centre; columns are divided by
    their standard deviation within a class. A sample belongs to the nearest centre, is of high quality if it lies no
    farther from it than 98.9 % of the class's own rows (of a small class: of all classes' rows), and covers a mode if
    it is of high quality. Of Gaussians in the plane, that is the papers' rule of 3 standard deviations, to within the
    error of the quantile (0.05 of a standard deviation for 5,000 rows of a class); in any number of dimensions as many
    of the data's own rows are of high quality, and `high_quality_of_data` says how many test rows are. In many
    dimensions the ball about a centre holds much that is no row of data, too: a point halfway between two modes that
    are not far apart, say. The papers use 2,500 samples.

    *Images*: every class is a mode, told by a classifier, and any sample covers the mode that it is taken for. For
    stacked images those are the combinations of single classes, whose share in the data is the product of the shares
    of the single classes; the papers use 26,000 samples and compare with a uniform distribution, which differs from
    MNIST's by 0.005 nats.

    Args:
        samples: (n, *shape), as the data's `x`.
        data: What they are compared with, labelled.
        classifier: Of the data, as `classifier_of` returns it; for images it is trained here if not given.

    Raises:
        DataError: if samples are not finite or have another shape, there are no labels, or the classes of vectors are
            not well separated.

    Example:
        >>> from ppgen.data import load
        >>> ring = load("ring")
        >>> mode_coverage(ring.test["x"][:2500], ring).covered
        8
        >>> mode_coverage(ring.test["x"][ring.test["y"] < 3], ring).covered
        3

    References:
        Srivastava et al. 2017, VEEGAN, arXiv:1705.07761. Lin et al. 2018, PacGAN, arXiv:1712.04086. Metz et al. 2017,
        Unrolled GAN, arXiv:1611.02163 (stacked MNIST).
    """
    samples = samples.detach().cpu()
    _require_samples(samples, data)
    data.require_labels()
    if classifier is None and len(data.shape) == 1:
        return _near_centres(samples, data)
    chosen = classifier_of(data) if classifier is None else classifier
    total = len(data.classes or ())
    found, own = (chosen.log_probs(x).argmax(-1) for x in (samples, _as_many(data, len(samples))))
    counts = torch.bincount(found, minlength=total)
    return Modes(
        covered=int((counts > 0).sum()),
        total=total,
        high_quality=None,
        divergence=_divergence(counts, _shares(data)),
        samples=len(samples),
        covered_of_data=len(own.unique()),
        high_quality_of_data=None,
    )


def _as_many(data: Dataset, count: int) -> Tensor:
    """Returns test rows, as many as there are samples if there are so many."""
    rows: Tensor = data.test["x"][:count]
    return rows


def _near_centres(samples: Tensor, data: Dataset) -> Modes:
    components = _Components.of(data)
    if (pair := components.touching()) is not None:
        classes = data.classes or ()
        first, second = (f"{classes[label]!r}" for label in pair)
        raise DataError(
            f"{data.name}: expected well separated classes, to count them as modes; got classes {first} and {second} "
            f"less than {NEAR:g} standard deviations of each apart: judge by mmd or c2st"
        )
    nearest, good = components.near(samples)
    of_data, good_of_data = components.near(_as_many(data, len(samples)))
    total = len(components.centres)
    return Modes(
        covered=len(nearest[good].unique()),
        total=total,
        high_quality=Proportion.of(int(good.sum()), len(samples)),
        divergence=_divergence(torch.bincount(nearest, minlength=total), _shares(data)),
        samples=len(samples),
        covered_of_data=len(of_data[good_of_data].unique()),
        high_quality_of_data=float(good_of_data.double().mean()),
    )


def _require_samples(samples: Tensor, data: Dataset) -> None:
    if tuple(samples.shape[1:]) != data.shape or samples.dim() == 0 or len(samples) == 0:
        raise DataError(f"{data.name}: expected samples of shape {('n', *data.shape)}; got {tuple(samples.shape)}")
    bad = ~samples.flatten(1).isfinite().all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise DataError(f"expected finite samples; got row {row} that is not ({int(bad.sum())} of {len(samples)} rows)")


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _shares(data: Dataset) -> Tensor:
    """Returns the share of every class in the labelled train rows (classes,), of stacked images as a product."""
    y = data.train["y"][data.train["y"] >= 0]
    shares = torch.bincount(y, minlength=len(data.classes or ())).double() / len(y)
    single = letters(data)
    if single is None:
        return shares
    table = shares.view((len(single),) * data.shape[0])
    product = torch.ones((), dtype=torch.float64)
    for axis in range(table.dim()):
        others = [other for other in range(table.dim()) if other != axis]
        product = product[..., None] * table.sum(others)
    return product.flatten()


def _divergence(counts: Tensor, shares: Tensor) -> float:
    """KL in nats of the distribution of counts against shares."""
    from scipy.special import rel_entr

    return float(rel_entr((counts.double() / counts.sum()).numpy(), shares.numpy()).sum())
