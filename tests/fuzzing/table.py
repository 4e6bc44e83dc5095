"""How many programs were right, and why others were refused."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .verdicts import Verdict


def summary(verdicts: Mapping[int, Verdict]) -> dict[str, Any]:
    """Returns counts, refusals by their reason and the numbers of wrong programs."""
    kinds = Counter(found.kind for found in verdicts.values())
    refused = [found for found in verdicts.values() if found.kind == "refused" and not found.expected]
    return {
        "programs": len(verdicts),
        "right": kinds["right"],
        "refused": kinds["refused"],
        "refused, as they must be": kinds["refused"] - len(refused),
        "refused that stock Pyro does right": sum(found.stock for found in refused),
        "wrong": kinds["wrong"],
        "reasons": [_reason(reason, refused) for reason, _ in Counter(f.reason for f in refused).most_common()],
        "wrong programs": {
            number: f"{found.check}: {found.reason}"
            for number, found in sorted(verdicts.items())
            if found.kind == "wrong"
        },
    }


def _reason(reason: str, refused: Iterable[Verdict]) -> dict[str, Any]:
    own = [found for found in refused if found.reason == reason]
    return {"reason": reason, "programs": len(own), "right in stock Pyro": sum(found.stock for found in own)}


def markdown(found: Mapping[str, Any]) -> str:
    """Returns the tables of a summary."""
    lines = ["| programs | right | refused, as they must be | refused | of these, right in stock Pyro | wrong |"]
    lines += ["|---:|---:|---:|---:|---:|---:|"]
    must = found["refused, as they must be"]
    stock = found["refused that stock Pyro does right"]
    lines += [
        f"| {found['programs']} | {found['right']} | {must} | {found['refused'] - must} | {stock} | {found['wrong']} |"
    ]
    if found["reasons"]:
        lines += ["", "| refused, since | programs | of these, right in stock Pyro |", "|---|---:|---:|"]
    for row in found["reasons"]:
        lines += [f"| {row['reason'].replace('|', '/')} | {row['programs']} | {row['right in stock Pyro']} |"]
    return "\n".join(lines)
