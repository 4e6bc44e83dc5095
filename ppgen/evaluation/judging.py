"""Every measure by name, and which of them suit a trained pair."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppgen.data import Columns, Dataset
from ppgen.errors import ConfigError, DataError
from ppgen.evaluation import features
from ppgen.evaluation.clusters import cluster_accuracy
from ppgen.evaluation.densities import missing_density
from ppgen.evaluation.embedding import nearest_neighbour_accuracy
from ppgen.evaluation.measures import MEASURES, Trained, evaluate
from ppgen.evaluation.modes import has_known_modes, mode_coverage
from ppgen.evaluation.parzen import parzen
from ppgen.evaluation.simulated import DATA, samples_of
from ppgen.evaluation.two_sample import classifier_test, kernel_test, neighbour_test
from ppgen.randomness import forked

if TYPE_CHECKING:
    from ppgen.evaluation.classifier import Classifier, StackedClassifier

logger = logging.getLogger("ppgen")

Found = dict[str, Any]

TESTED = 1_000
"""Most samples of a two-sample test, unless told: its kernel matrix has the square of twice as many numbers."""
COMPARED = 5_000
"""Most samples of the other measures, unless told."""
OF_MIXTURE, OF_STACKED = 2_500, 26_000
"""Samples that modes are counted in, unless told, as in the papers: of vectors, and of stacked images."""


@dataclass(frozen=True)
class _Judge:
    """What measures of samples need, each computed once."""

    trained: Trained
    data: Dataset
    complete: Callable[[], Dataset]
    asked: int | None
    seed: int

    def samples(self, most: int) -> Tensor:
        """Draws as many samples as are asked for, or else as there are test rows, but not more than ``most``."""
        return self.drawn(min(len(self.data.test[DATA]), most))

    def drawn(self, count: int) -> Tensor:
        """Draws as many samples as are asked for, or else ``count``."""
        return samples_of(self.trained, self.data, self.asked or count, seed=self.seed)

    @cached_property
    def tested(self) -> tuple[Tensor, Tensor]:
        """Samples and test rows for a two-sample test."""
        samples = self.samples(TESTED)
        return samples, self.rows(self.data.test, len(samples))

    def rows(self, columns: Columns, count: int) -> Tensor:
        """Chooses at most ``count`` rows, in random order."""
        with forked(self.seed):
            chosen = torch.randperm(len(columns[DATA]))[:count]
        return columns[DATA][chosen].float()

    @cached_property
    def all_labels(self) -> Dataset:
        """The data with all their labels, binary where the model is of binary data."""
        return _drawn_once(self.complete())

    @cached_property
    def classifier(self) -> "Classifier | StackedClassifier":
        """A classifier trained on the data set."""
        from ppgen.evaluation.classifier import classifier_of

        return classifier_of(self.all_labels)

    @cached_property
    def classified(self) -> "_Classified":
        """Features of samples and rows."""
        samples = self.samples(COMPARED)
        count = len(samples)
        test, train = self.rows(self.data.test, count), self.rows(self.all_labels.train, count)
        accuracy = f"test accuracy {self.classifier.accuracy:.3f}"
        said = f"classifier trained on {self.data.name}, {accuracy}; not Inception"
        made, tested, learnt = (self.classifier.features(rows).double() for rows in (samples, test, train))
        scale = learnt.var(0).mean().sqrt()  # one number: distances are then in units of the data's own spread
        return _Classified(made / scale, tested / scale, learnt / scale, said)


@dataclass(frozen=True)
class _Classified:
    """Features, scaled so that those of train rows have variance 1 on average over the dimensions."""

    samples: Tensor
    test: Tensor
    train: Tensor
    said: str

    def compared(
        self, measure: Callable[[Tensor, Tensor], Found], beside: Callable[[Tensor, Tensor], float] | None = None
    ) -> Found:
        """Measures samples against test rows, and beside them train rows, which no model can be asked to beat.

        Args:
            measure: of samples and test rows.
            beside: its value of train rows and test rows, if that can be had for less.
        """
        found = measure(self.samples, self.test)
        of_data = beside(self.train, self.test) if beside else measure(self.train, self.test)["value"]
        counts = {"samples": len(self.samples), "rows": len(self.test)}
        return {**found, "train_rows": of_data, **counts, "features": self.said}


def _mmd(judge: _Judge) -> Found:
    return kernel_test(*judge.tested, seed=judge.seed).as_dict()


def _c2st(judge: _Judge) -> Found:
    return classifier_test(*judge.tested, seed=judge.seed).as_dict()


def _modes(judge: _Judge) -> Found:
    vectors = len(judge.data.shape) == 1
    samples = judge.drawn(OF_MIXTURE if vectors else OF_STACKED)
    found = mode_coverage(samples, judge.all_labels, classifier=None if vectors else judge.classifier).as_dict()
    return {"value": found["covered"], **found}


def _fid(judge: _Judge) -> Found:
    return judge.classified.compared(lambda x, y: {"value": features.frechet_distance(x, y)})


def _kid(judge: _Judge) -> Found:
    return judge.classified.compared(
        lambda x, y: features.kernel_distance(x, y, seed=judge.seed).as_dict(),
        lambda x, y: features.kernel_distance(x, y, permutations=0).value,
    )


def _precision(judge: _Judge) -> Found:
    return judge.classified.compared(lambda x, y: {"value": features.precision(x, y)})


def _recall(judge: _Judge) -> Found:
    return judge.classified.compared(lambda x, y: {"value": features.recall(x, y)})


def _one_nn(judge: _Judge) -> Found:
    return judge.classified.compared(lambda x, y: neighbour_test(x, y, seed=judge.seed).as_dict())


def _parzen(judge: _Judge) -> Found:
    return parzen(judge.samples(COMPARED), judge.data.validation[DATA], judge.data.test[DATA])


def _knn(judge: _Judge) -> Found:
    data = _drawn_once(judge.data)
    return nearest_neighbour_accuracy(judge.trained, data.train, data.test, seed=judge.seed).as_dict()


def _clusters(judge: _Judge) -> Found:
    data = _drawn_once(judge.data)
    return cluster_accuracy(judge.trained, data.train, data.test, seed=judge.seed).as_dict()


_ENCODED: dict[str, Callable[[_Judge], Found]] = {"knn": _knn, "clusters": _clusters}
_SAMPLED: dict[str, Callable[[_Judge], Found]] = {
    "mmd": _mmd,
    "c2st": _c2st,
    "modes": _modes,
    "fid_classifier": _fid,
    "kid_classifier": _kid,
    "precision_classifier": _precision,
    "recall_classifier": _recall,
    "one_nn_classifier": _one_nn,
    "parzen": _parzen,
}

ALL_MEASURES = (*MEASURES, *_ENCODED, *_SAMPLED)
"""Names of all measures: of the density, of the guide, of samples."""


def _drawn_once(data: Dataset) -> Dataset:
    """Binary data are judged against binary data, also where training draws them anew for every batch."""
    return data.binarized("static") if data.binarization == "dynamic" and not data.streamed else data


def check_measures(names: Sequence[str]) -> None:
    """Checks that there are measures of these names.

    Raises:
        ConfigError: naming the nearest one, if not.
    """
    for name in names:
        if name not in ALL_MEASURES:
            near = difflib.get_close_matches(name, ALL_MEASURES, 1, 0.5)
            near += [measure for measure in ALL_MEASURES if measure.startswith(f"{name}_")]
            hint = f": did you mean '{near[-1]}'?" if near else ""
            raise ConfigError(f"expected measures from {', '.join(ALL_MEASURES)}; got '{name}'{hint}")


def default_measures(data: Dataset, missing: str | None) -> tuple[str, ...]:
    """Returns the measures of a pair unless told: of its density if it has one, else quick ones of its samples."""
    if missing is None:
        return ("nll", "accuracy")
    return ("accuracy", "mmd", "c2st", *(("modes",) if has_known_modes(data) else ()))


def judge(
    trained: Trained,
    data: Dataset,
    *,
    measures: Sequence[str] = (),
    particles: int = 100,
    samples: int | None = None,
    seed: int = 0,
    complete: Callable[[], Dataset] | None = None,
) -> dict[str, Found]:
    """Measures a trained pair on the test rows of its data.

    Args:
        trained: a `ppgen.Trainer`, say.
        data: what it was trained on.
        measures: names from `ALL_MEASURES`, refused where they do not suit; unless told `default_measures`, left out
            where they do not.
        particles: draws of the latents per row, for NLL and ELBO.
        samples: how many samples are drawn, to be compared with as many test rows. Unless told, as many as there are
            test rows, at most 1,000 in two-sample tests and 5,000 elsewhere; 2,500 or 26,000 to count modes in.
        seed: of all draws: the same seed gives the same numbers.
        complete: loads the data with all their labels, for classifiers, where ``data`` has some of them hidden.

    Returns:
        By measure a dict with "value", and with what must be known to read it.

    Raises:
        ConfigError: if a measure is unknown or does not suit the pair.
        DataError: if a measure needs labels, or more rows.
    """
    check_measures(measures)
    names = tuple(dict.fromkeys(measures)) or default_measures(data, missing_density(trained, data.test))
    found: dict[str, Found] = {}
    if by_density := [name for name in names if name in MEASURES]:
        found |= evaluate(trained, data.test, particles=particles, measures=by_density, seed=seed).as_dict()
    if "accuracy" in measures and "accuracy" not in found:
        raise ConfigError("cannot measure 'accuracy': there are no labels in the data, or the guide infers none")
    judged = _Judge(trained, data, complete or (lambda: data), samples, seed)
    for name, measure in {**_ENCODED, **_SAMPLED}.items():
        if name not in names:
            continue
        try:
            found[name] = measure(judged)
        except (ConfigError, DataError) as error:
            if measures:
                raise type(error)(f"cannot measure '{name}': {error}") from error
            logger.warning("cannot measure '%s': %s", name, error)
    return found
