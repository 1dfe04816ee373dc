"""An engine without models for tests of what stands around it: real search, real settling, drawn discs for frames.

Legend: T frames of a chunk, H x W pixels.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runtime.emit import Emitter
from runtime.scenes import Prompts, scenes_of
from runtime.search import build_policy, within_horizon
from runtime.settings import Settings
from runtime.types import (
    Candidate,
    Chunk,
    ChunkEvent,
    ChunkRecord,
    Route,
    Scores,
    Trajectory,
    Watch,
)

EMPTY = torch.zeros(1)


def disc(seed: int, chunk: int, count: int, size: int) -> Tensor:
    """Frames [count, 3, size, size]: a disc that moves through the chunk, its colour and path from the seed."""
    numbers = torch.Generator().manual_seed(seed * 7919 + chunk)
    hue, x, y, dx, dy = torch.rand(5, generator=numbers).tolist()
    axis = (torch.arange(size) + 0.5) / size
    colour = torch.tensor([0.5 + 0.5 * math.cos(6.3 * (hue - third / 3)) for third in range(3)])
    frames = []
    for step in range(count):
        moved = [0.25 + 0.5 * abs((p + d * step / count) % 2 - 1) for p, d in ((x, dx), (y, dy))]
        far = ((axis[None] - moved[0]) ** 2 + (axis[:, None] - moved[1]) ** 2).sqrt()
        inside = ((0.18 - far) * size).clamp(0, 1)
        ground = (0.85 - 0.25 * axis)[:, None].expand(size, size)
        frames.append(ground * (1 - inside) + colour[:, None, None] * inside)
    return torch.stack(frames)


class FakeEngine:
    """Behaves like ``Engine`` from the outside. ``before`` is called with a chunk's index before it is made."""

    fps = 16
    implementations = {"noise": "torch"}

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        size: int = 32,
        before: Callable[[int], None] = lambda index: None,
    ) -> None:
        self.settings = settings = settings or Settings()
        self.chunks = max(1, round((settings.seconds * self.fps + 3) / 12))
        self.size = size
        self.before = before
        self.closed = False
        self.batch_prompts = self.settings.run.prompts

    def unknown_words(self, prompt: str) -> list[str]:
        return [word for word in prompt.split() if word == "dragon"]

    def stream(self, prompts: Prompts, *, watch: Watch | None = None) -> Iterator[ChunkEvent]:
        scenes_of(prompts, self.chunks)
        policy = build_policy(self.settings.search, False, self.settings.memory.sinking)
        horizon = self.settings.search.horizon_chunks
        emitter = Emitter(horizon)
        survivors: tuple[Trajectory, ...] = (Trajectory(),)
        try:
            for index in range(self.chunks):
                self.before(index)
                began = time.perf_counter()
                candidates, frames = self._draw(policy.expand(survivors, index), index)
                kept = policy.select(candidates)
                grown = [grow(candidates[row], index, frames[row]) for row in kept]
                alive = within_horizon(grown, horizon)
                if watch is not None:
                    pairs = zip(kept, grown, strict=True)
                    rows = tuple(row for row, g in pairs if any(g is a for a in alive))
                    spent = {"denoise": (time.perf_counter() - began) * 1e3}
                    watch(ChunkRecord(index, self.chunks, candidates, rows, alive, frames, spent))
                survivors, events = emitter.settled(alive)
                yield from events
            yield from emitter.flush(survivors[0])
        finally:
            self.closed = True

    def stream_many(
        self, prompts: Sequence[Prompts], *, watch: Watch | None = None
    ) -> Iterator[tuple[int, ChunkEvent]]:
        """Prompts take turns, as far as each has something to show."""

        def numbered(number: int) -> Watch | None:
            return watch and (lambda record: watch(replace(record, prompt=number)))

        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(contextlib.closing(self.stream(p, watch=numbered(number))))
                for number, p in enumerate(prompts)
            ]
            for row in itertools.zip_longest(*streams):
                for number, event in enumerate(row):
                    if event is not None:
                        yield number, event

    def _draw(self, branches, index):
        candidates, frames = [], []
        for row, branch in enumerate(branches):
            numbers = torch.Generator().manual_seed(branch.seed * 31 + index)
            short, long = (0.4 + 0.4 * torch.rand(2, generator=numbers)).tolist()
            score = Scores(short, long, 0.4 * short + 0.6 * long, short - 0.55, 0.6 - long)
            route = Route.DISCARD if short < 0.55 else Route.APPEND if long < 0.5 else Route.EMA
            candidates.append(Candidate(branch, row, EMPTY, EMPTY, score, route))
            frames.append(disc(branch.seed, index, 12 if index else 9, self.size))
        return tuple(candidates), torch.stack(frames)


def grow(candidate: Candidate, index: int, frames: Tensor) -> Trajectory:
    """The candidate's parent, one chunk longer."""
    branch, scores = candidate.branch, candidate.scores
    chunk = Chunk(index, branch.seed, EMPTY, frames, scores, candidate.route)
    return replace(
        branch.parent,
        seed=branch.seed,
        score=scores.fused,
        unsettled=(*branch.parent.unsettled, chunk),
    )
