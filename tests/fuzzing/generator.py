"""The random program of a seed and a number."""

import random
from collections.abc import Sequence
from dataclasses import replace

from .description import AUTOGUIDES, ESTIMATORS, UNSEEN, Description, Site

SHAPES = ("gauss", "gauss", "discrete", "mixed", "mixed", "chain", "drawn")
BRANCHING = ("score", "moving-average", "rao-blackwell", "nvil")
COMPILED = 40
"""One program in so many is compiled as well, where that is asked for."""


def describe(seed: int, number: int, *, compile: bool = False) -> Description:
    """Returns program ``number`` of a seed, whatever else is made."""
    chance = random.Random(f"{seed} {number}")
    shape = chance.choice(SHAPES)
    model = _model(chance, shape)
    latents = [site for site in model if not site.observed]
    guide = _guide(chance, latents, [site for site in model if site.observed], shape)
    found = Description(chance.randrange(10**9), tuple(model), tuple(guide), rows=chance.choice([3, 4, 5]))
    found = replace(found, size=found.rows, markov=shape == "chain" and chance.random() < 0.7)
    found = _with_surroundings(chance, found)
    found = _with_plates(chance, found)
    found = _with_weights(chance, found)
    if shape in ("gauss", "mixed") and not any(s.is_discrete for s in model) and chance.random() < 0.3:
        found = _with_autoguide(chance, found)
    elif found.mask == "obs_mask":
        found = _with_unseen(chance, found)
    found = _spoiled(chance, found)
    return replace(found, compiled=compile and number % COMPILED == 0 and not found.must_be_refused)


def _with_surroundings(chance: random.Random, found: Description) -> Description:
    discrete = any(site.is_discrete for site in found.guide)
    estimator = chance.choice(ESTIMATORS) if discrete and chance.random() < 0.5 else "enumerate"
    if found.branches_on_draws:
        estimator = chance.choice(BRANCHING)
    return replace(
        found,
        estimator=estimator,
        positional=chance.random() < 0.2,
        modular=chance.random() < 0.3,
        deterministic=chance.random() < 0.2,
        factor=chance.choice([0.0] * 6 + [-0.7]),
        branch=chance.random() < 0.1,
    )


def _with_plates(chance: random.Random, found: Description) -> Description:
    plates = chance.choice(["one"] * 7 + ["two", "two", "two", "unsized", "unsized", "sequential", "inside"])
    features = "plate"
    if any("m" in site.index for site in found.model):
        features = chance.choice(["plate", "plate", "sequential", "event"])
    if plates in ("sequential", "inside"):
        # each row by itself: what depends on it is written for one plate only
        plates = plates if features == "plate" and not any("m" in s.index for s in found.model) else "one"
    if plates == "sequential" and (found.markov or found.branches_on_draws):
        plates = "one"
    flipped = features == "plate" and plates in ("one", "two", "unsized") and chance.random() < 0.15
    found = replace(found, plates=plates, features=features, flipped=flipped)
    if plates in ("one", "two") and chance.random() < 0.3:
        known = plates == "two" or chance.random() < 0.5
        found = replace(found, size=found.rows * chance.choice([2, 10]), index_known=known)
    return found


def _with_weights(chance: random.Random, found: Description) -> Description:
    mask = chance.choice([""] * 7 + ["data", "all", "model", "obs_mask"])
    scales: list[float | str] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 4.0, "row"]
    whole = chance.choice(scales)
    if not found.has_rows:
        mask = ""
        whole = 1.0 if whole == "row" else whole
    if whole == "row" and (found.factor or any("r" not in site.index for site in found.model)):
        whole = 0.3
    if mask == "obs_mask" and (
        any(s.only_model for s in found.model)
        or any(s.kind != "normal" or s.index != "r" for s in found.data)
        or found.markov
        or found.flipped
    ):
        mask = "data"
    if found.features == "event" and mask == "obs_mask":
        mask = ""
    # masked in the model alone, a distribution is a flat density, with which log q counts: a bound without end
    symmetric = mask in ("data", "all")
    return replace(found, mask=mask, whole_scale=whole, of_distribution=symmetric and chance.random() < 0.3)


def _with_autoguide(chance: random.Random, found: Description) -> Description:
    auto = chance.choice(AUTOGUIDES[:2] + AUTOGUIDES)
    if found.plates in ("unsized", "sequential", "inside"):
        found = replace(found, plates="one")
    if found.features == "sequential":  # which Pyro's autoguides cannot take
        found = replace(found, features="event", mask="" if found.mask == "obs_mask" else found.mask)
    if auto.endswith(("DiagonalNormal", "MultivariateNormal")) and found.mask != "data":
        found = replace(found, mask="")
    plain = tuple(replace(site, parents=(), scale=1.0, point=False) for site in found.latents)
    unseen = tuple(Site(x.name + UNSEEN, x.kind, x.index) for x in found.data if found.is_unseen(x))
    model = tuple(replace(site, scale=1.0) if not site.observed else site for site in found.model)
    if auto == "AutoGuideList" and len(plain) + len(unseen) < 2:
        auto = "AutoNormal"
    found = replace(found, of_distribution=found.of_distribution and found.mask == "data")
    return replace(
        found, model=model, guide=plain + unseen, size=found.rows, auto=auto, whole_scale=1.0, estimator="enumerate"
    )


def _with_unseen(chance: random.Random, found: Description) -> Description:
    unseen = []
    for site in found.data:
        able = [s.name for s in found.guide if set(s.index) <= set(site.index) and not s.only_if]
        unseen.append(Site(site.name + UNSEEN, "normal", site.index, tuple(p for p in able if chance.random() < 0.5)))
    columns = {site.name for site in found.data}
    guide = (replace(s, parents=tuple(p for p in s.parents if p not in columns)) for s in found.guide)
    return replace(found, guide=(*guide, *unseen))


