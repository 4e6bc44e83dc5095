"""Which modes of the data a generator's samples reach, and how evenly: mode collapse in numbers."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ppgen.data import Dataset
from ppgen.data.stacking import letters
from ppgen.errors import DataError
from ppgen.evaluation.classifier import Classifier, StackedClassifier, classifier_of
from ppgen.evaluation.intervals import Proportion

NEAR = 3.0
"""Within how many standard deviations of a mode's centre a sample is of high quality."""


@dataclasses.dataclass(frozen=True)
class Modes:
    """What samples cover of the modes of the data.

    Attributes:
        covered: Modes with at least one sample (of high quality, where quality is known).
        total: Modes of the data.
        high_quality: Share of samples within 3 standard deviations of the nearest centre, with its 95 % Wilson
            interval; None where modes are told by a classifier.
        divergence: KL(samples || data) over the modes, in nats; every sample counts for the mode nearest to it.
        samples: How many samples there were.
    """

    covered: int
    total: int
    high_quality: Proportion | None
    divergence: float
    samples: int

    @property
    def floor(self) -> float:
        """The divergence that as many rows of the data have on average, in nats: (total - 1) / (2 samples)."""
        return (self.total - 1) / (2 * self.samples)

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        quality = None if self.high_quality is None else self.high_quality.as_dict()
        return {
            "covered": self.covered,
            "total": self.total,
            "high_quality": quality,
            "divergence": self.divergence,
            "divergence_of_data": self.floor,
            "samples": self.samples,
        }


@dataclasses.dataclass(frozen=True)
class _Components:
    """Centres (modes, size) of the labelled components of the data, and a standard deviation (modes,) for each."""

    centres: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, data: Dataset) -> "_Components":
        rows = data.labelled()
        x = rows["x"].double()
        parts = [x[rows["y"] == label] for label in range(len(data.classes or ()))]
        deviations = [part.var(0, correction=0).mean().sqrt() for part in parts]
        return cls(torch.stack([part.mean(0) for part in parts]), torch.stack(deviations))

    def touching(self) -> tuple[int, int] | None:
        """Returns two components that a sample may be near to at once, if there are any."""
        distances = _distances(self.centres, self.centres).fill_diagonal_(torch.inf)
        reach = NEAR * (self.deviations[:, None] + self.deviations)
        pairs = torch.nonzero(distances <= reach)
        return None if len(pairs) == 0 else (int(pairs[0, 0]), int(pairs[0, 1]))


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

    *Vectors*: every class of the data is a mode, with the mean of its train rows as centre and one standard deviation
    (root mean square over the dimensions). A sample belongs to the nearest centre, is of high quality within 3 standard
    deviations of it, and covers a mode if it is of high quality. The papers use 2,500 samples.

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
        return _near_centres(samples.double(), data)
    chosen = classifier_of(data) if classifier is None else classifier
    found = chosen.log_probs(samples).argmax(-1)
    counts = torch.bincount(found, minlength=len(data.classes or ()))
    return Modes(int((counts > 0).sum()), len(counts), None, _divergence(counts, _shares(data)), len(samples))


def _near_centres(samples: Tensor, data: Dataset) -> Modes:
    components = _Components.of(data)
    if (pair := components.touching()) is not None:
        classes = data.classes or ()
        first, second = (f"{classes[label]!r}" for label in pair)
        raise DataError(
            f"{data.name}: expected well separated classes, to count them as modes; got classes {first} and {second} "
            f"less than {NEAR:g} standard deviations of each apart: judge by mmd or c2st"
        )
    distances, nearest = _distances(samples, components.centres).min(-1)
    good = distances <= NEAR * components.deviations[nearest]
    total = len(components.centres)
    return Modes(
        covered=len(nearest[good].unique()),
        total=total,
        high_quality=Proportion.of(int(good.sum()), len(samples)),
        divergence=_divergence(torch.bincount(nearest, minlength=total), _shares(data)),
        samples=len(samples),
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
