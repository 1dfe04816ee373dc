"""The loop from prompts to settled chunks: read this first. Every line of ``Engine._chunk`` is one room."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runtime.decode import Decoding, Newest
from runtime.denoise import Denoiser
from runtime.drawing import Drawing
from runtime.emit import Emitter
from runtime.grow import grow, grow_candidates
from runtime.kernels.dispatch import implementation
from runtime.lanes import Lanes
from runtime.lines import Ahead, Drawn, Line, Turn, Video, rows_in, spans_of
from runtime.memory import KVPool, Lease, MemoryKeeper
from runtime.parts import Parts, blocks_of, build_policy_of
from runtime.plan import chunks_for
from runtime.recaching import Recaching
from runtime.remembering import Remembering
from runtime.scenes import Prompts, Scene, scenes_of
from runtime.score import Place, Scorer
from runtime.search import within_horizon
from runtime.settings import MAX_PROMPTS, Settings
from runtime.sizing import most_prompts
from runtime.speculation import Speculation
from runtime.telemetry import StageClock
from runtime.types import (
    Candidate,
    ChunkEvent,
    ChunkRecord,
    Memory,
    Route,
    Scores,
    Shown,
    Slot,
    Trajectory,
    Watch,
)

UNJUDGED = Scores(math.nan, math.nan, math.nan)


class Engine:
    """Generates videos chunk by chunk through every part of Stream-T1: one, or several whose candidates share batches."""

    def __init__(self, settings: Settings | None = None, parts: Parts | None = None) -> None:
        self.settings = settings = settings or Settings()
        # Before anything is loaded: the memory plan counts weights, too.
        self.batch_prompts = settings.run.prompts or most_prompts(
            settings, loaded=parts is not None
        )
        self.parts = parts = parts or Parts.load(settings)
        generator = parts.generator
        wasteful = settings.run.schedule == "released"
        run = replace(settings.run, batch_rows=1) if wasteful else settings.run
        self.fps = generator.fps
        self.chunks = chunks_for(settings.seconds, generator.fps, generator.time_stride)
        self.policy = build_policy_of(settings)
        shape, dtype, device = generator.block_shape, generator.dtype, generator.device
        blocks = self.batch_prompts * blocks_of(settings)
        self.pool = KVPool(blocks, shape, dtype, device, run.ops)
        memory = settings.memory if self.policy.sinks else replace(settings.memory, sinking=False)
        self.keeper = MemoryKeeper(memory, self.pool, settings.released, settings.search.seed)
        self.denoiser = Denoiser(generator.dit, self.pool, generator.schedule, parts.noise, run)
        # Nobody but a reward looks at cold frames.
        cold = (settings.released or wasteful) and self.policy.judges
        scoring = parts.scoring if self.policy.judges else None
        self.decoding = Decoding(
            generator.decoder,
            settings.reward.window_chunks,
            cold,
            run.decoder_rows or run.batch_rows,
            scoring,
            self.denoiser.graphs.mode,
        )
        self.scorer = Scorer(
            parts.image,
            parts.video,
            settings.reward,
            memory,
            settings.released,
            run.batch_rows,
        )
        self.lanes = Lanes(device, run.overlap)
        self.clock = StageClock(device)
        self.drawing = Drawing(
            settings, parts, self.denoiser, self.decoding, self.scorer, self.clock
        )
        self.recaching = Recaching(settings.memory, self.denoiser, generator.encode, self.clock)
        self.remembering = Remembering(settings.memory, self.denoiser, self.keeper, wasteful)
        self.speculation = Speculation(settings, self.drawing, self.denoiser, self.keeper)

    @property
    def implementations(self) -> dict[str, str]:
        """Which implementation of each op runs."""
        ops, generator = self.settings.run.ops, self.parts.generator
        place = generator.device, generator.dtype
        dit = implementation(generator.dit.ops, *place)
        return {
            "noise": implementation(ops, *place),
            "frame_pack": implementation(ops, generator.device, torch.float32),
            "attention": self.denoiser.attention.name,
            "ema_merge": self.pool.impl,
            "qk_norm_rope": dit,
            "adaln": dit,
            "linears": generator.dit.linears,
            "graphs": self.denoiser.graphs.mode,
            **self.parts.running,
        }

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that the generator's tokeniser does not know."""
        return self.parts.generator.text.unknown_words(prompt)

    def stream(self, prompts: Prompts, *, watch: Watch | None = None) -> Iterator[ChunkEvent]:
        """Settled chunks in order, each as soon as nothing can change it. Closing the iterator frees everything.

        ``prompts`` is one prompt, or scenes: ``[(0, "a red circle ..."), (8, "a blue star ...")]`` shows the star from
        chunk 8 on, and what is remembered of the chunks before is written again for it. ``watch`` is called with a
        ``ChunkRecord`` after every chunk. Raises ValueError for a bad prompt and RuntimeError when this engine is already
        generating.
        """
        return _events(self.stream_many([prompts], watch=watch))

    def stream_many(
        self, prompts: Sequence[Prompts], *, watch: Watch | None = None
    ) -> Iterator[tuple[int, ChunkEvent]]:
        """``stream`` for several videos: pairs of a video's index and its next settled chunk.

        ``run.prompts`` of them at a time share every batch: a chunk of each is made per turn. A video does not depend on
        its company but for rounding. Raises as ``stream``.
        """
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise ValueError(f"prompts: want 1 to {MAX_PROMPTS}, got {len(prompts)}")
        told = [scenes_of(one, self.chunks) for one in prompts]
        self._check_idle()
        return self._stream(told, watch)

    def _check_idle(self) -> None:
        if self.pool.used:
            raise RuntimeError(
                "this engine is already generating a video; finish or close it, or build a second one"
            )

    def _stream(
        self, told: Sequence[tuple[Scene, ...]], watch: Watch | None
    ) -> Iterator[tuple[int, ChunkEvent]]:
        numbered = list(enumerate(told))
        for first in range(0, len(numbered), self.batch_prompts):
            self._check_idle()  # another stream may have begun since this one was asked for
            self.clock.take()
            with contextlib.ExitStack() as stack:
                group = numbered[first : first + self.batch_prompts]
                lines = [self._begin(*one, watch, stack) for one in group]
                for index in range(self.chunks):
                    lines, settled = self._chunk(lines, index)
                    yield from settled
                for line in lines:
                    yield from _numbered(line.video, line.video.emitter.flush(self._best(line)))

    def _begin(
        self,
        number: int,
        scenes: tuple[Scene, ...],
        watch: Watch | None,
        stack: contextlib.ExitStack,
    ) -> Line:
        with self.clock.stage("text"):
            text = self.parts.generator.encode(scenes[0].prompt)
        lease = stack.enter_context(self.pool.lease())
        emitter = Emitter(self.settings.search.horizon_chunks)
        video = Video(number, scenes, scenes[0], text, lease, emitter, watch)
        return Line(video, (Trajectory(),))

    @torch.no_grad()
    def _chunk(
        self, lines: Sequence[Line], index: int
    ) -> tuple[list[Line], list[tuple[int, ChunkEvent]]]:
        """One turn: all lines after chunk ``index``, and what can be shown now."""
        stage = self.clock.stage
        lines = self._ready(lines, index)
        places = [Place(line.video.prompt, self.fps, index, self.chunks) for line in lines]
        lines, drawn = self._next(lines, places, index)
        with stage("decode"):
            newest = self.decoding.newest(drawn.branches, drawn.latents)
        verdicts, ahead = self._judge(lines, drawn, newest, places)
        with stage("select"):
            pools = [
                grow_candidates(drawn.branches[s], drawn.noise[s], drawn.latents[s], verdicts[s])
                for s in drawn.spans
            ]
            kept = [self.policy.select(pool) for pool in pools]
            rows = rows_in(drawn.spans, kept)
            ahead = ahead and self.speculation.checked(ahead, rows, lines[0].video.lease)
        with stage("decode"):
            shown = self.decoding.shown(drawn.branches, drawn.latents, newest, rows)
        with stage("memory"):
            memories = self._remember(lines, drawn, verdicts, rows, index, ahead)
        with stage("emit"):
            turns = [
                self._settle(line, pool, best, memories[s], shown[s], index)
                for line, pool, best, s in zip(
                    lines, pools, kept, spans_of(map(len, kept)), strict=True
                )
            ]
        self._tell(turns, drawn.spans, index, newest.frames)
        settled = [pair for turn in turns for pair in _numbered(turn.video, turn.settled)]
        if ahead and len(turns[0].survivors) < len(rows):  # the horizon had a word, too
            self.speculation.forget(ahead, lines[0].video.lease)
            ahead = None
        return [Line(turn.video, turn.rest, ahead) for turn in turns], settled

    def _ready(self, lines: Sequence[Line], index: int) -> list[Line]:
        """The lines with room for chunk ``index``, and in its scene."""
        if lines[0].ahead is not None:  # has room already, and no scene begins
            return list(lines)
        with self.clock.stage("memory"):
            make_room = self.keeper.make_room
            lines = [replace(x, survivors=make_room(x.survivors, x.video.lease)) for x in lines]
        return self.recaching.turn(lines, index)

    def _next(
        self, lines: Sequence[Line], places: Sequence[Place], index: int
    ) -> tuple[list[Line], Drawn]:
        """The candidates of chunk ``index``, drawn now or begun before."""
        if lines[0].ahead is not None:
            line, drawn = self.speculation.adopt(lines[0])
            return [line], drawn
        return list(lines), self.drawing.draw(lines, places, index)

    def _judge(
        self, lines: Sequence[Line], drawn: Drawn, newest: Newest, places: Sequence[Place]
    ) -> tuple[list[tuple[Scores, Route]], Ahead | None]:
        """Scores and route of every candidate, and what was begun meanwhile.

        The two rewards see the same frames and need not wait for each other.
        """
        branches, spans, after = drawn.branches, drawn.spans, places[0].chunk + 1
        if not self.policy.judges:
            return [(UNJUDGED, Route.DISCARD)] * len(branches), None
        stage, beside = self.clock.stage, self.lanes.beside
        with stage("decode"):
            windows = self.decoding.windows(branches, spans, drawn.latents, newest)
        with beside("video reward"), stage("video reward"):
            longs = self.scorer.rate_videos(windows, places)
        with beside("image reward"), stage("image reward"):
            shorts = self.scorer.rate_images(newest.frames, spans, places)
        ahead = None
        if self.settings.run.speculate and self._goes_on(lines[0], after):
            with beside("video reward"):
                early = self.scorer.on_host(longs)
            ahead = self.speculation.begin(lines[0], drawn, early, places[0])
        self.lanes.join()
        with stage("select"):
            return self.scorer.decide(branches, shorts, longs, places[0]), ahead

    def _goes_on(self, line: Line, index: int) -> bool:
        """Chunk ``index`` exists and is of the same scene."""
        return index < self.chunks and line.video.scene_at(index) is line.video.scene

    def _remember(
        self,
        lines: Sequence[Line],
        drawn: Drawn,
        verdicts: Sequence[tuple[Scores, Route]],
        kept: Sequence[int],
        index: int,
        ahead: Ahead | None,
    ) -> list[Memory]:
        """The memory of each kept row: its parent's, and a new block that the clean pass writes; none after the last."""
        slots: list[Slot] = []
        if index < self.chunks - 1 or self.settings.memory.keep_last:
            written = dict(zip(ahead.rows, ahead.blocks, strict=True)) if ahead else {}
            slots = self.remembering.write(lines, drawn, verdicts, kept, index, written)
        memories = self.remembering.inherit(lines, drawn, kept)
        return self.remembering.extend(memories, slots, index) if slots else memories

    def _settle(
        self,
        line: Line,
        pool: tuple[Candidate, ...],
        kept: tuple[int, ...],
        memories: Sequence[Memory],
        shown: Sequence[Shown],
        index: int,
    ) -> Turn:
        """The histories that end with the kept candidates, and what they all share."""
        window = self.settings.reward.window_chunks
        grown = tuple(
            grow(pool[row], index, memory, one, window)
            for row, memory, one in zip(kept, memories, shown, strict=True)
        )
        alive = self._within_horizon(grown, line.video.lease)
        rest, events = line.video.emitter.settled(alive)
        rows = tuple(r for r, g in zip(kept, grown, strict=True) if any(g is a for a in alive))
        return Turn(line.video, pool, rows, alive, rest, tuple(events))

    def _tell(
        self, turns: Sequence[Turn], spans: Sequence[slice], index: int, frames: Tensor
    ) -> None:
        """Tell each video's watcher about its chunk. The batch's times go with the last one."""
        spent = self.clock.take()
        for turn, span in zip(turns, spans, strict=True):
            if turn.video.watch is not None:
                times = spent if turn is turns[-1] else {}
                seen, number = frames[span], turn.video.number
                who = turn.candidates, turn.kept, turn.survivors
                turn.video.watch(ChunkRecord(index, self.chunks, *who, seen, times, number))

    def _within_horizon(
        self, grown: tuple[Trajectory, ...], lease: Lease
    ) -> tuple[Trajectory, ...]:
        """Without the histories that disagree with the best one about something too old to reconsider."""
        if not self.policy.prunes:
            return grown
        alive = within_horizon(grown, self.settings.search.horizon_chunks)
        for history in grown:
            if not any(history is other for other in alive):
                lease.drop(history.memory.slots)
        return alive

    @torch.no_grad()
    def _best(self, line: Line) -> Trajectory:
        """The survivor whose whole video the video reward likes most; earlier ranks win ties."""
        survivors, video = line.survivors, line.video
        if len(survivors) == 1 or not self.policy.rates:
            return survivors[0]
        place = Place(video.prompt, self.fps, self.chunks - 1, self.chunks)
        chunks = self.chunks - video.scene.chunk  # what the prompt at hand is about
        frames = torch.stack([video.emitter.whole(survivor, chunks) for survivor in survivors])
        return survivors[self.scorer.best(frames, place, self.parts.final)]


def _events(numbered: Iterator[tuple[int, ChunkEvent]]) -> Iterator[ChunkEvent]:
    """The events alone. Closing this closes what it reads from."""
    with contextlib.closing(numbered):  # type: ignore[type-var]
        for _, event in numbered:
            yield event


def _numbered(video: Video, events: Sequence[ChunkEvent]) -> list[tuple[int, ChunkEvent]]:
    return [(video.number, event) for event in events]
