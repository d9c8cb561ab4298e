"""A GPU that a machine does not have: tensors on the CPU that claim the device "cuda:0".

Inside :func:`pretend_gpu` the code of a GPU runs with real values. It refuses what a GPU refuses (operations on tensors
of two devices, numpy arrays of its tensors), and records each wait of the CPU for the GPU: values that Python reads,
copies that are not asynchronous, and results whose shape depends on values. A copy to the CPU that is asynchronous
holds wrong values until an event is waited for. Kernels, streams and graphs of a GPU are not imitated, and autocast has
the lists of the CPU.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # optimizers import it, and it examines the functions that are replaced here
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
_PACKAGES = ("runkit", "vqgan", "codeprior", "codeshards", "imagepriors")
_MOVES = ("copy_", "_to_copy")
_INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")
_SHAPED_BY_VALUES = (
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
    "equal", "_local_scalar_dense", "histc",
)  # fmt: skip


class _GPUTensor(torch.Tensor):
    """A tensor that says it is on a GPU; `inner` holds its values."""

    inner: Tensor
    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> _GPUTensor:
        with torch.inference_mode(inner.is_inference()):
            made: _GPUTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
            )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {GPU}"

    def __deepcopy__(self, memo: dict[int, Any]) -> _GPUTensor:
        if id(self) not in memo:
            copied = _GPUTensor(self.inner.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copied
        found: _GPUTensor = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _check_devices(func, args, kwargs)
        outer = {id(x.inner): x for x in tree_leaves((args, kwargs)) if isinstance(x, _GPUTensor)}
        found = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if func.overloadpacket.__name__ == "copy_" and not isinstance(args[0], _GPUTensor):
            return args[0]
        # An operation in place returns its argument.
        return tree_map(lambda x: outer.get(id(x)) if id(x) in outer else _on_gpu(x), found)


def _values(x: Any) -> Any:
    return x.inner if isinstance(x, _GPUTensor) else x


def _on_gpu(x: Any) -> Any:
    return _GPUTensor(x) if isinstance(x, Tensor) and not isinstance(x, _GPUTensor) else x


def _check_devices(func: Any, args: Any, kwargs: Any) -> None:
    """Raise what a GPU raises, and record the waits."""
    name = func.overloadpacket.__name__
    if name in _INDEXES:
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], _GPUTensor):
            raise RuntimeError(f"{name}: indices on {GPU} of a tensor on the CPU")
        if any(not isinstance(index, _GPUTensor) for index in indices):
            _record(f"{name} by an index on the CPU")
        filled = len(args) > 2 and args[2].numel() == 1  # a kernel fills where a mask is true
        if any(index.dtype == torch.bool for index in indices) and not filled:
            _record(f"{name} by a mask")
        args = (args[0], *args[2:])
    elif name in _SHAPED_BY_VALUES and func._overloadname != "self_int":  # as often as Python says
        _record(name)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    strangers = [x for x in tensors if not isinstance(x, _GPUTensor)]
    if name in _MOVES:
        if strangers:
            _record(name)
    # A number on the CPU may be an operand, but not one of a list of tensors.
    elif any(x.ndim > 0 or all(x is not arg for arg in args) for x in strangers):
        raise RuntimeError(f"{name}: expected all tensors on one device, found {GPU} and cpu")


_waits: list[str] = []


def _record(what: str) -> None:
    """Record a wait with the innermost line of the packages that leads to it."""
    for frame in reversed(traceback.extract_stack()):
        if any(f"/{package}/" in frame.filename for package in _PACKAGES):
            _waits.append(f"{Path(frame.filename).name}:{frame.name}: {what} ({frame.line})")
            return
    _waits.append(f"outside of the packages: {what}")


class _Event:
    """An event of a stream: the copies before `record` are complete after `synchronize`."""

    pending: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012 - that of the only stream

    def __init__(self, **_: Any) -> None:
        self.copies: list[tuple[Tensor, Tensor]] = []

    def record(self, *_: Any) -> None:
        self.copies = self.pending[:]
        self.pending.clear()

    def synchronize(self) -> None:
        with torch.inference_mode():
            for target, values in self.copies:
                target.copy_(values)
        self.copies = []


def _moved(x: Tensor, device: torch.device, asynchronous: bool) -> Tensor:
    """Return a copy on another device."""
    if device.type == "cuda":
        if not (asynchronous and getattr(x, "pinned", False)):
            _record("copy to the GPU")
        return _Moved.apply(x)  # type: ignore[no-any-return]
    if not asynchronous:
        _record("copy to the CPU")
        return _Moved.apply(x)  # type: ignore[no-any-return]
    values = _values(x.detach())
    target = torch.full_like(values, -77 if values.dtype.is_signed else 77)
    _Event.pending.append((target, values))
    return target


class _Moved(torch.autograd.Function):
    """A copy from or to the GPU, and that of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.to_gpu = not isinstance(x, _GPUTensor)
        return _GPUTensor(x.clone()) if ctx.to_gpu else x.inner.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient.inner.clone() if ctx.to_gpu else _GPUTensor(gradient.clone())  # type: ignore[attr-defined]


