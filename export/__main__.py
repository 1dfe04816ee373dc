"""``python -m runtime.export REWARD --to onnx|tensorrt|tensorrt-rtx -o DIR``: a reward's network as graphs.

Writes ``DIR/REWARD/``: an .onnx file and its weights for every graph, and export.json, which says what goes in and out,
what was measured and the sha256 of every file. ``--to tensorrt`` exports where nothing fitting lies there yet, then builds
engines into ``DIR/REWARD/engines/``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from runtime.arguments import Parser
from runtime.backends import weights_hash
from runtime.export.folder import check_free, replaced
from runtime.export.graph import OPSET, write_graph
from runtime.export.pieces import RECIPES, Plan, Wanted, make_plan
from runtime.export.verify import check, measure
from runtime.exported import FILE, PRECISIONS, Exported, GraphSpec, read_export

TARGETS = ("onnx", "tensorrt", "tensorrt-rtx")
EMBEDDED = ("sprites-image", "sprites-video")  # small enough to be verified always

TWIN = (
    "not verified as it is, for onnxruntime's CPU has no bfloat16 products: a twin with the same 8-bit products "
    "and float32 around them ran there, and what differs is mostly the rounding to 8 bits"
)


def export(wanted: Wanted, output: Path, verify: bool = False) -> Exported:
    """Write ``output/<reward>`` and return what it says.

    Raises ValueError for what cannot be exported, RuntimeError when a check fails; then nothing is kept.
    """
    target = output / wanted.reward
    check_free(target)
    plan = make_plan(wanted)
    with replaced(target) as folder:
        specs = write_graphs(wanted, plan, folder)
        differences, verified = {}, "not verified: not asked for"
        if verify or wanted.reward in EMBEDDED:
            differences, verified = verification(wanted, plan, specs, folder)
        exported = Exported(
            folder=target,
            reward=wanted.reward,
            precision=wanted.precision,
            weights_sha256=plan.weights_sha256,
            versions=versions(),
            largest_difference=differences,
            constants={**plan.constants, "asked": wanted.sizes},
            graphs=specs,
            verified=verified,
        )
        (folder / FILE).write_text(exported.to_json())
        read_export(folder)  # what we wrote is what we read
    return exported


def write_graphs(wanted: Wanted, plan: Plan, folder: Path) -> dict[str, GraphSpec]:
    """Every piece of the plan as a graph in ``folder``."""
    if wanted.precision == "fp8":
        from runtime.export.fp8 import Rounding

        rounding = Rounding.calibrated(plan)
        return {name: write_graph(name, piece, folder, rounding.of(name)) for name, piece in plan.pieces.items()}  # fmt: skip
    return {name: write_graph(name, piece, folder) for name, piece in plan.pieces.items()}


def verification(
    wanted: Wanted, plan: Plan, specs: Mapping[str, GraphSpec], folder: Path
) -> tuple[dict[str, float], str]:
    """What was measured, and how. RuntimeError when scores differ by more than the precision explains."""
    if wanted.precision == "bf16":
        return {}, "not verified: onnxruntime's CPU has no bfloat16 products"
    if wanted.precision == "fp8":
        twin = dataclasses.replace(wanted, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as name:
            theirs = make_plan(twin)
            differences = measure(theirs, write_graphs(twin, theirs, Path(name)), Path(name))
        return differences, TWIN
    differences = measure(plan, specs, folder)
    check(wanted.reward, wanted.precision, differences)
    return differences, "onnxruntime on the CPU against torch in float32"


def versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import onnxscript

    packages = {"onnx": onnx, "onnxruntime": onnxruntime, "onnxscript": onnxscript, "torch": torch}
    return {name: package.__version__ for name, package in packages.items()} | {"opset": str(OPSET)}


def there_already(wanted: Wanted, output: Path) -> Exported | None:
    """What lies there whole and is what is wanted: the same weights, precision and sizes."""
    folder = output / wanted.reward
    if not (folder / FILE).is_file():
        return None
    exported = read_export(folder)
    exported.verify()
    theirs = exported.precision, exported.weights_sha256, exported.constants.get("asked")
    ours = wanted.precision, weights_hash(wanted.reward, wanted.weights), wanted.sizes
    return exported if theirs == ours else None


def build(exported: Exported, target: str, keep_log: bool) -> None:
    """Engines beside the graphs: for this machine's GPU, or without one, where the library can, for any that it knows."""
    # By name, for a checkout without it can still export.
    importlib.import_module("runtime.export.tensorrt").build_engines(exported, target, keep_log)


def size(text: str) -> tuple[int, int]:
    """``480x832`` as height and width."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 1 <= int(side) <= 8192 for side in sides):
        raise argparse.ArgumentTypeError(
            f"want HEIGHTxWIDTH in pixels, as in 480x832, got {text!r}"
        )
    return int(sides[0]), int(sides[1])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    text = "Write a reward's network as graphs for onnxruntime or TensorRT."
    parser = Parser(prog="python -m runtime.export", description=text)
    add = parser.add_argument
    known = ", ".join(sorted(RECIPES))
    add("reward", choices=sorted(RECIPES), metavar="REWARD", help=known)
    add("--to", choices=TARGETS, default="onnx", help="default: %(default)s")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="becomes reward.graphs")
    add("--weights", default="", metavar="DIR", help="as reward.weights; random: none, for timing")
    text = "fp32, fp16, bf16; fp8: 8-bit products in bf16"
    add("--precision", choices=PRECISIONS, default="fp32", help=text)
    add("--frame-size", type=size, metavar="HxW", help="of the video (default: 480x832)")
    add("--frames", type=int, metavar="N", help="of the longest clip (default: ten chunks)")
    text = "of the longest prompt (default: %(default)s)"
    add("--prompt-words", type=int, default=256, metavar="N", help=text)
    text = "compare scores with torch; always done for the embedded rewards"
    add("--verify", action="store_true", help=text)
    add("--keep-log", action="store_true", help="keep the builder's log beside the engines")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Do what is asked for; a line that says what lies where."""
    wanted = Wanted(
        reward=options.reward,
        precision=options.precision,
        weights=options.weights,
        frame_size=options.frame_size,
        frames=options.frames,
        prompt_words=options.prompt_words,
    )
    exported = None if options.to == "onnx" else there_already(wanted, options.output)
    exported = exported or export(wanted, options.output, options.verify)
    if options.to != "onnx":
        build(exported, options.to, options.keep_log)
    names = [name for graph in exported.graphs.values() for name in graph.files]
    size_bytes = sum((exported.folder / name).stat().st_size for name in names)
    worst = exported.largest_difference.get("scores")
    found = exported.verified
    if worst is not None:
        found = f"scores differ from torch by {worst:.1e} ({exported.verified})"
    return f"{exported.folder.resolve()} ({size_bytes / 2**20:.1f} MiB), {found}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say. Exit codes: 0 done, 1 the machine or a check failed, 2 the call or a file was wrong."""
    try:
        print(run(parse(arguments)))
    except ImportError as error:
        extra = "pip install 'stream-t1-runtime[onnx]'"
        print(f"error: {error.name} is missing; run `{extra}`", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
