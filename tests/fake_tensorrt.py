"""A stand-in for ``tensorrt_rtx`` where there is no GPU: reads tensors at the addresses it was given and writes to others.

A plan is the ONNX file behind a header; onnxruntime computes. What the real library refuses with None or False is refused:
shapes outside the profile, a missing address, memory that was not given. Every call of a context is noted.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import torch

from runtime.exported import GraphSpec
from runtime.trt.build import Built

MAGIC = b"fake plan\n"
SCRATCH_BYTES = 16  # per element of x
NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
NAMES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}


def plan_of(onnx: bytes, spec: GraphSpec) -> bytes:
    ports = {name: [p.dtype, list(p.shape)] for name, p in {**spec.inputs, **spec.outputs}.items()}
    header = {
        "ports": ports,
        "inputs": list(spec.inputs),
        "profiles": [dict(p) for p in spec.profiles],
    }
    return MAGIC + json.dumps(header).encode() + b"\n" + onnx


def built(onnx: bytes, spec: GraphSpec) -> Built:
    """What ``runtime.trt.build.build_plan`` would return."""
    return Built(plan_of(onnx, spec), (("INFO", "pretended"),), 0.0, 3, {"FLOAT": 1}, b"")


class ILogger:
    def log(self, severity: Any, message: str) -> None: ...


class Validity(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class FakeTensorRT:
    """The module. What tests turn is public: ``refuse`` is what it finds wrong with every engine."""

    __version__ = "0.1"
    ILogger = ILogger
    EngineInvalidityDiagnostics = Validity
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.contexts: list[FakeContext] = []
        self.refuse: Validity | None = None
        self.failing: set[str] = set()  # methods of a context that answer False
        self.layer_types = ["Row major linear FP32", "Float"]  # of one layer each
        self.kernels: list[bytes] = []  # runtime caches that were read back

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self, logger)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def get_engine_validity(self, plan: Any) -> tuple[int, int]:
        found = self.trt.refuse
        if found is None and bytes(plan[: len(MAGIC)]) != MAGIC:
            found = Validity.MALFORMED_ENGINE
        return (2, int(found)) if found else (0, 0)

    def deserialize_cuda_engine(self, plan: Any) -> FakeEngine | None:
        if self.get_engine_validity(plan)[1]:
            self.logger.log(SimpleNamespace(name="ERROR"), "serialization assertion failed")
            return None
        self.trt.calls.append(("deserialize",))
        return FakeEngine(self.trt, self.logger, bytes(plan))


class FakeEngine:
    streamable_weights_size = 100

    def __init__(self, trt: FakeTensorRT, logger: Any, plan: bytes) -> None:
        self.trt, self.logger = trt, logger
        header, _, onnx = plan[len(MAGIC) :].partition(b"\n")
        table = json.loads(header)
        self.ports: Mapping[str, Any] = table["ports"]
        self.inputs, self.profiles = table["inputs"], table["profiles"]
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.num_io_tensors, self.contexts = len(self.ports), 0
        self._budget = 100

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value: int) -> None:
        assert not self.contexts, "the budget comes before the first context"
        self._budget = value

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=NAMES[self.ports[name][0]])

    def get_tensor_location(self, name: str) -> Any:
        return SimpleNamespace(name="DEVICE")

    def create_engine_inspector(self) -> Any:
        kinds = self.trt.layer_types
        layers = [{"Inputs": [{"Format/Datatype": kind}], "Outputs": []} for kind in kinds]
        text = json.dumps({"Layers": layers})
        return SimpleNamespace(get_engine_information=lambda form: text)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self.trt)

    def create_execution_context(self, config: FakeConfig) -> FakeContext:
        assert config.strategy == "user", "contexts must not allocate for themselves"
        kernels = config.dynamic_shapes_kernel_specialization_strategy
        assert kernels == "eager" and config.cache, "kernels must be the final ones, and kept"
        self.contexts += 1
        self.trt.contexts.append(FakeContext(self))
        return self.trt.contexts[-1]


class FakeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt, self.strategy, self.cache = trt, "static", None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace(
            serialize=lambda: b"kernels of %d contexts" % len(self.trt.contexts),
            deserialize=lambda blob: self.trt.kernels.append(blob) is None,
        )

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class FakeContext:
    """Shapes, addresses and memory of one context."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.profile = engine, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def _done(self, name: str, *args: Any) -> bool:
        self.engine.trt.calls.append((name, *args))
        if name not in self.engine.trt.failing:
            return True
        self.engine.logger.log(SimpleNamespace(name="ERROR"), f"{name} was told to fail")
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return self._done("profile", index, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ranges = self.engine.profiles[self.profile][name]
        if not all(a <= s <= b for a, s, b in zip(ranges[0], shape, ranges[2], strict=True)):
            return False
        self.shapes[name] = shape
        return self._done("shape", name, shape)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH_BYTES * int(np.prod(self.shapes["x"]))

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        self.memory = (address, size)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sides = {"n": self.shapes["x"][0], "s": self.shapes["x"][1]}
        return tuple(sides.get(side, side) for side in self.engine.ports[name][1])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self._done("address", name, address)

    def execute_async_v3(self, stream: int) -> bool:
        if not self._done("execute", stream):
            return False
        assert self.memory[0], "no scratch memory"
        feeds = {name: self._at(name, self.shapes[name]) for name in self.engine.inputs}
        for meta, value in zip(
            self.engine.session.get_outputs(), self.engine.session.run(None, feeds), strict=True
        ):
            self._at(meta.name, self.get_tensor_shape(meta.name))[...] = value
        return True

    def _at(self, name: str, shape: tuple[int, ...]) -> Any:
        kind = np.dtype(NUMPY[self.engine.ports[name][0]])
        count = int(np.prod(shape)) * kind.itemsize
        memory = (ctypes.c_char * count).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype=kind).reshape(shape)


def rows(n: int, s: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of ``tests/small_graph.py``."""
    x = torch.randn(n, s, 8, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "at": torch.tensor([1, 0])}
