"""Compiled steps: a Python function that changes tensors in place becomes one graph for torch's compiler.

The function runs once under ``make_fx``, which records its tensor operations. Tensors that it closes over (leaves,
buffers, optimizer state) are recorded as constants; here they become inputs of the graph, changed in place by it.
"""

import contextlib
import functools
import logging
import operator
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._inductor.test_operators  # defines the operation that has a value computed once
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ppgen.randomness import forked
from ppgen.sharing import is_random

Function = Callable[..., Sequence[Tensor]]

OPTIONS = {"fallback_random": True}
"""Torch's own random stream, so that compiled and eager steps draw the same noise."""

DRAWS_LIKE: dict[torch._ops.OpOverload, Callable[..., Tensor]] = {
    torch.ops.aten.rand_like.default: lambda like, **options: _empty_like(like, options).uniform_(),
    torch.ops.aten.randn_like.default: lambda like, **options: _empty_like(like, options).normal_(),
    torch.ops.aten.randint_like.default: lambda like, high, **options: _empty_like(like, options).random_(high),
    torch.ops.aten.randint_like.low_dtype: lambda like, low, high, **options: (
        _empty_like(like, options).random_(high - low).add_(low)
    ),
}
"""Draws in the order in which another tensor lies in memory, as torch makes them.

The compiler may lay that tensor out in an order of its own, and would draw in it; an empty one keeps its order.
"""

ZEROS = frozenset({torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default, torch.ops.aten.new_zeros.default})
KEEP_ZERO = frozenset(
    {
        *(torch.ops.aten.t.default, torch.ops.aten.view.default, torch.ops.aten.expand.default),
        *(torch.ops.aten.permute.default, torch.ops.aten.unsqueeze.default, torch.ops.aten.detach.default),
        *(torch.ops.aten.neg.default, torch.ops.aten.mul.Scalar, torch.ops.aten.sum.dim_IntList),
        *(torch.ops.aten.leaky_relu_backward.default, torch.ops.aten.threshold_backward.default),
    }
)
"""Operations whose result is 0 where their first argument is."""
PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.mul.Tensor})

LIBRARIES = ("/torch/", "/pyro/", "/unittest/", "/contextlib.py", "/functools.py")
"""Parts of the paths of files that hold no statement of the user's."""

logger = logging.getLogger("ppgen")


class CompileError(Exception):
    """A function that cannot become a graph, with the reason in one line."""


@contextlib.contextmanager
def preserved(state: Sequence[Tensor]) -> Iterator[None]:
    """Restores the values of ``state`` and the random streams at the end."""
    saved = [tensor.detach().clone() for tensor in state]
    with forked():
        try:
            yield
        finally:
            restore(state, saved)


