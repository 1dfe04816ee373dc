"""Judges videos of the embedded world: five analytic columns, the video reward's three, and whether all is as the caption says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from runtime.bench.quality.row import REWARDED, RIGHT, SPAN
from runtime.bench.quality.sprites_measures import measure
from runtime.bench.sprites.checker import JUDGED, check_track
from runtime.bench.sprites.tracking import Track, track
from runtime.bench.sprites.world import FPS, Caption, held_out_captions
from runtime.rewards.sprites_video import SpritesVideoReward
from runtime.types import Clip

REWARD_FRAMES = 9 + 9 * 12  # of ten chunks, the most that the video reward looks at in a search
ATTRIBUTES = (*JUDGED, "speed")


@dataclass(frozen=True, slots=True)
class Judged:
    """What a world says of one video; the fields are those of ``row.Row``."""

    scores: Mapping[str, float]
    right: Mapping[str, bool] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)
    over_time: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class SpritesWorld:
    """Captions that training never saw, with a ground truth for every word."""

    name = "sprites"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.reward = SpritesVideoReward.load(device)
        self.captions: list[Caption] = []

    def texts(self, count: int) -> list[str]:
        """The first ``count`` prompts; ``judge`` knows a video by its prompt's index."""
        self.captions = held_out_captions(count)
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
    ends = range(REWARD_FRAMES, len(frames) + REWARD_FRAMES, REWARD_FRAMES)
    spans = range(SPAN, len(frames) + SPAN, SPAN)
    rewards = [_detail(reward, frames, end, caption) for end in ends]
    then = [_detail(reward, frames, end, caption) for end in spans]
    held = tuple(
        float(check_track(_part(found, end - SPAN, end), caption).all_right) for end in spans
    )
    means = torch.stack(rewards).mean(0).tolist()
    return Judged(
        scores=measured.scores()
        | dict(zip(REWARDED, means, strict=True))
        | {RIGHT: float(verdict.all_right)},
        right={name: verdict.right(name) for name in ATTRIBUTES},
        seen={name: getattr(verdict.seen, name) for name in ATTRIBUTES},
        over_time=measured.spans(SPAN)
        | dict(zip(REWARDED, map(tuple, torch.stack(then, 1).tolist()), strict=True))
        | {RIGHT: held},
    )


def _detail(reward: SpritesVideoReward, frames: Tensor, end: int, caption: Caption) -> Tensor:
    """VQ, MQ and TA of the ten chunks that end before frame ``end``, or at the video's end: [3]."""
    last = min(end, len(frames))
    clip = frames[max(last - REWARD_FRAMES, 0) : last]
    return reward.detail(Clip(clip[None], caption.text, FPS, 0))[0].double().cpu()


def _part(found: Track, first: int, last: int) -> Track:
    """What was tracked from frame ``first`` up to ``last``."""
    return Track(**{part.name: getattr(found, part.name)[first:last] for part in fields(Track)})
