"""One video of one method, judged: what every table, curve and picture of the comparison is made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The paper's columns, in its order. The first five are measured, the last three are the video reward's.
COLUMNS = ("Subject", "Background", "Motion", "Imaging", "Aesthetic", "VQ", "MQ", "TA")
MEASURED, REWARDED = COLUMNS[:5], COLUMNS[5:]
RIGHT = (
    "All right"  # of the sprites world only: share of videos that show all that the caption says
)

SPAN = 48  # frames of one value in ``Row.over_time``: three seconds


@dataclass(frozen=True, slots=True)
class Key:
    """Which video: two rows with one key are the same video."""

    world: str  # "sprites", "vbench", "moviegen"
    seconds: float
    method: str  # a name of ``runtime.bench.quality.methods.METHODS``, or that of a sweep's point
    prompt: int  # index into the world's prompt list
    seed: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What the video took. Counts are exact; seconds are the batch's wall time shared evenly by its videos."""

    passes: int  # chunk forwards through the generator: denoising and clean ones, one per candidate
    decoder_frames: int  # pixel frames that any decoder drew, for rewards or for the video
    image_rewards: int  # frames that the image reward judged
    video_rewards: int  # clips that the video reward judged
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """Scores in the paper's columns, costs, and what pictures need. Missing scores are NaN, ``null`` in JSON."""

    key: Key
    text: str  # the prompt
    scores: Mapping[str, float]  # COLUMNS, and RIGHT (1.0 or 0.0) where there is ground truth
    cost: Cost
    right: Mapping[str, bool] = field(default_factory=dict)  # attribute -> as the caption says
    seen: Mapping[str, str] = field(default_factory=dict)  # attribute -> the word that was seen
    # column -> its value in consecutive spans of ``SPAN`` frames, for drift curves; RIGHT too
    over_time: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    routes: tuple[str, ...] = ()  # of the video's chunks, in order: "discard", "ema", "append"
    file: str = ""  # of the frames, relative to the run's folder; "" if they were not kept

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        return {
            "key": {name: getattr(self.key, name) for name in Key.__slots__},
            "text": self.text,
            "scores": {name: _plain(value) for name, value in self.scores.items()},
            "cost": {name: getattr(self.cost, name) for name in Cost.__slots__},
            "right": dict(self.right),
            "seen": dict(self.seen),
            "over_time": {n: [_plain(v) for v in values] for n, values in self.over_time.items()},
            "routes": list(self.routes),
            "file": self.file,
        }

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> Row:
        """The row of ``to_json``. KeyError or TypeError for anything else."""
        return Row(
            key=Key(**table["key"]),
            text=table["text"],
            scores={name: _number(value) for name, value in table["scores"].items()},
            cost=Cost(**table["cost"]),
            right=table["right"],
            seen=table["seen"],
            over_time={n: tuple(map(_number, v)) for n, v in table["over_time"].items()},
            routes=tuple(table["routes"]),
            file=table["file"],
        )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
