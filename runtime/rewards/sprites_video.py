"""Judges clips of the embedded world over up to ten chunks: visual quality, motion quality and alignment with the caption.

Every second frame passes a small encoder that also says where things are, as angles on the torus. What moves between two
seen frames is then a difference of angles, and a temporal network reads the sequence.

Legend: B clips, T frames of a clip, n seen frames, K position heads, C features of a frame, W words.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.kernels.philox import upload
from runtime.rewards.sprites_net import (
    CELLS,
    NARROW,
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

STRIDE = 2  # frames between two seen frames
HEADS = 4
STEP_GAIN = 6.0  # brings a step of a few pixels, as an angle, to about 1


def seen_frames(frames: int) -> range:
    """Which of ``frames`` frames the reward looks at: every second one, the newest always among them."""
    return range((frames - 1) % STRIDE, frames, STRIDE)


class ClipReading(NamedTuple):
    """What the network sees in B clips. Qualities are about 0 (worst) to 1 (perfect), not clamped."""

    visual: Tensor  # [B]
    motion: Tensor  # [B]
    words: Tensor  # [B, W] logits
    # [B, n, 4] cosine and sine of the object's x, then of its y; only training looks at them.
    places: Tensor | None = None


class Places(nn.Module):
    """Where the K heads look, as mean angles on the torus, weighted by a positive map."""

    waves: Tensor  # [2, CELLS], cosine and sine of each cell's place

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(NARROW, HEADS, 1)
        angle = 2 * math.pi * (torch.arange(CELLS) + 0.5) / CELLS
        waves = torch.stack((angle.cos(), angle.sin()))  # [2, 16]
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        """fine [N, NARROW, 16, 16] -> mean (cos, sin) of x then y [N, K, 2, 2], log of the total weight [N, K]."""
        weight = F.softplus(self.weigh(fine) * 2)  # [N, K, 16, 16]
        across, down = weight.sum(2), weight.sum(3)  # each [N, K, 16]
        total = across.sum(2) + 1e-4
        moments = torch.stack((across @ self.waves.T, down @ self.waves.T), 2)  # [N, K, 2, 2]
        return moments / total[..., None, None], total.log()


class TimeBlock(nn.Module):
    """A residual temporal convolution."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, n] -> the same shape."""
        return x + self.out(F.gelu(self.mix(x)))


class VideoNet(nn.Module):
    """Frame encoder, places, temporal network, three readings."""

    def __init__(self, words: int, width: int = 96) -> None:
        super().__init__()
        self.encoder = FrameEncoder()
        self.look = nn.Linear(2 * WIDE, 64)
        self.places = Places()
        self.object_place = nn.Linear(HEADS * 4, 4)
        self.enter = nn.Conv1d(2 * 64 + HEADS * 9 + 8, width, 1)
        self.time = nn.Sequential(*(TimeBlock(width, dilation) for dilation in (1, 2, 4, 8)))
        self.hidden = nn.Linear(3 * width, 160)
        self.qualities = nn.Linear(160, 2)
        self.agreement = WordAgreement(160, words)

    def forward(self, frames: Tensor) -> ClipReading:
        """Seen frames [B, n, 3, 96, 96] in [0, 1] -> ClipReading."""
        seen = self.see(frames.flatten(0, 1))
        return self.follow(*(part.unflatten(0, frames.shape[:2]) for part in seen))

    def see(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each of the frames [N, 3, 96, 96] shows by itself: looks [N, 64], places [N, K, 2, 2], weights [N, K]."""
        fine, coarse = self.encoder(frames)
        return F.gelu(self.look(pool(coarse))), *self.places(fine)

    def follow(self, look: Tensor, moments: Tensor, total: Tensor) -> ClipReading:
        """What ``see`` makes of each clip's frames, [B, n, ...] each -> ClipReading."""
        heads = moments.flatten(3)  # [B, n, K, 4]
        place = self.object_place(heads.flatten(2))  # [B, n, 4]
        sequence = torch.cat(
            (
                look,
                change(look),
                heads.flatten(2),
                total,
                turn(heads).flatten(2),
                place,
                turn(place),
            ),
            2,
        )
        x = self.time(self.enter(sequence.transpose(1, 2)))  # [B, width, n]
        spread = (x.var(2, unbiased=False) + 1e-5).sqrt()
        seen = F.gelu(self.hidden(torch.cat((x.mean(2), x.amax(2), spread), 1)))
        visual, motion = self.qualities(seen).unbind(1)
        return ClipReading(visual, motion, self.agreement(seen), place)


def change(x: Tensor) -> Tensor:
    """Difference to the frame before, 0 for the first: [B, n, ...] -> the same shape."""
    return torch.cat((torch.zeros_like(x[:, :1]), x[:, 1:] - x[:, :-1]), 1)


def turn(places: Tensor) -> Tensor:
    """Rotation since the frame before of each (cos, sin) pair: [B, n, ..., 4] -> [B, n, ..., 4], 0 where still.

    Per axis the pair (cos of the angle - 1, sin of the angle), scaled so that a step of a few pixels is about 1.
    """
    pairs = F.normalize(places.unflatten(-1, (2, 2)), dim=-1, eps=1e-3)
    now, before = pairs[:, 1:], pairs[:, :-1]
    cosine = (now * before).sum(-1) - 1
    sine = now[..., 1] * before[..., 0] - now[..., 0] * before[..., 1]
    moved = STEP_GAIN * torch.stack((cosine, sine), -1).flatten(-2)
    return torch.cat((torch.zeros_like(places[:, :1]), moved), 1)


class SpritesVideoReward(SpritesReward):
    """VQ + MQ + TA, about 0 to 3, over up to ten chunks at 16 frames a second."""

    horizon = 10
    packaged = WEIGHTS / "video.safetensors"
    network, reading = VideoNet, ClipReading

    def picks(self, frames: int, fps: int) -> range:
        """See ``seen_frames``."""
        return seen_frames(frames)

    def _read(self, clip: Clip) -> ClipReading:
        """Every different frame is looked at once, whoever shows it; a graph looks at all."""
        frames = check_shape(clip.frames)
        seen = range(frames.shape[1]) if clip.picked else seen_frames(frames.shape[1])
        if not clip.twins or not isinstance(self.net, VideoNet):
            return self.net(prepare(frames[:, seen.start :: seen.step], self.device))
        shown = [(row[frame], frame) for row in clip.twins for frame in seen]
        numbers = {place: number for number, place in enumerate(dict.fromkeys(shown))}
        different = torch.stack([frames[row, frame] for row, frame in numbers])
        index = upload([numbers[place] for place in shown], torch.int64, self.device)
        parts = self.net.see(prepare(different[None], self.device)[0])
        count = len(frames), len(seen)
        return self.net.follow(*(part.index_select(0, index).unflatten(0, count) for part in parts))

    @torch.inference_mode()
    def detail(self, clip: Clip) -> Tensor:
        """[B, 3] fp32: visual quality VQ, motion quality MQ, text alignment TA, each about 0 to 1."""
        reading = self._read(clip)
        ids = known_words(clip.prompt, self.words)
        return torch.stack((reading.visual, reading.motion, agreement(reading.words, ids)), 1)

    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better; see ``detail``."""
        return self.detail(clip).sum(1)
