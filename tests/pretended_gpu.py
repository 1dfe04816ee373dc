"""A GPU that is not there: tensors on "cuda" have a shape, a dtype and a device, and no memory. Works on any machine.

    with PretendedGPU() as gpu:
        engine = Engine(preset("wan-1.3b"))        full size; nothing is computed
    gpu.waits, gpu.pageable                         where the host would have waited

Tensors on the CPU stay real. What torch refuses on a GPU is refused: devices or dtypes that do not go together, shapes
that do not fit, a number that the host wants to know. Numbers may be read from a copy on the host; they are made up.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.kernels import fp8_quantize
from runtime.kernels.triton_lang import triton
from tests.recorded_launch import Launch

if triton is not None:
    from triton.runtime.interpreter import InterpretedFunction

ROOT = Path(__file__).parents[1]
_READ = torch.ops.aten._local_scalar_dense.default
READS = {"item": int, "__int__": int, "__float__": float, "__bool__": bool}
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class PretendedGPU(contextlib.ExitStack):
    """The whole pretence, and a log of what would have cost time or been impossible."""

    capability = (9, 0)  # of an H100

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []  # places where numbers of the device went to the host
        self.pageable: list[str] = []  # places where the device got numbers from pageable memory
        self.captured: list[str] = []  # places where a capture would have met either
        self.launches: dict[Launch, int] = {}  # of Triton kernels, how often each
        self.pinned: dict[int, Tensor] = {}  # by their storage
        self.told = torch.Generator().manual_seed(0)  # of the numbers that are made up
        self.capturing = False
        self.captures = 0

    def __enter__(self) -> PretendedGPU:
        super().__enter__()
        forget_tables()
        self.callback(forget_tables)
        self.enter_context(self._stand_ins())
        self.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self.enter_context(_Split(self))
        return self

    def copied(self, source: Any, device: torch.device, non_blocking: bool) -> None:
        """Note a copy between host and device."""
        if source.device.type == device.type or "meta" in (source.device.type, device.type):
            return
        if device.type == "cpu":
            self.waits.append(caller())
        elif not (non_blocking and _storage(source) in self.pinned):
            self.pageable.append(caller())
        if self.capturing:
            self.captured.append(caller())

    @contextlib.contextmanager
    def _stand_ins(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, value in (
                (torch, "Generator", _Generator),
                (torch.nn.Module, "_apply", _apply),
                (torch.Tensor, "to", _to),
                (FakeTensor, "data", property(_DATA.__get__, _set_data)),
                (torch.Tensor, "contiguous", _contiguous),
                (FakeTensor, "__invert__", torch.Tensor.bitwise_not),
                *(
                    (FakeTensor, name, lambda t, kind=kind: kind(_READ(t)))
                    for name, kind in READS.items()
                ),
                (FakeTensor, "copy_", _copy_in),
                (FakeTensor, "__getitem__", _get_item),
                (FakeTensor, "__setitem__", _set_item),
                (torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor)),
                (torch.Tensor, "data_ptr", _address),
                (FakeTensor, "tolist", lambda tensor: self._made_up(tensor)),
                *self._launchers(),
                (torch.cuda, "get_device_capability", lambda device=None: self.capability),
                (torch.cuda, "Stream", _Stream),
                (torch.cuda, "Event", _Event),
                (torch.cuda, "stream", contextlib.nullcontext),
                (torch.cuda, "current_stream", _Stream),
                (torch.cuda, "synchronize", lambda device=None: None),
                (torch.cuda, "empty_cache", lambda: None),
                (torch.cuda, "CUDAGraph", _Graph),
                (torch.cuda, "graph_pool_handle", lambda: None),
                (torch.cuda, "graph", self._capture),
                (torch.cuda.nvtx, "range_push", lambda name: None),
                (torch.cuda.nvtx, "range_pop", lambda: None),
            ):
                stack.enter_context(replaced(owner, name, value))
            yield

    def _pin(self, tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        self.pinned[_storage(copy)] = copy
        return copy

    def _made_up(self, tensor: Tensor) -> Any:
        """Numbers for a copy on the host: from one time to the next they rise and fall."""
        assert tensor.device.type == "cpu", f"the host wants numbers that are on {tensor.device}"
        with unset_fake_temporarily():
            return torch.rand(tensor.shape, generator=self.told).tolist()

    def _launchers(self) -> Iterator[tuple[Any, str, Any]]:
        """Triton's two kinds of kernels, compiled and interpreted, with a launch that only notes what it was given."""
        if triton is None:
            return

        def launcher(kernel: Any, grid: Any) -> Any:
            def note(*args: Any, **kwargs: Any) -> None:
                launch = Launch.of(kernel, args, kwargs)
                self.launches[launch] = self.launches.get(launch, 0) + 1

            return note

        for kind in (triton.runtime.jit.JITFunction, InterpretedFunction):
            yield kind, "__getitem__", launcher
        yield triton, "set_allocator", lambda allocator: None
        yield fp8_quantize, "INTERPRETED", False

    @contextlib.contextmanager
    def _capture(self, graph: Any, **_: Any) -> Iterator[None]:
        self.capturing, self.captures = True, self.captures + 1
        try:
            yield
        finally:
            self.capturing = False


