"""What a machine is to the planner: the line over its work that each stage's time lies on, and the bytes that ranks exchange.

Three sources: a result of ``python -m runtime.bench --json``, costs measured by ``python -m runtime.bench.planner --measure``,
and a table computed from FLOPs for a GPU on which nothing was measured yet, which says so wherever it is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.costs import FIXED, GROWS_WITH, Costs, Work

REWARDS = ("image reward", "video reward")
LEFT_OUT = ("text", "recache")  # once per prompt
COMPUTED = "computed, not measured"


@dataclass(frozen=True, slots=True)
class Line:
    """Milliseconds of a stage: ``fixed + each * amount`` of what ``grows_with`` names."""

    fixed: float
    each: float
    grows_with: str = "rows"

    def ms(self, work: Work) -> float:
        return self.fixed + self.each * float(getattr(work, self.grows_with))


@dataclass(frozen=True, slots=True)
class Machine:
    """Costs of one device, and the sizes of what would travel."""

    name: str
    source: str  # where the costs are from; begins with ``COMPUTED`` where no clock was involved
    stages: Mapping[str, Line]
    block_bytes: float  # one chunk's keys and values
    history_blocks: int  # the most that a history holds between two chunks
    state_bytes: float  # of one history besides its blocks: decoder state, noise, latents
    clip_bytes: float  # one candidate's frames of a chunk, as rewards read them
    frames: int = 12  # pixel frames of a chunk
    fps: int = 16

    @property
    def measured(self) -> bool:
        return not self.source.startswith(COMPUTED)

    def stage_ms(self, work: Work) -> dict[str, float]:
        return {name: line.ms(work) for name, line in self.stages.items()}

    def chunk_ms(self, work: Work) -> float:
        return sum(self.stage_ms(work).values())

    def work(self, histories: float, expansions: float, stride: int = 1, videos: float = 1) -> Work:
        """What ``videos`` of so many histories and expansions do in a turn."""
        rows = videos * histories * expansions
        return Work(rows, videos * histories, rows * math.ceil(self.frames / stride))


# Work in TFLOP over 790 TFLOP/s, the dense bfloat16 rate that one H100 reached in published large products; Wan2.1-T2V-1.3B at
# 832x480 (4,680 tokens a chunk) over 12 latent frames of context. Nothing of it was timed: a real kernel reaches 50 to 80 %.
H100_TFLOP = {
    "denoise": Line(0.0, 4 * 28.29),  # four passes: 11.70 linear, 16.15 self attention, 0.44 cross
    "decode": Line(0.0, 40.65),
    "image reward": Line(0.0, 120 / 9, "pictures"),  # HPSv3
    "video reward": Line(0.0, 17.9),  # VideoAlign, 14 frames
    "memory": Line(0.0, 28.29, "kept"),  # the clean pass
}
H100_TFLOP_PER_S = 790.0


def h100() -> Machine:
    ms = {
        name: Line(0.0, 1e3 * line.each / H100_TFLOP_PER_S, line.grows_with)
        for name, line in H100_TFLOP.items()
    }
    return Machine(
        "H100, wan-1.3b at 832x480, bfloat16",
        f"{COMPUTED}: FLOPs over {H100_TFLOP_PER_S:.0f} TFLOP/s",
        ms,
        block_bytes=823 * 2**20,
        history_blocks=8,
        state_bytes=1.8e9,
        clip_bytes=12 * 3 * 480 * 832 * 2,
    )


def from_result(path: Path) -> Machine:
    """A result of ``python -m runtime.bench``: stage medians at its K and M.

    How much of a stage does not grow is not in one point: the sweep over candidates says it of the whole chunk, and that share
    is taken for every stage that grows with rows; without a sweep it is ``FIXED``. Raises ValueError for another file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        search, stages = raw["settings"]["search"], raw["stages"]
        environment, memory = raw["environment"], raw["memory"]
        histories, expansions = int(search["histories"]), int(search["expansions"])
        rows = histories * expansions
        frames, (height, width) = int(raw["chunk_frames"]), raw["latent_size"]
        amounts = {"rows": rows, "kept": histories, "pictures": rows * frames}
        share = fixed_share(raw.get("growth", {}).get("candidates", ()), rows)
        lines = {
            name: _line(float(stage["median_ms"]), GROWS_WITH.get(name, "rows"), amounts, share)
            for name, stage in stages.items()
            if name not in LEFT_OUT
        }
        # What is written is the settled video, one history's: it grows with nothing here.
        for name in ("write", "between"):
            if name in lines:
                lines[name] = Line(float(stages[name]["median_ms"]), 0.0)
        device = environment["gpu"] or environment["cpu"]
        threads = f", {environment['threads']} threads" if environment["gpu"] is None else ""
        source = f"measured: {path.name}, commit {environment['commit']}"
        clip = frames * 3 * (8 * height) * (8 * width) * 4
        return Machine(
            f"{device}{threads}, {environment['preset']}, {environment['dtype']}",
            source,
            lines,
            float(memory["block_bytes"]),
            int(memory["history_blocks"]),
            0.0,
            clip,
            frames,
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: want a result of python -m runtime.bench --json: {error!r}"
        ) from None


def from_costs(costs: Costs, name: str, source: str, sizes: Mapping[str, Any]) -> Machine:
    """Costs that were learnt from turns of several sizes."""
    lines = {
        stage: Line(*costs.line(stage), GROWS_WITH.get(stage, "rows")) for stage in costs.stages
    }
    return Machine(name, source, lines, **sizes)


def fixed_share(points: Any, rows: int) -> float:
    """The share of a chunk of ``rows`` candidates that one of none would take, by least squares over a sweep."""
    pairs = [(float(p["x"]), float(p["chunk_ms"]["median"])) for p in points]
    if len(pairs) < 2:
        return FIXED
    x = sum(a for a, _ in pairs) / len(pairs)
    y = sum(b for _, b in pairs) / len(pairs)
    slope = sum((a - x) * (b - y) for a, b in pairs) / sum((a - x) ** 2 for a, _ in pairs)
    fixed = y - slope * x
    return min(max(fixed / (fixed + slope * rows), 0.0), 0.95)


def _line(ms: float, grows_with: str, amounts: Mapping[str, float], share: float) -> Line:
    return Line(share * ms, (1 - share) * ms / amounts[grows_with], grows_with)
