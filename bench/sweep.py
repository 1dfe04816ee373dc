"""How a chunk's time grows: with candidates, context, length of the video and prompts in a batch.

One thing grows per axis, everything else stays as the settings say; ``HELD`` says what that means. Points of an axis are
taken one after another, each after a warm-up of its own, so slow drifts of the machine are in them: the length axis, where
that matters most, times a fresh short video beside every point.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.bench.measure import WARMUP_CHUNKS, ChunkTime, Enough, VideoTime, make_video
from runtime.bench.numbers import dist
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.settings import CHUNK_FRAMES, Settings

AXES = ("candidates", "context", "length", "prompts")
HELD = {
    "candidates": "K x M grows, both about alike; videos of {chunks} chunks",
    "context": "the window grows, no sinks but the first chunk; chunks with a full window only; the model was not trained "
    "for other windows, so this is about speed alone",
    "length": "one video; chunk n stands for its neighbourhood; fresh: the chunks around the tenth of short videos that were "
    "timed in between, so that a machine that slowed down meanwhile slowed both",
    "prompts": "prompts in one batch, K and M each; ms per chunk of the whole batch, frames of all prompts",
}
CANDIDATES = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4))  # K, M
CONTEXT_BLOCKS = (2, 3, 5, 7, 11)
LENGTHS = (10, 100, 1000)
PROMPTS = (1, 2, 4, 8)
SHORT_CHUNKS = 8
MAX_VIDEOS = 5  # of one point
Build = Callable[[Settings, Parts], Engine]


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Takes points around ``settings``. ``seconds`` bounds one axis; every point gets at least one video."""

    settings: Settings
    parts: Parts
    prompts: Sequence[str]
    seconds: float
    build: Build = Engine

    def axis(self, name: str) -> Iterator[dict[str, Any]]:
        """The points of one of ``AXES``, each as soon as it is taken."""
        yield from {
            "candidates": self._candidates,
            "context": self._context,
            "length": self._length,
            "prompts": self._prompts,
        }[name]()

    def _candidates(self) -> Iterator[dict[str, Any]]:
        for histories, expansions in CANDIDATES:
            changes = {"search.histories": histories, "search.expansions": expansions}
            yield self._point(
                histories * expansions, changes, SHORT_CHUNKS, self.seconds / len(CANDIDATES)
            )

    def _context(self) -> Iterator[dict[str, Any]]:
        for blocks in CONTEXT_BLOCKS:
            changes = {
                "memory.sinking": False,
                "memory.sink_frames": CHUNK_FRAMES,
                "memory.window_frames": (blocks + 1) * CHUNK_FRAMES,
            }
            yield self._point(
                blocks, changes, blocks + 4, self.seconds / len(CONTEXT_BLOCKS), full=True
            )

    def _prompts(self) -> Iterator[dict[str, Any]]:
        for count in PROMPTS:
            changes = {"run.prompts": count}
            yield self._point(count, changes, SHORT_CHUNKS, self.seconds / len(PROMPTS))

    def _point(
        self,
        x: int,
        changes: Mapping[str, Any],
        chunks: int,
        seconds: float,
        full: bool = False,
    ) -> dict[str, Any]:
        """One point. ``full``: only chunks that see ``x`` blocks."""
        settings = self.settings.with_changes({**changes, "seconds": self._seconds(chunks)})
        facts = {
            "histories": settings.search.histories,
            "expansions": settings.search.expansions,
            "prompts": settings.run.prompts,
        }
        try:
            videos = self._videos(settings, seconds)
        except RuntimeError as error:  # too large for this machine: said, and the axis goes on
            reason = str(error).splitlines()[0]
            return {"x": x, "chunk_ms": dist([]), "pixel_fps": None, "error": reason, **facts}
        seen = [c for video in videos for c in video.chunks[1:]]
        if full:
            seen = [chunk for chunk in seen if max(chunk.work.contexts) >= x]
        return {
            "x": x,
            "chunk_ms": dist([chunk.wall_ms for chunk in seen]),
            "pixel_fps": _pixel_fps(seen, settings.run.prompts),
            "chunks": chunks,
            **facts,
        }

    def _videos(self, settings: Settings, seconds: float) -> list[VideoTime]:
        engine = self.build(settings, self.parts)
        prompts = self._some(settings.run.prompts)
        make_video(engine, prompts, most=WARMUP_CHUNKS)
        ends = time.perf_counter() + seconds
        videos = [make_video(engine, prompts)]
        while len(videos) < MAX_VIDEOS and time.perf_counter() < ends:
            videos.append(make_video(engine, prompts))
        return videos

    def _length(self) -> Iterator[dict[str, Any]]:
        """One long video; beside every point a fresh short one, so that a machine that slows down shows as such."""
        chunks = LENGTHS[-1] + reach(LENGTHS[-1]) + 1
        settings, short = (
            self.settings.with_changes({"seconds": self._seconds(count), "run.prompts": 1})
            for count in (chunks, LENGTHS[0] + reach(LENGTHS[0]) + 1)
        )
        engine, control = (self.build(one, self.parts) for one in (settings, short))
        make_video(control, self._some(1), most=WARMUP_CHUNKS)
        beside: dict[int, list[float]] = {place: [] for place in LENGTHS}
        ends = time.perf_counter() + self.seconds
        # Before, in the middle of and after each neighbourhood.
        stops = {p + step: p for p in LENGTHS for step in (-reach(p), 0, reach(p))}

        def after(index: int) -> None:
            if index in stops:
                fresh = near(make_video(control, self._some(1)).chunks, LENGTHS[0])
                beside[stops[index]] += [chunk.wall_ms for chunk in fresh]
            if time.perf_counter() > ends and index >= LENGTHS[0] + reach(LENGTHS[0]):
                raise Enough

        taken = make_video(engine, self._some(1), after=after).chunks
        reached = [place for place in LENGTHS if place + reach(place) < len(taken)]
        if reached != list(LENGTHS):  # out of time: the last chunks there are
            reached.append(len(taken) - 1)
        yield from self._length_points(taken, reached, beside)

    def _length_points(
        self, taken: Sequence[ChunkTime], places: Sequence[int], beside: Mapping[int, list[float]]
    ) -> Iterator[dict[str, Any]]:
        first: float | None = None
        for place in places:
            chunks = near(taken, place)
            median = statistics.median(chunk.wall_ms for chunk in chunks)
            first = first or median
            yield {
                "x": place,
                "chunk_ms": dist([chunk.wall_ms for chunk in chunks]),
                "pixel_fps": _pixel_fps(chunks, 1),
                "ratio_to_first": median / first,
                "control_ms": dist(beside.get(place, [])),
                "ratio_to_control": median / statistics.median(beside[place])
                if beside.get(place)
                else None,
                "context_blocks": statistics.mean(max(c.work.contexts) for c in chunks),
            }

    def _seconds(self, chunks: int) -> float:
        """The length of a video of so many chunks; its first latent frame is one frame."""
        generator = self.parts.generator
        frames = chunks * CHUNK_FRAMES * generator.time_stride - generator.time_stride + 1
        return frames / generator.fps

    def _some(self, count: int) -> list[str]:
        return [self.prompts[number % len(self.prompts)] for number in range(count)]


def reach(place: int) -> int:
    """How far the neighbourhood of chunk ``place`` goes to either side."""
    return min(max(2, place // 10), 25)


def near(chunks: Sequence[ChunkTime], place: int) -> Sequence[ChunkTime]:
    """The neighbourhood of chunk ``place``, without the first chunk of the video."""
    return chunks[max(1, place - reach(place)) : place + reach(place) + 1]


def _pixel_fps(chunks: Sequence[ChunkTime], prompts: int) -> float | None:
    """Frames of those chunks over their wall time, of all prompts of the batch."""
    total = sum(chunk.wall_ms for chunk in chunks)
    return 1e3 * prompts * sum(chunk.work.frames for chunk in chunks) / total if total else None
