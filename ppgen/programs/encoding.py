"""What a guide makes of single rows: the mean of each of its latents, as features."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.calling import Batch, Program, arguments
from ppgen.programs.joint import prune
from ppgen.programs.parameters import quiet
from ppgen.programs.sites import is_named, plated_value
from ppgen.programs.tracing import traced

PROBABILITIES = "_probabilities"
"""Ends the name of the features of a site of unordered categories."""


class _AtMeans(Messenger):
    """Within it, latents have their mean as value; categories the most probable one; auxiliary noise is drawn."""

    def _pyro_sample(self, site: Any) -> None:
        fixed = site["is_observed"] or site["value"] is not None or poutine.util.site_is_subsample(site)
        if fixed or site["infer"].get("is_auxiliary"):
            return
        mean = _mean(site)
        if mean is not None:
            site["value"] = mean
        elif site["fn"].has_enumerate_support:
            states = site["fn"].enumerate_support(expand=False)
            site["value"] = states.flatten()[_log_probabilities(site).argmax(0)]


def _mean(site: Mapping[str, Any]) -> Tensor | None:
    try:
        mean: Tensor = site["fn"].mean
    except (NotImplementedError, AttributeError):
        return None
    # unordered categories have no mean: torch says nan
    return None if mean.isnan().any() else mean


def _log_probabilities(site: Mapping[str, Any]) -> Tensor:
    log_probs: Tensor = site["fn"].log_prob(site["fn"].enumerate_support(expand=False))
    return log_probs


def _is_feature(site: Mapping[str, Any]) -> bool:
    if site["type"] != "sample" or site["infer"].get("is_auxiliary"):
        return False
    local = any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"])
    return local and (not site["is_observed"] or is_named(site))


def encode(guide: Program, batch: Batch) -> dict[str, Tensor]:
    """Returns features of every row: of each latent that the guide draws for single rows, its mean.

    Values that the guide names by `pyro.deterministic`, such as a hidden layer, come with them.

    Latents that depend on others get these at their means. A site of unordered categories gives their probabilities,
    the others being given its most probable value, and is named ``SITE_probabilities``. Where there is no mean there
    is a draw, and where the guide draws auxiliary noise, the result depends on it.

    Args:
        guide: the inference program.
        batch: the columns.

    Returns:
        float32 ``(rows, ...)`` by site; empty if the guide draws no latents of single rows.

    Raises:
        ConfigError: if a site lies in another plate inside the data plate.
    """
    args, kwargs = arguments(guide, batch)
    with torch.no_grad(), quiet(), _AtMeans():
        nodes = prune(traced(guide, args, kwargs)).nodes
    found = {}
    for name, site in nodes.items():
        if not _is_feature(site):
            continue
        if len(site["fn"].batch_shape) > 1:
            raise ConfigError(
                f"expected site '{name}' of the guide in the data plate alone; got batch shape"
                f" {tuple(site['fn'].batch_shape)}"
            )
        if (
            not site["is_observed"]
            and _mean(site) is None
            and site["fn"].has_enumerate_support
            and not site["fn"].event_shape
        ):
            found[name + PROBABILITIES] = _log_probabilities(site).exp().movedim(0, -1).float()
        else:
            found[name] = plated_value(site)[0].float()
    return found
