"""Times whole videos on one engine, chunk by chunk and stage by stage. No opinions, no printing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from runtime.bench.cost import ChunkWork
from runtime.bench.environment import output_kind
from runtime.bench.power import Meter
from runtime.engine import Engine
from runtime.kernels.frame_pack import yuv420
from runtime.telemetry import Span
from runtime.types import ChunkEvent, ChunkRecord
from runtime.window import Window

# Enough for the window, the sinks and the reward's window of ten chunks to fill up.
WARMUP_CHUNKS = 12
WAITS = ("select",)  # stages in which the host waits for the scores


@dataclass(frozen=True, slots=True)
class ChunkTime:
    """One chunk of the batch."""

    wall_ms: float  # since the chunk before was made; for the first since the prompt was given
    stage_ms: dict[str, float]
    spans: tuple[Span, ...]
    host_ms: float  # of the host inside the stages that do not wait
    work: ChunkWork

    @property
    def covered_ms(self) -> float:
        """Wall time in which some stage ran; stages that overlap count once."""
        covered, end = 0.0, 0.0
        for span in sorted(self.spans, key=lambda span: span.start_ms):
            covered += max(0.0, span.end_ms - max(span.start_ms, end))
            end = max(end, span.end_ms)
        return covered


@dataclass(frozen=True, slots=True)
class VideoTime:
    """One batch of prompts from the call to the closed files; one prompt unless ``run.prompts`` says more."""

    seconds: float
    frames: int
    chunks: tuple[ChunkTime, ...]
    write_ms: float
    first_shown_ms: float | None  # until the first settled frames could be shown
    settle_delays: tuple[int, ...]  # of each settled chunk: chunks made since it was made

    @property
    def pixel_fps(self) -> float:
        return self.frames / self.seconds


class Enough(Exception):
    """Ends a video early from inside its watch."""


@dataclass(slots=True)
class _Notes:
    """What is seen of one batch while it is made. Chunks of several prompts at the same place are one entry."""

    engine: Engine
    most: int | None
    after: Callable[[int], None] | None
    began: float = field(default_factory=lambda: time.perf_counter())
    marks: list[float] = field(default_factory=list)
    chunks: list[ChunkTime] = field(default_factory=list)

    def watch(self, record: ChunkRecord) -> None:
        now = time.perf_counter()
        if self.chunks and self.chunks[-1].work.index == record.index:
            self.chunks[-1] = self._joined(self.chunks[-1], record, now)
            self.marks[-1] = now
            return
        before = self.marks[-1] if self.marks else self.began
        clock = self.engine.clock
        self.marks.append(now)
        self.chunks.append(
            ChunkTime(
                (now - before) * 1e3,
                record.stage_ms,
                clock.spans,
                sum(ms for stage, ms in clock.host_ms.items() if stage not in WAITS),
                work_of(record),
            )
        )
        if len(self.chunks) == self.most:
            raise Enough
        if self.after is not None:
            self.after(record.index)
            self.marks[-1] = time.perf_counter()

    def _joined(self, first: ChunkTime, record: ChunkRecord, now: float) -> ChunkTime:
        """One turn of a batch tells of each prompt in turn; the stages' times come with one of them."""
        work, more = first.work, work_of(record)
        rows = len(work.contexts)
        both = replace(
            work,
            contexts=work.contexts + more.contexts,
            kept=work.kept + tuple(rows + row for row in more.kept),
            twins=work.twins + tuple(tuple(rows + owner for owner in row) for row in more.twins),
        )
        wall_ms = first.wall_ms + (now - self.marks[-1]) * 1e3
        return replace(
            first, wall_ms=wall_ms, stage_ms=first.stage_ms or record.stage_ms, work=both
        )


def work_of(record: ChunkRecord) -> ChunkWork:
    """The sizes of a chunk's work."""
    contexts = tuple(len(c.branch.parent.memory.slots) for c in record.candidates)
    last = record.index == record.chunks - 1
    _, frames, _, height, width = record.frames.shape
    window = Window(record.frames, tuple(c.branch.parent.frames for c in record.candidates))
    twins = window.twins(range(window.frames))
    return ChunkWork(record.index, contexts, record.kept, frames, last, (height, width), twins)


def make_video(
    engine: Engine,
    prompts: Sequence[str],
    *,
    meter: Meter | None = None,
    most: int | None = None,
    after: Callable[[int], None] | None = None,
) -> VideoTime:
    """Generate ``prompts`` as one batch and write each to a file of its own that is thrown away.

    ``most`` ends the videos after that many chunks. ``after`` is called with each chunk's index when the chunk has been
    timed, may raise ``Enough``, and what it takes is in no chunk's time (but in the video's). Stage times are the GPU's own where there is one.
    """
    engine.clock.exact = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if meter is not None:
            stack.enter_context(meter.running())
        return _make_video(engine, prompts, folder, _Notes(engine, most, after))


def _make_video(engine: Engine, prompts: Sequence[str], folder: Path, notes: _Notes) -> VideoTime:
    delays: list[int] = []
    shown, written, frames = None, 0.0, 0
    with ExitStack() as stack:
        names = (folder / f"{number}.mp4" for number in range(len(prompts)))
        writers = [stack.enter_context(open_writer(name, engine)) for name in names]
        try:
            for place, event in _events(engine, prompts, notes):
                before = time.perf_counter()
                shown = (before - notes.began) * 1e3 if shown is None else shown
                delays.append(notes.chunks[-1].work.index - event.index)
                frames += len(event.frames)
                writers[place].add(event.frames)
                written += time.perf_counter() - before
        except Enough:
            pass
        closing = time.perf_counter()
    ended = time.perf_counter()
    write_ms = (written + ended - closing) * 1e3
    return VideoTime(
        ended - notes.began, frames, tuple(notes.chunks), write_ms, shown, tuple(delays)
    )


def _events(
    engine: Engine, prompts: Sequence[str], notes: _Notes
) -> Iterator[tuple[int, ChunkEvent]]:
    """Settled chunks and the prompt each belongs to."""
    if len(prompts) > 1:
        yield from engine.stream_many(prompts, watch=notes.watch)
    else:
        for event in engine.stream(prompts[0], watch=notes.watch):
            yield 0, event


class YuvWriter:
    """Stands in for the MP4 writer on a machine without PyAV: packs frames and writes the bytes an encoder would get."""

    def __init__(self, path: Path, ops: str) -> None:
        self.file, self.ops = path.open("wb"), ops

    def __enter__(self) -> YuvWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, frames: torch.Tensor) -> None:
        self.file.write(yuv420(frames.float().contiguous(), self.ops).cpu().numpy().tobytes())


def open_writer(path: Path, engine: Engine) -> Any:
    """The MP4 writer of ``python -m runtime``, or ``YuvWriter``; ``output_kind`` says which."""
    if "not encoded" in output_kind():
        return YuvWriter(path, engine.settings.run.ops)
    from runtime.video import VideoWriter

    return VideoWriter(path, engine.fps, ops=engine.settings.run.ops)