class _Split(TorchDispatchMode):
    """Sends work on the pretended device to the fake mode; what is on the CPU alone is done."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func is _READ and isinstance(args[0], FakeTensor):
            self.gpu.waits.append(caller())
            return 1  # true, and as good as any other number
        if func in COPIES:
            self._note(func, args, kwargs)
        pretended = device is not None and torch.device(device).type == "cuda"
        if pretended or any(
            isinstance(x, FakeTensor) for x in pytree.arg_tree_leaves(*args, **kwargs)
        ):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        if func is COPIES[0]:
            device = kwargs.get("device")
            goal = torch.device(device) if device is not None else args[0].device
            self.gpu.copied(args[0], goal, kwargs.get("non_blocking", False))
        else:
            self.gpu.copied(args[1], args[0].device, len(args) > 2 and args[2])


class _Generator:
    """One of the CPU, whatever it is asked for."""

    def __new__(cls, device: Any = None) -> Any:
        return torch._C.Generator()


class _Stream:
    cuda_stream = 0

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _Graph:
    def replay(self) -> None:
        pass


_TO = torch.Tensor.to


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to`` asks the driver which GPU "cuda" is; here it is the first."""
    args, kwargs = pytree.tree_map(_numbered, (args, kwargs))
    return _TO(tensor, *args, **kwargs)


def _contiguous(
    tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    there = tensor.is_contiguous(memory_format=memory_format)
    return tensor if there else tensor.clone(memory_format=memory_format)


def _get_item(tensor: Tensor, index: Any) -> Tensor:
    """``tensor[index]`` out of operators; torch's own asks for a driver first. Lists would make the host wait."""
    index = index if isinstance(index, tuple) else (index,)
    for part in index:
        on_host = isinstance(part, Tensor) and part.device != tensor.device
        assert not on_host and not isinstance(part, list), "an index of the host waits for the GPU"
    named = sum(part is not None and part is not ... for part in index)
    left_out = tensor.ndim - named  # axes that "..." stands for
    at, tensors = 0, {}
    for part in index:
        if part is ...:
            at += left_out
        elif part is None:
            tensor, at = tensor.unsqueeze(at), at + 1
        elif isinstance(part, slice):
            first, last = part.start or 0, part.stop
            step = part.step or 1
            tensor = torch.ops.aten.slice.Tensor(tensor, at, first, last, step)
            at += 1
        elif isinstance(part, Tensor):
            tensors[at] = part
            at += 1
        else:
            tensor = tensor.select(at, part)
    if tensors:
        places = [tensors.get(axis) for axis in range(max(tensors) + 1)]
        tensor = torch.ops.aten.index.Tensor(tensor, places)
    return tensor


def _copy_in(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.aten.copy_.default(tensor, source, non_blocking)


def _set_item(tensor: Tensor, index: Any, value: Any) -> None:
    goal = _get_item(tensor, index)
    goal.copy_(value) if isinstance(value, Tensor) else goal.fill_(value)


def _numbered(argument: Any) -> Any:
    return torch.device("cuda:0") if argument in ("cuda", torch.device("cuda")) else argument


_DATA = torch.Tensor.data


def _set_data(tensor: Any, value: Any) -> None:
    _DATA.__set__(tensor, value)
    tensor.fake_device = value.fake_device


def _apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """Without the exchange of tensors in place, which pretended ones do not take."""
    made: dict[int, Any] = {}  # one parameter under two names stays one
    for owner in module.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                if id(value) not in made:
                    made[id(value)] = torch.nn.Parameter(function(value.detach()), False), value
                owner._parameters[name] = made[id(value)][0]
        for name, value in owner._buffers.items():
            if value is not None:
                owner._buffers[name] = function(value)
    return module


def _address(tensor: Tensor) -> int:
    """Different for different places, a multiple of 16 for the first element, as of a GPU's memory."""
    return tensor.untyped_storage()._cdata // 16 * 16 + tensor.storage_offset() * tensor.itemsize


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def caller() -> str:
    """The innermost line of the runtime that led here."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("runtime", "kernels"):
            return f"{path.relative_to(ROOT)}:{frame.name}"
    return "elsewhere"


def forget_tables() -> None:
    """Empty what the runtime keeps per device or size: pretended tables must not meet real ones."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "runtime":
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside, and what it was after."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
