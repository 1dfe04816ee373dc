"""Judges videos of the embedded world: five analytic columns, the video reward's three, and whether all is as the caption says.

Legend: T frames of a video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from runtime.bench.quality.prompts import split
from runtime.bench.quality.row import REWARDED, RIGHT
from runtime.bench.quality.sprites_measures import measure, spans
from runtime.bench.quality.worlds import Judged, Wishes, source_version
from runtime.bench.sprites.checker import JUDGED, check_track
from runtime.bench.sprites.tracking import Track, track
from runtime.bench.sprites.world import FPS, Caption
from runtime.presets import PRESETS
from runtime.rewards.sprites_video import SpritesVideoReward
from runtime.types import Clip

FIRST, LATER = 9, 12  # pixel frames of the first chunk, and of every other
ATTRIBUTES = (*JUDGED, "speed")
SOURCES = (
    *(f"runtime.bench.quality.{name}" for name in ("row", "sprites_measures", "sprites_world")),
    *(f"runtime.bench.sprites.{name}" for name in ("checker", "tracking", "motion_fit", "world")),
    *(f"runtime.rewards.{name}" for name in ("sprites_net", "sprites_video")),
)


class SpritesWorld:
    """Captions that training never saw, with a ground truth for every word."""

    name = "sprites"
    changes: Mapping[str, Any] = PRESETS["sprites"]

    def __init__(self, split: str = "held-out", device: str | torch.device = "cpu") -> None:
        self.split = split
        self.reward = SpritesVideoReward.load(device)
        weights = hashlib.sha256(SpritesVideoReward.packaged.read_bytes()).hexdigest()[:12]
        self.version = f"{source_version(*SOURCES)} {weights}"
        self.captions: list[Caption] = []

    @staticmethod
    def load(wishes: Wishes) -> SpritesWorld:
        """ValueError for prompts of one's own: without a ground truth there is nothing to measure."""
        if wishes.prompts_file is not None:
            raise ValueError(
                f"--prompts-file: this world judges by its own captions alone, got {wishes.prompts_file}; "
                f"use --world vbench or moviegen, or leave it out"
            )
        return SpritesWorld(wishes.split, wishes.device)

    def texts(self, count: int) -> list[str]:
        """The first ``count`` prompts of the split; ``judge`` knows a video by its prompt's index."""
        self.captions = split(self.split, count)
        return [caption.text for caption in self.captions]

    def judge(self, frames: Tensor, index: int, fps: int) -> Judged:
        """A whole video of prompt ``index``: frames uint8 [T, 3, 96, 96]. ValueError for another size or pace."""
        if fps != FPS:
            raise ValueError(f"fps: want {FPS}, the pace of this world, got {fps}")
        return judge(frames, self.captions[index], self.reward)


def judge(frames: Tensor, caption: Caption, reward: SpritesVideoReward) -> Judged:
    """``SpritesWorld.judge`` for any caption; frames may be float in [0, 1], too."""
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    found = track(frames)
    measured = measure(frames, caption, found)
    verdict = check_track(found, caption)
    parts = spans(len(frames))
    learned = _learned(frames, caption, reward, [part.stop for part in parts])
    held = tuple(float(check_track(_part(found, part), caption).all_right) for part in parts)
    return Judged(
        scores=measured.scores()
        | {name: values[0] for name, values in learned.items()}
        | {RIGHT: float(verdict.all_right)},
        right={name: verdict.right(name) for name in ATTRIBUTES},
        seen={name: getattr(verdict.seen, name) for name in ATTRIBUTES},
        over_time=measured.over_time()
        | {name: values[1:] for name, values in learned.items()}
        | {RIGHT: held},
    )


def _learned(
    frames: Tensor, caption: Caption, reward: SpritesVideoReward, ends: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """VQ, MQ and TA: of the whole video, then at each of ``ends`` as a search sees them there, over the last ten chunks.

    The whole video's are means over windows of ten chunks side by side from its beginning; the last one ends with it.
    """
    window = FIRST + (reward.horizon - 1) * LATER
    whole = [min(end, len(frames)) for end in range(window, len(frames) + window, window)]
    told = {
        end: _detail(reward, frames[max(end - window, 0) : end], caption) for end in {*whole, *ends}
    }
    mean = torch.stack([told[end] for end in whole]).mean(0)
    columns = torch.stack([mean, *(told[end] for end in ends)]).T.tolist()
    return dict(zip(REWARDED, map(tuple, columns), strict=True))


def _detail(reward: SpritesVideoReward, frames: Tensor, caption: Caption) -> Tensor:
    return reward.detail(Clip(frames[None], caption.text, FPS, 0))[0].double().cpu()


def _part(found: Track, span: slice) -> Track:
    """What was tracked in some frames."""
    return Track(**{part.name: getattr(found, part.name)[span] for part in fields(Track)})
