"""Whatever videos do to the KV pool between them, it counts and holds what a model in plain Python says it should.

The model shares nothing: every history is lists of numbers of its own. A block that is given back too early, kept too long
or changed under somebody who still needs it shows as a count or as a number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from runtime.lines import Line
from runtime.memory import KVPool, Lease, MemoryKeeper, pool_blocks
from runtime.packing import Packed, Packer, Unpacker
from runtime.recaching import Recaching
from runtime.settings import CHUNK_FRAMES, MemorySettings
from runtime.telemetry import StageClock
from runtime.types import Memory, Route, Slot, Trajectory
from tests.shelf import SHAPE

VIDEOS, HISTORIES = 3, 3
SIZES = {"window_frames": 12, "max_sink_frames": 9, "ema_alpha": 0.5}
TEXT = 1000.0  # what a prompt adds to what a chunk was made from


@dataclass(frozen=True)
class Held:
    """A block as the model knows it."""

    value: float
    born: float  # of the chunk that it was made from
    route: Route


@dataclass
class Video:
    """The real one and the model's, history by history: sinks and window."""

    lease: Lease
    memory: MemorySettings
    survivors: tuple[Trajectory, ...] = (Trajectory(),)
    model: tuple[tuple[tuple[Held, ...], tuple[Held, ...]], ...] = (((), ()),)
    index: int = 0


class Written:
    """A denoiser whose clean pass writes what a block is made from, the prompt, and a little of all that it sees."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool

    def clean(self, plan, latents, texts) -> None:
        rows = zip(plan.targets, plan.blocks, latents, texts, strict=True)
        values = [
            rewritten(made_from.item(), text, [self.pool.kv[1, b, 0, 0, 0].item() for b in seen])
            for _, seen, made_from, text in rows
        ]
        for target, value in zip(plan.targets, values, strict=True):
            self.pool.kv[:, target] = value


def rewritten(born: float, text: int, seen: list[float]) -> float:
    """A block's value after a switch."""
    return born + TEXT * text + 0.01 * sum(seen)


def recached(history, how: str, text: int):
    """A history's model after a switch: sinks first, then the window, each block of what was made before."""
    keep = {"all": 0, "window": len(history[0]), "none": len(history[0] + history[1])}[how]
    new: list[Held] = []
    for one in history[0] + history[1]:
        value = rewritten(one.born, text, [other.value for other in new])
        new.append(one if len(new) < keep else replace(one, value=value))
    return tuple(new[: len(history[0])]), tuple(new[len(history[0]) :])


def roomy(sinks, window, memory: MemorySettings):
    """A history's model with room for a chunk."""
    if len(window) < memory.window_chunks:
        return sinks, window
    leaving, *rest = window
    if leaving.route is Route.APPEND and len(sinks) < memory.max_sink_chunks:
        sinks = (*sinks, leaving)
    elif leaving.route is not Route.DISCARD:
        merged = (1 - memory.ema_alpha) * leaving.value + memory.ema_alpha * sinks[-1].value
        sinks = (*sinks[:-1], replace(sinks[-1], value=merged))
    return sinks, tuple(rest)


