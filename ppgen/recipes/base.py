"""What a recipe is: a function that builds everything a run needs for one data set."""

import difflib
import functools
import inspect
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import torch

from ppgen.data import Batches, Columns, Dataset, Together, columns_to
from ppgen.errors import ConfigError
from ppgen.objectives import SemiSupervised, as_objective
from ppgen.players import Optimizer, OptimizerFactory
from ppgen.precision import choose_precision
from ppgen.programs import Program, arguments
from ppgen.sampling import Sampling
from ppgen.streams import has_rows

if TYPE_CHECKING:
    from ppgen.recipes.methods import Method

OptimizerOfSteps = Callable[[int], Optimizer | Mapping[str, Optimizer | OptimizerFactory]]

LARGE_STEP = 20_000_000
"""Parameters times rows of a batch, and times particles, from which on bfloat16 pays."""

Count = Annotated[int, pydantic.Field(ge=1)]
"""The type of an option that counts something there must be."""
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
"""The type of an option from 0 up to, but not, 1."""


def adam(
    learning_rate: float = 1e-3,
    *,
    schedule: str = "constant",
    clip: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> OptimizerOfSteps:
    """Returns Adam for a run of any number of steps.

    Args:
        learning_rate: the first one.
        schedule: "constant", or "cosine" down to 0 at the end of the run.
        clip: largest norm of the gradient.
        betas: decay of the moments.

    Raises:
        ConfigError: if there is no such schedule.

    References:
        Kingma, Ba, 2014, arXiv:1412.6980. Cosine: Loshchilov, Hutter, 2016, arXiv:1608.03983.
    """
    if schedule not in ("constant", "cosine"):
        raise ConfigError(f"expected schedule constant or cosine; got '{schedule}'")

    def of_steps(steps: int) -> Optimizer:
        cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max(steps, 1))
        factory = functools.partial(torch.optim.Adam, lr=learning_rate, betas=betas)
        return Optimizer(factory, schedule=cosine if schedule == "cosine" else None, clip=clip)

    return of_steps


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs.

    Attributes:
        model: the generative program.
        guide: the inference program.
        objective: an objective, or one of Pyro's ELBOs.
        data: the data set, binarised as the model wants it; the one given, unless set.
        optimizer: an optimizer as `Trainer` takes it, such as ``functools.partial(torch.optim.Adam, lr=1e-3)`` (or a
            dict of them by player); or a function from the number of steps to one.
        epochs: passes through the (unlabelled) training rows.
        batch_size: rows of a batch; of the unlabelled rows where labels are few.
        labelled_batch_size: labelled rows of a semi-supervised batch.
        average: decay of the average of the weights.
        particles: draws for the test NLL at the end of a run.
        low_precision: whether matrix products may be bfloat16 where the machine is fast at it and the step is large:
            those of networks may, those of a regression on raw data, say, may not. ``--precision`` overrules it.
        whole: whether every step takes all training rows, in their own order.
        sampling: how the posterior is sampled, in the place of training; None to train.
    """

    model: Program
    guide: Program
    objective: Any
    data: Dataset | None = None
    optimizer: Any = field(default_factory=adam)
    epochs: int = 100
    batch_size: int = 100
    labelled_batch_size: int = 100
    average: float | None = None
    particles: int = 100
    low_precision: bool = False
    whole: bool = False
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        """Has ``optimizer`` be a function of the number of steps, whatever it was given as."""
        given = self.optimizer
        if not callable(given) or _is_factory(given):
            object.__setattr__(self, "optimizer", lambda steps: given)

    def precision(self, asked: str, device: torch.device) -> str:
        """Returns the precision asked for, or what "auto" stands for: bfloat16 costs small steps more than it saves.

        Raises:
            ConfigError: if there is no such precision, or the device lacks it.
        """
        if asked != "auto":
            return choose_precision(asked, device)
        modules = [part for part in (self.model, self.guide) if isinstance(part, torch.nn.Module)]
        draws = getattr(self.objective, "particles", 1) * getattr(self.objective, "outer", 1)
        work = draws * self.rows_per_batch * sum(p.numel() for module in modules for p in module.parameters())
        return choose_precision("auto", device) if self.low_precision and work >= LARGE_STEP else "fp32"

    @property
    def rows_per_batch(self) -> int:
        """How many rows one draw of batches brings."""
        return self.batch_size + (self.labelled_batch_size if isinstance(self.objective, SemiSupervised) else 0)

    def batches(self, seed: int, device: torch.device) -> "Batches | Together | Whole":
        """Returns the training batches: labelled and unlabelled ones for `SemiSupervised`, else of all rows."""
        if self.data is None:
            raise ConfigError("the recipe names no data")
        options: dict[str, Any] = {"seed": seed, "device": device, "binarization": self.data.binarization}
        if not isinstance(self.objective, SemiSupervised):
            asked = {name for program in (self.model, self.guide) for name in arguments(program, self.data.train)[1]}
            # labels that no program asks for need no word; other columns are reported
            columns = {name: column for name, column in self.data.train.items() if name != "y" or name in asked}
            return Whole(columns, device) if self.whole else Batches(columns, self.batch_size, **options)
        self.data.require_labels()
        self.data.count_classes("a classifier", at_least=2)
        # where every label is known, all rows serve as unlabelled ones too
        unlabelled = self.data.unlabelled()
        if not len(unlabelled["x"]):
            unlabelled = {name: column for name, column in self.data.train.items() if name != "y"}
        return Together(
            labelled=Batches(self.data.labelled(), self.labelled_batch_size, **options),
            unlabelled=Batches(unlabelled, self.batch_size, **options),
        )


class Whole(Iterator[Columns]):
    """All rows as every batch, in their own order: what points and draws of single rows need.

    >>> batches = Whole({"x": torch.arange(3)}, torch.device("cpu"))
    >>> next(batches), batches.position, batches.steps_per_epoch
    ({'x': tensor([0, 1, 2])}, 1, 1)
    """

    steps_per_epoch = 1

    def __init__(self, columns: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.position = 0
        self._columns = columns_to(columns, device)
        self.rows = len(next(column for column in columns.values() if has_rows(column)))

    def __next__(self) -> Columns:
        self.position += 1
        return dict(self._columns)


@dataclass(frozen=True)
class Entry:
    """A recipe by name: its function, where it comes from, and how its options are typed.

    Attributes:
        name: what the user types.
        function: ``(data, *, options...) -> Recipe`` or ``(model, guide, objective)``.
        reference: author, year, arXiv id.
        presets: option values by data set, over the settings.
        labels: how many labels of a data set that has them all are kept unless told.
        settings: option values over the function's defaults, where several recipes share a function.
        about: what such a recipe is, in a line; the first one of the function's docstring unless told.
    """

    name: str
    function: Callable[..., Any]
    reference: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    @property
    def summary(self) -> str:
        """What the recipe is, in a line."""
        return self.about or (inspect.getdoc(self.function) or "").split("\n")[0]

    @functools.cached_property
    def _fields(self) -> dict[str, tuple[Any, Any]]:
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except (NameError, TypeError):  # names that the user's file imports for type checkers only
            hints = {}
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {
            p.name: (hints.get(p.name, _type_of(p.default)), ... if p.default is p.empty else p.default)
            for p in parameters
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        }

    def defaults(self, data: str = "") -> dict[str, Any]:
        """Returns every option with its default for a data set."""
        own = {name: default for name, (_, default) in self._fields.items()}
        return own | dict(self.settings) | dict(self.presets.get(data, {}))

    def fields(self, options: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Returns the type and default of every option, those of the objective that ``options`` name among them."""
        method = self._method(options)
        return self._fields if method is None else self._fields | method.fields(self._fields)

    def annotation(self, option: str, options: Mapping[str, Any] | None = None) -> str:
        """Returns the type of an option as text."""
        kind = _plain_type(self.fields(options or {})[option][0])
        if isinstance(kind, type) and not typing.get_args(kind):
            return kind.__name__
        return str(kind).replace("typing.", "")

    def resolve(self, data: str = "", given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns all options: the given ones over the defaults for the data set, checked against their types.

        Values may be text, as typed after ``--set``. ``objective`` may name a `Method` for any recipe, which then has
        the method's options too.

        Raises:
            ConfigError: if an option is unknown (the nearest is named) or has a wrong value.
        """
        given = dict(given or {})
        method = self._method(given)
        fields = self.fields(given)
        for name in given:
            if name not in fields:
                near = difflib.get_close_matches(name, [*fields, "objective"], 1)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(fields)}"
                raise ConfigError(f"recipe '{self.name}' has no option '{name}': {hint}")
        defaults = self.defaults(data) | ({} if method is None else method.defaults(self._fields))
        values = defaults | {name: _checked(name, value, *fields[name]) for name, value in given.items()}
        missing = [name for name, value in values.items() if value is ...]
        if missing:
            raise ConfigError(f"recipe '{self.name}' needs option '{missing[0]}': give --set {missing[0]}=VALUE")
        return values

    def _method(self, options: Mapping[str, Any]) -> "Method | None":
        """Returns the method that ``objective`` names, unless the recipe's function has an objective of that name."""
        from ppgen.recipes.methods import find_method

        name = options.get("objective")
        own = self._fields.get("objective")
        if name is None or (own is not None and name in _literals(own[0])):
            return None
        return find_method(name, recipe=self.name, own=own is not None)

    def build(self, data: Dataset, options: Mapping[str, Any]) -> Recipe:
        """Calls the function; a bare ``(model, guide, objective)`` becomes a recipe with default settings.

        Raises:
            ConfigError: if it returns anything else, or the method that ``objective`` names does not suit it.
        """
        method = self._method(options)
        own = {n: v for n, v in options.items() if method is None or (n in self._fields and n != "objective")}
        built = self.function(data, **own)
        if isinstance(built, tuple) and len(built) == 3:
            built = Recipe(*built)
        if not isinstance(built, Recipe):
            kind = type(built).__name__
            raise ConfigError(f"recipe '{self.name}' returned {kind}; expected (model, guide, objective) or a Recipe")
        self._check_parts(built)
        built = built if built.data is not None else replace(built, data=data)
        return built if method is None else method.apply(built, method.values(options, self._fields))

    def _check_parts(self, built: Recipe) -> None:
        if built.data is not None and "x" not in built.data.train:
            columns = ", ".join(built.data.train)
            raise ConfigError(f"recipe '{self.name}' returned data without a column 'x'; it has {columns}: name one x")
        for part, program in (("model", built.model), ("guide", built.guide)):
            if not callable(program):
                raise ConfigError(f"recipe '{self.name}' returned {program!r} as its {part}; expected a callable")
        try:
            as_objective(built.objective)
        except TypeError as error:
            raise ConfigError(f"recipe '{self.name}': {error}") from error


def _is_factory(optimizer: Any) -> bool:
    """Whether it makes a torch optimizer of tensors, rather than one of ppgen's of a number of steps."""
    made_by = optimizer
    while isinstance(made_by, functools.partial):
        made_by = made_by.func
    return isinstance(made_by, type) and issubclass(made_by, torch.optim.Optimizer)


def _checked(option: str, value: Any, annotation: Any, default: Any) -> Any:
    if value in ("none", "None") and default is None:
        return None
    try:
        adapter = pydantic.TypeAdapter(annotation)
    except pydantic.errors.PydanticUserError:  # a class of the user's own
        return value
    try:
        return adapter.validate_python(_parsed(value, annotation))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"option '{option}': {first['msg'].lower()}; got {first['input']!r}") from error


