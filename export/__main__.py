"""``python -m runtime.export REWARD -o DIR``: the network of an embedded reward as ONNX, checked against torch.

Writes ``REWARD.onnx`` and ``REWARD.json``, a manifest with the hash of the graph and of the weights it came from, its input
and outputs, the vocabulary that its word logits index, versions, and the largest difference to torch that was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.rewards import load_reward
from runtime.rewards.sprites_net import SIDE, WEIGHTS

TOLERANCE = 1e-4  # absolute, on outputs of order 1 to 10, float32 on both sides


@dataclass(frozen=True)
class Graph:
    """What one reward's network looks like from outside. The first axis is the batch and stays free."""

    weights: str
    outputs: tuple[str, ...]
    frames: int | None  # free second axis of clips, or None for single frames

    def example(self, batch: int, frames: int) -> Tensor:
        shape = (batch, 3, SIDE, SIDE) if self.frames is None else (batch, frames, 3, SIDE, SIDE)
        return torch.rand(shape, generator=torch.Generator().manual_seed(batch * 100 + frames))


GRAPHS = {
    "sprites-image": Graph("image", ("quality", "words"), None),
    "sprites-video": Graph("video", ("visual", "motion", "words"), 6),
}


class Outputs(nn.Module):
    """A reward's network with only the outputs that scoring reads."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        reading = self.net(frames)
        return tuple(getattr(reading, name) for name in self.names)


def export(name: str, folder: Path) -> dict[str, Any]:
    """Write graph and manifest of the reward called ``name`` into ``folder`` and return the manifest.

    Raises ValueError for an unknown reward and RuntimeError when onnxruntime disagrees with torch; then nothing is kept.
    """
    if name not in GRAPHS:
        raise ValueError(f"reward: want one of {', '.join(GRAPHS)}, got {name!r}")
    graph, reward = GRAPHS[name], load_reward(name)
    module = Outputs(reward.net, graph.outputs).eval()  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    draft, path = folder / f"{name}.part.onnx", folder / f"{name}.onnx"
    _write(module, graph, draft)
    error = largest_difference(module, graph, draft)
    if error > TOLERANCE:
        draft.unlink()
        raise RuntimeError(
            f"{name}: onnxruntime differs from torch by {error:.1e}, want {TOLERANCE}"
        )
    draft.replace(path)
    manifest = {
        "reward": name,
        "input": {"frames": list(graph.example(1, graph.frames or 1).shape), "range": [0, 1]},
        "outputs": list(graph.outputs),
        "words": list(reward.words),  # type: ignore[attr-defined]
        "onnx_sha256": _sha256(path),
        "weights_sha256": _sha256(WEIGHTS / f"{graph.weights}.safetensors"),
        "torch": torch.__version__,
        "max_difference": error,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _write(module: nn.Module, graph: Graph, path: Path) -> None:
    axes = {0: torch.export.Dim("batch", min=1, max=4096)}
    if graph.frames is not None:
        axes[1] = torch.export.Dim("frames", min=2, max=4096)
    program = torch.onnx.export(
        module,
        (graph.example(2, graph.frames or 1),),
        dynamo=True,
        input_names=["frames"],
        output_names=list(graph.outputs),
        dynamic_shapes=(axes,),
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)


def largest_difference(module: nn.Module, graph: Graph, path: Path) -> float:
    """Largest absolute difference between torch and onnxruntime over batches and lengths that were not traced."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, frames in ((1, 5), (3, 9), (4, 16)):
        example = graph.example(batch, frames)
        with torch.no_grad():
            wanted = module(example)
        got = session.run(None, {"frames": example.numpy()})
        for a, b in zip(wanted, got, strict=True):
            worst = max(worst, (a - torch.from_numpy(b)).abs().max().item())
    return worst


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.export", description=__doc__)
    parser.add_argument("reward", choices=GRAPHS)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    try:
        manifest = export(args.reward, args.output)
    except ImportError as error:
        print(
            f"error: {error.name} is missing; run `pip install 'stream-t1-runtime[onnx]'`",
            file=sys.stderr,
        )
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = (args.output / f"{args.reward}.onnx").resolve()
    print(
        f"{path} ({path.stat().st_size / 1024:.0f} KiB), differs from torch by {manifest['max_difference']:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