def restore(state: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Copies ``saved`` into ``state``."""
    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)


class Graph:
    """One recorded run of a function.

    Attributes:
        module: the graph; its placeholders are the inputs.
        constants: tensors that the graph closes over, by attribute name.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        for node in reversed(list(module.graph.nodes)):
            if "profiler" in str(node.target):
                module.graph.erase_node(node)
        targets = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        self.constants: dict[str, Tensor] = {target: getattr(module, target) for target in targets}

    @property
    def outputs(self) -> list[fx.Node]:
        """The nodes that the function returns."""
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        return list(output.args[0])  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.module.graph.nodes)

    def difference(self, other: "Graph") -> str | None:
        """Says in words where two runs of one function differ beyond their inputs; None if they do not."""
        ours, theirs = list(self.module.graph.nodes), list(other.module.graph.nodes)
        for a, b in zip(ours, theirs, strict=False):
            if (a.op, str(a.target)) != (b.op, str(b.target)) and a.op != "get_attr":
                return f"its operations differ from step to step ({a.target} became {b.target})"
            if str((a.args, a.kwargs)) != str((b.args, b.kwargs)):
                return f"a Python value changes from step to step (in {a.target}: {a.args} became {b.args})"
            if a.op == "get_attr" and b.op == "get_attr":
                one, two = self.constants[str(a.target)], other.constants[str(b.target)]
                if one is not two and not _same(one, two):
                    return f"a tensor made from Python values changes from step to step ({a.target})"
        return None if len(ours) == len(theirs) else "its number of operations differs from step to step"

    def keep_noise(self) -> None:
        """Appends every random draw to the outputs.

        The compiler would leave out draws that nothing uses, and all later ones would differ from an eager run's.
        """
        draws = [node for node in self.module.graph.nodes if is_random(node.target)]
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        output.args = ([*self.outputs, *draws],)

    def leave_out_zeros(self) -> None:
        """Leaves out what is 0 whatever the inputs: second derivatives of a ReLU, and matrix products with them.

        The gradient of a gradient penalty is full of them. (A product of 0 and infinity would not be 0, but other
        parts of the graph have that infinity too.)
        """
        written, zeros = self._written(), set[fx.Node]()
        for node in list(self.module.graph.nodes):
            if node.op != "call_function" or node in written:
                continue
            if node.target in ZEROS or _is_zero(node, zeros):
                zeros.add(node)
            elif (other := _only_summand(node, zeros)) is not None and other not in written:
                node.replace_all_uses_with(other)
        for node in zeros:
            if node.target not in ZEROS:
                value, graph = node.meta["val"], self.module.graph
                with graph.inserting_before(node):
                    options = {"dtype": value.dtype, "device": value.device}
                    zero = graph.call_function(torch.ops.aten.zeros.default, (list(value.shape),), options)
                node.replace_all_uses_with(zero)

    def _written(self) -> set[fx.Node]:
        """Returns what some operation changes in place, and whatever shares its memory and was there before."""
        written: set[fx.Node] = set()
        for node in reversed(self.module.graph.nodes):
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                for argument, given in zip(node.target._schema.arguments, node.args, strict=False):
                    alias = argument.alias_info
                    if alias is not None and (alias.is_write or node in written):
                        fx.map_arg(given, written.add)
        return written

    def fail_softly(self) -> None:
        """Has a factorization that fails (a Cholesky, say) give NaN, so that its step is seen not to be finite.

        Run eagerly it raises. A compiled step that raises may have changed part of the state before, and a look at
        whether it failed is one that no captured graph can take.
        """
        graph, aten = self.module.graph, torch.ops.aten
        places = {node: place for place, node in enumerate(graph.nodes)}
        for node in list(graph.nodes):
            info = node.args[0] if node.target is aten._linalg_check_errors.default else None
            if not isinstance(info, fx.Node) or info.target is not operator.getitem:
                continue
            factorized: Any = info.args[0]
            for result in [user for user in factorized.users if user is not info and _is_floating(user)]:
                users = [user for user in result.users if places.get(user, 0) > places[node]]
                with graph.inserting_before(node):
                    failed = graph.call_function(aten.any.default, (graph.call_function(aten.ne.Scalar, (info, 0)),))
                    soft = graph.call_function(aten.where.ScalarSelf, (failed, float("nan"), result))
                for user in users:
                    user.replace_input_with(result, soft)
            graph.erase_node(node)

    def compute_scalars_once(self) -> None:
        """Has scalars that whole tensors are combined with (a bias correction of Adam, say) computed once.

        The compiler would compute them again for every few elements, powers and square roots included.
        """
        graph = self.module.graph
        for node in list(graph.nodes):
            wide = [user for user in node.users if _size_of(user) > 1]
            if node.op == "call_function" and _size_of(node) == 1 and wide:
                with graph.inserting_after(node):
                    once = graph.call_function(torch.ops._inductor_test.realize.default, (node,))
                for user in wide:
                    user.replace_input_with(node, once)
        for node in graph.nodes:
            # what the recorded run knew of shapes, which a compiler in C++ mode would take for its own knowledge
            node.meta.pop("val", None)

    def lift(self, other: "Graph") -> list[Tensor]:
        """Turns tensors that both runs close over into leading inputs and returns them."""
        shared = {id(tensor) for tensor in other.constants.values()}
        graph = self.module.graph
        first = next(iter(graph.nodes))
        lifted: list[Tensor] = []
        inputs: dict[int, fx.Node] = {}
        for node in list(graph.nodes):
            if node.op != "get_attr" or id(tensor := self.constants[str(node.target)]) not in shared:
                continue
            if id(tensor) not in inputs:
                with graph.inserting_before(first):
                    inputs[id(tensor)] = graph.placeholder(f"state_{len(lifted)}")
                lifted.append(tensor)
            node.replace_all_uses_with(inputs[id(tensor)])
            graph.erase_node(node)
        graph.lint()
        self.module.recompile()
        return lifted


def _empty_like(like: Tensor, options: dict[str, Any]) -> Tensor:
    empty: Tensor = torch.ops.aten.empty_like.default(like, **options)
    return empty


