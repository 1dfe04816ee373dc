"""Holds exported graphs against torch: whole scores on clips and prompts of several sizes, and every graph's outputs.

The measure is the largest difference over the largest value that torch gives, but at least 1: relative where scores are
large, absolute where they are small. torch computes in float32, whatever the graphs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runtime.export.pieces import Piece, Plan
from runtime.exported import GraphSpec
from runtime.ort import OrtGraph
from runtime.types import Compiled

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3}  # of scores
NOT_HERE = {  # precision -> why onnxruntime cannot say
    "bf16": "not verified: onnxruntime's CPU has no bfloat16 products",
    "fp8": "not verified: onnxruntime's CPU has no 8-bit products in bfloat16",
}


class Compared:
    """A graph that is held against its module at every call."""

    def __init__(self, graph: Compiled, piece: Piece) -> None:
        self.graph, self.piece = graph, piece
        self.worst = 0.0

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        got = self.graph(inputs)
        wanted = self.piece.module(*(inputs[name] for name in self.piece.inputs))
        parts = wanted if isinstance(wanted, tuple) else (wanted,)
        for name, part in zip(self.piece.outputs, parts, strict=True):
            self.worst = max(self.worst, difference(got[name], part))
        return got


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value, or 1; infinite where either is not finite."""
    if got.shape != wanted.shape or not (got.isfinite().all() and wanted.isfinite().all()):
        return float("inf")
    scale = max(wanted.abs().max().item(), 1.0)
    return (got.double() - wanted.double()).abs().max().item() / scale


def measure(plan: Plan, specs: Mapping[str, GraphSpec], folder: Path) -> dict[str, float]:
    """Largest difference of the scores and of every graph's outputs, by onnxruntime on the CPU."""
    graphs = {
        name: Compared(OrtGraph(folder / spec.file, spec), plan.pieces[name])
        for name, spec in specs.items()
    }
    reward = plan.on_graphs(graphs)
    scores = max(difference(reward.score(clip), plan.reward.score(clip)) for clip in plan.clips())
    return {"scores": scores, **{name: graph.worst for name, graph in graphs.items()}}


def check(reward: str, precision: str, differences: Mapping[str, float]) -> None:
    """RuntimeError when scores differ by more than the precision explains."""
    if differences["scores"] > TOLERANCE[precision]:
        parts = ", ".join(f"{name} {worst:.1e}" for name, worst in differences.items())
        raise RuntimeError(
            f"{reward}: want scores within {TOLERANCE[precision]:.0e} of torch's in {precision}, got {parts}; nothing was kept"
        )
