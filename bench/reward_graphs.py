"""Times what can run a reward's network: torch, torch captured, onnxruntime, TensorRT, TensorRT-RTX. Same inputs, same weights.

    python -m runtime.bench.reward_graphs --device cuda --shapes embedded full --json rows.json

``embedded``: both rewards of the embedded world, as they are. ``full``: HPSv3's two graphs at their published widths and at
the length of a real question, with few of the layers (4 of 32 that look, 2 of 28 that read), so that exporting and building
take a minute instead of an hour; a layer is like the next, so ratios carry over and totals do not. Weights are random.

Errors are against torch in float64 (embedded) or float32 (full). A way that cannot be had here is named on stderr with its
reason and has no row. torch.compile is not timed: compiling takes longer than everything else together.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.clock import Run
from runtime.bench.op import Case, main
from runtime.export.graph import write_graph
from runtime.export.pieces import Piece, Wanted, make_plan, port
from runtime.export.qwen2vl import Language, Vision
from runtime.exported import ENGINES, GraphSpec
from runtime.graph import GraphRunner
from runtime.kernels.reward_patches import PATCH
from runtime.rewards import hpsv3
from runtime.rewards.qwen2vl_judge import Judge
from runtime.rewards.qwen2vl_rotary import MERGE
from runtime.rewards.qwen2vl_vision import PATCH_VALUES
from runtime.trt import VENDORS, EnginePlace, open_engine
from runtime.types import Compiled

EMBEDDED = {"sprites-image": (48,), "sprites-video": (4, 48)}  # four candidates of twelve frames
LOOKING, READING = 4, 2  # layers
FRAME = 480, 832
TOKENS = 960  # 252 visual ones and a rubric, padded
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Subject:
    """One graph and the inputs it is timed on."""

    name: str
    piece: Piece
    inputs: Mapping[str, Tensor]
    exact: torch.dtype  # of the reference
    flops: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.inputs.values())).dtype


def cases(device: torch.device, size: str) -> Iterator[Case]:
    if not importlib.util.find_spec("onnxscript"):
        print("reward_graphs: onnxscript is not installed, so nothing can be exported", file=sys.stderr)  # fmt: skip
        return
    if size == "full" and device.type == "cpu":
        print("reward_graphs: full size is timed on a GPU only", file=sys.stderr)
        return
    for subject in embedded() if size == "embedded" else full():
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            yield case(subject, device, Path(folder))


def embedded() -> Iterator[Subject]:
    for name, batch in EMBEDDED.items():
        piece = make_plan(Wanted(reward=name)).pieces["whole"]
        shape = (*batch, *piece.inputs["frames"].shape[len(batch) :])
        frames = torch.rand(shape, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        yield Subject(name, piece, {"frames": frames}, torch.float64)


def full() -> Iterator[Subject]:
    config = hpsv3.KIND.config
    text = replace(config.text, num_hidden_layers=READING, vocab_size=1024)
    config = replace(config, text=text, vision=replace(config.vision, depth=LOOKING))
    judge = Judge.random(replace(hpsv3.KIND, config=config), "cpu", torch.bfloat16)
    tall, wide = judge.pixels.size(*FRAME)
    grid, rows, width = (tall // PATCH, wide // PATCH), hpsv3.ROWS_PER_FORWARD, text.hidden_size
    patches, source = grid[0] * grid[1], torch.Generator().manual_seed(0)

    def ranged(*rest: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return (1, *rest), (rows, *rest), (rows, *rest)

    looking = Piece(
        module=Vision(judge.net, grid).eval(),  # type: ignore[arg-type]
        inputs={"patches": port(torch.bfloat16, "pictures", patches, PATCH_VALUES)},
        outputs={"tokens": port(torch.bfloat16, "pictures", patches // MERGE**2, width)},
        axes={"pictures": (1, rows)},
        profiles=[{"patches": ranged(patches, PATCH_VALUES)}],
    )
    seen = torch.randn(rows, patches, PATCH_VALUES, generator=source).bfloat16()
    flops = rows * config.vision.flops(patches, width)
    yield Subject(f"hpsv3 looks, {LOOKING} layers", looking, {"patches": seen}, torch.float32, flops)  # fmt: skip
    reading = Piece(
        module=Language(judge.net, TOKENS).eval(),  # type: ignore[arg-type]
        inputs={"x": port(torch.bfloat16, "rows", TOKENS, width), "at": port(torch.int64, 1)},
        outputs={"out": port(torch.float32, "rows", 1, 2)},
        axes={"rows": (1, rows)},
        profiles=[{"x": ranged(TOKENS, width), "at": ((1,), (1,), (1,))}],
    )
    x = torch.randn(rows, TOKENS, width, generator=source).bfloat16()
    inputs = {"x": x, "at": torch.tensor([TOKENS - 50])}
    flops = rows * text.flops(TOKENS, (TOKENS - 50,))
    yield Subject(f"hpsv3 reads, {READING} layers", reading, inputs, torch.float32, flops)


def case(subject: Subject, device: torch.device, folder: Path) -> Case:
    """Every way that can be had here, on the same inputs."""
    piece = subject.piece
    spec = write_graph("graph", piece, folder)
    exact = reference(subject, device)
    inputs = {name: value.to(device) for name, value in subject.inputs.items()}
    module = piece.module.to(device)
    runs: dict[str, Run] = {"torch": partial(module, *inputs.values())}
    if device.type == "cuda":
        work = GraphRunner("cuda", device).run
        runs["captured"] = partial(work, subject.name, lambda *x: as_tuple(module(*x)), tuple(inputs.values()))  # fmt: skip
    for way, open_graph in openers(spec, folder, PRECISIONS[subject.dtype], device).items():
        try:
            run = partial(open_graph(), inputs)
            run()
        except (RuntimeError, ImportError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"reward_graphs: {subject.name}: {way}: not here ({reason})", file=sys.stderr)
        else:
            runs[way] = run
    errors = {way: difference(run(), exact, spec) for way, run in runs.items()}
    weights = sum(value.nbytes for value in module.parameters())
    moved = weights + sum(value.nbytes for value in inputs.values())
    shape = f"{subject.name} " + " ".join(f"{name}={list(value.shape)}" for name, value in inputs.items())  # fmt: skip
    return Case("reward", shape, subject.dtype, runs, errors, moved, subject.flops)


def openers(
    spec: GraphSpec, folder: Path, precision: str, device: torch.device
) -> dict[str, Callable[[], Compiled]]:
    """Way -> what opens the graph that way. Engines are captured, as rewards run them."""

    def session() -> Compiled:
        from runtime.ort import OrtGraph

        return OrtGraph(folder / spec.file, spec, device)

    ways: dict[str, Callable[[], Compiled]] = {"onnxruntime": session}
    if device.type == "cuda":
        for vendor in VENDORS:
            record = GraphRunner("cuda", device).run
            place = EnginePlace(vendor, precision, folder / ENGINES, device, record=record)
            ways[vendor] = partial(open_engine, folder / spec.file, spec, place)
    return ways


def reference(subject: Subject, device: torch.device) -> tuple[Tensor, ...]:
    """The outputs in the reference's type, on the host."""
    wide = copy.deepcopy(subject.piece.module).to(device, subject.exact)
    given = [
        value.to(device, subject.exact) if value.is_floating_point() else value.to(device)
        for value in subject.inputs.values()
    ]
    return tuple(part.double().cpu() for part in as_tuple(wide(*given)))


def difference(got: object, exact: tuple[Tensor, ...], spec: GraphSpec) -> float:
    """Largest absolute one over all outputs."""
    parts = [got[name] for name in spec.outputs] if isinstance(got, dict) else as_tuple(got)
    return max(
        float((part.double().cpu() - wanted).abs().max())
        for part, wanted in zip(parts, exact, strict=True)
    )


def as_tuple(outputs: object) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main("reward_graphs", cases, "A reward's network by everything that can run it."))
