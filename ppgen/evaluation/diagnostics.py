"""What draws say, through ArviZ of either generation: summaries, convergence of chains, fitness of a guide."""

import importlib
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.evaluation.arviz import SAMPLE_DIMS, _arviz, _attributes, _is_old, _plain

HDI = 0.94
"""Probability that a highest-density interval holds."""
GOOD, USABLE = 0.5, 0.7
"""Below them, importance weights from a guide have a finite variance, or are still of practical use."""
FEWEST_RATIOS = 1_000
_FLAT = 0.01
"""Nats between the largest and the smallest log ratio below which they are one number but for rounding."""

Summary = dict[str, float | None]


def pareto_k(log_ratios: Tensor) -> float:
    """Returns the shape of the upper tail of importance ratios: how far a guide is from the posterior.

    It is the k of a generalised Pareto distribution fitted to the largest ratios ``p(data, latents) / q(latents)`` of
    draws from the guide. Ratios that are all the same, as those of the exact posterior, have no tail: 0.

    Args:
        log_ratios: ``(draws,)``, in nats, up to a constant.

    Raises:
        ConfigError: if there are fewer than 1,000.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, 2015, arXiv:1507.02646. For guides: Yao, Vehtari, Simpson, Gelman, 2018,
        arXiv:1802.02538.

    >>> import torch
    >>> pareto_k(torch.zeros(1000))
    0.0
    """
    if log_ratios.dim() != 1 or len(log_ratios) < FEWEST_RATIOS:
        raise ConfigError(f"expected at least {FEWEST_RATIOS:,} log ratios; got shape {tuple(log_ratios.shape)}")
    ratios = log_ratios.detach().double().cpu().numpy()
    if not np.isfinite(ratios).all():
        return float("inf")
    if np.ptp(ratios) < _FLAT:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1.x says in many words what `verdict` says in one
        return float(_smoothed(ratios)[1])


def verdict(k: float) -> str:
    """Says what a k means.

    >>> verdict(0.2), verdict(0.6), verdict(1.3)
    ('good', 'usable', 'unreliable')
    """
    return "good" if k < GOOD else "usable" if k < USABLE else "unreliable"


def summarize(draws: Mapping[str, Tensor], *, chains: bool = False) -> dict[str, Summary]:
    """Returns mean, sd and the 94 % interval of highest density of every number, by its name, such as ``w[0]``.

    Args:
        draws: ``(chains, draws, ...)`` by site.
        chains: whether they are those of Markov chains, which have ``ess_bulk``, ``ess_tail`` and ``r_hat`` as well.
            One chain alone has no ``r_hat``: None.

    >>> import torch
    >>> found = summarize({"w": torch.arange(100.0).reshape(1, 100, 1).repeat(1, 1, 2)})
    >>> list(found), found["w[0]"]["mean"]
    (['w[0]', 'w[1]'], 49.5)
    """
    if not draws:
        return {}
    az, data = _arviz(), dataset(draws)
    dims = list(SAMPLE_DIMS)
    columns = {"mean": data.mean(dims), "sd": data.std(dims, ddof=1)}
    interval = az.hdi(data, **{"hdi_prob" if _is_old(az) else "prob": HDI})
    side = next(dim for dim in interval.dims if dim in ("hdi", "ci_bound"))
    columns |= {"hdi_low": interval.isel({side: 0}), "hdi_high": interval.isel({side: 1})}
    if chains:
        columns |= {"ess_bulk": az.ess(data, method="bulk"), "ess_tail": az.ess(data, method="tail")}
        columns |= {"r_hat": az.rhat(data)} if data.sizes["chain"] > 1 else {}
    found: dict[str, Summary] = {}
    for site in draws:
        parts = {name: np.asarray(column[_plain(site)].values) for name, column in columns.items()}
        for index in itertools.product(*map(range, parts["mean"].shape)):
            number = {name: _finite(part[index]) for name, part in parts.items()}
            found[element(site, index)] = number | ({"r_hat": None} if chains and "r_hat" not in number else {})
    return found


def element(site: str, index: tuple[int, ...]) -> str:
    """Returns the name of one number of a site.

    >>> element("w", (0, 2)), element("scale", ())
    ('w[0,2]', 'scale')
    """
    return f"{site}[{','.join(map(str, index))}]" if index else site


def dataset(draws: Mapping[str, Tensor], dims: Mapping[str, tuple[str, ...]] | None = None) -> Any:
    """Returns draws ``(chains, draws, ...)`` as an `xarray.Dataset`; dimensions of a site are named or numbered."""
    import xarray

    variables = {}
    for site, value in draws.items():
        name = _plain(site)
        own = (dims or {}).get(site) or tuple(f"{name}_dim_{index}" for index in range(value.dim() - 2))
        variables[name] = ((*SAMPLE_DIMS, *own), value.detach().double().cpu().numpy())
    sizes = {dim: size for names, array in variables.values() for dim, size in zip(names, array.shape, strict=True)}
    return xarray.Dataset(variables, coords={d: np.arange(n) for d, n in sizes.items()}, attrs=_attributes())


def _smoothed(log_ratios: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    az = _arviz()
    if _is_old(az):
        found: tuple[Any, Any] = az.psislw(log_ratios)
        return found
    # it takes log likelihoods, of which those of a row left out are the weights' inverse
    newer: tuple[Any, Any] = importlib.import_module("arviz_stats.base").array_stats.psislw(-log_ratios)
    return newer


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