def _type_of(default: Any) -> Any:
    """The type of an option without annotation."""
    return Any if default is None or default is inspect.Parameter.empty else type(default)


def _literals(annotation: Any) -> tuple[Any, ...]:
    """Returns the values of a ``Literal``, also of one within a union."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return arguments
    return tuple(value for part in arguments for value in _literals(part))


def _plain_type(annotation: Any) -> Any:
    """Leaves bounds out of a type: ``Annotated[int, ...] | None`` becomes ``int | None``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _plain_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_plain_type, arguments))
    return origin[tuple(map(_plain_type, arguments))] if origin in (tuple, list) else annotation


def _parsed(value: Any, annotation: Any) -> Any:
    """Reads the text of one option; what is no text is left as it is."""
    if not isinstance(value, str):
        return value
    kinds = [annotation, *typing.get_args(annotation)]
    if value.lower() in ("none", "null") and type(None) in kinds:
        return None
    if any(kind in (tuple, list) or typing.get_origin(kind) in (tuple, list) for kind in kinds):
        return _sequence(value)
    return value


def _sequence(text: str) -> list[Any]:
    inner = text.strip().strip("()[]").strip()
    try:
        values = tomllib.loads(f"values = [{inner}]")["values"]
        return list(values)
    except tomllib.TOMLDecodeError:  # words without quotation marks
        return [part.strip() for part in inner.split(",") if part.strip()]
