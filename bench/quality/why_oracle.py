"""A reward that is the judge itself. It shows how far search could go in this world, and is never a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.bench.quality.why_judge import TOTAL, judge
from runtime.bench.sprites.world import Caption, all_captions
from runtime.parts import Parts
from runtime.types import Clip

# About the scales of the learned rewards, so that the gates' thresholds mean something alike.
IMAGE_SCALE, VIDEO_SCALE = 2.0, 3.0


@dataclass(frozen=True)
class Oracle:
    """Scores a clip by ``Total`` of the analytic judge."""

    captions: Mapping[str, Caption]  # by their text
    horizon: int  # chunks
    scale: float

    def score(self, clip: Clip) -> Tensor:
        """[B] float32 in [0, scale]. KeyError for a prompt that is no caption of the world."""
        caption = self.captions[clip.prompt]
        totals = [judge(frames, caption)[TOTAL] for frames in clip.frames.float().cpu()]
        return self.scale * torch.tensor(totals)


def with_oracle(parts: Parts) -> Parts:
    """The same generator, steered by the judge instead of rewards; the last choice between whole videos is its, too."""
    captions = {caption.text: caption for caption in all_captions()}
    horizon = parts.video.horizon if parts.video else 10
    image, video = Oracle(captions, 1, IMAGE_SCALE), Oracle(captions, horizon, VIDEO_SCALE)
    return replace(parts, image=image, video=video, final=video, backings={})
