"""Random draws that several processes share, so that together they draw what one would.

Every process runs the same program on its own rows of a batch. A random operation is drawn for the rows of all
processes, from a stream that is the same in each, and every process keeps its own rows of the result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen.errors import ConfigError

POSITIONAL = frozenset(
    {
        *("bernoulli", "bernoulli_", "multinomial", "native_dropout"),
        *("normal", "normal_", "normal_functional", "randn", "randn_like", "log_normal", "log_normal_"),
        *("rand", "rand_like", "uniform", "uniform_", "random", "random_", "randint", "randint_like"),
        *("cauchy", "cauchy_", "exponential", "exponential_", "geometric", "geometric_"),
    }
)
"""Operations in which an element's draw depends on its place and its own arguments alone."""
DEPENDENT = frozenset({"_sample_dirichlet", "_standard_gamma", "binomial", "poisson"})
"""Operations that draw more or fewer numbers for an element as its arguments are: they need those of all processes."""

Shape = tuple[int, ...]
Join = Callable[[Tensor], Tensor]
"""Joins the rows of all processes along the first dimension."""


def is_random(operation: Any) -> bool:
    """Whether an operation of torch may draw random numbers."""
    return isinstance(operation, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operation.tags


@dataclass(frozen=True)
class Draw:
    """One random operation of a run.

    Attributes:
        operation: which.
        arguments: its arguments, flattened; tensors by their shape.
        results: the shapes of its results.
        drew: whether it moved the random stream.
    """

    operation: Any
    arguments: tuple[Any, ...]
    results: tuple[Shape, ...]
    drew: bool


def _flat(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    return pytree.tree_flatten((args, kwargs))


def _described(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves)


class Recorder(TorchDispatchMode):
    """Notes every random operation that runs within it.

    >>> with Recorder() as recorder:
    ...     _ = torch.randn(3, 2)
    >>> recorder.draws[0].results
    ((3, 2),)
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        if not is_random(func):
            return func(*args, **(kwargs or {}))
        before = _streams()
        out = func(*args, **(kwargs or {}))
        arguments = _described(_flat(args, kwargs or {})[0])
        results = tuple(tuple(x.shape) for x in pytree.tree_leaves(out) if isinstance(x, Tensor))
        drew = any(not torch.equal(old, new) for old, new in zip(before, _streams(), strict=True))
        self.draws.append(Draw(func, arguments, results, drew))
        return out


def _streams() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


@dataclass(frozen=True)
class Shared:
    """A dimension that rows of several processes share, seen as ``(outer, rows, inner)``.

    Attributes:
        dim: which.
        layout: outer, rows of one process, inner.
    """

    dim: int
    layout: tuple[int, int, int]

    def widened(self, tensor: Tensor, join: Join) -> Tensor:
        """Returns the tensor with the rows of all processes, as ``join`` brings them."""
        if self.layout[0] == self.layout[2] == 1:
            return join(tensor.movedim(self.dim, 0).contiguous()).movedim(0, self.dim)
        rows_first = tensor.unflatten(self.dim, self.layout).movedim(self.dim + 1, 0).contiguous()
        joined: Tensor = join(rows_first).movedim(0, self.dim + 1).flatten(self.dim, self.dim + 2)
        return joined

    def narrowed(self, tensor: Tensor, rank: int, size: int) -> Tensor:
        """Returns the rows of one process."""
        outer, rows, inner = self.layout
        if outer == inner == 1:
            return tensor.narrow(self.dim, rank * rows, rows)
        whole = tensor.unflatten(self.dim, (outer, rows * size, inner))
        own: Tensor = whole.narrow(self.dim + 1, rank * rows, rows).flatten(self.dim, self.dim + 2)
        return own


@dataclass(frozen=True)
class SharedDraw:
    """How one random operation on the rows of a process becomes one on the rows of all.

    Attributes:
        local: the operation on the rows of a process.
        whole: the same on the rows of all.
        arguments: for each argument the dimensions that rows share.
        results: the same for each result.
    """

    local: Draw
    whole: Draw
    arguments: tuple[tuple[Shared, ...], ...]
    results: tuple[tuple[Shared, ...], ...]

    @property
    def is_shared(self) -> bool:
        """Whether its results depend on the number of rows at all."""
        return any(self.results) or any(self.arguments)


@dataclass(frozen=True)
class Sharing:
    """How the draws of one run are shared.

    Attributes:
        rank: which process this is.
        size: how many there are.
        draws: one for each random operation, in order.
        join: joins the rows of all processes along the first dimension.
    """

    rank: int
    size: int
    draws: tuple[SharedDraw, ...]
    join: Join


def shared_draws(
    local: Sequence[Draw], whole: Sequence[Draw], *, rows: frozenset[int], size: int, choice: int = 0
) -> tuple[SharedDraw, ...]:
    """Compares the draws of a run on the rows of one process with those of a run on the rows of all.

    Args:
        local: the draws of a run on the rows of one process.
        whole: the draws of a run on the rows of all.
        rows: how many rows the batch of one process has; several numbers where its parts differ.
        size: the number of processes.
        choice: which of the possible layouts to take where rows lie in one dimension with something else.

    Raises:
        ConfigError: if there is no telling how rows share a draw.
    """
    names = [[draw.operation for draw in draws] for draws in (local, whole)]
    if names[0] != names[1]:
        raise ConfigError(f"the number of random draws depends on the number of rows {names}")
    find = _Layouts(rows, size, choice)
    return tuple(find.of(one, all_) for one, all_ in zip(local, whole, strict=True))


def most_choices(local: Sequence[Draw], rows: frozenset[int]) -> int:
    """Returns how many layouts there are to choose from."""
    shapes = (shape for draw in local for shape in (*draw.results, *draw.arguments) if isinstance(shape, tuple))
    return max((len(layouts(length, rows)) for shape in shapes for length in shape), default=1) or 1


def layouts(length: int, rows: frozenset[int]) -> list[tuple[int, int, int]]:
    """Returns how a dimension of that length may hold rows: as (outer, rows, inner), the likeliest first.

    >>> layouts(6, frozenset({6}))
    [(1, 6, 1)]
    >>> layouts(6, frozenset({3}))
    [(2, 3, 1), (1, 3, 2)]
    """
    return [
        (outer, count, length // count // outer)
        for count in sorted(rows, reverse=True)
        if count and length % count == 0
        for outer in range(length // count, 0, -1)
        if (length // count) % outer == 0
    ]


@dataclass(frozen=True)
class _Layouts:
    rows: frozenset[int]
    size: int
    choice: int

    def of(self, local: Draw, whole: Draw) -> SharedDraw:
        arguments = tuple(
            self._argument(one, two, local) for one, two in zip(local.arguments, whole.arguments, strict=True)
        )
        results = tuple(self._dims(one, two, local) for one, two in zip(local.results, whole.results, strict=True))
        draw = SharedDraw(local, whole, arguments, results)
        kind = local.operation._overloadpacket.__name__
        if draw.is_shared and (local.drew or whole.drew) and kind not in POSITIONAL | DEPENDENT:
            raise ConfigError(f"it draws with {kind}, which rows of several processes cannot share")
        return draw

    def _argument(self, local: Any, whole: Any, draw: Draw) -> tuple[Shared, ...]:
        both = isinstance(local, tuple) and isinstance(whole, tuple)
        return self._dims(local, whole, draw) if both else ()

    def _dims(self, local: Shape, whole: Shape, draw: Draw) -> tuple[Shared, ...]:
        found = []
        for dim, (one, all_) in enumerate(zip(local, whole, strict=True)):
            if one == all_:
                continue
            possible = layouts(one, self.rows) if one * self.size == all_ else []
            if not possible:
                raise ConfigError(
                    f"it draws {draw.operation._overloadpacket.__name__} of shape {whole} for all rows and {local} for"
                    f" those of one process, which is no share of 1/{self.size}"
                )
            found.append(Shared(dim, possible[min(self.choice, len(possible) - 1)]))
        return tuple(found)


class SharedNoise(TorchDispatchMode):
    """Within it, random operations are drawn for all processes, each of which keeps its own rows.

    Raises:
        ConfigError: if a run draws otherwise than the one that was recorded.
    """

    def __init__(self, sharing: Sharing) -> None:
        super().__init__()
        self.sharing = sharing
        self._waiting: Iterator[SharedDraw] = iter(sharing.draws)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        kwargs = kwargs or {}
        if not is_random(func):
            return func(*args, **kwargs)
        leaves, spec = _flat(args, kwargs)
        draw = next(self._waiting, None)
        if draw is None or draw.local.operation is not func or not _alike(draw.local.arguments, _described(leaves)):
            raise ConfigError("the random draws differ from step to step, which several processes cannot share")
        if not draw.is_shared:
            return func(*args, **kwargs)
        wide = [self._wide(draw, index, leaf) for index, leaf in enumerate(leaves)]
        wide_args, wide_kwargs = pytree.tree_unflatten(wide, spec)
        results, results_spec = pytree.tree_flatten(func(*wide_args, **wide_kwargs))
        own = [self._own(dims, result) for dims, result in zip(draw.results, results, strict=True)]
        if _changes_its_first_argument(func):
            return args[0].copy_(own[0])
        return pytree.tree_unflatten(own, results_spec)

    def _wide(self, draw: SharedDraw, index: int, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            # a number that depends on the rows is a part of a size
            own, whole = draw.local.arguments[index], draw.whole.arguments[index]
            return leaf if own == whole else whole
        if index == 0 and _changes_its_first_argument(draw.local.operation):
            return _empty_like(leaf, draw.whole.arguments[0])
        name = draw.local.operation._overloadpacket.__name__
        # what other processes have in their places matters to some operations only
        join = self.sharing.join if name in DEPENDENT else self._repeated
        for shared in draw.arguments[index]:
            leaf = shared.widened(leaf, join)
        return leaf

    def _repeated(self, rows: Tensor) -> Tensor:
        return torch.cat([rows] * self.sharing.size)

    def _own(self, dims: tuple[Shared, ...], result: Tensor) -> Tensor:
        for shared in dims:
            result = shared.narrowed(result, self.sharing.rank, self.sharing.size)
        return result.clone() if dims else result


def _alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two runs of an operation agree in shapes; numbers among its arguments may differ."""
    shapes = [[x for x in arguments if isinstance(x, tuple)] for arguments in (one, other)]
    return shapes[0] == shapes[1] and len(one) == len(other)


def _changes_its_first_argument(operation: Any) -> bool:
    first = operation._schema.arguments[0].alias_info if operation._schema.arguments else None
    return first is not None and bool(first.is_write)


def _empty_like(tensor: Tensor, shape: Shape) -> Tensor:
    """An empty tensor of another shape, its dimensions in the same order in memory: that of the draws."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
    return torch.empty_permuted(shape, order, dtype=tensor.dtype, device=tensor.device)