class _Mode(TorchFunctionMode):
    """The functions of torch that name a device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        special: Callable[..., Any] | None = _SPECIAL.get(func)
        if special is not None:
            return special(*args, **kwargs)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = torch.device(kwargs.pop("device"))
        if device.type != "cuda":
            return _values(func(*args, **kwargs, device=device))
        if func in (torch.tensor, torch.as_tensor):
            _record("values of Python to the GPU")
        return _on_gpu(func(*args, **kwargs))


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
    before = x
    if device is not None and device.type != x.device.type:
        x = _moved(x, device, non_blocking)
    options = {"dtype": dtype, "memory_format": layout}
    return x.to(**{key: value for key, value in options.items() if value is not None}, copy=copy and x is before)


def _cpu(x: Tensor) -> Tensor:
    return _to(x, "cpu")


def _cuda(x: Tensor, _: Any = None, non_blocking: bool = False) -> Tensor:
    return _to(x, GPU, non_blocking=non_blocking)


def _pin_memory(x: Tensor) -> Tensor:
    if isinstance(x, _GPUTensor):
        raise RuntimeError(f"cannot pin a tensor on {GPU}")
    copied = x.clone()
    copied.pinned = True  # type: ignore[attr-defined]
    return copied


def _tolist(x: Tensor) -> Any:
    if isinstance(x, _GPUTensor):
        _record("tolist")
    return torch.Tensor.tolist(_values(x))


def _numpy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(x, _GPUTensor):
        raise TypeError(f"can't convert {GPU} device type tensor to numpy")
    return torch.Tensor.numpy(x, *args, **kwargs)


def _new_tensor(x: Tensor, data: Any, **kwargs: Any) -> Tensor:
    made = torch.Tensor.new_tensor(_values(x), data, **kwargs)
    if not isinstance(x, _GPUTensor):
        return made
    _record("values of Python to the GPU")
    return _GPUTensor(made)


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    made = torch._C._nn.one_hot(_values(x), num_classes)  # type: ignore[attr-defined]
    if not isinstance(x, _GPUTensor):
        return made
    if num_classes < 0:
        _record("one_hot")
    return _GPUTensor(made)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: _to, torch.Tensor.cpu: _cpu, torch.Tensor.cuda: _cuda, torch.Tensor.pin_memory: _pin_memory,
    torch.Tensor.tolist: _tolist, torch.Tensor.numpy: _numpy, torch.Tensor.new_tensor: _new_tensor,
    torch.nn.functional.one_hot: _one_hot, torch._C._nn._parse_to: torch._C._nn._parse_to,
}  # fmt: skip


def _grouped(groups: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch's grouping of tensors by device, in which those of the GPU name it."""

    def grouped(lists: Any, *args: Any) -> Any:
        return {
            (next((t.device for t in tensors[0] if t is not None), device), dtype): (tensors, indices)
            for (device, dtype), (tensors, indices) in groups(lists, *args).items()
        }

    return grouped


def _patches() -> Iterator[tuple[Any, str, Any]]:
    """Yield what torch does otherwise on a machine with a GPU: owner, name, replacement."""
    compatible = torch._has_compatible_shallow_copy_type

    def same_kind(input: Tensor, from_: Tensor) -> bool:  # a module that is moved gets new parameters
        return not isinstance(input, _GPUTensor) and not isinstance(from_, _GPUTensor) and compatible(input, from_)

    def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: function(*("cpu" if arg == "cuda" else arg for arg in args), **kwargs)

    run = threading.Thread.run

    def run_with_gpu(self: threading.Thread) -> None:
        with _Mode():
            run(self)

    yield threading.Thread, "run", run_with_gpu
    yield torch, "_has_compatible_shallow_copy_type", same_kind
    yield (
        torch._C, "_group_tensors_by_device_and_dtype",
        _grouped(torch._C._group_tensors_by_device_and_dtype),  # type: ignore[attr-defined]
    )  # fmt: skip
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        yield torch, name, on_cpu(getattr(torch, name))
    for name, made in {
        "is_available": lambda: True, "is_bf16_supported": lambda **_: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_name": lambda *_: "NVIDIA H200", "max_memory_allocated": lambda *_: 0,
        "synchronize": lambda *_: _record("synchronize"), "Event": _Event,
    }.items():  # fmt: skip
        yield torch.cuda, name, made
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):  # which one depends on the version of torch
            yield torch.optim.Optimizer, name, lambda _: None


@contextlib.contextmanager
def pretend_gpu(present: bool = True) -> Iterator[list[str]]:
    """Run the block on a machine with a GPU, or with `present` = False on this one; it may contain such blocks.

    Yields:
        The waits until now; the block may clear the list.
    """
    if not present or torch.cuda.Event is _Event:
        yield _waits
        return
    _waits.clear()
    with contextlib.ExitStack() as stack:
        for owner, name, made in _patches():
            stack.enter_context(mock.patch.object(owner, name, made))
        stack.enter_context(_Mode())
        yield _waits
