"""A classifier trained on a data set's own train rows: what samples are judged by, and a space of features.

Figures on its features (FID, KID, ...) hold for this data set and this classifier only: they cannot be compared with
figures on Inception's features.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.data import Batches, Columns, Dataset
from ppgen.data.stacking import letters, separated
from ppgen.errors import DataError
from ppgen.evaluation.slices import slices
from ppgen.randomness import forked

STEPS = 1000
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WIDTH = 128
"""How many features a row has; a row of stacked images has as many for each of them."""
_SLICE = 500
_LOOKED_AT = 10_000  # train rows whose mean and scale are taken


class Classifier(nn.Module):
    """A small network with a hidden layer of features: convolutional for images, a perceptron for vectors.

    `classifier_of` returns one that is trained.

    Args:
        shape: Of one row of data.
        classes: How many.

    Attributes:
        accuracy: The share of the data's test rows that it tells right; nan before it is trained.
        width: How many features a row has.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.shape, self.width, self.accuracy = tuple(shape), WIDTH, math.nan
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.hidden = _convolutions(self.shape) if len(self.shape) == 3 else _perceptron(math.prod(self.shape))
        self.last = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (rows, classes) of `x` (rows, *shape)."""
        return self.last(self.hidden((x - self.mean) / self.scale))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """Returns the last hidden layer (rows, width) for `x` (rows, *shape), float32 on the CPU.

        Raises:
            DataError: if there are no rows, or they have another shape than the data.
        """
        return _by_slices(self, x, lambda rows: self.hidden((rows - self.mean) / self.scale))

    def log_probs(self, x: Tensor) -> Tensor:
        """Returns log probabilities (rows, classes), in nats, for `x` (rows, *shape), float32 on the CPU.

        Raises:
            DataError: if there are no rows, or they have another shape than the data.
        """
        return _by_slices(self, x, lambda rows: self(rows).log_softmax(-1))


class StackedClassifier(nn.Module):
    """Tells stacked images by a classifier of single ones: log p(abc | x) = log p(a | x_1) + log p(b | x_2) + ...

    Args:
        single: The classifier of one image (1, height, width), trained.
        images: How many images are stacked.

    Attributes:
        accuracy: The share of the data's test rows of which every image is told right.
        width: How many features a row has.
    """

    def __init__(self, single: Classifier, images: int) -> None:
        super().__init__()
        self.single, self.accuracy = single, math.nan
        self.shape, self.width = (images, *single.shape[1:]), images * single.width

    def features(self, x: Tensor) -> Tensor:
        """Returns the features of all images (rows, width), side by side, for `x` (rows, *shape).

        Raises:
            DataError: if there are no rows, or they have another shape than the data.
        """
        return _by_slices(self, x, lambda rows: self.single.features(_separate(rows)).view(len(rows), -1))

    def log_probs(self, x: Tensor) -> Tensor:
        """Returns log probabilities (rows, classes), in nats, of all combinations, for `x` (rows, *shape).

        Raises:
            DataError: if there are no rows, or they have another shape than the data.
        """
        return _by_slices(self, x, self._combinations)

    def _combinations(self, rows: Tensor) -> Tensor:
        first, *others = self.single.log_probs(_separate(rows)).view(*rows.shape[:2], -1).unbind(1)
        for other in others:
            first = (first[:, :, None] + other[:, None]).flatten(1)
        return first


def classifier_of(data: Dataset, *, seed: int = 0) -> Classifier | StackedClassifier:
    """Trains a classifier on the data's labelled train rows, always the same for the same data and seed.

    Training takes 1,000 steps of 128 rows: about half a minute for MNIST on one core, a second for small images. Keep
    the result: it is not remembered here. Images stacked as in `stacked-mnist` are told one by one.

    Args:
        data: With labels of at least two classes.
        seed: Of the first weights and the order of the rows; torch's own random streams stay as they are.

    Returns:
        The classifier, on the CPU, with `features(x)`, `log_probs(x)`, `width`, and its `accuracy` on the test rows.

    Raises:
        DataError: if there are no labels, or of one class only.

    Example:
        >>> from ppgen.data import load
        >>> digits = load("digits")
        >>> classifier = classifier_of(digits)
        >>> classifier.accuracy > 0.95
        True
        >>> classifier.features(digits.test["x"]).shape, classifier.log_probs(digits.test["x"]).shape
        (torch.Size([500, 128]), torch.Size([500, 10]))
    """
    classes = () if data.classes is None else data.classes
    if len(classes) < 2:
        number = f"one class, {classes[0]}" if classes else "no labels"
        raise DataError(f"{data.name}: expected labels of at least 2 classes, to train a classifier on; got {number}")
    single = letters(data)
    found: Classifier | StackedClassifier
    if single is None:
        found = _trained(data.labelled(), len(classes), seed)
    else:
        found = StackedClassifier(_trained(separated(data.train, len(single)), len(single), seed), data.shape[0])
    hits = found.log_probs(data.test["x"]).argmax(-1) == data.test["y"].cpu()
    found.accuracy = hits.double().mean().item()
    return found


def _trained(columns: Columns, classes: int, seed: int) -> Classifier:
    x = columns["x"]
    with forked(seed):
        classifier = Classifier(x.shape[1:], classes)
    few = x[:_LOOKED_AT]
    axis = None if few.dim() == 4 else 0  # one mean for all pixels, one for each number of a vector
    classifier.mean, scale = few.mean(axis), few.std(axis, correction=0)
    classifier.scale = torch.where(scale > 0, scale, 1.0)
    _train(classifier, Batches({"x": x, "y": columns["y"]}, BATCH_SIZE, seed=seed))
    return classifier.eval().requires_grad_(False)


def _train(classifier: Classifier, batches: Batches) -> None:
    optimizer = torch.optim.Adam(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        batch: Columns = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(classifier(batch["x"]), batch["y"]).backward()
        optimizer.step()
        schedule.step()


def _convolutions(shape: Sequence[int]) -> nn.Sequential:
    channels, height, width = shape
    size = 32 * math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
    layers: list[nn.Module] = []
    for inputs, outputs in [(channels, 16), (16, 32)]:
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, WIDTH), nn.ReLU())


def _perceptron(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())


def _separate(rows: Tensor) -> Tensor:
    """Makes rows (rows * images, 1, height, width) of stacked ones (rows, images, height, width)."""
    return rows.flatten(0, 1).unsqueeze(1)


def _by_slices(classifier: Classifier | StackedClassifier, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    shape = tuple(x.shape)
    if shape[1:] != classifier.shape or not shape[0]:
        raise DataError(f"expected rows of shape {classifier.shape}, as the classifier's data; got shape {shape}")
    with torch.no_grad():
        return torch.cat([compute(part["x"].float()) for _, part in slices({"x": x}, _SLICE, torch.device("cpu"))])
