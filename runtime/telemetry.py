"""Stage clocks: how long each room of the line took for the chunk at hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = (
    "text",
    "noise",
    "denoise",
    "decode",
    "image reward",
    "video reward",
    "select",
    "memory",
    "emit",
)


class StageClock:
    """Sums wall time per stage. On CUDA a stage ends with a synchronisation, and only when ``exact`` asks for it."""

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        self.sync = exact and device.type == "cuda"
        self.spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.sync:
                torch.cuda.synchronize()
            self.spent[name] = self.spent.get(name, 0.0) + (time.perf_counter() - began) * 1e3

    def take(self) -> dict[str, float]:
        """Milliseconds per stage since the last call."""
        spent, self.spent = self.spent, {}
        return spent
