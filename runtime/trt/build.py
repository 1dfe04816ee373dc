"""Turns an exported graph into an engine: types are the graph's own, ranges of shapes are those of export.json.

What the library would let pass is refused here with a sentence: a file that is not a graph, inputs or outputs that are not
those of export.json, a graph that computes in another precision than it is said to, profiles that do not rise.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.exported import GraphSpec, Port, sha256_of
from runtime.trt.place import EnginePlace, gpu, on_device
from runtime.trt.vendor import DTYPES, EngineError, ensure, flag, logger

log = logging.getLogger(__name__)

PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM")
WANTED = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}  # fp8 is quantized: see ``_check_types``


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine and how it came about."""

    plan: Any  # a buffer
    lines: tuple[tuple[str, str], ...]  # of the log: severity, message
    seconds: float
    layers: int
    products: Mapping[str, int]  # type -> how many products of the network compute in it
    timings: bytes  # of kernels, for the next build; empty where the library keeps none


def build_plan(onnx: Path, spec: GraphSpec, place: EnginePlace, timings: bytes = b"") -> Built:
    """The engine of a graph. EngineError says which file, node, input or profile is at fault."""
    _check_files(onnx, spec)
    trt = place.kind.load()
    lines = logger(trt)
    began = time.perf_counter()
    with on_device(place):
        builder = _builder(trt, lines, place)
        network = ensure(builder.create_network(0), "network", lines)
        # Initializers are held by reference until the engine is built: the parser has to outlive it.
        parser = trt.OnnxParser(network, lines)
        _parse(parser, onnx)
        _check_ports(network, spec)
        products = _check_types(network, spec, place.precision)
        config = ensure(builder.create_builder_config(), "builder config", lines)
        cache = _configure_(trt, config, place, timings, lines)
        _add_profiles_(builder, config, spec, lines)
        plan = _serialize(builder, network, config, place, lines)
        kept = bytes(cache.serialize()) if cache is not None else b""
    seconds = time.perf_counter() - began
    return Built(plan, tuple(lines.lines), seconds, network.num_layers, products, kept)


def _check_files(onnx: Path, spec: GraphSpec) -> None:
    for name, wanted in {onnx.name: spec.sha256, **spec.data}.items():
        try:
            got = sha256_of(onnx.parent / name)
        except ValueError as error:
            raise EngineError(str(error)) from None
        if got != wanted:
            raise EngineError(
                f"{onnx.parent / name}: want sha256 {wanted[:16]}..., got {got[:16]}...; export the reward again"
            )


def _builder(trt: Any, lines: Any, place: EnginePlace) -> Any:
    try:
        return trt.Builder(lines)
    except (TypeError, RuntimeError) as error:  # TypeError: what a machine without a driver gets
        raise EngineError(f"{place.vendor}: no builder ({error}); is there a driver?") from error


