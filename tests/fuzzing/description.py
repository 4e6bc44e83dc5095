"""What a random program is made of: plain data, from which its source and its truth are made apart."""

from dataclasses import dataclass, replace

STATES = {"bernoulli": 2, "categorical": 3}
FEATURE_COUNT = 2
AUTOGUIDES = ("AutoNormal", "AutoDelta", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoGuideList")
ESTIMATORS = ("enumerate", "score", "rao-blackwell", "leave-one-out", "moving-average", "nvil", "vimco")
UNSEEN = "_unobserved"
"""Ends the name of what stands for data that are not known."""


@dataclass(frozen=True)
class Site:
    """A sample statement of a model or of a guide.

    Attributes:
        name: of the site; a column of data bears the name of the site that is observed at it.
        kind: "normal", "bernoulli" or "categorical" (three states).
        index: what it varies along: "", "r" (rows), "m" (features) or "mr".
        parents: earlier sites and, in a guide, columns that its parameters depend on.
        observed: whether it is data.
        scale: what ``poutine.scale`` multiplies it by.
        forbidden: whether its first state has no probability.
        only_model: whether the guide leaves it to be summed out.
        auxiliary: whether it is marked so.
        point: whether a guide draws a point, a Delta, in place of a normal.
        simplex: whether the probabilities of its states are a parameter of their own.
        only_if: the Bernoulli site on whose value 1 it depends whether the statement runs at all.
    """

    name: str
    kind: str
    index: str
    parents: tuple[str, ...] = ()
    observed: bool = False
    scale: float = 1.0
    forbidden: bool = False
    only_model: bool = False
    auxiliary: bool = False
    point: bool = False
    simplex: bool = False
    only_if: str = ""

    @property
    def is_discrete(self) -> bool:
        """Whether it has states."""
        return self.kind in STATES


@dataclass(frozen=True)
class Description:
    """A random program.

    Attributes:
        seed: of its parameters and data.
        model: the sites of the model, in order.
        guide: those of the guide, in an order of their own.
        rows: how many the batch has.
        size: how many the data plate stands for.
        plates: "one", "two" (latents in a plate of their own), "unsized", "sequential" or "inside" (the program
            takes a part of the rows that it is given).
        index_known: whether a subsampled plate is told which rows it has.
        flipped: whether rows run along dimension -2, and features along -1.
        features: "plate", "sequential" or "event".
        whole_scale: what the whole program is scaled by; "row" for a number for each row.
        mask: "", "data" (data sites), "all" (what lies along rows, in model and guide), "model" (in the model alone)
            or "obs_mask" (of data sites along rows).
        of_distribution: whether masks are those of distributions.
        masked_guide: whether the guide alone is masked: what the model counts has its log q counted, or is refused.
        markov: whether local sites stand in a ``pyro.markov`` loop.
        estimator: of the guide's discrete sites.
        positional: whether the batch is a tuple.
        modular: whether model and guide are modules.
        deterministic: whether the model names a latent again, by a deterministic statement.
        factor: a factor of the model.
        branch: whether the model has a branch on its data.
        auto: the autoguide in the guide's place; empty for none.
        compiled: whether compiled steps are compared with eager ones.
    """

    seed: int
    model: tuple[Site, ...]
    guide: tuple[Site, ...]
    rows: int = 4
    size: int = 4
    plates: str = "one"
    index_known: bool = True
    flipped: bool = False
    features: str = "plate"
    whole_scale: float | str = 1.0
    mask: str = ""
    of_distribution: bool = False
    masked_guide: bool = False
    markov: bool = False
    estimator: str = "enumerate"
    positional: bool = False
    modular: bool = False
    deterministic: bool = False
    factor: float = 0.0
    branch: bool = False
    auto: str = ""
    compiled: bool = False

    @property
    def latents(self) -> tuple[Site, ...]:
        """The sites of the model that are not data."""
        return tuple(site for site in self.model if not site.observed)

    @property
    def data(self) -> tuple[Site, ...]:
        """The sites of the model that are."""
        return tuple(site for site in self.model if site.observed)

    @property
    def must_be_refused(self) -> bool:
        """Whether no number would be right."""
        drawn = {site.name for site in self.model} | {site.name + UNSEEN for site in self.data}
        return any(site.name not in drawn for site in self.guide)

    @property
    def is_scaled_in_parts(self) -> bool:
        """Whether sites of one row have scales of their own, so that there are no bounds of several draws."""
        return any(site.scale != 1 for site in (*self.model, *self.guide))

    @property
    def branches_on_draws(self) -> bool:
        """Whether some statements run for some drawn values only."""
        return any(site.only_if for site in self.model)

    @property
    def has_points(self) -> bool:
        """Whether the guide has densities that are none."""
        return self.auto in ("AutoDelta", "AutoGuideList") or any(site.point for site in self.guide)

    @property
    def has_rows(self) -> bool:
        """Whether rows have weights of their own: they lie along a plate that is all there is of them."""
        return self.plates not in ("sequential", "inside")

    def is_unseen(self, site: Site) -> bool:
        """Whether a data site has rows that are not known."""
        return self.mask == "obs_mask" and site.observed and "r" in site.index

    def without(self, name: str) -> "Description":
        """Returns it without a site, and without dependence on it."""

        def left(sites: tuple[Site, ...]) -> tuple[Site, ...]:
            kept = [site for site in sites if site.name not in (name, name + UNSEEN)]
            return tuple(
                replace(
                    site,
                    parents=tuple(p for p in site.parents if p != name),
                    only_if="" if site.only_if == name else site.only_if,
                )
                for site in kept
            )

        return replace(self, model=left(self.model), guide=left(self.guide))