def _spoiled(chance: random.Random, found: Description) -> Description:
    """Makes a few programs such as must be refused."""
    local = [site for site in found.guide if site.index == "r" and site.kind == "normal" and not site.only_if]
    if found.auto or not local or chance.random() > 0.06 or found.mask == "obs_mask" or not found.has_rows:
        return found
    if chance.random() < 0.4 and not found.mask:
        return replace(found, masked_guide=True)
    place = found.guide.index(local[0])
    noise = Site("a0", "normal", "r", (), auxiliary=True)
    changed = replace(local[0], parents=(*local[0].parents, "a0"), point=False)
    return replace(found, guide=(*found.guide[:place], noise, changed, *found.guide[place + 1 :]))


# ------------------------------------------------------------------------------------------------------------ sites


def _model(chance: random.Random, shape: str) -> list[Site]:
    if shape == "chain":
        latents = _chain(chance)
        seen = [Site(f"x{n}", "normal", "r", (site.name,), observed=True) for n, site in enumerate(latents)]
        return [*latents, *seen]
    latents = _branching(chance) if shape == "drawn" else _latents(chance, shape)
    return [*latents, *_data(chance, latents, shape)]


def _latents(chance: random.Random, shape: str) -> list[Site]:
    kinds = {"gauss": ["normal"], "discrete": ["bernoulli", "categorical"]}
    found: list[Site] = []
    for number in range(chance.choice([1, 2, 2, 3])):
        kind = chance.choice(kinds.get(shape, ["normal", "normal", "bernoulli", "categorical"]))
        index = chance.choice(["r", "r", "r", "", "mr", "m"] if kind == "normal" else ["r", "r", "r", ""])
        able = [s for s in found if _fits(s, index) and (kind == "normal" or s.is_discrete)]
        parents = tuple(s.name for s in able if chance.random() < 0.6)
        forbidden = kind == "categorical" and chance.random() < 0.2
        simplex = kind == "categorical" and not parents and not forbidden and chance.random() < 0.5
        scale = chance.choice([1.0] * 12 + [0.4])
        name = f"{'z' if kind == 'normal' else 'd'}{number}"
        found.append(Site(name, kind, index, parents, scale=scale, forbidden=forbidden, simplex=simplex))
    return _summed(chance, found) if shape == "discrete" else found


def _summed(chance: random.Random, found: list[Site]) -> list[Site]:
    """Leaves some sites to be summed out, and with them what depends on them."""
    gone: set[str] = set()
    left = []
    for site in found:
        only = bool(gone.intersection(site.parents)) or (site.index == "r" and chance.random() < 0.3)
        gone |= {site.name} if only else set()
        left.append(replace(site, only_model=True, scale=1.0) if only else site)
    return left


def _branching(chance: random.Random) -> list[Site]:
    """A switch that all rows share, and a site that exists in one of its states only."""
    switch = Site("d0", "bernoulli", "")
    index = chance.choice(["r", "r", ""])
    kind = chance.choice(["normal", "normal", "bernoulli"])
    name = "z1" if kind == "normal" else "d1"
    found = [switch, Site(name, kind, index, only_if="d0")]
    if chance.random() < 0.4:
        found.append(Site("z2", "normal", "r", ("d0",)))
    return found


def _chain(chance: random.Random) -> list[Site]:
    kind = chance.choice(["bernoulli", "categorical"])
    length = chance.choice([2, 3, 4]) if kind == "bernoulli" else chance.choice([2, 3])
    only = chance.random() < 0.4
    names = [f"d{place}" for place in range(length)]
    return [
        Site(name, kind, "r", (names[place - 1],) if place else (), only_model=only) for place, name in enumerate(names)
    ]


def _data(chance: random.Random, latents: Sequence[Site], shape: str) -> list[Site]:
    found = []
    for number in range(chance.choice([1, 1, 2])):
        discrete = shape == "discrete" and chance.random() < 0.3
        kind = chance.choice(["bernoulli", "categorical"]) if discrete else "normal"
        index = "mr" if kind == "normal" and shape != "drawn" and chance.random() < 0.35 else "r"
        able = [s for s in latents if _fits(s, index) and (kind == "normal" or s.is_discrete)]
        parents = tuple(s.name for s in able if chance.random() < 0.8) or tuple(s.name for s in able[:1])
        if shape == "drawn":
            parents = tuple(s.name for s in able)
        found.append(Site(f"x{number}", kind, index, parents, observed=True, scale=chance.choice([1.0] * 12 + [3.0])))
    return found


def _fits(parent: Site, index: str) -> bool:
    return set(parent.index) <= set(index)


def _guide(chance: random.Random, latents: Sequence[Site], data: Sequence[Site], shape: str) -> list[Site]:
    drawn = [site for site in latents if not site.only_model]
    fixed = shape in ("chain", "drawn")
    order = drawn if fixed or chance.random() < 0.5 else chance.sample(drawn, len(drawn))
    points = chance.random() < 0.1
    found: list[Site] = []
    for site in order:
        # a discrete site that depends on a continuous one, or on all rows, has no sum in closed form
        columns = [x.name for x in data if _fits(x, site.index) and x.kind == "normal" and chance.random() < 0.7]
        able = [s for s in found if _fits(s, site.index) and (s.is_discrete or not site.is_discrete)]
        parents = (*columns, *(s.name for s in able if chance.random() < 0.5 and not s.only_if))
        point = points and site.kind == "normal" and chance.random() < 0.7
        simplex = site.kind == "categorical" and not parents and not site.forbidden and chance.random() < 0.5
        found.append(replace(site, parents=parents, point=point, simplex=simplex))
    return found
