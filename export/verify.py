"""Holds exported graphs against torch: whole scores on clips and prompts of several sizes, and every graph's outputs.

The measure is the largest difference over the largest value that torch gives, but at least 1: relative where scores are
large, absolute where they are small. Scores are held against torch's in float32, whatever the graphs compute in; narrower
graphs may be off by as much again as torch is in their dtype. A graph's outputs are held against its module in that dtype.
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
TORCH = "scores of torch"  # its own difference, in the dtype of the graphs


class ModuleGraph:
    """A piece by torch, behind the call of a graph."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = self.piece.module(*(inputs[name] for name in self.piece.inputs))
        parts = made if isinstance(made, tuple) else (made,)
        return dict(zip(self.piece.outputs, parts, strict=True))


class Compared:
    """A graph that is held against its module at every call."""

    def __init__(self, graph: Compiled, wanted: ModuleGraph) -> None:
        self.graph, self.wanted = graph, wanted
        self.worst = 0.0

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        got, wanted = self.graph(inputs), self.wanted(inputs)
        self.worst = max(self.worst, *(difference(got[name], wanted[name]) for name in wanted))
        return got


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value, or 1; infinite where either is not finite."""
    if got.shape != wanted.shape or not (got.isfinite().all() and wanted.isfinite().all()):
        return float("inf")
    scale = max(wanted.abs().max().item(), 1.0)
    return (got.double() - wanted.double()).abs().max().item() / scale


def measure(plan: Plan, specs: Mapping[str, GraphSpec], folder: Path) -> dict[str, float]:
    """Largest difference of the scores, of torch's own in the graphs' dtype, and of every graph's outputs; on the CPU."""
    modules = {name: ModuleGraph(piece) for name, piece in plan.pieces.items()}
    graphs = {
        name: Compared(OrtGraph(folder / spec.file, spec), modules[name])
        for name, spec in specs.items()
    }
    exact = [plan.reward.score(clip) for clip in plan.clips()]

    def worst(graphs: Mapping[str, Compiled]) -> float:
        reward = plan.on_graphs(graphs)
        scores = [reward.score(clip) for clip in plan.clips()]
        return max(difference(got, wanted) for got, wanted in zip(scores, exact, strict=True))

    return {
        "scores": worst(graphs),
        TORCH: worst(modules),
        **{name: graph.worst for name, graph in graphs.items()},
    }


def check(reward: str, precision: str, differences: Mapping[str, float]) -> None:
    """RuntimeError when scores differ by more than the precision explains."""
    allowed = TOLERANCE[precision]
    if precision != "fp32":
        allowed = max(allowed, 2 * differences[TORCH])
    if not differences["scores"] <= allowed:
        parts = ", ".join(f"{name} {worst:.1e}" for name, worst in differences.items())
        raise RuntimeError(
            f"{reward}: want scores within {allowed:.0e} of torch's in {precision}, got {parts}; nothing was kept"
        )
