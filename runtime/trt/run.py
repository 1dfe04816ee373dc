"""Runs an engine on torch tensors: nothing is copied, nothing waits, outputs lie where they lay before.

    engine = Engine(plan, spec, place, jit)
    outputs = engine({"x": x})              good until the next call with inputs of the same shapes

Every combination of input shapes has an execution context of its own, with its profile, shapes and outputs set once, so that
a call of a known shape is addresses and one enqueue, and can be captured in a CUDA graph. The contexts of an engine share one
buffer of scratch memory: they must not run at the same time.

Streams: a call runs on torch's current stream (from the default stream on one beside it, which waits for it and is waited
for: the library synchronises the device on the default stream). Inputs must belong to that stream's order, as whatever was
allocated or computed on it does. One thread calls an engine at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.exported import GraphSpec, Port
from runtime.trt.cache import read_sealed, write_sealed
from runtime.trt.place import EnginePlace, gpu, on_device
from runtime.trt.vendor import DTYPES, EngineDamaged, EngineError, ensure, logger, reasons

log = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in the order of GraphSpec.inputs
HALVES = {  # as inspectors call them
    "fp16": ("half", "fp16", "float16"),
    "bf16": ("bfloat16", "bf16"),
}
TYPE_KEYS = ("Format/Datatype", "DataType", "Format")  # up to TensorRT 10, and since
# Reasons for which a library refuses an engine that its files are not to blame for.
ELSEWHERE = ("UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR")  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)  # its identity is the key of its recording
class Bound:
    """An execution context for inputs of certain shapes."""

    context: Any
    device: torch.device
    lines: Any  # of the log
    names: tuple[str, ...]  # of the inputs
    outputs: tuple[Tensor, ...]
    scratch: Tensor | None  # kept alive: the context's memory
    capturable: bool

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Enqueue on the current stream; device work alone, so a graph can capture it."""
        for name, tensor in zip(self.names, inputs, strict=True):
            done = self.context.set_tensor_address(name, tensor.data_ptr())
            ensure(done, f"address of {name}", self.lines)
        ensure(self.context.execute_async_v3(stream_of(self.device)), "enqueue", self.lines)
        return self.outputs


