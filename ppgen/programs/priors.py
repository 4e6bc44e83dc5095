"""Differentiable draws of a model's latent sites from the model alone."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.sites import unobserved

Site = Mapping[str, Any]


class _AllDrawnError(Exception):
    """Ends a run of a program whose wanted sites have been drawn."""


class _Until(Messenger):
    """Notes the wanted sites of a program, and ends its run at the last of them."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.waiting = set(names)
        self.sites: dict[str, Site] = {}

    def _pyro_post_sample(self, site: Any) -> None:
        if site["name"] in self.waiting:
            self.waiting.remove(site["name"])
            self.sites[site["name"]] = site.copy()
        if not self.waiting:
            raise _AllDrawnError


def draw_prior(model: Program, batch: Batch, names: Iterable[str], *, given: Iterable[str] = ()) -> dict[str, Site]:
    """Draws sites of the model from the model alone, as many rows as the batch has; gradients pass through the draws.

    Sites in ``given`` have the values of the columns of their names instead. The run ends at the last of the sites:
    what follows them (a decoder, with its batch normalisation) is not touched.

    Raises:
        ConfigError: if a site cannot be drawn: from an improper prior, say.
    """
    until = _Until(names)
    program = unobserved(model)
    if columns := {name: batch[name] for name in given}:
        program = poutine.condition(program, data=columns)
    args, kwargs = arguments(model, batch)
    try:
        with contextlib.suppress(_AllDrawnError), until:
            program(*args, **kwargs)
    except NotImplementedError as error:
        raise ConfigError(f"expected a prior that can be drawn from; got {error or 'an improper one'}") from error
    if until.waiting:
        raise ConfigError(f"the model alone does not draw its site '{min(until.waiting)}'")
    return until.sites
