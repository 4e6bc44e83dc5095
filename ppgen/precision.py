"""Precisions of matrix products: float32, TensorFloat32, bfloat16; everything else is float32 in each of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ppgen.errors import ConfigError

PRECISIONS = ("auto", "fp32", "tf32", "bf16")

TOLERANCES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Largest relative difference that reordered sums make in a step, with much to spare."""

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(functional.linear, functional.bilinear, functional.scaled_dot_product_attention),
        *(functional.conv1d, functional.conv2d, functional.conv3d),
        *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.addbmm),
        *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__),
        *(torch.Tensor.mm, torch.Tensor.bmm, torch.Tensor.addmm, torch.Tensor.baddbmm, torch.Tensor.addbmm),
    }
)
"""Functions of torch that are matrix products."""


class _InBfloat16(TorchFunctionMode):
    """Within it, matrix products of float32 tensors are taken in bfloat16, and come out as float32 again.

    Unlike torch's autocast it lets no bfloat16 tensor into what follows: activations, distributions and sums.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, _narrowed, (args, kwargs))
        product = func(*args, **kwargs)
        return product.float() if product.dtype == torch.bfloat16 else product


def _narrowed(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor


def choose_precision(precision: str, device: torch.device) -> str:
    """Returns "fp32", "tf32" or "bf16"; "auto" is "bf16" where the device is fast at it, "fp32" elsewhere.

    Raises:
        ConfigError: if there is no such precision, or the device lacks it.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"expected precision {', '.join(PRECISIONS)}; got '{precision}'")
    if precision == "auto":
        return "bf16" if is_fast_at_bf16(device) else "fp32"
    there = _offered_by(device)
    if precision not in there:
        raise ConfigError(f"precision '{precision}' is not there: this machine's {device} has {', '.join(there)}")
    return precision


def _offered_by(device: torch.device) -> tuple[str, ...]:
    if device.type == "cuda":
        return ("fp32", "tf32", "bf16") if torch.cuda.get_device_capability(device) >= (8, 0) else ("fp32",)
    return ("fp32", "bf16")


def is_fast_at_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for matrix products in bfloat16: without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Within it, matrix products are taken in ``precision``.

    >>> one = torch.ones(2, 2) + 1e-3
    >>> with arithmetic("bf16", torch.device("cpu")):
    ...     product, total = one @ one, one.sum()
    >>> product.dtype, product[0, 0].item(), round(total.item(), 3)
    (torch.float32, 2.0, 4.004)
    """
    with backend(precision, device), _InBfloat16() if precision == "bf16" else contextlib.nullcontext():
        yield


def backend(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within it, torch's settings are those of ``precision``: it reads them at every product, compiled or not."""
    return _on_cuda(precision) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _on_cuda(precision: str) -> Iterator[None]:
    # without a word, convolutions are TensorFloat32
    backends: Any = torch.backends
    older, newer = (
        (backends.cuda.matmul, backends.cudnn),
        (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
    )
    before = [part.fp32_precision for part in newer]
    try:
        allowed = [part.allow_tf32 for part in older]
    except RuntimeError:
        # the user's settings are of torch's newer interface, beside which it has no answer in the older one
        allowed = []
    for part in older if allowed else ():
        part.allow_tf32 = precision == "tf32"
    for part in () if allowed else newer:
        part.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for part, own in zip(older, allowed, strict=False):
            part.allow_tf32 = own
        for part, own in zip(newer, before, strict=True):
            part.fp32_precision = own
