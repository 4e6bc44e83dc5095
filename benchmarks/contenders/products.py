"""The matrix products of a step and nothing else: what no way of writing it can do without."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.works import Work

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of one layer."""


def layers(work: Work) -> Iterator[tuple[Shape, bool]]:
    """Returns every layer of a step with its first layers factored, and whether its input has a gradient.

    The products of one-hot labels are left out.
    """
    for rows, repeats in [(work.labelled, 1), (work.batch, work.classes or 1)]:
        for name, (inputs, outputs) in work.networks().items():
            if not rows:
                continue
            from_data = name != "decoder"
            # what depends on the data alone is done once for all labels
            yield (rows if from_data else rows * repeats, inputs[0], outputs[0]), not from_data
            repeated = 1 if name == "classifier" else repeats
            for size, width in itertools.pairwise(outputs):
                yield (rows * repeated, size, width), True


def operations(work: Work) -> int:
    """Returns the floating-point operations of all products."""
    return sum(2 * a * b * c * (3 if gradient else 2) for (a, b, c), gradient in layers(work))


def build(work: Work, *, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Returns a function that does the products forward, for the weights, and for the inputs."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    for (rows, size, width), gradient in layers(work):
        x, weight, upstream = (torch.randn(shape).to(dtype) for shape in [(rows, size), (width, size), (rows, width)])
        calls.append((x, weight.T, torch.empty(rows, width, dtype=dtype)))
        calls.append((upstream.T, x, torch.empty(width, size, dtype=dtype)))
        if gradient:
            calls.append((upstream, weight, torch.empty(rows, size, dtype=dtype)))

    def products() -> None:
        for one, two, out in calls:
            torch.mm(one, two, out=out)

    return products


def full(work: Work) -> Callable[[], None]:
    """In float32."""
    return build(work)


def half(work: Work) -> Callable[[], None]:
    """In bfloat16."""
    return build(work, dtype=torch.bfloat16)
