"""Compiled steps: a Python function that changes tensors in place becomes one graph for torch's compiler.

The function runs once under ``make_fx``, which records its tensor operations. Tensors that it closes over (leaves,
buffers, optimizer state) are recorded as constants; here they become inputs of the graph, changed in place by it.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Sequence[Tensor]]

LIBRARIES = ("/torch/", "/pyro/", "/unittest/", "/contextlib.py", "/functools.py")
"""Parts of the paths of files that hold no statement of the user's."""


class CompileError(Exception):
    """A function that cannot become a graph, with the reason in one line."""


@contextlib.contextmanager
def preserved(state: Sequence[Tensor]) -> Iterator[None]:
    """Restores the values of ``state`` and the random streams at the end."""
    saved = [tensor.detach().clone() for tensor in state]
    devices = sorted({tensor.device.index or 0 for tensor in state if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
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
        draws = [node for node in self.module.graph.nodes if _is_random(node)]
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        output.args = ([*self.outputs, *draws],)

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


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)


def record(function: Function, inputs: Sequence[Tensor]) -> Graph:
    """Runs ``function`` on ``inputs`` once and records its operations; `torch.compiler.is_compiling` is true in it.

    Raises:
        CompileError: if the run depends on values of tensors in Python, or fails.
    """
    try:
        with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
            return Graph(make_fx(function)(*inputs))
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
    graph.keep_noise()
    lifted = graph.lift(other)
    try:
        with torch.no_grad(), preserved(state):
            # torch's own random stream, so that compiled and eager steps draw the same noise
            compiled = torch._inductor.compile(graph.module, [*lifted, *inputs], options={"fallback_random": True})
            compiled(*lifted, *inputs)
    except Exception as error:
        raise CompileError(_reason(error)) from error

    def call(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return list(compiled(*lifted, *tensors))[:results]

    return call


def estimated_seconds(operations: int) -> float:
    """Returns about how long a graph of so many operations takes to compile, on one free core."""
    return 8.0 + 0.03 * operations


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
