"""Runs the reward models on what they want to see, fuses their scores and decides each candidate's route.

The one place between noise and selection where numbers come to the host: one copy per chunk, one more for an early choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.settings import MemorySettings, RewardSettings
from runtime.types import Branch, Clip, Picking, RewardModel, Route, Scores, Trajectory, row_ranges
from runtime.window import Window


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the video a batch of clips ends."""

    prompt: str
    fps: int
    chunk: int  # index of the newest chunk
    chunks: int  # of the whole video


class Scorer:
    """Image reward over the newest chunk, video reward over the recent window, two gates."""

    def __init__(
        self,
        image: RewardModel | None,
        video: RewardModel | None,
        reward: RewardSettings,
        memory: MemorySettings,
        released: bool,
        batch_rows: int = 0,
    ) -> None:
        self.image, self.video, self.batch_rows = image, video, batch_rows
        self.reward, self.memory, self.released = reward, memory, released

    def rate_images(
        self, frames: Tensor, spans: Sequence[slice], places: Sequence[Place]
    ) -> Tensor:
        """Image reward [B] of the newest chunk's frames [B, T, 3, H, W], of every ``stride``-th counted from the last.

        Rows ``spans[i]`` belong to the video at ``places[i]``.
        """
        stride = self.reward.stride
        picked = frames[:, (frames.shape[1] - 1) % stride :: stride]
        windows = [Window(picked[span]) for span in spans]
        return self._rate_all(self.image, windows, places, "image")

    def rate_videos(self, windows: Sequence[Window], places: Sequence[Place]) -> Tensor:
        """Video reward [B] of the recent windows of the videos at ``places``."""
        return self._rate_all(self.video, windows, places, "video")

    def rate_drafts(self, frames: Tensor, place: Place) -> list[float]:
        """Image reward of unfinished candidates, [B, T, 3, H, W] -> B numbers on the host, for an early choice."""
        return self.on_host(self._rate(self.image, Window(frames), place, "draft"))

    @staticmethod
    def on_host(scores: Tensor) -> list[float]:
        """Scores [B] as numbers, as soon as the current stream has them."""
        return scores.double().cpu().tolist()

    def rate_whole(
        self,
        videos: Sequence[Tensor],
        place: Place,
        model: RewardModel | None = None,
        alone: bool = False,
    ) -> list[float]:
        """What ``model`` (default: the video reward) thinks of whole videos, each [T, 3, H, W], as numbers on the host.

        ``alone``: each is rated by itself, so that its score does not depend on its company.
        """
        stacks = [frames[None] for frames in videos] if alone else [torch.stack(list(videos))]
        rated = [self._rate(model or self.video, Window(one), place, "final") for one in stacks]
        return self.on_host(torch.cat(rated))

    def decide(
        self, branches: Sequence[Branch], shorts: Tensor, longs: Tensor, place: Place
    ) -> list[tuple[Scores, Route]]:
        """Scores and route of every candidate from its two rewards [B] each."""
        rewards = torch.stack([shorts.double(), longs.to(shorts.device).double()], dim=1)
        table = rewards.cpu().tolist()
        weight = image_weight(place.chunk, place.chunks, self.reward.tau)
        return [
            self._judge(branch.parent, short, long, weight, place.chunk)
            for branch, (short, long) in zip(branches, table, strict=True)
        ]

    def _rate_all(
        self,
        model: RewardModel | None,
        windows: Sequence[Window],
        places: Sequence[Place],
        kind: str,
    ) -> Tensor:
        rated = zip(windows, places, strict=True)
        return torch.cat([self._rate(model, window, place, kind) for window, place in rated])

    def _rate(self, model: RewardModel | None, window: Window, place: Place, kind: str) -> Tensor:
        assert model is not None, (
            f"the policy asks the {kind} reward but the engine was built without one"
        )
        scores = []
        for rows in row_ranges(len(window), self.batch_rows):
            part = window[rows.start : rows.stop]
            clip = clip_for(model, part, place)
            scores.append(model.score(clip))
            if scores[-1].shape != (len(part),):
                raise RuntimeError(
                    f"{kind} reward: want one score per clip [{len(part)}], "
                    f"got {list(scores[-1].shape)}"
                )
            if clip.picked:
                scores[-1] = scores[-1] + doubt(part.newest).to(scores[-1].device)
        return torch.cat(scores)

    def _judge(
        self, parent: Trajectory, short: float, long: float, weight: float, chunk: int
    ) -> tuple[Scores, Route]:
        fused = weight * short + (1 - weight) * long
        if chunk == 0:
            return Scores(short, long, fused), Route.DISCARD
        if self.released:
            mean = parent.short_sum / chunk
        else:
            mean = sum(parent.shorts) / len(parent.shorts)
        gain, drop = short - mean, parent.long - long
        route = Route.DISCARD
        if gain > self.memory.quality_threshold:
            route = Route.APPEND if drop > self.memory.transition_threshold else Route.EMA
        return Scores(short, long, fused, gain, drop), route


def best_of(scores: Sequence[float]) -> int:
    """The highest, the earliest of equals; one that is not finite never wins unless none is."""
    return max(range(len(scores)), key=lambda row: (math.isfinite(scores[row]), scores[row], -row))


def clip_for(model: RewardModel, window: Window, place: Place) -> Clip:
    """What ``model`` is shown of a window: all of it, or the frames that it picks."""
    if isinstance(model, Picking):
        picks = model.picks(window.frames, place.fps)
        frames, twins, picked = window.pick(picks), window.twins(picks), True
    else:
        frames, twins, picked = window.whole(), window.twins(range(window.frames)), False
    return Clip(frames, place.prompt, place.fps, place.chunk, twins, picked)


def doubt(frames: Tensor) -> Tensor:
    """[B] float32 of frames [B, T, 3, H, W]: NaN for a row with a pixel that is not finite, else 0.

    Added to a score whose reward did not see every new frame; the older ones were seen by rewards before.
    """
    return frames.sum((1, 2, 3, 4), dtype=torch.float32).mul(0)


def image_weight(chunk: int, chunks: int, tau: float) -> float:
    """The image reward's share, growing with the chunk index up to ``tau``; 0 for a video of one chunk."""
    return min(chunk / (chunks - 1), tau) if chunks > 1 else 0.0
