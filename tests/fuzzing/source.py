"""The source of a random program, as a person would write it."""

import random
from collections.abc import Sequence
from typing import Any

import pyro.infer.autoguide
import torch
from pyro import poutine
from torch import Tensor

from .description import FEATURE_COUNT, STATES, UNSEEN, Description, Site

HEAD = """import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import nn
"""
LOCATIONS = ("real", "real", "interval(-1.5, 1.5)", "less_than(2.0)")
SCALES = ("positive", "interval(0.3, 2.0)", "greater_than(0.2)", "softplus_positive")

Value = float | tuple[float, ...]


def parameters(described: Description) -> dict[str, tuple[Value, str]]:
    """Returns value and constraint of every parameter by name: pure functions of the seed and the name."""
    found: dict[str, tuple[Value, str]] = {}
    for role, sites in (("m", described.model), ("g", described.guide)):
        for site in sites:
            if described.auto and role == "g":
                continue
            for name in _names(role, site):
                found[name] = _value(random.Random(f"{described.seed} {name}"), name, role)
    return found


def _value(chance: random.Random, name: str, role: str) -> tuple[Value, str]:
    if name.endswith("_scale"):
        # a guide that is not too narrow, so that weights have a variance
        low, high = (0.6, 1.1) if role == "m" else (0.9, 1.5)
        return chance.uniform(low, high), chance.choice(SCALES)
    if name.endswith("_states"):
        weights = [chance.uniform(0.3, 1.0) for _ in range(3)]
        return tuple(weight / sum(weights) for weight in weights), "simplex"
    if chance.random() < 0.15:
        return chance.uniform(0.1, 0.9), "unit_interval"
    return chance.uniform(-0.8, 0.8), chance.choice(LOCATIONS)


def _names(role: str, site: Site) -> list[str]:
    if site.simplex:
        return [f"{role}_{site.name}_states"]
    own = [f"{role}_{site.name}", *(f"{role}_{site.name}_{parent}" for parent in site.parents)]
    return [*own, f"{role}_{site.name}_scale"] if site.kind == "normal" and not site.point else own


def columns(described: Description) -> dict[str, Tensor]:
    """Returns the data by column, rows first."""
    generator = torch.Generator().manual_seed(described.seed + 1)
    found = {}
    for site in described.data:
        shape = (described.rows, FEATURE_COUNT) if "m" in site.index else (described.rows,)
        if site.kind == "normal":
            found[site.name] = torch.randn(shape, generator=generator)
        else:
            drawn = torch.randint(STATES[site.kind], shape, generator=generator)
            found[site.name] = drawn.float() if site.kind == "bernoulli" else drawn
    found["weight"] = 0.5 + torch.rand(described.rows, generator=generator)
    found["known"] = torch.rand(described.rows, generator=generator) < 0.6
    return found


def program(described: Description) -> str:
    """Returns the source of ``model`` and ``guide``."""
    names = list(columns(described))
    roles = [("model", "Model", _Writer(described, "m", described.model).lines())]
    if not described.auto:
        roles.append(("guide", "Guide", _Writer(described, "g", described.guide).lines()))
    text: list[str] = []
    for role, kind, lines in roles:
        if described.modular:
            text += [f"class {kind}(nn.Module):", f"    def forward(self, {', '.join(names)}):", *_in(_in(lines)), ""]
            text += ["", f"{role} = {kind}()", "", ""]
        else:
            text += [f"def {role}({', '.join(names)}):", *_in(lines), "", ""]
    return HEAD + "\n\n" + "\n".join(text).rstrip() + "\n"


def _in(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]


