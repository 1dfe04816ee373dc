"""The loop from a prompt to settled chunks: read this first. Every line of ``Engine._chunk`` is one room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from runtime import noise as noise_room
from runtime.decode import Decoding, Newest
from runtime.denoise import Denoiser
from runtime.emit import Emitter
from runtime.generators import Generator, load_generator
from runtime.generators.wan import TextContext
from runtime.kernels.dispatch import implementation
from runtime.memory import KVPool, Lease, MemoryKeeper, pool_blocks
from runtime.plan import plan_chunk
from runtime.rewards import load_reward
from runtime.score import Place, Scorer
from runtime.search import SearchPolicy, build_policy, within_horizon
from runtime.settings import CHUNK_FRAMES, PROMPT_CHARACTERS, Settings
from runtime.telemetry import StageClock
from runtime.types import (
    Branch,
    Candidate,
    Chunk,
    ChunkEvent,
    ChunkRecord,
    Memory,
    NoiseSource,
    RewardModel,
    Route,
    Scores,
    Slot,
    Trajectory,
    Watch,
)

UNJUDGED = Scores(math.nan, math.nan, math.nan)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """What an engine is made of. Tests and replays hand in their own; everybody else names parts in ``Settings``."""

    generator: Generator
    image: RewardModel | None  # None where the policy asks no reward
    video: RewardModel | None
    noise: NoiseSource
    final: RewardModel | None = None  # rates whole videos at the end; None: the video reward

    @staticmethod
    def load(settings: Settings) -> Parts:
        run, policy = settings.run, build_policy_of(settings)
        device, dtype = find_device(run.device), DTYPES[run.dtype]
        asked = policy.judges or policy.rates
        return Parts(
            load_generator(run.generator, device, dtype, run.ops),
            load_reward(settings.reward.image, run.device) if asked else None,
            load_reward(settings.reward.video, run.device) if asked else None,
            noise_room.PhiloxNoise(device, dtype, run.ops),
        )


@dataclass(frozen=True, slots=True)
class Video:
    """One video in the making: what does not change from chunk to chunk."""

    prompt: str
    text: TextContext
    lease: Lease
    emitter: Emitter
    watch: Watch | None


def check_prompt(prompt: str) -> None:
    """ValueError for a prompt that is empty or longer than ``PROMPT_CHARACTERS``."""
    if not prompt.strip():
        raise ValueError("prompt: want some words, got an empty text")
    if len(prompt) > PROMPT_CHARACTERS:
        raise ValueError(f"prompt: want at most {PROMPT_CHARACTERS} characters, got {len(prompt)}")


class Engine:
    """Generates one video at a time, chunk by chunk, through every part of Stream-T1."""

    def __init__(self, settings: Settings | None = None, parts: Parts | None = None) -> None:
        self.settings = settings = settings or Settings()
        self.parts = parts or Parts.load(settings)
        generator = self.parts.generator
        wasteful = settings.run.schedule == "released"
        rows = 1 if wasteful else settings.run.batch_rows
        self.fps = generator.fps
        self.chunks = chunks_for(settings.seconds, generator.fps, generator.time_stride)
        self.policy = build_policy_of(settings)
        self.clean_all = wasteful
        shape, dtype, device = generator.block_shape, generator.dtype, generator.device
        self.pool = KVPool(self._blocks(), shape, dtype, device, settings.run.ops)
        memory = settings.memory if self.policy.sinks else replace(settings.memory, sinking=False)
        self.keeper = MemoryKeeper(memory, self.pool, settings.released, settings.search.seed)
        self.denoiser = Denoiser(
            generator.dit, self.pool, generator.schedule, rows, settings.run.attention
        )
        cold = (
            settings.released or wasteful
        ) and self.policy.judges  # nobody else looks at cold frames
        self.decoding = Decoding(generator.decoder, settings.reward.window_chunks, cold, rows)
        self.scorer = Scorer(
            self.parts.image, self.parts.video, settings.reward, memory, settings.released, rows
        )
        self.clock = StageClock(generator.device)

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
        }

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that the generator's tokeniser does not know."""
        return self.parts.generator.text.unknown_words(prompt)

    def stream(self, prompt: str, *, watch: Watch | None = None) -> Iterator[ChunkEvent]:
        """Settled chunks in order, each as soon as nothing can change it. Closing the iterator frees everything.

        ``watch`` is called with a ``ChunkRecord`` after every chunk. Raises ValueError for a bad prompt and RuntimeError
        when this engine is already generating.
        """
        check_prompt(prompt)
        self._check_idle()
        return self._stream(prompt, watch)

    def _check_idle(self) -> None:
        if self.pool.used:
            raise RuntimeError(
                "this engine is already generating a video; finish or close it, or build a second one"
            )

    def _stream(self, prompt: str, watch: Watch | None) -> Iterator[ChunkEvent]:
        self._check_idle()  # another stream may have begun since this one was asked for
        self.clock.take()
        with self.clock.stage("text"):
            text = self.parts.generator.encode(prompt)
        emitter = Emitter(self.settings.search.horizon_chunks)
        with self.pool.lease() as lease:
            video = Video(prompt, text, lease, emitter, watch)
            survivors: tuple[Trajectory, ...] = (Trajectory(),)
            for index in range(self.chunks):
                survivors, settled = self._chunk(survivors, index, video)
                yield from settled
            yield from emitter.flush(self._best(survivors, video))

    @torch.no_grad()
    def _chunk(
        self, survivors: tuple[Trajectory, ...], index: int, video: Video
    ) -> tuple[tuple[Trajectory, ...], list[ChunkEvent]]:
        """One turn of the line: the histories after chunk ``index``, and what can be shown now."""
        stage = self.clock.stage
        with stage("memory"):
            survivors = self.keeper.make_room(survivors, video.lease)
        branches = self.policy.expand(survivors, index)
        plan = plan_chunk(branches, index, self.settings.memory)
        with stage("noise"):
            noise = self._propagate(branches)
        with stage("denoise"):
            latents = self.denoiser.run(plan, noise, partial(self._renoise, branches), video.text)
        with stage("decode"):
            newest = self.decoding.newest(branches, latents)
        verdicts = self._judge(
            branches, latents, newest, Place(video.prompt, self.fps, index, self.chunks)
        )
        with stage("select"):
            candidates = grow_candidates(branches, noise, latents, verdicts)
            kept = self.policy.select(candidates)
        with stage("decode"):
            frames, states = self.decoding.shown(branches, latents, newest, kept)
        with stage("memory"):
            memories = self._remember(candidates, kept, index, video)
            for history in survivors:
                video.lease.drop(history.memory.slots)
        grown = tuple(
            self._grow(candidates[row], index, *values)
            for row, *values in zip(kept, memories, frames, states, strict=True)
        )
        with stage("emit"):
            alive = self._within_horizon(grown, video.lease)
            rest, settled = video.emitter.settled(alive)
        stage_ms = self.clock.take()
        if video.watch is not None:
            rows = tuple(r for r, g in zip(kept, grown, strict=True) if any(g is a for a in alive))
            seen = newest.frames
            video.watch(ChunkRecord(index, self.chunks, candidates, rows, alive, seen, stage_ms))
        return rest, settled

    def _propagate(self, branches: Sequence[Branch]) -> Tensor:
        how = self.settings.noise if self.policy.propagates else None
        return noise_room.propagate(
            branches, self.parts.noise, self.parts.generator.chunk_shape, how
        )

    def _renoise(
        self, branches: Sequence[Branch], x0: Tensor, rows: range, number: int, sigma: float
    ) -> Tensor:
        draws = noise_room.draws_of([branches[row] for row in rows], number)
        return self.parts.noise.renoise(x0, draws, sigma)

    def _judge(
        self, branches: Sequence[Branch], latents: Tensor, newest: Newest, place: Place
    ) -> list[tuple[Scores, Route]]:
        if not self.policy.judges:
            return [(UNJUDGED, Route.DISCARD)] * len(branches)
        with self.clock.stage("image reward"):
            shorts = self.scorer.rate_images(newest.frames, place)
        with self.clock.stage("decode"):
            window = self.decoding.window(branches, latents, newest)
        with self.clock.stage("video reward"):
            longs = self.scorer.rate_videos(window, place)
        return self.scorer.decide(branches, shorts, longs, place)

    def _remember(
        self, candidates: Sequence[Candidate], kept: Sequence[int], index: int, video: Video
    ) -> list[Memory]:
        """The memory of each kept row: its parent's, and a new block that the clean pass writes.

        Only survivors need the pass, and none after the last chunk; the released schedule runs it for every candidate.
        """
        parents = [candidates[row].branch.parent.memory for row in kept]
        for memory in parents:
            video.lease.hold(memory)
        if index == self.chunks - 1 and not self.settings.memory.keep_last:
            return parents
        rows = tuple(range(len(candidates))) if self.clean_all else tuple(kept)
        blocks = {row: video.lease.allocate() for row in rows}
        plan = plan_chunk([candidates[row].branch for row in rows], index, self.settings.memory)
        latents = torch.stack([candidates[row].latents for row in rows])
        self.denoiser.clean(plan, latents, list(blocks.values()), video.text)
        slots = {
            row: Slot(block, index * CHUNK_FRAMES, candidates[row].route)
            for row, block in blocks.items()
        }
        video.lease.drop([slots[row] for row in rows if row not in kept])
        return [
            self.keeper.remember(m, slots[row], index) for m, row in zip(parents, kept, strict=True)
        ]

    def _grow(
        self, candidate: Candidate, index: int, memory: Memory, frames: Tensor, state: object
    ) -> Trajectory:
        """The history that ends with this candidate. Its tensors are cloned: a row of the batch would keep the losers."""
        parent, scores = candidate.branch.parent, candidate.scores
        latents, frames = candidate.latents.clone(), frames.clone()
        chunk = Chunk(index, candidate.branch.seed, latents, frames, scores, candidate.route)
        past = max(self.settings.reward.window_chunks - 1, 1)
        return Trajectory(
            memory=memory,
            seed=candidate.branch.seed,
            seed_chunk=candidate.branch.seed_chunk,
            noise=candidate.noise.clone(),
            decoder=state,
            latents=(*parent.latents, latents)[-past:],
            frames=(*parent.frames, frames)[-past:],
            shorts=(*parent.shorts, scores.short)[-past:],
            short_sum=parent.short_sum + scores.short,
            long=scores.long,
            score=scores.fused,
            unsettled=(*parent.unsettled, chunk),
        )

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
    def _best(self, survivors: Sequence[Trajectory], video: Video) -> Trajectory:
        """The survivor whose whole video the video reward likes most; earlier ranks win ties."""
        if len(survivors) == 1 or not self.policy.rates:
            return survivors[0]
        place = Place(video.prompt, self.fps, self.chunks - 1, self.chunks)
        frames = torch.stack([video.emitter.whole(survivor) for survivor in survivors])
        return survivors[self.scorer.best(frames, place, self.parts.final)]

    def _blocks(self) -> int:
        spare = (
            self.settings.search.histories * self.settings.search.expansions
            if self.clean_all
            else 0
        )
        return pool_blocks(self.settings.memory, self.policy.histories) + spare


def build_policy_of(settings: Settings) -> SearchPolicy:
    """The search policy that ``settings`` ask for."""
    return build_policy(settings.search, settings.released, settings.memory.sinking)


def find_device(name: str) -> torch.device:
    """The device called ``name``. ValueError for no device at all, RuntimeError for one that this machine lacks."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(
            f"run.device: {name!r} cannot be used here ({reason}); use 'cpu'"
        ) from None
    return device


def grow_candidates(
    branches: Sequence[Branch],
    noise: Tensor,
    latents: Tensor,
    verdicts: Sequence[tuple[Scores, Route]],
) -> tuple[Candidate, ...]:
    """Branches with what was drawn, denoised and decided for them."""
    return tuple(
        Candidate(branch, row, noise[row], latents[row], *verdicts[row])
        for row, branch in enumerate(branches)
    )


def chunks_for(seconds: float, fps: int, time_stride: int) -> int:
    """Chunks of a video of about ``seconds``: its first latent frame is one frame, every later one ``time_stride``."""
    frames_per_chunk = CHUNK_FRAMES * time_stride
    return max(1, round((seconds * fps + time_stride - 1) / frames_per_chunk))
