"""Rewards that fail on purpose in whole videos of tiny parts."""

from __future__ import annotations

import torch

from runtime.engine import Engine
from runtime.types import Clip
from tests.tiny import Likes, motion, prettiness, tiny_engine

CHUNKS = 6
AT = 3  # the chunk at which things go wrong
ROUTES = {"memory.quality_threshold": -9.0, "memory.transition_threshold": 0.0}  # nothing discarded
DEGRADE = {**ROUTES, "reward.on_error": "degrade"}
JUDGES = {"image": prettiness, "video": motion}
PATIENCE_S = 60.0  # for what is expected to happen; nothing waits that long


class Faulty(Likes):
    """One of the two rewards, after ``trouble(clip, call)`` had its say."""

    def __init__(self, role: str, trouble) -> None:
        super().__init__(JUDGES[role], 1 if role == "image" else 10)
        self.trouble, self.calls = trouble, 0

    def score(self, clip: Clip) -> torch.Tensor:
        self.calls += 1
        self.trouble(clip, self.calls)
        return super().score(clip)


def at(chunk: int, error: type[Exception] = ValueError):
    def trouble(clip: Clip, call: int) -> None:
        if clip.chunk == chunk:
            raise error("broken on purpose")

    return trouble


def once():
    """Raises at every chunk's first call."""
    seen: set[int] = set()

    def trouble(clip: Clip, call: int) -> None:
        if clip.chunk not in seen:
            seen.add(clip.chunk)
            raise ValueError("a hiccup")

    return trouble


def made(engine: Engine) -> tuple[torch.Tensor, list]:
    """Latents of the video and what was told about its chunks."""
    records: list = []
    latents = torch.cat([event.latents for event in engine.stream("x", watch=records.append)])
    engine.pool.check([])
    return latents, records


def broken(role: str, trouble, changes=DEGRADE, **parts) -> Engine:
    return tiny_engine(CHUNKS, changes, **{role: Faulty(role, trouble)}, **parts)


def column(record, name: str) -> list[float]:
    return [getattr(candidate.scores, name) for candidate in record.candidates]