class _Writer:
    """Writes one program."""

    def __init__(self, described: Description, role: str, sites: Sequence[Site]) -> None:
        self.described = described
        self.role = role
        self.sites = sites
        self.first = described.data[0].name if described.data else "known"
        self.by_name = {site.name: site for site in (*described.guide, *described.model)}

    def lines(self) -> list[str]:
        """Returns the body of the program."""
        d = self.described
        own = {name: value for name, value in parameters(d).items() if name.startswith(self.role + "_")}
        found = [self._parameter(name, *value) for name, value in own.items()]
        found += self._plates() + self._columns()
        body = self._chain() if d.markov else self._body()
        body += self._endings()
        if d.whole_scale != 1:
            return [*found, f"with poutine.scale(scale={self._whole_scale()}):", *_in(body or ["pass"])]
        return [*found, *body] or ["pass"]

    def _body(self) -> list[str]:
        if self.described.plates != "sequential":
            return [line for site in self.sites for line in self._statement(site)]
        shared = [line for site in self.sites if "r" not in site.index for line in self._statement(site)]
        local = [line for site in self.sites if "r" in site.index for line in self._statement(site)]
        return [*shared, *([f'for r in pyro.plate("data", len({self.first})):', *_in(local)] if local else [])]

    def _parameter(self, name: str, value: Value, constraint: str) -> str:
        limits = "" if constraint == "real" else f", constraint=constraints.{constraint}"
        text = f"{value:.4f}" if isinstance(value, float) else str([round(part, 4) for part in value])
        return f'{name} = pyro.param("{name}", torch.tensor({text}){limits})'

    def _whole_scale(self) -> str:
        if self.described.whole_scale != "row":
            return str(self.described.whole_scale)
        return "weight.unsqueeze(-1)" if self.described.flipped else "weight"

    # ------------------------------------------------------------------------------------------------------ plates

    def _plates(self) -> list[str]:
        d = self.described
        rows, features = (-2, -1) if d.flipped else (-1, -2)
        found = [] if d.plates == "sequential" else [f"data = pyro.plate({self._size()}, dim={rows})"]
        if d.plates == "two":
            found.append(found[0].replace("data = ", "latents = ").replace('"data"', '"latents"'))
        if any("m" in site.index for site in (*d.model, *d.guide)) and d.features == "plate":
            found.append(f'features = pyro.plate("features", {FEATURE_COUNT}, dim={features})')
        return found

    def _size(self) -> str:
        d, count = self.described, f"len({self.first})"
        if d.plates == "unsized":
            return '"data"'
        if d.plates == "inside":
            return f'"data", {count}, subsample_size=2'
        if d.size == d.rows:
            return f'"data", {count}'
        part = f"subsample=torch.arange({count})" if d.index_known else f"subsample_size={count}"
        return f'"data", {d.size}, {part}'

    def _columns(self) -> list[str]:
        """Brings columns, rows first, to the dimensions of plates."""
        d, found = self.described, []
        for site in d.data:
            if "m" in site.index and d.features == "sequential":
                found.append(f"{site.name} = {site.name}.unbind(-1)")
            elif "m" in site.index and d.features == "plate" and not d.flipped:
                found.append(f"{site.name} = {site.name}.transpose(-1, -2)")
            elif d.flipped and "m" not in site.index:
                found.append(f"{site.name} = {site.name}.unsqueeze(-1)")
        if d.flipped:
            found.append("known = known.unsqueeze(-1)")
        if d.plates == "inside":
            found += ["with data as chosen:", *(f"    {site.name} = {site.name}[chosen]" for site in d.data)]
            found += ["    known = known[chosen]"]
        return found

    # --------------------------------------------------------------------------------------------------- statements

    def _chain(self) -> list[str]:
        """Latents and what is seen of each, step by step."""
        length = max((int(site.name[1:]) for site in self.sites), default=-1) + 1
        steps = []
        for step in range(length):
            here = [line for s in self.sites if int(s.name[1:]) == step for line in self._statement(s)]
            steps += [f"if t == {step}:", *_in(here or ["pass"])]
        return [f"for t in pyro.markov(range({length})):", *_in(steps)] if steps else []

    def _statement(self, site: Site) -> list[str]:
        along = self.described.features == "sequential" and "m" in site.index
        plates = [] if "r" not in site.index else ["latents" if self._is_apart(site) else "data"]
        plates = [] if self.described.plates == "sequential" else plates
        plates += ["features"] if "m" in site.index and self.described.features == "plate" else []
        handlers = [f"poutine.scale(scale={site.scale})"] if site.scale != 1 else []
        if (mask := self._mask(site)) and not self.described.of_distribution:
            handlers.append(f"poutine.mask(mask={mask})")
        statement = self._sample(site, "[m]" if along else "")
        if self._is_named_again(site):
            statement.append(f'{site.name} = pyro.deterministic("same", {site.name})')
        if contexts := [*plates, *handlers]:
            statement = [f"with {', '.join(contexts)}:", *_in(statement)]
        if site.only_if:
            statement = [f"if {site.only_if}.item() == 1:", *_in(statement)]
        if not along:
            return statement
        loop = f'for m in pyro.plate("features_{site.name}", {FEATURE_COUNT}):'
        given = [] if site.observed else [f"{site.name} = [None] * {FEATURE_COUNT}"]
        return [*given, loop, *_in(statement)]

    def _is_named_again(self, site: Site) -> bool:
        d = self.described
        able = [s for s in d.model if s.index == "r" and s.kind == "normal" and not s.observed and not s.only_if]
        return self.role == "m" and d.deterministic and d.plates != "sequential" and site in able[:1]

    def _is_apart(self, site: Site) -> bool:
        return self.described.plates == "two" and not site.observed and UNSEEN not in site.name

    def _mask(self, site: Site) -> str:
        """The mask of a site; empty for none."""
        mask, local = self.described.mask, "r" in site.index
        if mask == "obs_mask" and UNSEEN in site.name:
            return "~known"
        wanted = {"data": site.observed, "all": local, "model": local and self.role == "m"}.get(mask, False)
        spoiled = self.described.masked_guide and self.role == "g" and local
        return "known" if wanted or spoiled else ""

    def _sample(self, site: Site, place: str) -> list[str]:
        by_row = self.described.plates == "sequential" and "r" in site.index
        name = f'"{site.name}"'
        if place or by_row:
            name = f'f"{site.name}_{{{"m" if place else "r"}}}"'
        value = f", obs={site.name}{'[r]' if by_row else place}" if site.observed else ""
        if self.described.is_unseen(site):
            value += ", obs_mask=known"
        value += ', infer={"is_auxiliary": True}' if site.auxiliary else ""
        target = "" if site.observed else f"{site.name}{place} = "
        return [f"{target}pyro.sample({name}, {self._distribution(site, self._mean(site, place, by_row))}{value})"]

    def _mean(self, site: Site, place: str, by_row: bool) -> str:
        d, mean = self.described, f"{self.role}_{site.name}"
        event = d.features == "event" and "m" in site.index
        for parent in site.parents:
            known = self.by_name[parent]
            value = parent + ("[m]" if place and "m" in known.index else "")
            value += "[r]" if by_row and known.observed else ""
            value += ".unsqueeze(-1)" if event and "m" not in known.index else ""
            term = f"{self.role}_{site.name}_{parent} * {value}"
            mean += f" + ({term} if {known.only_if}.item() == 1 else 0.0)" if known.only_if else f" + {term}"
        if d.plates == "unsized" and "r" in site.index:  # which does not expand what lies in it
            shape = "len(known), 2" if event else "len(known), 1" if d.flipped else "len(known)"
            return f"{mean} + torch.zeros({shape})"
        return f"{mean} + torch.zeros({FEATURE_COUNT})" if event else mean

    def _distribution(self, site: Site, mean: str) -> str:
        event = 1 if self.described.features == "event" and "m" in site.index else 0
        found = self._base(site, mean, event)
        if event and not site.point:
            found += ".to_event(1)"
        if (mask := self._mask(site)) and self.described.of_distribution:
            found += f".mask({mask})"
        return found

    def _base(self, site: Site, mean: str, event: int) -> str:
        if site.point:
            return f"dist.Delta({mean}{f', event_dim={event}' if event else ''})"
        if site.kind == "normal":
            return f"dist.Normal({mean}, {self.role}_{site.name}_scale)"
        if site.kind == "bernoulli":
            return f"dist.Bernoulli(logits={mean})"
        if site.simplex:
            rows = self.described.plates == "unsized" and "r" in site.index
            shape = "len(known), 1, 3" if self.described.flipped else "len(known), 3"
            return f"dist.Categorical({self.role}_{site.name}_states{f'.expand({shape})' if rows else ''})"
        states = f"({mean}).unsqueeze(-1) * torch.tensor([0.0, 1.0, 2.0])"
        without = ' + torch.tensor([-float("inf"), 0.0, 0.0])' if site.forbidden else ""
        return f"dist.Categorical(logits={states}{without})"

    def _endings(self) -> list[str]:
        d, found = self.described, []
        if self.role == "m" and d.factor:
            found.append(f'pyro.factor("extra", torch.tensor({d.factor}))')
        if self.role == "m" and d.branch:
            found += ["if bool((known | ~known).all()):", '    pyro.deterministic("seen", torch.tensor(1.0))']
        return found


def built(described: Description) -> tuple[Any, Any]:
    """Returns the model and the guide."""
    space: dict[str, Any] = {}
    exec(program(described), space)
    model = space["model"]
    if not described.auto:
        return model, space["guide"]
    kinds = pyro.infer.autoguide
    if described.auto != "AutoGuideList":
        return model, getattr(kinds, described.auto)(model)
    guide = kinds.AutoGuideList(model)
    first, rest = described.guide[0].name, [site.name for site in described.guide[1:]]
    names = {site.name: _trace_names(described, site) for site in described.guide}
    guide.append(kinds.AutoNormal(poutine.block(model, hide=[n for r in rest for n in names[r]])))
    guide.append(kinds.AutoDelta(poutine.block(model, hide=names[first])))
    return model, guide


def _trace_names(described: Description, site: Site) -> list[str]:
    along = described.features == "sequential" and "m" in site.index
    return [f"{site.name}_{m}" for m in range(FEATURE_COUNT)] if along else [site.name]


def batch(described: Description) -> Any:
    """Returns the batch, by name or by position."""
    found = columns(described)
    return tuple(found.values()) if described.positional else found
