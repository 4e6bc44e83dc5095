"""Exact sums over discrete sites that only the model has, by Pyro's tensor variable elimination."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.programs.scales import without_mask


@dataclass(frozen=True)
class Summed:
    """The log of a sum over discrete sites of the model.

    Attributes:
        unscaled: its value, in the dimensions of the run.
        node: stands for a site that lies in the same plates, with their scale.
    """

    unscaled: Tensor
    node: Mapping[str, Any]

    @property
    def term(self) -> Tensor:
        """The value with its scale."""
        scaled: Tensor = scale_and_mask(self.unscaled, scale=self.node["scale"])
        return scaled


def sum_out(model: poutine.Trace, guide: poutine.Trace, only: Sequence[str]) -> tuple[list[Summed], frozenset[str]]:
    """Sums the enumerated sites ``only`` out of the model, and says which sites went into the sums.

    Raises:
        ConfigError: if the sites that depend on one of them do not share one scale, or it is no tree of plates.

    References:
        Obermeyer et al., 2019, arXiv:1902.03210.
    """
    for name in only:
        # a masked site that is summed keeps its probabilities, so that their sum is 1 and not their number
        model.nodes[name]["fn"] = without_mask(model.nodes[name]["fn"])
    with torch._C.DisableTorchFunction():
        model.compute_log_prob(site_filter=_is_plain)
    model.pack_tensors(_symbols(guide))
    dims = {model.nodes[name]["infer"]["_enumerate_symbol"] for name in only}
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    nodes, scales, absorbed = {}, [], []
    for name, site in model.nodes.items():
        if site["type"] != "sample" or "unscaled_log_prob" not in site.get("packed", {}):
            continue
        log_prob = site["packed"]["unscaled_log_prob"]
        if dims.isdisjoint(log_prob._pyro_dims):
            continue
        ordinal = frozenset(model.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        mask = None if name in only else site["packed"]["mask"]
        factors.setdefault(ordinal, []).append(packed.scale_and_mask(log_prob, mask=mask))
        nodes[ordinal] = site
        scales.append(site["scale"])
        absorbed.append(name)
    try:
        contracted = contract_tensor_tree(factors, dims)
    except (NotImplementedError, ValueError) as error:
        sites = ", ".join(only)
        raise ConfigError(f"the discrete sites {sites} of the model cannot be summed out: {error}") from error
    named = {frame.name: frame for site in nodes.values() for frame in site["cond_indep_stack"] if frame.vectorized}
    by_symbol = {symbol: named[name] for name, symbol in model.plate_to_symbol.items() if name in named}
    found = []
    for ordinal, terms in contracted.items():
        plates = tuple(by_symbol[symbol] for symbol in ordinal)
        node = {"name": " and ".join(only), "cond_indep_stack": plates, "scale": _common(scales, only)}
        found += [Summed(packed.unpack(term, model.symbol_to_dim), node) for term in terms]
    return found, frozenset(absorbed)


def _is_plain(name: str, site: Mapping[str, Any]) -> bool:
    return "ppgen_density" not in site["infer"]


def _symbols(guide: poutine.Trace) -> Any:
    guide.symbolize_dims()
    return guide.plate_to_symbol


def _common(scales: Sequence[Any], only: Sequence[str]) -> Any:
    first = scales[0]
    for scale in scales[1:]:
        same = scale is first or (not isinstance(scale, Tensor) and not isinstance(first, Tensor) and scale == first)
        if not same:
            sites = ", ".join(only)
            raise ConfigError(f"sites that depend on {sites} have different scales: no sum over it is a bound then")
    return first