def _size_of(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_zero(node: fx.Node, zeros: set[fx.Node]) -> bool:
    """Whether an operation on zeros is zero, too."""
    if node.target in PRODUCTS:
        return any(argument in zeros for argument in node.args)
    return node.target in KEEP_ZERO and node.args[0] in zeros


def _only_summand(node: fx.Node, zeros: set[fx.Node]) -> fx.Node | None:
    """Returns what a sum is, where all else in it is 0 and it is no view of something that may yet change."""
    if node.target is not torch.ops.aten.add.Tensor or node.kwargs or not zeros.intersection(node.args):
        return None
    other = node.args[1] if node.args[0] in zeros else node.args[0]
    if not isinstance(other, fx.Node) or not isinstance(other.target, torch._ops.OpOverload):
        return None
    is_view = any(result.alias_info is not None for result in other.target._schema.returns)
    one, two = node.meta["val"], other.meta["val"]
    return None if is_view or (one.shape, one.dtype) != (two.shape, two.dtype) else other


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)


def record(function: Function, inputs: Sequence[Tensor]) -> Graph:
    """Runs ``function`` on ``inputs`` once and records its operations; `torch.compiler.is_compiling` is true in it.

    Raises:
        CompileError: if the run depends on values of tensors in Python, or fails.
    """
    try:
        with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
            return Graph(make_fx(function, decomposition_table=DRAWS_LIKE)(*inputs))
    except Exception as error:
        statement = _users_statement(error)
        raise CompileError(_reason(error) + (f", at {statement}" if statement else "")) from error


def compile_function(function: Function, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> Function:
    """Returns a compiled ``function``.

    It is recorded twice, on different rows: one whose recorded runs differ holds Python values that would be frozen
    into the graph.

    Args:
        function: takes tensors and returns tensors; may change tensors in place that it closes over.
        inputs: example inputs, rows first.
        state: the tensors that ``function`` changes in place; they keep their values here.

    Raises:
        CompileError: if it cannot be compiled, with the reason.
    """
    with preserved(state):
        graph = record(function, inputs)
    with preserved(state):
        other = record(function, [x.roll(1, 0) if x.dim() else x for x in inputs])
    if (difference := graph.difference(other)) is not None:
        raise CompileError(difference)
    results = len(graph.outputs)
    graph.leave_out_zeros()
    graph.fail_softly()
    graph.keep_noise()
    graph.compute_scalars_once()
    lifted = graph.lift(other)
    try:
        with torch.no_grad(), preserved(state), _cached_on_disk(), warnings.catch_warnings():
            # what torch says of its own functions there is not for whoever makes errors of warnings
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            compiled: Function = torch._inductor.compile(graph.module, [*lifted, *inputs], options=OPTIONS)
            compiled(*lifted, *inputs)
    except Exception as error:
        raise CompileError(_reason(error)) from error
    bound = functools.partial(compiled, *lifted)
    run = _captured(bound, inputs, state, results) if inputs and all(x.is_cuda for x in (*lifted, *inputs)) else bound

    def call(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return run(*tensors)[:results]

    return call


@contextlib.contextmanager
def _cached_on_disk() -> Iterator[None]:
    """Lets the compiler find a graph that an earlier run compiled; it looks for none without a context of shapes."""
    shapes = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    with tracing(TracingContext(shapes)):
        yield


def _captured(function: Function, inputs: Sequence[Tensor], state: Sequence[Tensor], results: int) -> Function:
    """Returns ``function``, its first ``results``, as one captured CUDA graph, whose kernels are launched all at once.

    It reads its inputs from tensors of its own, into which those of every call are copied. Where it cannot be
    captured it runs as it is.
    """
    held = [x.clone() for x in inputs]
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # the state is kept and put back on the stream that changes it, between the two waits
        with torch.no_grad(), torch.cuda.stream(stream), preserved(state):
            for _ in range(3):
                function(*held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # what other threads do meanwhile (bring the next batch, say) is no reason to give up
        with torch.no_grad(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = function(*held)
    except RuntimeError as error:
        logger.warning("the compiled step is not captured as a CUDA graph: %s", _reason(error))
        return function

    def replay(*tensors: Tensor) -> Sequence[Tensor]:
        torch._foreach_copy_(held, list(tensors))
        graph.replay()
        # the next replay writes over its outputs
        return [output.clone() for output in outputs[:results]]

    return replay


def estimated_seconds(operations: int) -> float:
    """Returns about how long a graph of so many operations takes to compile, on one free core."""
    return 5.0 + 0.02 * operations


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    if "_local_scalar_dense" in text or "data-dependent" in text:
        text = "it reads the value of a tensor in Python (.item(), if, float())"
    if "InvalidCxxCompiler" in f"{type(error).__name__}: {text}":
        text = "no working C++ compiler was found"
    return text[:200]


def _users_statement(error: Exception) -> str | None:
    libraries = (*LIBRARIES, f"{Path(__file__).parent}/")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line and not any(part in frame.filename for part in libraries):
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}: {frame.line}"
    return None