class Engine:
    """A deserialized engine behind ``runtime.types.Compiled``."""

    def __init__(self, plan: Any, spec: GraphSpec, place: EnginePlace, jit: Path) -> None:
        """``plan`` may be closed afterwards. EngineDamaged: build it anew; EngineError: it will not run here."""
        self.spec, self.place, self.jit_path = spec, place, jit
        self.device = torch.device(place.device)
        self.trt = place.kind.load()
        self.lines = logger(self.trt)
        with on_device(place):
            self.runtime = _runtime(self.trt, self.lines, place)
            self.engine = self._deserialize(plan)
            self._check_ports()
            self.layer_types = _layer_types(self.trt, self.engine, self.lines)
            self._check_types()
            self.streams_weights = self._set_budget()
            self.config, self.jit_cache = self._runtime_config()
        self.bound: dict[Shapes, Bound] = {}
        self.scratch: Tensor | None = None
        # Calls from the default stream run here.
        self.beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named inputs -> named outputs at fixed addresses. ValueError for inputs that the engine was not built for."""
        self._check_inputs(inputs)
        tensors = tuple(inputs[name] for name in self.spec.inputs)
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        fresh = shapes not in self.bound
        if fresh:
            with on_device(self.place):
                self.bound[shapes] = self._bind(shapes)
        outputs = self._run(shapes, tensors)
        if fresh and self.jit_cache is not None:
            self._keep_kernels()
        return dict(zip(self.spec.outputs, outputs, strict=True))

    def _run(self, shapes: Shapes, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        bound, record = self.bound[shapes], self.place.record
        if record is None or not bound.capturable:
            return self._enqueue(bound, tensors)
        try:
            return record(bound, bound, tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
        # If it is the engine that fails, it fails again, and says so.
        outputs = self._enqueue(bound, tensors)
        log.warning("%s cannot be captured (%s): it is enqueued every time", self.spec.name, reason)
        self.bound[shapes] = replace(bound, capturable=False)
        return outputs

    def _deserialize(self, plan: Any) -> Any:
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return engine
        name, why = self.place.vendor, reasons(self.lines.lines)
        found = _diagnosis(self.trt, self.runtime, plan)
        unexplained = not found and any(
            word in why.lower() for word in ("out of memory", "cudaerror")
        )
        if unexplained or found & set(ELSEWHERE):
            here = gpu(self.device) if self.place.on_gpu else self.device
            raise EngineError(
                f"{name}: the engine does not run on {here} (documented for {self.place.kind.documented}): "
                f"{', '.join(sorted(found))} {why}"
            )
        raise EngineDamaged(f"{name}: the engine cannot be read: {', '.join(sorted(found))} {why}")

    def _check_ports(self) -> None:
        engine, spec = self.engine, self.spec
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if names != {*spec.inputs, *spec.outputs}:
            raise EngineDamaged(f"{spec.name}: want {sorted((*spec.inputs, *spec.outputs))}, the engine has {sorted(names)}")  # fmt: skip
        for name, port in {**spec.inputs, **spec.outputs}.items():
            got = DTYPES.get(engine.get_tensor_dtype(name).name)
            if got != getattr(torch, port.dtype):
                raise EngineDamaged(f"{spec.name}.{name}: want {port.dtype}, the engine has {got}")
            if engine.get_tensor_location(name).name != "DEVICE":
                raise EngineError(f"{spec.name}.{name}: the engine wants it in host memory")

    def _check_types(self) -> None:
        """Half precision must be seen in the engine's own layers, where it tells of them.

        A network that was fused into one layer shows its inputs and outputs only; ``build_plan`` has looked inside before.
        """
        wanted = HALVES.get(self.place.precision, ())
        said = " ".join(self.layer_types).lower()
        if wanted and said and not any(word in said for word in wanted):
            raise EngineError(
                f"{self.spec.name}: want {self.place.precision}, the engine's layers have {sorted(self.layer_types)}"
            )

    def _set_budget(self) -> bool:
        """Whether weights are streamed from host memory while the engine runs."""
        budget = self.place.streaming_bytes
        if budget is None:
            return False
        largest = self.engine.streamable_weights_size
        self.engine.weight_streaming_budget_v2 = min(budget, largest)
        if self.engine.weight_streaming_budget_v2 != min(budget, largest):
            raise EngineError(f"{self.spec.name}: weights cannot be streamed with {budget} bytes: {reasons(self.lines.lines)}")  # fmt: skip
        return budget < largest

    def _runtime_config(self) -> tuple[Any, Any]:
        """How contexts are made, and the cache of kernels that are compiled as they first run (None: none are)."""
        config = ensure(self.engine.create_runtime_config(), "runtime config", self.lines)
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(strategy)
        if not self.place.kind.jit:
            return config, None
        # A lazy one would have a graph capture the kernels that stand in until the right ones are compiled.
        config.dynamic_shapes_kernel_specialization_strategy = (
            self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        cache = ensure(config.create_runtime_cache(), "runtime cache", self.lines)
        if (kept := read_sealed(self.jit_path)) and not cache.deserialize(kept):
            log.info("%s: kernels of another GPU or version are dropped", self.jit_path.name)
        ensure(config.set_runtime_cache(cache), "runtime cache", self.lines)
        return config, cache

    def _keep_kernels(self) -> None:
        """Once per new shape, on the host. Not to be able to keep them costs time at the next start, nothing else."""
        kept = self.jit_cache.serialize()
        if kept is not None:
            try:
                write_sealed(self.jit_path, bytes(kept))
            except EngineError as error:
                log.info("%s", error)

    def _bind(self, shapes: Shapes) -> Bound:
        spec = self.spec
        named = dict(zip(spec.inputs, shapes, strict=True))
        what = f"{spec.name} for " + ", ".join(f"{name} {list(s)}" for name, s in named.items())
        profile = choose_profile(spec, named)
        context = ensure(self.engine.create_execution_context(self.config), what, self.lines)
        # On the current stream, which whatever enqueues later has waited for.
        done = context.set_optimization_profile_async(profile, stream_of(self.device))
        ensure(done, f"profile {profile} of {what}", self.lines)
        for name, shape in named.items():
            ensure(context.set_input_shape(name, shape), what, self.lines)
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:  # the one call that raises
            raise EngineError(f"{what}: {error}") from error
        if unknown:
            raise EngineError(f"{what}: shapes of {unknown} stay open")
        scratch = self._scratch_for_(context, what)
        outputs = tuple(self._output(context, name, port) for name, port in spec.outputs.items())
        for name, tensor in zip(spec.outputs, outputs, strict=True):
            ensure(context.set_tensor_address(name, tensor.data_ptr()), f"address of {name}", self.lines)  # fmt: skip
        return Bound(context, self.device, self.lines, tuple(named), outputs, scratch, self._capturable(context))  # fmt: skip

    def _capturable(self, context: Any) -> bool:
        """Whether a CUDA graph may hold it. With weights in host memory it is enqueued every time."""
        if self.streams_weights:
            return False
        if self.beside is None or not hasattr(context, "is_stream_capturable"):
            return True
        return bool(context.is_stream_capturable(self.beside.cuda_stream))

    def _scratch_for_(self, context: Any, what: str) -> Tensor | None:
        """Give a context the engine's scratch memory, a larger one if it must be; the older stays with its contexts."""
        needed = int(context.update_device_memory_size_for_shapes())
        if needed < 0:
            raise EngineError(f"{what}: no size of scratch memory: {reasons(self.lines.lines)}")
        if not needed:
            return None
        if self.scratch is None or self.scratch.numel() < needed:
            self.scratch = torch.empty(needed, dtype=torch.uint8, device=self.device)
        context.set_device_memory(self.scratch.data_ptr(), self.scratch.numel())
        return self.scratch

    def _output(self, context: Any, name: str, port: Port) -> Tensor:
        shape = tuple(context.get_tensor_shape(name))
        if any(side < 0 for side in shape):
            raise EngineError(f"{self.spec.name}.{name}: shape {list(shape)} depends on values")
        return torch.empty(shape, dtype=getattr(torch, port.dtype), device=self.device)

    def _enqueue(self, bound: Bound, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.beside is None or stream_of(self.device) != 0:
            return bound(*tensors)
        current = torch.cuda.current_stream(self.device)
        self.beside.wait_stream(current)
        with torch.cuda.stream(self.beside):
            outputs = bound(*tensors)
        current.wait_stream(self.beside)
        return outputs

    def _check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        spec = self.spec
        if set(inputs) != set(spec.inputs):
            raise ValueError(f"{spec.name}: want inputs {sorted(spec.inputs)}, got {sorted(inputs)}")  # fmt: skip
        for name, port in spec.inputs.items():
            check_tensor(f"{spec.name}.{name}", inputs[name], port, self.device)


def check_tensor(where: str, tensor: Tensor, port: Port, device: torch.device) -> None:
    """ValueError unless the tensor can be read where it lies."""
    if tensor.dtype != getattr(torch, port.dtype):
        raise ValueError(f"{where}: want dtype {port.dtype}, got {tensor.dtype}")
    if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
        raise ValueError(f"{where}: want a tensor on {device}, got one on {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{where}: want a contiguous tensor, got strides {tensor.stride()}; it is not copied in silence")  # fmt: skip


def choose_profile(spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The narrowest profile that holds all the shapes, by its largest ones. ValueError names the ranges there are."""
    fitting = [
        (_volume(ranges), index)
        for index, ranges in enumerate(spec.profiles)
        if all(_within(shapes[name], *ranges[name]) for name in shapes)
    ]
    if fitting:
        return min(fitting)[1]
    if not spec.profiles and all(shapes[name] == port.shape for name, port in spec.inputs.items()):
        return 0
    got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    known = "; ".join(
        ", ".join(f"{name} {list(low)}..{list(high)}" for name, (low, _, high) in ranges.items())
        for ranges in spec.profiles
    ) or ", ".join(f"{name} {list(port.shape)}" for name, port in spec.inputs.items())
    raise ValueError(f"{spec.name}: {got} fits none of the engine's profiles: {known}")


def _within(shape: tuple[int, ...], low: tuple[int, ...], _: Any, high: tuple[int, ...]) -> bool:
    return len(shape) == len(low) and all(
        least <= side <= most for least, side, most in zip(low, shape, high, strict=True)
    )


def _volume(ranges: Mapping[str, Any]) -> int:
    return sum(torch.Size(high).numel() for _, _, high in ranges.values())


def stream_of(device: torch.device) -> int:
    """Handle of torch's current stream; 0 where there are none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _runtime(trt: Any, lines: Any, place: EnginePlace) -> Any:
    try:
        return trt.Runtime(lines)
    except (TypeError, RuntimeError) as error:
        raise EngineError(f"{place.vendor}: no runtime ({error}); is there a driver?") from error


def _diagnosis(trt: Any, reader: Any, plan: Any) -> set[str]:
    """Names of what the library finds wrong with an engine; empty where it has no opinion."""
    if not hasattr(reader, "get_engine_validity"):
        return set()
    _, bits = reader.get_engine_validity(plan)
    kinds = trt.EngineInvalidityDiagnostics.__members__
    return {name for name, kind in kinds.items() if int(bits) & int(kind)}


def _layer_types(trt: Any, engine: Any, lines: Any) -> frozenset[str]:
    """Types of what goes in and out of an engine's layers, in the library's words; empty: it does not say."""
    inspector = ensure(engine.create_engine_inspector(), "inspector", lines)
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
        if len(layers) > 1:
            ports = [
                port
                for layer in layers
                for side in ("Inputs", "Outputs")
                for port in layer.get(side, [])
            ]
            return frozenset(str(port[key]) for port in ports for key in TYPE_KEYS if key in port)
    return frozenset()
