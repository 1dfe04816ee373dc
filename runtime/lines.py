"""What the engine's loop carries from chunk to chunk: videos in the making, their histories, and a batch of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from runtime.emit import Emitter
from runtime.generators.wan import TextContext
from runtime.memory import Lease
from runtime.recipe import Recipe
from runtime.scenes import Scene
from runtime.types import Branch, Candidate, ChunkEvent, Memory, Trajectory, Watch, row_ranges


@dataclass(frozen=True, slots=True)
class Video:
    """One video in the making: what does not change from chunk to chunk within a scene."""

    number: int  # among those asked for together
    scenes: tuple[Scene, ...]
    scene: Scene  # the one of the chunk at hand
    text: TextContext  # of the scene
    recipe: Recipe
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
    litters: tuple[range, ...] = ()  # rows that share work with nobody else; (): whoever fits


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
    index: int = 0  # of its next chunk
    ahead: Ahead | None = None  # what these survivors' next chunk begins with, if it has begun

    @property
    def scene(self) -> Scene:
        """The one of the next chunk."""
        return self.video.scene_at(self.index)

    @property
    def done(self) -> bool:
        """All chunks are made."""
        return self.index >= self.video.recipe.chunks

    @property
    def together(self) -> tuple[int, ...]:
        """Equal for lines that can share a turn. A first chunk is decoded to fewer frames than those after it."""
        return (int(self.index == 0), *self.video.recipe.together)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of a line's candidates go on; or the error that ends its video, and none does."""

    candidates: tuple[Candidate, ...] = ()
    kept: tuple[int, ...] = ()  # rows of the candidates, best first
    error: RuntimeError | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of one line in a chunk: who was drawn, who survived, what can be shown."""

    video: Video
    index: int  # of the chunk
    span: slice  # its rows of the batch
    candidates: tuple[Candidate, ...] = ()
    kept: tuple[int, ...] = ()  # rows of the candidates, best first
    survivors: tuple[Trajectory, ...] = ()  # without those that the horizon gave up
    rest: tuple[Trajectory, ...] = ()  # the survivors without what is settled
    settled: tuple[ChunkEvent, ...] = ()
    error: RuntimeError | None = None  # that ends the video


@dataclass(frozen=True, slots=True)
class Round:
    """What became of all lines of a turn."""

    lines: tuple[Line, ...]  # those that go on, or are done
    settled: tuple[tuple[int, ChunkEvent], ...]  # with the numbers of their videos
    fallen: tuple[tuple[Video, RuntimeError], ...]  # that end here, and why
    stage_ms: Mapping[str, float]


def spans_of(counts: Iterable[int]) -> tuple[slice, ...]:
    """Neighbouring ranges of these lengths."""
    spans, first = [], 0
    for count in counts:
        spans.append(slice(first, first + count))
        first += count
    return tuple(spans)


def litters_of(lines: Sequence[Line], spans: Sequence[slice]) -> tuple[range, ...]:
    """The rows of the batch by litters: as many candidates as one history of a line has, those of a first chunk as well."""
    litters = []
    for line, span in zip(lines, spans, strict=True):
        for rows in row_ranges(span.stop - span.start, line.video.recipe.policy.litter):
            litters.append(range(span.start + rows.start, span.start + rows.stop))
    return tuple(litters)


def rows_in(spans: Sequence[slice], picked: Sequence[Sequence[int]]) -> list[int]:
    """Rows of the batch for rows that were picked within each span."""
    return [span.start + row for span, part in zip(spans, picked, strict=True) for row in part]
