"""Rates a clip's looks, its motion and its fit to the prompt: VideoAlign's VideoReward on a Qwen2-VL-2B.

    score = sum over VQ, MQ, TA of (output at its token - mean) / std

Source  Liu et al., "Improving Video Generation with Human Feedback" (VideoAlign), 2025: backbone, tokens, head, constants,
        sampling. The rubric comes with the weights; see ``qwen2vl_words``.
Legend: B clips, T frames of a clip, n sampled frames, R = 3 read-out tokens, O outputs of the head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.kernels.philox import upload
from runtime.rewards.qwen2vl import QWEN2VL_2B
from runtime.rewards.qwen2vl_judge import Judge, Kind, PixelBounds, Questions, check_clip, spoil_
from runtime.types import Clip, Compiled

ROWS_PER_FORWARD = 4  # clips, about 10,900 tokens with 14 frames each
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


@functools.lru_cache(maxsize=256)
def frame_index(frames: int, fps: int, device: torch.device) -> Tensor:
    """``sampled_frames`` on the device, where it stays."""
    return upload(sampled_frames(frames, fps), torch.int64, device)


class VideoAlign:
    """VQ + MQ + TA in standard deviations, over up to ten chunks."""

    horizon = 10

    def __init__(self, judge: Judge, rows_per_forward: int = ROWS_PER_FORWARD) -> None:
        self.judge = judge
        self.rows_per_forward = rows_per_forward
        device = judge.device
        self.means, self.stds = (torch.tensor(table, device=device) for table in (MEANS, STDS))

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> VideoAlign:  # fmt: skip
        """At full size with random weights, for timing."""
        return cls(Judge.random(KIND, device, dtype))

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> VideoAlign:
        """From the files in folder ``path``; see ``Judge.load``."""
        return cls(Judge.load(KIND, device, path, dtype))

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        path: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> VideoAlign:
        """On exported graphs; see ``Judge.on_graphs``."""
        return cls(Judge.on_graphs(KIND, device, path, graphs, constants))

    @property
    def net(self) -> Any:
        """What looks and reads; another that computes the same may take its place."""
        return self.judge.net

    @net.setter
    def net(self, net: Any) -> None:
        self.judge.net = net

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return self.judge.nbytes

    def flops(self, frames: int, height: int, width: int, fps: int, prompt: str = "") -> int:
        """Of one clip of ``frames`` frames before sampling."""
        return self.judge.flops(len(sampled_frames(frames, fps)) // 2, height, width, prompt)

    @torch.no_grad()
    def prepare(self, clip: Clip) -> Questions:
        """A row for every clip, two sampled frames to a picture."""
        frames = check_clip(clip)
        index = frame_index(frames.shape[1], clip.fps, frames.device)
        return self.judge.look(frames.index_select(1, index), clip.prompt, video=True)

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
