"""What the engine's loop carries from chunk to chunk: videos in the making, their histories, and a batch of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from runtime.emit import Emitter
from runtime.generators.wan import TextContext
from runtime.memory import Lease
from runtime.scenes import Scene
from runtime.types import Branch, Candidate, ChunkEvent, Memory, Trajectory, Watch


@dataclass(frozen=True, slots=True)
class Video:
    """One video in the making: what does not change from chunk to chunk within a scene."""

    number: int  # among those asked for together
    scenes: tuple[Scene, ...]
    scene: Scene  # the one of the chunk at hand
    text: TextContext  # of the scene
    lease: Lease
    emitter: Emitter
    watch: Watch | None

    @property
    def prompt(self) -> str:
        return self.scene.prompt

    def scene_at(self, chunk: int) -> Scene:
        """The last scene that begins at ``chunk`` or before."""
        return [scene for scene in self.scenes if scene.chunk <= chunk][-1]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Candidates of all lines in one batch, denoised."""

    branches: tuple[Branch, ...]
    spans: tuple[slice, ...]  # the rows of each line
    texts: tuple[TextContext, ...]  # of each row
    noise: Tensor  # [B, F, C, h, w]
    latents: Tensor  # [B, F, C, h, w]


@dataclass(frozen=True, slots=True)
class Ahead:
    """A chunk's candidates, begun before it was known who survives the chunk before: right if ``rows`` of that do."""

    rows: tuple[int, ...]  # best first
    blocks: tuple[int, ...]  # with their keys and values
    memories: tuple[Memory, ...]  # of the rows, with room for the chunk; held by the line's lease
    drawn: Drawn


@dataclass(frozen=True, slots=True)
class Line:
    """One video between two chunks."""

    video: Video
    survivors: tuple[Trajectory, ...]
    ahead: Ahead | None = None  # what these survivors' next chunk begins with, if it has begun


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of one line in a chunk: who was drawn, who survived, what can be shown."""

    video: Video
    candidates: tuple[Candidate, ...]
    kept: tuple[int, ...]  # rows of the candidates, best first
    survivors: tuple[Trajectory, ...]  # without those that the horizon gave up
    rest: tuple[Trajectory, ...]  # the survivors without what is settled
    settled: tuple[ChunkEvent, ...]


def spans_of(counts: Iterable[int]) -> tuple[slice, ...]:
    """Neighbouring ranges of these lengths."""
    spans, first = [], 0
    for count in counts:
        spans.append(slice(first, first + count))
        first += count
    return tuple(spans)


def rows_in(spans: Sequence[slice], picked: Sequence[Sequence[int]]) -> list[int]:
    """Rows of the batch for rows that were picked within each span."""
    return [span.start + row for span, part in zip(spans, picked, strict=True) for row in part]
