"""A CUDA device for tests on machines without one: its tensors say cuda:0 and compute on the CPU.

Operands of two devices are refused as torch refuses them, the device has a random stream of its own, and what makes the
host wait for it is noted. Kernels, streams, capture and several devices are not emulated.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_READING = frozenset(
    ["_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "unique_dim", "bincount"]
)
"""Operations whose result the host has to wait for."""
_INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"])
_STRICT = frozenset(
    ["cat", "stack", "mm", "addmm", "bmm", "gather", "index_select", "convolution", "scatter", "linear", "mv", "dot"]
)
"""Operations that do not take a CPU scalar beside tensors of a device."""


class Device:
    """What the emulated device remembers.

    Attributes:
        stream: the state of its random stream.
        waits: how often the host waited for it, by operation and the last place in ppgen.
    """

    def __init__(self) -> None:
        self.stream = torch.Generator().manual_seed(1234).get_state()
        self.waits: Counter[tuple[str, str]] = Counter()

    def wait(self, operation: str) -> None:
        """Notes that the host waits."""
        frames = [frame for frame in traceback.extract_stack() if "/ppgen/" in frame.filename]
        place = f"{frames[-1].filename.rsplit('/ppgen/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
        self.waits[operation, place] += 1

    def seed(self, seed: int) -> None:
        """Starts its random stream anew."""
        self.stream = torch.Generator().manual_seed(int(seed)).get_state()

    def set_stream(self, state: Tensor, *_: object) -> None:
        """Sets its random stream."""
        self.stream = state.clone()


class OnDevice(Tensor):
    """A tensor of the device; ``held`` is where it really lies."""

    held: Tensor
    owner: Device

    @staticmethod
    def __new__(cls, held: Tensor, owner: Device) -> "OnDevice":
        shape: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: OnDevice = Tensor._make_wrapper_subclass(cls, held.size(), **shape, device=torch.device("meta"))
        made.held, made.owner = held, owner
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held} on {CUDA}"

    def tolist(self) -> Any:
        self.owner.wait("tolist")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        owner = next(part.owner for part in pytree.tree_leaves((args, kwargs)) if isinstance(part, OnDevice))
        return _computed(owner, func, args, kwargs or {})


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def _computed(owner: Device, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes on the CPU, and puts the result where a real device would have it."""
    name = str(func).removeprefix("aten.").split(".")[0]
    flat, spec = pytree.tree_flatten((args, kwargs))
    there = [part for part in flat if isinstance(part, OnDevice)]
    here = [part for part in flat if isinstance(part, Tensor) and not isinstance(part, OnDevice)]
    on_device = bool(there) if kwargs.get("device") is None else _is_cuda(kwargs["device"])
    if not there and not on_device:
        return func(*args, **kwargs)
    if name == "_to_copy":
        if there and not on_device:
            owner.wait("to the CPU")
    elif name == "copy_":
        on_device = isinstance(args[0], OnDevice)
        if not on_device:
            owner.wait("to the CPU")
    elif name in _INDEXING:
        _require_index(owner, name, args)
    elif there and here:
        _require_one_device(name, args, here)
    if name in _READING:
        owner.wait(name)

    def held(part: Any) -> Any:
        if isinstance(part, OnDevice):
            return part.held
        return torch.device("cpu") if isinstance(part, torch.device) and part.type != "cpu" else part

    own_args, own_kwargs = pytree.tree_unflatten([held(part) for part in flat], spec)
    if "device" in kwargs:
        own_kwargs = {**own_kwargs, "device": torch.device("cpu")}
    random = torch.Tag.nondeterministic_seeded in func.tags and not any(isinstance(x, torch._C.Generator) for x in flat)
    with _own_stream(owner) if random and on_device else contextlib.nullcontext():
        result = func(*own_args, **own_kwargs)
    known = {id(part.held): part for part in there} | {id(part): part for part in here}

    def placed(part: Any) -> Any:
        if not isinstance(part, Tensor) or isinstance(part, OnDevice):
            return part
        return known.get(id(part)) if id(part) in known else OnDevice(part, owner) if on_device else part

    return pytree.tree_map(placed, result)


def _require_index(owner: Device, name: str, args: Any) -> None:
    if not isinstance(args[0], OnDevice):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]):
        owner.wait(f"{name} by a mask")
    if len(args) > 2 and isinstance(args[2], Tensor) and not isinstance(args[2], OnDevice) and args[2].dim():
        raise RuntimeError(f"Expected all tensors to be on the same device; {name} got a value on cpu")


def _require_one_device(name: str, args: Any, here: list[Tensor]) -> None:
    shapes = [tuple(part.shape) for part in here]
    in_place = name.endswith("_") and not name.startswith("_foreach") and not isinstance(args[0], OnDevice)
    if any(shapes) or name in _STRICT or in_place:
        raise RuntimeError(f"Expected all tensors to be on the same device; {name} got cuda:0, and {shapes} on cpu")


@contextlib.contextmanager
def _own_stream(owner: Device) -> Iterator[None]:
    before = torch.get_rng_state()
    torch.set_rng_state(owner.stream)
    try:
        yield
    finally:
        owner.stream = torch.get_rng_state()
        torch.set_rng_state(before)


class _Dispatch(TorchDispatchMode):
    """Sees what makes tensors on the device; below all other modes, as fake tensors are."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, owner: Device) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(self.owner, func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Takes the ways to the device that torch looks up a driver for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_cuda(kwargs.get("device")):
            kwargs.pop("device")
            return self._moved(func(*args, **kwargs), None)
        if func is Tensor.new_tensor and (_is_cuda(kwargs.get("device")) or isinstance(args[0], OnDevice)):
            kwargs.pop("device", None)
            made = torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs})
            return self._moved(made, None)
        if func in (Tensor.to, Tensor.cuda):
            device = "cuda" if func is Tensor.cuda else kwargs.get("device")
            dtype = kwargs.get("dtype")
            for part in args[1:]:
                if isinstance(part, Tensor):
                    device, dtype = part.device, part.dtype
                elif isinstance(part, (torch.device, str)):
                    device = part
                elif isinstance(part, torch.dtype):
                    dtype = part
            same = isinstance(args[0], OnDevice) and dtype in (None, args[0].dtype)
            if (
                same
                and (device is None or _is_cuda(device))
                and not kwargs.get("copy")
                and "memory_format" not in kwargs
            ):
                return args[0]
            if _is_cuda(device):
                return self._moved(args[0], dtype)
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        options = {"device": CUDA} | ({} if dtype is None else {"dtype": dtype})
        moved: Tensor = _ATEN._to_copy.default(tensor, **options)
        return moved


class _Generator:
    """A generator of any device."""

    def __new__(cls, device: Any = "cpu") -> Any:  # type: ignore[misc]
        return torch._C.Generator()


@contextlib.contextmanager
def emulated() -> Iterator[Device]:
    """Within it there is one CUDA device."""
    device = Device()
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda *_: device.stream.clone(),
        "set_rng_state": device.set_stream,
        "manual_seed": device.seed,
        "manual_seed_all": device.seed,
        "_is_in_bad_fork": lambda: False,
        "synchronize": lambda *_: None,
        "_lazy_init": lambda: None,
        "init": lambda: None,
    }
    checks = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **answers))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        for check in checks:
            if hasattr(torch.optim.Optimizer, check):
                stack.enter_context(mock.patch.object(torch.optim.Optimizer, check, return_value=None))
        stack.enter_context(_Dispatch(device))
        stack.enter_context(_Moves())
        yield device
