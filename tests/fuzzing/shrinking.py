"""The smallest program that is still wrong."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from .description import Description, Site
from .verdicts import Verdict, verdict

KEPT = ("seed", "model", "guide", "rows", "size")
ATTEMPTS = 60


def shrunk(
    described: Description, found: Verdict, judge: Callable[[Description], Verdict] = verdict
) -> tuple[Description, Verdict]:
    """Takes statements and features away while the same check says wrong.

    Args:
        described: the program.
        found: what came of it.
        judge: says what comes of another.
    """
    left, attempts = True, 0
    while left and attempts < ATTEMPTS:
        left = False
        for smaller in _smaller(described):
            attempts += 1
            verdict_ = judge(smaller)
            if (verdict_.kind, verdict_.check) == (found.kind, found.check):
                described, found, left = smaller, verdict_, True
                break
            if attempts >= ATTEMPTS:
                break
    return described, found


def _smaller(described: Description) -> Iterator[Description]:
    """Yields programs with one thing less."""
    for site in (*described.latents, *described.data):
        if not described.auto or not described.is_unseen(site):
            smaller = described.without(site.name)
            if smaller.data and smaller.latents and (smaller.guide or not described.guide):
                yield smaller
    plain: dict[str, Any] = {field.name: field.default for field in fields(Description) if field.name not in KEPT}
    plain["estimator"] = described.estimator
    plain["auto"] = described.auto
    for name, value in plain.items():
        if getattr(described, name) != value and not (name == "mask" and described.mask == "obs_mask"):
            yield replace(described, **{name: value})
    if described.size != described.rows:
        yield replace(described, size=described.rows)
    yield from _with_less(described)


def _with_less(described: Description) -> Iterator[Description]:
    for role in ("model", "guide"):
        sites: tuple[Site, ...] = getattr(described, role)
        for place, site in enumerate(sites):
            for one in _plainer(site):
                changed: dict[str, Any] = {role: (*sites[:place], one, *sites[place + 1 :])}
                yield replace(described, **changed)


def _plainer(site: Site) -> Iterator[Site]:
    for parent in site.parents:
        yield replace(site, parents=tuple(p for p in site.parents if p != parent))
    if site.scale != 1:
        yield replace(site, scale=1.0)
    if site.point:
        yield replace(site, point=False)
