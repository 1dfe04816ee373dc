"""A reward without weights for tests and dry runs: likes bright clips that move little."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from runtime.types import Clip


class Stub:
    """score = mean of all pixels - mean absolute difference of neighbouring frames (0 for a single frame).

    Depends on the frames alone, in [-1, 1], linear enough to be worked out by hand.
    """

    def __init__(self, horizon: int = 1) -> None:
        if horizon < 1:
            raise ValueError(f"horizon: want at least 1 chunk, got {horizon}")
        self.horizon = horizon

    @classmethod
    def load(cls, device: str | torch.device = "cpu", path: str | Path | None = None) -> Stub:
        """The stub has no weights: both arguments are accepted for the table's sake and not used."""
        return cls()

    def score(self, clip: Clip) -> Tensor:
        """[B] fp32 on the device of the frames [B, T, 3, H, W]."""
        frames = clip.frames.float()
        brightness = frames.mean((1, 2, 3, 4))
        if frames.shape[1] < 2:
            return brightness
        return brightness - frames.diff(dim=1).abs().mean((1, 2, 3, 4))
