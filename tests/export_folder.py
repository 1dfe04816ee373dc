"""A folder like an export's, made without tracing anything: one graph that adds up rows, of standard operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.exported import FILE, RANDOM, Exported, GraphSpec, Port, sha256_of

PROFILE = {"frames": ((1, 2), (4, 2), (8, 2))}


def write_sum(folder: Path, dtype: str = "float32") -> GraphSpec:
    """A graph whose "total" is the sum over the columns of "frames" [rows, 2]."""
    import onnx
    from onnx import TensorProto, helper

    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["frames", "ones"], ["total"])],
        "sum",
        [helper.make_tensor_value_info("frames", kind, ["rows", 2])],
        [helper.make_tensor_value_info("total", kind, ["rows", 1])],
        [helper.make_tensor("ones", kind, [2, 1], [1.0, 1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(folder / "whole.onnx"))
    return spec_of(folder, dtype)


def spec_of(folder: Path, dtype: str = "float32") -> GraphSpec:
    """What whole.onnx in ``folder``, and whole.onnx.data if it is there, are."""
    data = folder / "whole.onnx.data"
    return GraphSpec(
        name="whole",
        file="whole.onnx",
        sha256=sha256_of(folder / "whole.onnx"),
        data={data.name: sha256_of(data)} if data.is_file() else {},
        inputs={"frames": Port(dtype, ("rows", 2))},
        outputs={"total": Port(dtype, ("rows", 1))},
        profiles=(PROFILE,),
    )


def write_export(root: Path, reward: str = "sprites-image", **changes: Any) -> Path:
    """``root/reward`` with two files of bytes and an export.json that fits them, then with ``changes`` in it."""
    folder = root / reward
    folder.mkdir(parents=True)
    (folder / "whole.onnx").write_bytes(b"graph" * 20)
    (folder / "whole.onnx.data").write_bytes(b"weights" * 20)
    exported = Exported(
        folder=folder,
        reward=reward,
        precision="fp32",
        weights_sha256=RANDOM,
        versions={"onnx": "1"},
        largest_difference={"scores": 0.0},
        constants={"words": ["red"]},
        graphs={"whole": spec_of(folder)},
    )
    table = json.loads(exported.to_json()) | changes
    (folder / FILE).write_text(json.dumps(table))
    return folder
