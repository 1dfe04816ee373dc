"""Judges single frames of the embedded world: how good the picture is and how well it fits the caption.

Legend: B clips, T frames of a clip, N frames, W words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.sprites_net import (
    WEIGHTS,
    WIDE,
    FrameEncoder,
    WordAgreement,
    agreement,
    check_shape,
    known_words,
    pool,
    prepare,
)
from runtime.rewards.sprites_reward import SpritesReward
from runtime.types import Clip

FRAMES_AT_ONCE = 256  # bounds the memory of one forward pass


class FrameReading(NamedTuple):
    """What the network sees in N frames."""

    quality: Tensor  # [N] about 0 (worst) to 1 (perfect), not clamped
    words: Tensor  # [N, W] logits


class ImageNet(nn.Module):
    """Frame encoder, one hidden layer, two readings."""

    def __init__(self, words: int, width: int = 128) -> None:
        super().__init__()
        self.encoder = FrameEncoder()
        self.hidden = nn.Linear(2 * WIDE, width)
        self.quality = nn.Linear(width, 1)
        self.agreement = WordAgreement(width, words)

    def forward(self, frames: Tensor) -> FrameReading:
        """frames [N, 3, 96, 96] in [0, 1] -> FrameReading."""
        seen = F.gelu(self.hidden(pool(self.encoder(frames)[1])))
        return FrameReading(self.quality(seen)[:, 0], self.agreement(seen))


class SpritesImageReward(SpritesReward):
    """Mean over frames of (quality + alignment) / 2, about 0 to 1. Looks at the newest chunk only."""

    horizon = 1
    packaged = WEIGHTS / "image.safetensors"
    network, reading = ImageNet, FrameReading

    @torch.inference_mode()
    def detail(self, clip: Clip) -> Tensor:
        """[B, 2] fp32: picture quality and alignment with the prompt's static words, each a mean over frames."""
        frames = prepare(check_shape(clip.frames), self.device)
        ids = known_words(clip.prompt, self.words)
        parts = []
        for some in frames.flatten(0, 1).split(FRAMES_AT_ONCE):
            reading = self.net(some)
            parts.append(torch.stack((reading.quality, agreement(reading.words, ids)), 1))
        return torch.cat(parts).view(*frames.shape[:2], 2).mean(1)

    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better; see ``detail``."""
        return self.detail(clip).mean(1)
