"""Traces one piece into an ONNX file with its weights beside it: standard operators only, no decision on the device.

Weights are written from torch's own memory, one at a time: the transposition that a product wants is done while it is
written, not before, so no second copy of the network exists.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.export.pieces import Piece
from runtime.exported import GraphSpec, sha256_of

OPSET = 20  # the newest that torch's exporter translates to and TensorRT, TensorRT-RTX and onnxruntime all read
FOLDED_ELEMENTS = 256  # constants up to this size are worked out while exporting
DECIDING = {"If", "Loop", "Scan"}  # operators that decide on the device

Settle = Callable[
    [Any, Any], None
]  # (onnx_ir model, transposition of a weight): puts what the product reads in its place


def write_graph(name: str, piece: Piece, folder: Path, settle: Settle | None = None) -> GraphSpec:
    """Write ``name``.onnx and ``name``.onnx.data into ``folder``; what they are. RuntimeError for a graph that no runtime could take."""
    model = trace(piece)
    for node in list(model.graph):
        if is_transposed_weight(node):
            (settle or transpose_)(model, node)
    tidy_(model)
    check_nodes(name, model)
    check_axes(name, model, piece)
    path = folder / f"{name}.onnx"
    save(model, path)
    data = path.with_suffix(".onnx.data")
    return GraphSpec(
        name=name,
        file=path.name,
        sha256=sha256_of(path),
        data={data.name: sha256_of(data)} if data.is_file() else {},
        inputs=piece.inputs,
        outputs=piece.outputs,
        profiles=tuple(piece.profiles),
    )


def trace(piece: Piece) -> Any:
    """The piece as an onnx_ir model that holds torch's own tensors."""
    from onnxscript import optimizer

    dims = {
        name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in piece.axes.items()
    }
    shapes = tuple(
        {place: dims[axis] for place, axis in enumerate(given.shape) if isinstance(axis, str)}
        for given in piece.inputs.values()
    )
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            piece.module,
            piece.example(),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=list(piece.inputs),
            output_names=list(piece.outputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        optimizer.optimize_ir(
            program.model,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=lambda node: False if is_transposed_weight(node) else None,
        )
    return program.model


def is_transposed_weight(node: Any) -> bool:
    """Whether a node does nothing but turn a matrix of weights."""
    if node.op_type != "Transpose":
        return False
    (source,) = node.inputs
    return source.is_initializer() and source.const_value is not None and len(source.shape) == 2


def transpose_(model: Any, node: Any) -> None:
    """Keep the weight as the product reads it."""
    source = node.inputs[0]
    put_constant_(model, node, source.name, source.const_value, lambda weight: weight.T)


def put_constant_(
    model: Any,
    node: Any,
    name: str,
    value: Any,
    change: Callable[[Tensor], Tensor],
    dtype: Any = None,
) -> Any:
    """Make the output of ``node`` an initializer: ``change`` of the weight ``value``, worked out when it is written."""
    import onnx_ir as ir

    rows, columns = value.shape
    lazy = ir.LazyTensor(
        lambda: as_ir(change(as_torch(value)), name),
        dtype=dtype or value.dtype,
        shape=ir.Shape((columns, rows)),
        name=f"{name}.T",
    )
    fresh = ir.Value(
        name=f"{name}.T",
        shape=ir.Shape((columns, rows)),
        type=ir.TensorType(lazy.dtype),
        const_value=lazy,
    )
    model.graph.register_initializer(fresh)
    ir.convenience.replace_all_uses_with(node.outputs[0], fresh)
    source = node.inputs[0]
    model.graph.remove(node, safe=True)
    if not source.uses():
        model.graph.initializers.pop(source.name, None)
    return fresh


def as_torch(value: Any) -> Tensor:
    """A torch tensor that a model holds, or a numpy one."""
    raw = getattr(value, "raw", None)
    return raw.detach() if isinstance(raw, Tensor) else torch.from_numpy(value.numpy().copy())


def as_ir(tensor: Tensor, name: str) -> Any:
    """A torch tensor as the model keeps one."""
    from torch.onnx._internal.exporter import _core

    return _core.TorchTensor(tensor.contiguous(), name=name)


def tidy_(model: Any) -> None:
    """Drop what the tracer noted down: paths and lines of this machine, of no use elsewhere and never twice the same."""
    for thing in (model, model.graph):
        thing.metadata_props.clear()
        thing.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def check_nodes(name: str, model: Any) -> None:
    """RuntimeError that names operators which are not ONNX's own, or decide on the device."""
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in model.graph.all_nodes() if node.domain not in ("", "ai.onnx")})  # fmt: skip
    deciding = sorted({node.op_type for node in model.graph.all_nodes()} & DECIDING)
    if foreign or deciding:
        raise RuntimeError(
            f"{name}: want standard operators without decisions, got {', '.join(foreign + deciding)}"
        )


def check_axes(name: str, model: Any, piece: Piece) -> None:
    """RuntimeError that names an axis which shall be free and which the tracer took for a constant, as ``len(x)`` makes it."""
    for given in model.graph.inputs:
        for axis, side in zip(piece.inputs[given.name].shape, given.shape, strict=True):
            if isinstance(axis, str) and isinstance(side, int):
                raise RuntimeError(
                    f"{name}: {given.name}: want a free axis {axis}, got the constant {side}; "
                    "the module reads that size as a number"
                )


def save(model: Any, path: Path) -> None:
    """Write and check an onnx_ir model, its weights in one file beside it."""
    import onnx
    import onnx_ir as ir

    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