def _parse(parser: Any, onnx: Path) -> None:
    if parser.parse_from_file(str(onnx)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [_complaint(error.node_name(), error.node_operator(), error.desc()) for error in errors]
    raise EngineError(f"{onnx}: {'; '.join(dict.fromkeys(said)) or 'cannot be parsed'}")


def _complaint(node: str, operator: str, description: str) -> str:
    # The first line repeats the node; those on drivers follow every error on a machine without a GPU.
    lines = [line for line in description.splitlines()[1:] if "cudaError" not in line]
    reason = " ".join(lines)[:400] or description[:400]
    mixed = "same input types" in reason or "must have same type" in reason
    advice = "; types are taken as they are, so cast in the network before it is exported"
    return f"node {node!r} ({operator}): {reason}{advice if mixed else ''}"


def _check_ports(network: Any, spec: GraphSpec) -> None:
    if not network.num_outputs:
        raise EngineError(f"{spec.name}: {spec.file} is not an ONNX graph, it has no outputs")
    sides: tuple[tuple[str, Any, int, Mapping[str, Port]], ...] = (
        ("inputs", network.get_input, network.num_inputs, spec.inputs),
        ("outputs", network.get_output, network.num_outputs, spec.outputs),
    )
    for side, at, count, ports in sides:
        tensors = {at(index).name: at(index) for index in range(count)}
        if set(tensors) != set(ports):
            raise EngineError(f"{spec.name}: want {side} {sorted(ports)}, got {sorted(tensors)}")
        for name, port in ports.items():
            _check_port(f"{spec.name}.{name}", tensors[name], port)


def _check_port(where: str, tensor: Any, port: Port) -> None:
    if DTYPES.get(tensor.dtype.name) != getattr(torch, port.dtype):
        raise EngineError(f"{where}: want dtype {port.dtype}, got {tensor.dtype.name}")
    shape = tuple(tensor.shape)
    wanted = [side if isinstance(side, int) else -1 for side in port.shape]
    # The library may know a side that the exporter named.
    fits = len(shape) == len(wanted) and all(
        want in (got, -1) or got == -1 for got, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        raise EngineError(f"{where}: want shape {list(port.shape)}, got {list(shape)}")
    if tensor.is_shape_tensor:
        raise EngineError(f"{where}: decides a shape inside the graph; wants values alone")


def _check_types(network: Any, spec: GraphSpec, precision: str) -> dict[str, int]:
    """How many products compute in which type. The network says so before anything is fused."""
    products: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in PRODUCTS:
            products[layer.get_input(0).dtype.name] += 1
        elif layer.type.name == "DEQUANTIZE" and layer.get_input(0).dtype.name == "FP8":
            products["FP8"] += 1
    if not products:
        raise EngineError(f"{spec.name}: {spec.file} has no product at all")
    found = ", ".join(f"{count} {name}" for name, count in products.most_common())
    if precision == "fp8":
        right = products["FP8"] > 0
    else:
        right = products.most_common(1)[0][0] == WANTED[precision]
    if not right:
        raise EngineError(
            f"{spec.name}: export.json promises {precision}, but its products compute in {found}; export it again"
        )
    return dict(products)


def _configure_(trt: Any, config: Any, place: EnginePlace, timings: bytes, lines: Any) -> Any:
    """Set options; the cache of timings, or None where the library keeps none."""
    options = place.options
    wanted = {
        "TF32": options.tf32,  # the library's own default is on
        "REFIT": options.refit,
        "WEIGHT_STREAMING": options.weight_streaming,
        # Nothing may be allocated while a CUDA graph is captured; streaming weights has to.
        "REQUIRE_USER_ALLOCATION": place.kind.jit and not options.weight_streaming,
    }
    for name, on in wanted.items():
        bit = flag(trt, name)
        if bit is None and on:
            raise EngineError(f"{place.vendor} {trt.__version__}: has no builder flag {name}")
        if bit is not None:
            (config.set_flag if on else config.clear_flag)(bit)
    # Which types its layers have can be read back from the engine.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if place.kind.portable and place.on_gpu:
        _aim_(trt, config, place, lines)
    if not place.kind.timings:
        return None
    config.builder_optimization_level = options.level
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        log.warning("%s: timings of another GPU or version are dropped", place.vendor)
        cache = config.create_timing_cache(b"")
        ensure(cache is not None and config.set_timing_cache(cache, False), "timing cache", lines)
    return cache


def _aim_(trt: Any, config: Any, place: EnginePlace, lines: Any) -> None:
    """For this GPU alone: by name where the library knows it, else whatever it makes of the current one."""
    major, minor = torch.cuda.get_device_capability(place.device)
    known = trt.ComputeCapability
    target = getattr(known, f"SM{major}{minor}", known.CURRENT)
    config.num_compute_capabilities = 1
    ensure(config.set_compute_capability(target, 0), _nothing(place), lines)


def _add_profiles_(builder: Any, config: Any, spec: GraphSpec, lines: Any) -> None:
    free = [name for name, port in spec.inputs.items() if not all(isinstance(s, int) for s in port.shape)]  # fmt: skip
    if free and not spec.profiles:
        raise EngineError(f"{spec.name}: inputs {free} have free axes, and export.json has no profiles")  # fmt: skip
    for index, ranges in enumerate(spec.profiles):
        profile = ensure(builder.create_optimization_profile(), "profile", lines)
        for name, (low, usual, high) in ranges.items():
            _check_range(f"{spec.name}: profile {index} of {name}", spec.inputs, name, (low, usual, high))  # fmt: skip
            if name in free:
                profile.set_shape(name, low, usual, high)
        # A refused profile is false, and would only be missing.
        ensure(bool(profile), f"{spec.name}: profile {index}", lines)
        ensure(config.add_optimization_profile(profile), f"{spec.name}: profile {index}", lines)


def _check_range(where: str, ports: Mapping[str, Port], name: str, shapes: Any) -> None:
    if name not in ports:
        raise EngineError(f"{where}: no such input; known: {sorted(ports)}")
    wanted, said = ports[name].shape, [list(shape) for shape in shapes]
    for shape in shapes:
        if len(shape) != len(wanted):
            raise EngineError(f"{where}: want {len(wanted)} sides, got {said}")
        if any(isinstance(want, int) and want != got for got, want in zip(shape, wanted, strict=True)):  # fmt: skip
            raise EngineError(f"{where}: want shapes like {list(wanted)}, got {said}")
    if any(not 1 <= low <= usual <= high for low, usual, high in zip(*shapes, strict=True)):
        raise EngineError(f"{where}: want least <= usual <= largest, got {said}")


def _serialize(builder: Any, network: Any, config: Any, place: EnginePlace, lines: Any) -> Any:
    return ensure(builder.build_serialized_network(network, config), _nothing(place), lines)


def _nothing(place: EnginePlace) -> str:
    if not place.on_gpu:
        return f"{place.vendor} builds nothing"
    return f"{place.vendor} builds nothing for {gpu(place.device)} (documented for {place.kind.documented})"