class PoolMachine(RuleBasedStateMachine):
    """Videos begin, go on, fork, lose histories, change prompts, are packed and cancelled, in any order."""

    videos = Bundle("videos")
    dtype = torch.float64

    @initialize()
    def empty(self) -> None:
        blocks = VIDEOS * pool_blocks(MemorySettings(**SIZES), HISTORIES)
        self.pool = KVPool(blocks, SHAPE, self.dtype, "cpu")
        self.alive: list[Video] = []
        self.numbers = count(1)
        self.recaching = Recaching(Written(self.pool), None, StageClock(torch.device("cpu")))

    @precondition(lambda self: len(self.alive) < VIDEOS)
    @rule(target=videos, recache=st.sampled_from(["all", "all", "window", "none"]))
    def begin(self, recache: str) -> Video:
        video = Video(Lease(self.pool), MemorySettings(recache=recache, **SIZES))
        self.alive.append(video)
        return video

    kept = st.lists(
        st.tuples(st.integers(0, HISTORIES - 1), st.sampled_from([*Route, Route.EMA])),
        min_size=1,
        max_size=HISTORIES,
    )

    @rule(
        video=videos,
        chunks=st.lists(st.tuples(kept, st.integers(-9, 9)), min_size=3, max_size=8),
    )
    def go_on(self, video: Video, chunks: list[tuple[list[tuple[int, Route]], int]]) -> None:
        """Some chunks, and a new prompt after some of them."""
        for kept, text in chunks:
            self.chunk(video, kept)
            if text > 0:
                self.switch(video, text)

    def chunk(self, video: Video, kept: list[tuple[int, Route]]) -> None:
        """Make room, then every kept row is its parent's memory and a block more; parents let theirs go."""
        self.room(video)
        parents = [(rank % len(video.survivors), route) for rank, route in kept]
        slots, held = [], []
        for rank, route in parents:
            video.lease.hold(video.survivors[rank].memory)
            number = float(next(self.numbers))
            block = video.lease.allocate()
            self.pool.kv[:, block] = number
            made_from = torch.full((3,), number)[:1]
            slots.append(Slot(block, CHUNK_FRAMES * video.index, route, made_from))
            held.append(Held(number, number, route))
        for survivor in video.survivors:
            video.lease.drop(survivor.memory.slots)
        keeper = self.keeper(video)
        video.survivors, video.model = (
            tuple(
                Trajectory(keeper.remember(video.survivors[rank].memory, slot, video.index))
                for (rank, _), slot in zip(parents, slots, strict=True)
            ),
            tuple(
                self.remembered(video, rank, one)
                for (rank, _), one in zip(parents, held, strict=True)
            ),
        )
        video.index += 1

    @rule(video=videos)
    def room(self, video: Video) -> None:
        video.survivors = self.keeper(video).make_room(video.survivors, video.lease)
        video.model = tuple(roomy(*history, video.memory) for history in video.model)

    @rule(video=videos, rank=st.integers(0, HISTORIES - 1))
    def prune(self, video: Video, rank: int) -> None:
        if len(video.survivors) > 1:
            rank %= len(video.survivors)
            video.lease.drop(video.survivors[rank].memory.slots)
            video.survivors = video.survivors[:rank] + video.survivors[rank + 1 :]
            video.model = video.model[:rank] + video.model[rank + 1 :]

    def switch(self, video: Video, text: int) -> None:
        recipe = SimpleNamespace(memory=video.memory)
        told = SimpleNamespace(recipe=recipe, lease=video.lease, text=text)
        (line,) = self.recaching.refresh([Line(told, video.survivors, video.index)])
        video.survivors = line.survivors
        how = video.memory.recache
        video.model = tuple(recached(history, how, text) for history in video.model)

    @rule(target=videos, video=consumes(videos))
    def pack_and_go_on(self, video: Video) -> Video:
        packer = Packer(self.pool)
        trees = packer.histories(video.survivors)
        video.lease.close()
        self.alive.remove(video)
        after = replace(video, lease=Lease(self.pool))
        unpacker = Unpacker(Packed({}, packer.tensors), packer.chunks, self.pool, after.lease)
        after.survivors = unpacker.histories(trees)
        self.alive.append(after)
        return after

    @rule(video=consumes(videos))
    def cancel(self, video: Video) -> None:
        video.lease.close()
        video.lease.close()  # again is harmless
        self.alive.remove(video)

    def keeper(self, video: Video) -> MemoryKeeper:
        return MemoryKeeper(video.memory, self.pool, released=False)

    def remembered(self, video: Video, rank: int, one: Held):
        sinks, window = video.model[rank]
        if video.index < video.memory.sink_chunks:
            return (*sinks, one), window
        return sinks, (*window, one)

    @invariant()
    def counts_are_exact(self) -> None:
        memories = [[s.memory for s in video.survivors] for video in self.alive]
        self.pool.check([memory for one in memories for memory in one])
        for video, mine in zip(self.alive, memories, strict=True):
            wanted = Counter(slot.block for memory in mine for slot in memory.slots)
            assert +video.lease.held == wanted
        assert not set(self.pool.shadows) - {b for b, held in enumerate(self.pool.counts) if held}

    @invariant()
    def every_history_remembers_what_it_should(self) -> None:
        for video in self.alive:
            for survivor, model in zip(video.survivors, video.model, strict=True):
                memory: Memory = survivor.memory
                for slots, held in zip((memory.sinks, memory.window), model, strict=True):
                    got = [self.pool.kv[1, slot.block, 0, 0, 0].item() for slot in slots]
                    assert got == pytest.approx([one.value for one in held], rel=self.rel)
                    assert [slot.route for slot in slots] == [one.route for one in held]

    rel = 1e-12

    def teardown(self) -> None:
        for video in self.alive:
            video.lease.close()
        self.pool.check([])
        assert self.pool.used == 0 and not self.pool.shadows


class ShadowedPoolMachine(PoolMachine):
    """The same in bfloat16, where a merged sink has a float32 shadow; numbers are known to a rounding."""

    dtype = torch.bfloat16
    rel = 2.0**-7


EXAMPLES = settings(max_examples=150, stateful_step_count=12)
TestPool = PoolMachine.TestCase
TestPool.settings = EXAMPLES
TestShadowedPool = ShadowedPoolMachine.TestCase
TestShadowedPool.settings = EXAMPLES
