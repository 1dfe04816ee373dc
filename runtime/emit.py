"""Shows what can no longer change: chunks that every surviving history shares are settled and leave the line."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runtime.types import Chunk, ChunkEvent, Trajectory


class Emitter:
    """Cuts the settled prefix off the survivors. Remembers the frames of the last ``horizon`` settled chunks, which
    the final rating needs, and nothing older."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self.shown: deque[Tensor] = deque(maxlen=horizon)

    def settled(
        self, survivors: Sequence[Trajectory]
    ) -> tuple[tuple[Trajectory, ...], list[ChunkEvent]]:
        """The survivors without what they all share, and that as events."""
        count = shared(survivors)
        events = [self._event(chunk) for chunk in survivors[0].unsettled[:count]]
        return tuple(replace(s, unsettled=s.unsettled[count:]) for s in survivors), events

    def flush(self, best: Trajectory) -> list[ChunkEvent]:
        """Everything that is left of the history that won."""
        return [self._event(chunk) for chunk in best.unsettled]

    def whole(self, survivor: Trajectory, chunks: int) -> Tensor:
        """The last ``chunks`` chunks of one survivor's video, at most ``horizon`` of them: [T, 3, H, W]."""
        frames = [*self.shown, *(chunk.frames for chunk in survivor.unsettled)]
        return torch.cat(frames[-min(chunks, self.horizon) :])

    def _event(self, chunk: Chunk) -> ChunkEvent:
        self.shown.append(chunk.frames)
        return ChunkEvent(
            chunk.index, chunk.frames, chunk.latents, chunk.seed, chunk.scores, chunk.route
        )


def shared(survivors: Sequence[Trajectory]) -> int:
    """How many of the oldest unsettled chunks all survivors share."""
    count = 0
    for column in zip(*(s.unsettled for s in survivors), strict=True):
        if any(chunk is not column[0] for chunk in column):
            break
        count += 1
    return count
