"""How what was measured reads: the lines and the notes of a result's table."""

from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]

_TITLES = {
    "nll": "NLL, at most",
    "elbo": "ELBO",
    "knn": "1-NN accuracy, guide's features",
    "clusters": "clusters, named by majority",
    "mmd": "samples: squared MMD",
    "c2st": "samples: told apart (C2ST)",
    "modes": "samples: modes covered",
    "fid_classifier": "samples: FID, own classifier",
    "kid_classifier": "samples: KID, own classifier",
    "precision_classifier": "samples: precision, own classifier",
    "recall_classifier": "samples: recall, own classifier",
    "one_nn_classifier": "samples: told apart by 1-NN, own classifier",
    "parzen": "samples: Parzen estimate (misleading)",
}
_PERCENTAGES = {"c2st", "precision_classifier", "recall_classifier", "one_nn_classifier"}


def lines(test: Found, baselines: Found) -> list[tuple[str, str]]:
    """Returns what every measure is called and found to be: what classifies first, samples last."""
    found = [("accuracy", _proportion(test["accuracy"]))] if "accuracy" in test else []
    found += [(f"  {name.replace('_', ' ')}", _proportion(value)) for name, value in baselines.items()]
    return found + [(title, _text(name, test[name])) for name, title in _TITLES.items() if name in test]


def notes(document: Found) -> str:
    """Returns what must be known to read the lines, a sentence or more."""
    test, baselines = document["test"], document.get("baselines", {})
    parts = ["Intervals: 95 %."] if {"accuracy", "knn", "clusters"} & test.keys() else []
    if baselines:
        spread = "; label spreading, the unlabelled rows too" if "label_spreading" in baselines else ""
        parts.append(f"The baselines saw the same labels only{spread}.")
    if missing := document.get("no_density"):
        parts.append(f"There is no density of the data to take the NLL of: {missing}.")
    if any("p_value" in found for found in test.values()):
        parts.append("p: how often as large a difference arises if samples and test rows are of one distribution.")
    if features := next((found["features"] for found in test.values() if "features" in found), ""):
        parts.append(
            f"Features are those of a {features}: their figures compare with no published ones. In brackets: train rows"
            " in the place of samples."
        )
    parts += [f"Warning: {found['warning']}." for found in test.values() if "warning" in found]
    return " ".join(parts)


def _text(name: str, found: Found) -> str:
    if name in ("nll", "elbo"):
        return _nats(found)
    if name == "knn":
        return f"{_proportion(found)}, {found['train_rows']:,} labelled rows, by {', '.join(found['sites'])}"
    if name == "clusters":
        return f"{_proportion(found)}, {found['used']} of {found['states']} states of {found['site']} in use"
    if name == "modes":
        return _modes(found)
    if name == "parzen":
        samples = f"{found['samples']:,} samples, bandwidth {found['bandwidth']:.3g}"
        return f"{found['value']:.2f} ± {found['stderr']:.2f} nats  ({samples})"
    text = _number(name, found["value"])
    text += f" ± {found['stderr']:.2g}" if "stderr" in found else ""
    text += f"  [{_number(name, found['train_rows'])}]" if "train_rows" in found else ""
    text += f"  p {_probability(found['p_value'])}" if "p_value" in found else ""
    return f"{text}  ({found['samples']:,} samples, {found['rows']:,} rows)"


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in _PERCENTAGES else f"{value:.3g}"


def _probability(value: float) -> str:
    return f"= {value:.3f}" if value > 0.001 else "<= 0.001"


def _modes(found: Found) -> str:
    covered = f"{found['covered']:,} of {found['total']:,}"
    if "covered_of_data" not in found:  # as it was measured before the data's own figures stood beside
        return f"{covered}  (KL {found['divergence']:.3f} nats; {found['samples']:,} samples)"
    parts = [f"of data {found['covered_of_data']:,}"]
    if found["high_quality"]:
        near, of_data = found["high_quality"]["value"], found["high_quality_of_data"]
        parts.append(f"{100 * near:.1f} % near one, of data {100 * of_data:.1f} %")
    parts.append(f"KL {found['divergence']:.3f} nats, of data {found['divergence_of_data']:.3f}")
    return f"{covered}  ({', '.join(parts)}; {found['samples']:,} samples)"


def _proportion(found: Found) -> str:
    return f"{100 * found['value']:.1f} %  ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _nats(found: Found) -> str:
    if found["value"] is None:
        return "not finite"
    error = "" if found["stderr"] is None else f" ± {found['stderr']:.2f}"
    return f"{found['value']:.2f}{error} nats  ({found['particles']:,} particle{'s' if found['particles'] > 1 else ''})"
