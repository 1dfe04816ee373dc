"""Rates a clip's looks, its motion and its fit to the prompt: VideoAlign's VideoReward on a Qwen2-VL-2B.

    score = sum over VQ, MQ, TA of (output at its token - mean) / std

Source  Liu et al., "Improving Video Generation with Human Feedback" (VideoAlign), 2025: backbone, tokens, head, constants,
        sampling. The rubric comes with the weights; see ``qwen2vl_words``.
Legend: B clips, T frames of a clip, n sampled frames, R = 3 read-out tokens, O outputs of the head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from runtime.rewards.qwen2vl import QWEN2VL_2B
from runtime.rewards.qwen2vl_judge import Judge, Kind, PixelBounds, Questions, check_clip, spoil_
from runtime.rewards.qwen2vl_kin import Kin
from runtime.rewards.qwen2vl_reward import Qwen2VLReward
from runtime.types import Clip, Twins
from runtime.window import Window

ROWS_PER_FORWARD = 4  # clips, about 10,900 tokens with 14 frames each
PAIR = 2  # frames of a picture
SAMPLES_PER_SECOND = 2
LEAST_SAMPLES = 4
MEANS = (3.6757, 1.1646, 2.8105)  # of VQ, MQ, TA
STDS = (2.2476, 1.3811, 2.5121)


def build_head(width: int, table: Mapping[str, Any]) -> nn.Module:
    """Width to ``output_dim``: 1 output that means what the token asks, or 3 of which a token reads its own."""
    outputs = table.get("output_dim", 1)
    if outputs not in (1, len(MEANS)):
        raise ValueError(f"output_dim: want 1 or {len(MEANS)}, got {outputs!r}")
    return nn.Linear(width, outputs, bias=False)


KIND = Kind(
    name="videoalign",
    config=QWEN2VL_2B,
    marks=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
    head=build_head,
    head_dtype=None,
    pixels=PixelBounds(100_352, 200_704),
    filler_tokens=950,  # with 7 x 252 visual tokens 2,714, as the published rubric makes of 14 frames
)


@functools.lru_cache(maxsize=256)
def sampled_frames(frames: int, fps: int) -> tuple[int, ...]:
    """Which of ``frames`` frames are seen: about two a second, an even number of at least 4, first and last among them."""
    if frames < 2 or fps < 1:
        raise ValueError(
            f"clip: want at least 2 frames at 1 frame a second or more, got {frames} at {fps}"
        )
    wanted = max(SAMPLES_PER_SECOND * frames / fps, LEAST_SAMPLES)
    count = 2 * round(min(wanted, frames // 2 * 2) / 2)  # a half goes to the even number of pairs
    # In float32, as the published code does it, so that no index differs by rounding.
    return tuple(int(index) for index in torch.linspace(0, frames - 1, count).round())


class VideoAlign(Qwen2VLReward):
    """VQ + MQ + TA in standard deviations, over up to ten chunks."""

    horizon = 10
    kind = KIND
    rows_at_once = ROWS_PER_FORWARD

    def __init__(self, judge: Judge, rows_per_forward: int | None = None) -> None:
        super().__init__(judge, rows_per_forward)
        self.means, self.stds = (
            torch.tensor(table, device=judge.device) for table in (MEANS, STDS)
        )

    def flops(self, frames: int, height: int, width: int, fps: int, prompt: str = "") -> int:
        """Of one clip of ``frames`` frames before sampling."""
        return self.judge.flops(len(sampled_frames(frames, fps)) // 2, height, width, prompt)

    def flops_together(self, twins: Twins, height: int, width: int, fps: int) -> int:
        """Of clips before sampling, of which ``twins`` says what they share."""
        kin = Kin.of(_twins_of(twins, sampled_frames(len(twins[0]), fps)), PAIR)
        return self.judge.flops_together(kin, height, width, self.rows_per_forward)

    def picks(self, frames: int, fps: int) -> tuple[int, ...]:
        """See ``sampled_frames``."""
        return sampled_frames(frames, fps)

    @torch.no_grad()
    def prepare(self, clip: Clip) -> Questions:
        """A row for every clip, two sampled frames to a picture; a picture that several rows show is made once."""
        frames, twins = _sampled(clip)  # [B, n, 3, H, W]
        if twins and (kin := Kin.of(twins, PAIR)).shares:
            different = [frames[row, PAIR * g : PAIR * (g + 1)] for row, g in kin.seats]
            return replace(
                self.judge.look(torch.stack(different), clip.prompt, video=True), kin=kin
            )
        return self.judge.look(frames, clip.prompt, video=True)

    @torch.no_grad()
    def forward(self, questions: Questions) -> Tensor:
        """VQ, MQ and TA of every row, [B, 3] fp32; reads the device alone, so a graph can capture it."""
        said = self.judge.ask(questions, self.rows_per_forward)  # [B, R, O]
        own = said[..., 0] if said.shape[-1] == 1 else said.diagonal(dim1=1, dim2=2)
        return (own - self.means) / self.stds

    @torch.no_grad()
    def detail(self, clip: Clip) -> Tensor:
        """[B, 3] fp32: visual quality VQ, motion quality MQ, text alignment TA, each in standard deviations."""
        parts = self.forward(self.prepare(clip))
        spoil_(parts, clip.frames)
        return parts

    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better; NaN for a clip with a pixel that is not finite."""
        return self.detail(clip).sum(1)


def _sampled(clip: Clip) -> tuple[Tensor, Twins]:
    """The frames that are seen and who shares them, of a whole clip or of one that has no others."""
    frames = check_clip(clip)
    if clip.twins and [len(row) for row in clip.twins] != [frames.shape[1]] * len(frames):
        raise ValueError(
            f"clip.twins: want one for every frame, {list(frames.shape[:2])}, or (), got {len(clip.twins)} rows of "
            f"{sorted({len(row) for row in clip.twins})}"
        )
    if clip.picked:
        if frames.shape[1] % PAIR:
            raise ValueError(f"clip.frames: want picked frames in pairs, got {frames.shape[1]}")
        return frames, clip.twins
    seen = sampled_frames(frames.shape[1], clip.fps)
    return Window(frames).pick(seen), _twins_of(clip.twins, seen)


def _twins_of(twins: Twins, frames: Sequence[int]) -> Twins:
    return tuple(tuple(row[frame] for frame in frames) for row in twins)
