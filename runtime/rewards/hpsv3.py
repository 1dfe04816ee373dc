"""Rates single frames against the prompt: HPSv3, a Qwen2-VL-7B that reads a picture, then a rubric, and says how good.

    score = mean over frames of mu,   [mu, sigma] = MLP(hidden state at <|Reward|>)

Source  Ma et al., "HPSv3: Towards Wide-Spectrum Human Preference Score", 2025: backbone, token, head and its keys, pixel
        bounds, order of picture and rubric. The rubric itself comes with the weights; see ``qwen2vl_words``.
Legend: B clips, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.rewards.qwen2vl import QWEN2VL_7B
from runtime.rewards.qwen2vl_judge import Judge, Kind, PixelBounds, Questions, check_clip, spoil_
from runtime.types import Clip, Compiled

ROWS_PER_FORWARD = 16  # frames, about 14,600 tokens: enough to fill a GPU, 2 GB of activations


def build_head(width: int, table: Mapping[str, Any]) -> nn.Module:
    """Width to [mu, sigma]; the layers with weights are number 0, 3 and 5, as published (1 and 2: ReLU and dropout)."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Identity(),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


KIND = Kind(
    name="hpsv3",
    config=QWEN2VL_7B,
    marks=("<|Reward|>",),
    head=build_head,
    head_dtype=torch.float32,
    pixels=PixelBounds(200_704, 200_704),
    filler_tokens=658,  # with 252 visual tokens 910, about what the published rubric makes of a prompt
)


class HPSv3:
    """Mean over a chunk's frames of HPSv3's mu; an image reward, so it looks at the newest chunk only."""

    horizon = 1

    def __init__(self, judge: Judge, rows_per_forward: int = ROWS_PER_FORWARD) -> None:
        self.judge = judge
        self.rows_per_forward = rows_per_forward

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> HPSv3:  # fmt: skip
        """At full size with random weights, for timing."""
        return cls(Judge.random(KIND, device, dtype))

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> HPSv3:
        """From the files in folder ``path``; see ``Judge.load``."""
        return cls(Judge.load(KIND, device, path, dtype))

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        path: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> HPSv3:
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
        """Of one clip; ``fps`` is of no consequence to single frames."""
        return frames * self.judge.flops(1, height, width, prompt)

    @torch.no_grad()
    def prepare(self, clip: Clip) -> Questions:
        """Every frame of every clip as a row of its own."""
        return self.judge.look(check_clip(clip).flatten(0, 1)[:, None], clip.prompt, video=False)

    @torch.no_grad()
    def forward(self, questions: Questions) -> Tensor:
        """mu of every row, [B * T] fp32; reads the device alone, so a graph can capture it."""
        return self.judge.ask(questions, self.rows_per_forward)[:, 0, 0]

    @torch.no_grad()
    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better; NaN for a clip with a pixel that is not finite."""
        scores = self.forward(self.prepare(clip)).view(len(clip.frames), -1).mean(1)
        spoil_(scores, clip.frames)
        return scores
