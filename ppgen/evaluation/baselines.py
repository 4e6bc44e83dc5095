"""What simple classifiers reach with the same labels."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.data import Dataset, Streamed
from ppgen.evaluation.intervals import Proportion

MOST_ROWS = 10_000


def baselines(data: Dataset) -> dict[str, Proportion]:
    """Returns the test accuracy of scikit-learn's classifiers, fitted on exactly the labelled train rows.

    "logistic_regression" and "nearest_neighbour" (one neighbour) see flattened ``x`` of the labelled rows only;
    "label_spreading" (a graph of 7 nearest neighbours) sees ``x`` of the unlabelled train rows too, and no test row
    before it predicts. To spare time and memory, logistic regression is left out above 10,000 labelled rows, and label
    spreading above 10,000 train rows or without unlabelled rows. There are no baselines without labels of at least two
    classes, nor where labelled rows are streamed from disk. To give the baselines intensities rather than binary draws,
    pass the data before they are binarized.
    """
    if data.classes is None or "y" not in data.train:
        return {}
    labelled = data.labelled()
    if isinstance(labelled["x"], Streamed):
        return {}
    x, y = _flat(labelled["x"]), labelled["y"].numpy()
    if len(np.unique(y)) < 2:
        return {}
    hidden = data.unlabelled()["x"]
    if isinstance(hidden, Streamed):
        hidden = labelled["x"][:0]
    test_x, test_y = _flat(data.test["x"]), data.test["y"].numpy()
    found = {}
    for name, classifier in _classifiers(len(x), len(hidden)).items():
        if name == "label_spreading":
            train = np.concatenate([x, _flat(hidden)]), np.concatenate([y, np.full(len(hidden), -1)])
        else:
            train = x, y
        found[name] = Proportion.of(_hits(classifier, *train, test_x, test_y), int((test_y >= 0).sum()))
    return found


def _classifiers(labelled: int, unlabelled: int) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.semi_supervised import LabelSpreading

    found: dict[str, Any] = {}
    if labelled <= MOST_ROWS:
        found["logistic_regression"] = LogisticRegression(max_iter=2000)
    found["nearest_neighbour"] = KNeighborsClassifier(1)
    if unlabelled and 7 <= labelled + unlabelled <= MOST_ROWS:
        found["label_spreading"] = LabelSpreading(kernel="knn", n_neighbors=7, alpha=0.2, max_iter=1000)
    return found


def _hits(classifier: Any, x: Any, y: Any, test_x: Any, test_y: Any) -> int:
    from sklearn.exceptions import ConvergenceWarning

    # a row out of reach of every label has no distribution to spread: 0 / 0, and the first class is predicted
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = classifier.fit(x, y).predict(test_x)
    return int(((predicted == test_y) & (test_y >= 0)).sum())


def _flat(x: Tensor) -> Any:
    return x.flatten(1).numpy() if x.dim() > 1 else x[:, None].numpy()
