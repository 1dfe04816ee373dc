"""The doors that every Qwen2-VL reward has: from a folder, from exported graphs, or at full size with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from runtime.rewards.qwen2vl_judge import Judge, Kind
from runtime.types import Compiled

if TYPE_CHECKING:
    from typing_extensions import Self


class Qwen2VLReward:
    """A judge and how many rows it is asked about at a time; a reward adds what it shows and how it reads the answers."""

    kind: ClassVar[Kind]
    rows_at_once: ClassVar[int]

    def __init__(self, judge: Judge, rows_per_forward: int | None = None) -> None:
        """``rows_per_forward``: 0 for all of a call at once, None for as many as the reward finds fit."""
        self.judge = judge
        self.rows_per_forward = self.rows_at_once if rows_per_forward is None else rows_per_forward

    @classmethod
    def random(
        cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> Self:
        """At full size with random weights, for timing."""
        return cls(Judge.random(cls.kind, device, dtype))

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> Self:
        """From the files in folder ``path``; see ``Judge.load``."""
        return cls(Judge.load(cls.kind, device, path, dtype))

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        path: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> Self:
        """On exported graphs; see ``Judge.on_graphs``."""
        return cls(Judge.on_graphs(cls.kind, device, path, graphs, constants))

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
