"""Draws through which gradients pass: all sites of a model from the model alone, those of a guide given data."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.joint import prune
from ppgen.programs.sites import is_factor, is_named, unobserved

Site = Mapping[str, Any]
Sites = dict[str, Site]


RELAXED = "ppgen_relaxed"
"""Key of a site's ``infer``: its value are the probabilities of its states, not one of them."""


class Relaxed(Messenger):
    """Within it, a discrete site has its mean as value, a category its probabilities.

    The probabilities of a ``Categorical``, ``(..., states)``, stand where programs expect its integers ``(...)``, so
    programs have to treat both alike, as `ppgen.nn.one_hot` does.
    """

    def _pyro_sample(self, site: Any) -> None:
        fixed = site["is_observed"] or site["value"] is not None or poutine.util.site_is_subsample(site)
        if fixed or has_pathwise(site):
            return
        if not getattr(site["fn"], "has_enumerate_support", False):
            raise ConfigError(
                f"expected draws with a pathwise derivative, or a category; got site '{site['name']}', which is a"
                f" {_kind(site['fn'])}: use a distribution that can be reparameterised"
            )
        categorical = isinstance(site["fn"], torch.distributions.Categorical)
        site["value"] = site["fn"].probs if categorical else site["fn"].mean
        site["infer"] = {**site["infer"], RELAXED: categorical}


def has_pathwise(site: Site) -> bool:
    """Says whether gradients pass through draws of a site."""
    return bool(getattr(site["fn"], "has_rsample", False))


def simulate(model: Program, batch: Batch, *, given: Iterable[str] = ()) -> Sites:
    """Draws every site of the model, data included, from the model alone; gradients pass where they can.

    Args:
        model: the generative program.
        batch: as many rows as are to be drawn.
        given: sites that have the values of the columns of their names instead.
    """
    program = unobserved(model)
    if columns := {name: batch[name] for name in given}:
        program = poutine.condition(program, data=columns)
    return _sites(program, model, batch)


def infer(guide: Program, batch: Batch) -> Sites:
    """Draws the sites of the guide given data; discrete ones have their mean as value."""
    with Relaxed():
        return _sites(guide, guide, batch)


def _sites(program: Program, asked: Program, batch: Batch) -> Sites:
    args, kwargs = arguments(asked, batch)
    trace = prune(poutine.trace(program).get_trace(*args, **kwargs))
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_named(site) and not is_factor(site)
    }


def scores(guide: Program, simulated: Sites, batch: Batch) -> dict[str, Tensor]:
    """Returns the guide's log probability of what the model drew, given the data that it drew.

    Args:
        guide: the inference program.
        simulated: draws of the model; gradients pass through them.
        batch: the columns; those that the model observes are replaced by its draws.

    Returns:
        By site of the guide, nats ``(rows,)``.

    Raises:
        ConfigError: if the guide has a site that the model has not, or none.
    """
    drawn = {name: rows_of(simulated[name]) for name, site in simulated.items() if site["infer"].get("was_observed")}
    columns = {**batch, **{name: value for name, value in drawn.items() if name in batch}}
    values = {name: site["value"] for name, site in simulated.items() if name not in drawn}
    args, kwargs = arguments(guide, columns)
    trace = prune(poutine.trace(poutine.condition(guide, data=values)).get_trace(*args, **kwargs))
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    if unknown := sorted(sites.keys() - values.keys()):
        raise ConfigError(f"guide site '{unknown[0]}' is no latent site of the model (it has {', '.join(values)})")
    if not sites:
        raise ConfigError("expected a guide with a site, of which the data are to tell; got none")
    return {name: site["fn"].log_prob(site["value"]) for name, site in sites.items()}


def rows_of(site: Site) -> Tensor:
    """Returns the values of a site in the data plate, ``(rows, *event)``; ``(rows, states)`` of a relaxed category.

    Raises:
        ConfigError: if the site does not lie in a plate at dim -1 alone.
    """
    value: Tensor = site["value"]
    event = len(site["fn"].event_shape)
    if len(site["fn"].batch_shape) != 1:
        raise ConfigError(
            f"expected site '{site['name']}' in the data plate alone, a value for each row, with pyro.plate('data',"
            f" len(x)) and .to_event(...); got batch shape {tuple(site['fn'].batch_shape)}"
        )
    event += bool(site["infer"].get(RELAXED))
    return value.expand(*site["fn"].batch_shape, *value.shape[value.dim() - event :])


def require_pathwise(sites: Sites, *, program: str) -> None:
    """Checks that gradients reach every parameter that a program's draws depend on.

    The sites have to be drawn with gradients recorded.

    Raises:
        ConfigError: if a site depends on parameters, and its draws have no pathwise derivative.
    """
    for name, site in sites.items():
        if site["is_observed"] or has_pathwise(site):
            continue
        kind = _kind(site["fn"])
        if site["fn"].log_prob(site["value"].detach()).requires_grad:
            raise ConfigError(
                f"expected draws with a pathwise derivative, through which the {program} can learn; got its site"
                f" '{name}', which is a {kind}: use a continuous distribution, or a Delta at the mean"
            )


def _kind(distribution: Any) -> str:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__


def strictly_checked() -> Any:
    """Returns a context in which Pyro's run-time checks are on, and gradients are recorded."""
    return pyro.validation_enabled(True)


def number_of_states(site: Site) -> int:
    """Returns how many integers a discrete site counts: 10 for a ``Categorical`` of ten probabilities.

    Raises:
        ConfigError: if its support is not finite.
    """
    distribution = site["fn"]
    if not getattr(distribution, "has_enumerate_support", False):
        raise ConfigError(f"expected site '{site['name']}' with finitely many states; got a {_kind(distribution)}")
    with torch.no_grad():
        return len(distribution.enumerate_support(expand=False))
