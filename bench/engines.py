"""Do engines run on this GPU? A small graph through every library that is installed: built, read, run and compared.

    python -m runtime.bench.engines --json engines.json

One row per way, with an answer in words: "runs", "not installed", or what the library said. It settles what documentation
leaves open, above all whether TensorRT-RTX runs on a compute capability that it does not name, such as 9.0. Exit status 0
whatever the answers are: they are the result. Engines that run and compute something else are a failure, 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.clock import time_in_turns
from runtime.bench.environment import commit
from runtime.exported import GraphSpec, Port
from runtime.trt import VENDORS, EngineError, EnginePlace, build_engine, open_engine
from runtime.trt.place import gpu

SIDE, ROWS = 1024, 64
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SLACK = 2.0  # times the error of torch in the same type


@dataclass(frozen=True, slots=True)
class Answer:
    """What one library makes of one precision here. The first four names are those of a kernel's rows."""

    op: str
    impl: str
    shape: str
    median_ms: float | None
    dtype: str
    max_error: float | None
    torch_error: float | None
    seconds: float | None  # until the engine was open, build included
    answer: str
    device: str
    torch: str
    commit: str | None

    @property
    def wrong(self) -> bool:
        """Whether it runs and is less exact than its type excuses."""
        if self.max_error is None or self.torch_error is None:
            return False
        return not self.max_error <= SLACK * self.torch_error


def product_graph(folder: Path, dtype: torch.dtype) -> tuple[Path, GraphSpec, Tensor]:
    """relu(x @ w) for any number of rows up to ``ROWS`` as a file, its entry of export.json, and w."""
    from onnx import TensorProto, helper

    name = str(dtype).removeprefix("torch.")
    kind = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "FLOAT"}[name]
    element = getattr(TensorProto, kind)
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    raw = weight.view(torch.uint8).numpy().tobytes()
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", element, ["n", SIDE])],
        [helper.make_tensor_value_info("y", element, ["n", SIDE])],
        [helper.make_tensor("w", element, [SIDE, SIDE], raw, raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / f"product-{name}.onnx"
    path.write_bytes(model.SerializeToString())
    ranges = ((1, SIDE), (ROWS, SIDE), (ROWS, SIDE))
    spec = GraphSpec(
        name=path.stem,
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        data={},
        inputs={"x": Port(name, ("n", SIDE))},
        outputs={"y": Port(name, ("n", SIDE))},
        profiles=({"x": ranges},),
    )
    return path, spec, weight


def answers(device: torch.device) -> Iterator[Answer]:
    """Of every vendor and precision; engines that TensorRT-RTX builds without a GPU are a way of their own."""
    for vendor, kind in VENDORS.items():
        if importlib.util.find_spec(kind.module) is None:
            yield words(vendor, "any", f"not installed: pip install 'stream-t1-runtime[{kind.extra}]'")  # fmt: skip
            continue
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                yield answer(vendor, precision, device, Path(folder))
            if kind.portable and device.type == "cuda":
                with tempfile.TemporaryDirectory() as folder:
                    yield answer(vendor, precision, device, Path(folder), portable=True)


def answer(
    vendor: str, precision: str, device: torch.device, folder: Path, portable: bool = False
) -> Answer:
    """Build, open, run and compare. ``portable``: built for no GPU in particular, then read here."""
    dtype = PRECISIONS[precision]
    path, spec, weight = product_graph(folder, dtype)
    here = EnginePlace(vendor, precision, folder / "engines", device)
    impl = f"{vendor}, portable" if portable else vendor
    began = time.perf_counter()
    try:
        if portable or not here.on_gpu:
            build_engine(path, spec, EnginePlace(vendor, precision, here.folder, torch.device("cpu")))  # fmt: skip
        if not here.on_gpu:
            return words(impl, precision, "builds; without a GPU nothing runs")
        engine = open_engine(path, spec, here)
        seconds = time.perf_counter() - began
        x = torch.randn(ROWS, SIDE, generator=torch.Generator().manual_seed(1)).to(dtype)
        exact = (x.double() @ weight.double()).relu()
        x, weight = x.to(device), weight.to(device)
        got, plain = engine({"x": x})["y"].cpu().double(), (x @ weight).relu().cpu().double()
    except EngineError as error:
        return words(impl, precision, str(error))
    times = time_in_turns({"engine": lambda: engine({"x": x})}, device, samples=20)
    return Answer(
        op="engine",
        impl=impl,
        shape=f"{ROWS} x {SIDE} x {SIDE}",
        median_ms=times["engine"].median_ms,
        dtype=str(dtype).removeprefix("torch."),
        max_error=float((got - exact).abs().max()),
        torch_error=float((plain - exact).abs().max()),
        seconds=seconds,
        answer="runs",
        device=gpu(device),
        torch=torch.__version__,
        commit=commit(),
    )


def words(impl: str, precision: str, said: str) -> Answer:
    """A row without figures."""
    where = gpu("cuda") if torch.cuda.is_available() else "no GPU"
    return Answer("engine", impl, "-", None, precision, None, None, None, said, where, torch.__version__, commit())  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.engines", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, help="write the rows as JSON here")
    args = parser.parse_args()
    if importlib.util.find_spec("onnx") is None:
        print("engines: onnx is not installed, so there is no graph to build; pip install onnx")
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for row in answers(device):
        rows.append(row)
        figures = ""
        if row.median_ms is not None:
            figures = f": {row.median_ms:.4f} ms, error {row.max_error:.1e} (torch {row.torch_error:.1e}), open after {row.seconds:.1f} s"
        print(f"{row.impl} {row.dtype} on {row.device}: {row.answer}{figures}", flush=True)
        if args.json:
            args.json.write_text(json.dumps([asdict(each) for each in rows], indent=1) + "\n")
    wrong = [f"{row.impl} {row.dtype}" for row in rows if row.wrong]
    if wrong:
        print(f"error: less exact than twice torch's error: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
