"""The loop from prompts to settled chunks: read this first. Every line of ``Engine.turn`` is one room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runtime.decode import Decoding
from runtime.denoise import Denoiser
from runtime.drawing import Drawing
from runtime.emit import Emitter
from runtime.guarding import guarded
from runtime.judging import Judging
from runtime.kernels.dispatch import implementation
from runtime.lanes import Lanes
from runtime.lines import Drawn, Line, Round, Turn, Video, rows_in
from runtime.memory import KVPool, Lease
from runtime.parts import Parts, blocks_of, build_policy_of
from runtime.recaching import Recaching
from runtime.recipe import Recipe, build_recipe, check_own
from runtime.remembering import Remembering
from runtime.scenes import Prompts, Scene, scenes_of
from runtime.score import Place, Scorer
from runtime.search import SearchPolicy
from runtime.settings import MAX_PROMPTS, Settings
from runtime.settling import chosen, numbered_events, round_of, settled
from runtime.sizing import most_prompts
from runtime.speculation import Speculation
from runtime.telemetry import StageClock
from runtime.types import ChunkEvent, ChunkRecord, Trajectory, Watch


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
        self.batch_rows = run.batch_rows
        self.fps = generator.fps
        shape, dtype, device = generator.block_shape, generator.dtype, generator.device
        blocks = self.batch_prompts * blocks_of(settings)
        self.pool = KVPool(blocks, shape, dtype, device, run.ops)
        rewards = {"image": parts.image, "video": parts.video, "final": parts.final}
        self.guards = {
            role: guarded(model, role, settings.reward.deadline_s)
            for role, model in rewards.items()
            if model is not None
        }
        self.recipe = self.recipe_of(settings)
        self.denoiser = Denoiser(generator.dit, self.pool, generator.schedule, parts.noise, run)
        # Nobody but a reward looks at cold frames.
        cold = (settings.released or wasteful) and self.policy.judges
        scoring = parts.scoring if self.policy.judges else None
        self.decoding = Decoding(
            generator.decoder,
            cold,
            run.decoder_rows or run.batch_rows,
            scoring,
            self.denoiser.graphs.mode,
            run.litters,
        )
        self.lanes = Lanes(device, run.overlap)
        self.clock = StageClock(device)
        self.drawing = Drawing(parts, self.denoiser, self.decoding, self.clock, run.litters)
        self.recaching = Recaching(self.denoiser, generator.encode, self.clock)
        self.remembering = Remembering(self.denoiser, wasteful)
        self.speculation = Speculation(self.drawing, self.denoiser)
        ahead = self.speculation if run.speculate else None
        self.judging = Judging(self.decoding, self.lanes, self.clock, ahead)

    @property
    def policy(self) -> SearchPolicy:
        """Of videos that bring no settings of their own."""
        return self.recipe.policy

    @property
    def scorer(self) -> Scorer:
        """Of videos that bring no settings of their own."""
        return self.recipe.scorer

    @property
    def chunks(self) -> int:
        """Of a video that brings no settings of its own."""
        return self.recipe.chunks

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
            group = numbered[first : first + self.batch_prompts]
            with contextlib.ExitStack() as stack:
                lines = [
                    self.begin(
                        self.recipe, scenes, stack.enter_context(self.pool.lease()), watch, n
                    )
                    for n, scenes in group
                ]
                while not lines[0].done:
                    after = self.turn(self.ready(lines))
                    for _, error in after.fallen:
                        raise error
                    lines = list(after.lines)
                    yield from after.settled
                for line in lines:
                    yield from numbered_events(line.video, self.finish(line))

    def recipe_of(self, settings: Settings) -> Recipe:
        """What ``settings`` make of this engine. ValueError for those that a video cannot have of its own."""
        parts, generator = self.parts, self.parts.generator
        check_own(settings, self.settings, parts.video is not None)
        models = self.guards.get("image"), self.guards.get("video")
        rooms = settings.reward, settings.memory
        rows = build_policy_of(settings).litter if settings.run.litters else self.batch_rows
        scorer = Scorer(*models, *rooms, settings.released, rows)
        return build_recipe(settings, generator, self.pool, scorer)

    def begin(
        self,
        recipe: Recipe,
        scenes: tuple[Scene, ...],
        lease: Lease,
        watch: Watch | None = None,
        number: int = 0,
        scene: Scene | None = None,
    ) -> Line:
        """A video before its first chunk, or in the ``scene`` that it had reached. Closing ``lease`` gives its memory back."""
        scene = scene or scenes[0]
        with self.clock.stage("text"):
            text = self.parts.generator.encode(scene.prompt)
        emitter = Emitter(recipe.settings.search.horizon_chunks)
        video = Video(number, scenes, scene, text, recipe, lease, emitter, watch)
        return Line(video, (Trajectory(),))

    @torch.no_grad()
    def ready(self, lines: Sequence[Line]) -> list[Line]:
        """The lines with room for their next chunks, and in the scenes of those. Doing it again changes nothing."""
        if lines[0].ahead is not None:  # has room already, and no scene begins
            return list(lines)
        with self.clock.stage("memory"):
            lines = [replace(x, survivors=_roomy(x)) for x in lines]
        return self.recaching.turn(lines)

    @torch.no_grad()
    def turn(self, lines: Sequence[Line]) -> Round:
        """The next chunk of lines that are ``ready`` and can share a turn (``Line.together``)."""
        stage = self.clock.stage
        places = [self.place(line) for line in lines]
        lines, drawn = self._next(lines, places)
        with stage("decode"):
            newest = self.decoding.newest(drawn.branches, drawn.latents, drawn.litters)
        verdicts, ahead = self.judging.judge(lines, drawn, newest, places)
        with stage("select"):
            choices = chosen(lines, drawn, verdicts)
            rows = rows_in(drawn.spans, [choice.kept for choice in choices])
            ahead = ahead and self.speculation.checked(ahead, rows, lines[0].video.lease)
        with stage("decode"):
            shown = self.decoding.shown(drawn.branches, drawn.latents, newest, rows)
        with stage("memory"):
            memories = self.remembering.write(lines, drawn, choices, ahead)
        with stage("emit"):
            turns = settled(lines, drawn.spans, choices, memories, shown)
        spent = self._tell(turns, newest.frames)
        if ahead and len(turns[0].survivors) < len(rows):  # the horizon had a word, too
            self.speculation.forget(ahead, lines[0].video.lease)
            ahead = None
        return round_of(turns, ahead, spent)

    @torch.no_grad()
    def finish(self, line: Line) -> list[ChunkEvent]:
        """What is left to show of a video whose chunks are all made: of the survivor that is liked most."""
        return line.video.emitter.flush(self._best(line))

    def place(self, line: Line) -> Place:
        """Where the line's next chunk is."""
        video = line.video
        return Place(video.prompt, self.fps, line.index, video.recipe.chunks, video.number)

    def _next(self, lines: Sequence[Line], places: Sequence[Place]) -> tuple[list[Line], Drawn]:
        """The candidates of the next chunks, drawn now or begun before."""
        if lines[0].ahead is not None:
            line, drawn = self.speculation.adopt(lines[0])
            return [line], drawn
        return list(lines), self.drawing.draw(lines, places)

    def _tell(self, turns: Sequence[Turn], frames: Tensor) -> dict[str, float]:
        """Tell each video's watcher about its chunk. The batch's times go with the last one."""
        spent = self.clock.take()
        for turn in turns:
            video = turn.video
            incidents = video.recipe.scorer.incidents(video.number)
            if video.watch is not None and turn.error is None:
                times = spent if turn is turns[-1] else {}
                who = turn.candidates, turn.kept, turn.survivors
                chunks, seen = video.recipe.chunks, frames[turn.span]
                end = times, video.number, incidents
                video.watch(ChunkRecord(turn.index, chunks, *who, seen, *end))
        return spent

    def _best(self, line: Line) -> Trajectory:
        """The survivor whose whole video the video reward likes most; earlier ranks win ties."""
        survivors, video = line.survivors, line.video
        recipe = video.recipe
        if len(survivors) == 1 or not recipe.policy.rates:
            return survivors[0]
        place = self.place(replace(line, index=line.index - 1))
        return survivors[recipe.scorer.best(self.final_scores(line, place), place)]

    def final_scores(self, line: Line, place: Place) -> list[float]:
        """What the video reward thinks of each survivor's whole video, which ends at ``place``."""
        video, recipe = line.video, line.video.recipe
        chunks = recipe.chunks - video.scene.chunk  # what the prompt at hand is about
        wholes = [video.emitter.whole(survivor, chunks) for survivor in line.survivors]
        alone = recipe.settings.run.litters
        return recipe.scorer.rate_whole(wholes, place, self.guards.get("final"), alone)


def _roomy(line: Line) -> tuple[Trajectory, ...]:
    return line.video.recipe.keeper.make_room(line.survivors, line.video.lease)


def _events(numbered: Iterator[tuple[int, ChunkEvent]]) -> Iterator[ChunkEvent]:
    """The events alone. Closing this closes what it reads from."""
    with contextlib.closing(numbered):  # type: ignore[type-var]
        for _, event in numbered:
            yield event
