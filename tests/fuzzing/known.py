"""Small programs, each of which once had a wrong number, the wrong shape or a raw error."""

from dataclasses import replace

from .description import UNSEEN, Description, Site

_Z = Site("z0", "normal", "r")
_X = Site("x0", "normal", "r", ("z0",), observed=True)
_TOY = Description(6, (_Z, _X), (replace(_Z, parents=("x0",)),))
_D = Site("d0", "bernoulli", "r")
_DISCRETE = Description(6, (_D, replace(_X, parents=("d0",))), (replace(_D, parents=("x0",)),))


def _chain() -> Description:
    names = ["d0", "d1", "d2", "d3"]
    latents = [Site(name, "bernoulli", "r", tuple(names[:n][-1:])) for n, name in enumerate(names)]
    data = [Site(f"x{n}", "normal", "r", (name,), observed=True) for n, name in enumerate(names)]
    guide = [replace(site, parents=(*site.parents, f"x{n}")) for n, site in enumerate(latents)]
    return Description(6, (*latents, *data), tuple(guide), markov=True)


def _forbidden(estimator: str) -> Description:
    site = Site("d0", "categorical", "r", forbidden=True)
    model = (site, replace(_X, parents=("d0",)))
    return replace(_DISCRETE, model=model, guide=(replace(site, parents=("x0",)),), estimator=estimator)


def _branching(kind: str, index: str, estimator: str) -> Description:
    switch = Site("d0", "bernoulli", "")
    name = "d1" if kind == "bernoulli" else "z1"
    inside = Site(name, kind, index, only_if="d0")
    model = (switch, inside, replace(_X, parents=("d0", name)))
    return Description(6, model, (switch, inside), estimator=estimator)


def _auxiliary() -> Description:
    noise = Site("a0", "normal", "r", auxiliary=True)
    return replace(_TOY, guide=(noise, replace(_Z, parents=("x0", "a0"))))


def _unseen() -> Description:
    return replace(_TOY, guide=(_Z, Site("x0" + UNSEEN, "normal", "r")), mask="obs_mask", auto="AutoNormal")


KNOWN = {
    "a scale around the whole program, in weights of rows": replace(_TOY, whole_scale=0.1),
    "a scale of one latent, in weights of rows": replace(
        _TOY, model=(replace(_Z, scale=0.2), _X), guide=(replace(_Z, parents=("x0",), scale=0.2),)
    ),
    "a scale around the whole program, in bounds of several draws": replace(_TOY, whole_scale=25.0),
    "a scale for each row": replace(_TOY, whole_scale="row"),
    "latents in a plate of their own": replace(_TOY, plates="two"),
    "a plate without a size": replace(_TOY, plates="unsized"),
    "rows one after the other": replace(_TOY, plates="sequential"),
    "an autoguide beside data that are partly known": _unseen(),
    "an auxiliary site without a reverse density": _auxiliary(),
    "a latent that is drawn in some runs only": _branching("normal", "r", "score"),
    "a discrete latent that is drawn in some runs only": _branching("bernoulli", "r", "moving-average"),
    "a branch on a value, with fewer terms than there are": _branching("bernoulli", "", "rao-blackwell"),
    "a chain of four in the guide": _chain(),
    "a forbidden category, summed": _forbidden("enumerate"),
    "a forbidden category, by its score": _forbidden("leave-one-out"),
    "a deterministic statement within the plate": replace(_TOY, deterministic=True),
    "a mask of the guide alone": replace(_TOY, masked_guide=True),
}
