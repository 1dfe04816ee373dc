"""A graph of two nodes with a free batch and a free length, as an exporter would leave it: y = (x @ w + b)[:, at]."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from runtime.exported import GraphSpec, Port, Range

WIDTH, OUT = 8, 4
NARROW: Range = ((1, 2, WIDTH), (2, 4, WIDTH), (2, 4, WIDTH))
BROAD: Range = ((1, 2, WIDTH), (4, 8, WIDTH), (6, 16, WIDTH))
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(5)
    return torch.randn(WIDTH, OUT, generator=source), torch.randn(OUT, generator=source)


def expected(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    w, b = weights()
    return (x.float() @ w + b)[:, at]


def write_graph(
    folder: Path,
    dtype: str = "float32",
    ranges: Sequence[Range] = (BROAD, NARROW),
    bias_dtype: str = "",
    eight_bits: bool = False,
) -> tuple[Path, GraphSpec]:
    """The graph as a file, and its entry of export.json. Another ``bias_dtype`` makes a graph that no library may take.

    ``eight_bits``: the product reads float8, with scales around it.
    """
    values = zip("wb", weights(), (dtype, bias_dtype or dtype), strict=True)
    x, w, scales = _eight_bits(dtype) if eight_bits else ("x", "w", [])
    made = helper.make_graph(
        [
            *(_through_eight_bits("x") + _through_eight_bits("w") if eight_bits else []),
            helper.make_node("MatMul", [x, w], ["h"], name="product"),
            helper.make_node("Add", ["h", "b"], ["z"], name="add_bias"),
            helper.make_node("Gather", ["z", "at"], ["y"], name="read", axis=1),
        ],
        "small",
        [
            helper.make_tensor_value_info("x", ELEMENTS[dtype], ["n", "s", WIDTH]),
            helper.make_tensor_value_info("at", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", ELEMENTS[dtype], ["n", 2, OUT])],
        [*(_initializer(name, value, kind) for name, value, kind in values), *scales],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "small.onnx"
    path.write_bytes(model.SerializeToString())
    return path, GraphSpec(
        name="small",
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        data={},
        inputs={"x": Port(dtype, ("n", "s", WIDTH)), "at": Port("int64", (2,))},
        outputs={"y": Port(dtype, ("n", 2, OUT))},
        profiles=tuple({"x": shapes, "at": ((2,), (2,), (2,))} for shapes in ranges),
    )


def _eight_bits(dtype: str) -> tuple[str, str, list[onnx.TensorProto]]:
    """What the product reads then, and the constants that takes."""
    scale = _initializer("scale", torch.tensor(0.25), dtype)
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    return "x.read", "w.read", [scale, zero]


def _through_eight_bits(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}.eight"]),
        helper.make_node("DequantizeLinear", [f"{name}.eight", "scale", "zero"], [f"{name}.read"]),
    ]


def _initializer(name: str, value: torch.Tensor, dtype: str) -> onnx.TensorProto:
    bits = {"float32": np.float32, "float16": np.float16}
    if dtype in bits:
        return numpy_helper.from_array(value.numpy().astype(bits[dtype]), name)
    raw = value.bfloat16().view(torch.int16).numpy().tobytes()
    return helper.make_tensor(name, ELEMENTS[dtype], list(value.shape), raw, raw=True)
