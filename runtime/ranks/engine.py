"""One video over several ranks: the loop of ``runtime.engine`` with the work dealt to those who hold what it needs.

Every rank runs this loop on the same numbers. What is decided, all of them decide: which candidates to draw, who survives,
what is settled, who owns what. What is computed, the owner of a candidate's parent computes: noise, passes, frames, rewards,
the clean pass. Of histories that others own a rank knows what decisions are made of, and no tensor.

    one rank    make room -> draw -> decode -> judge ->                    -> clean pass -> grow ->
    all ranks                                           scores -> select                           settle -> rebalance
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from runtime.emit import shared
from runtime.engine import Engine
from runtime.ranks.agreement import check_alike, check_supported
from runtime.ranks.deal import Board, dealt, decided
from runtime.ranks.hands import Hands, Work
from runtime.ranks.moving import bring_frames, carried, packed_chunks, unpacked_chunks
from runtime.ranks.opinion import Opinion, all_incidents, assembled, width
from runtime.ranks.owners import moves_between, rebalanced
from runtime.ranks.state import State, tell
from runtime.ranks.world import RankFailed, World
from runtime.scenes import Prompts, Scene, scenes_of
from runtime.types import ChunkEvent, Trajectory, Watch

TROUBLES = (RuntimeError, ValueError, MemoryError, OSError)
Made = TypeVar("Made")


class RankedEngine:
    """``Engine.stream`` over the ranks of a world: called on all of them alike, it yields the same events on all."""

    def __init__(self, engine: Engine, world: World) -> None:
        """``engine`` is this rank's own. ValueError for settings that ranks do not support or do not share."""
        check_supported(engine.settings)
        self.engine, self.world = engine, world
        self.hands = Hands(engine)
        check_alike(engine, world)

        self.settings, self.fps, self.chunks = engine.settings, engine.fps, engine.chunks
        self.batch_prompts = 1

    @property
    def idle(self) -> bool:
        """This rank has nothing to do: there are more ranks than histories."""
        return self.world.rank >= self.engine.policy.histories

    @property
    def why_idle(self) -> str:
        """A sentence for whoever wonders."""
        rank, size, histories = self.world.rank, self.world.size, self.engine.policy.histories
        return f"rank {rank} has no history to work on and waits: there are {size} ranks for histories = {histories}"

    @property
    def implementations(self) -> dict[str, str]:
        """Which implementation of each op runs; the same on all ranks."""
        return self.engine.implementations

    def unknown_words(self, prompt: str) -> list[str]:
        """As ``Engine.unknown_words``."""
        return self.engine.unknown_words(prompt)

    def stream(self, prompts: Prompts, *, watch: Watch | None = None) -> Iterator[ChunkEvent]:
        """As ``Engine.stream``. ``watch`` is called where it is given, and the ranks bring it all candidates' frames; of
        other ranks' histories its records have facts and no tensors.

        Raises RankFailed on all ranks when one of them gives up, and RuntimeError there. Close it on all or on none.
        """
        return self._stream(scenes_of(prompts, self.chunks), watch)

    def work(self, prompts: Prompts) -> None:
        """``stream`` for a rank whose events nobody reads."""
        for _ in self.stream(prompts):
            pass

    def stream_many(
        self, prompts: Sequence[Prompts], *, watch: Watch | None = None
    ) -> Iterator[tuple[int, ChunkEvent]]:
        """``stream`` for several videos, one after the other: pairs of a video's index and its next settled chunk."""
        told = [scenes_of(one, self.chunks) for one in prompts]
        return (
            (number, event)
            for number, scenes in enumerate(told)
            for event in self._stream(scenes, watch)
        )

    def _stream(self, scenes: tuple[Scene, ...], watch: Watch | None) -> Iterator[ChunkEvent]:
        engine, world = self.engine, self.world
        told = world.texts("the prompts", repr(scenes))
        if len(set(told)) > 1:
            raise ValueError(f"prompts: want the same on all ranks, got {len(set(told))} kinds")
        watchers = world.exchange("the watchers", [float(watch is not None)], 1)
        watching = [rank for rank, [does] in enumerate(watchers) if does]
        engine.clock.take()
        with engine.pool.lease() as lease:
            line = engine.begin(engine.recipe, scenes, lease, watch)
            state = State(replace(line, survivors=()), Board(), world.rank)
            while not state.line.done:
                state, settled = self._turn(state, watching)
                yield from settled
            yield from self._finish(state)

    @torch.no_grad()
    def _turn(self, state: State, watching: Sequence[int]) -> tuple[State, list[ChunkEvent]]:
        """The next chunk, and what can be shown now."""
        engine, world, video = self.engine, self.world, state.line.video
        at, place = f"of chunk {state.line.index}", engine.place(state.line)
        deal = dealt(video.recipe.policy, state.board, place.chunk, world.size)

        def draw() -> tuple[State, Work | None]:
            (line,) = engine.ready([state.line])
            roomy = replace(state, line=line)
            return roomy, self.hands.work(roomy, deal)

        (state, work), opinion = self._heard(f"scores {at}", draw, _opinion_of, deal.owners)
        with engine.clock.stage("select"):
            place = engine.place(state.line)  # in the scene of the chunk
            outcome = decided(video.recipe, deal, opinion, place)
        mine, _ = self._made(f"memories {at}", lambda: self.hands.keep(state.line, work, outcome))
        state = replace(state, line=replace(state.line, survivors=mine), board=outcome.board)
        count = shared(state.board.ghosts)
        settled = self._shown(state, 0, count)
        spent = engine.clock.take()
        incidents = video.recipe.scorer.incidents(video.number)
        for watcher in watching:
            frames = bring_frames(world, deal, work.newest.frames if work else None, watcher)
            if frames is not None:
                tell(state, outcome, frames, spent, incidents)
        after = self._balanced(state.next(count))
        return after, [replace(event, timings=spent) for event in settled]

    def _shown(self, state: State, place: int, count: int) -> list[ChunkEvent]:
        """The first ``count`` chunks of the history at ``place``, brought to all ranks: rank 0 writes them, and the
        others need them at the end, to rate their whole videos."""
        if not count:
            return []
        owner, what = state.board.owners[place], f"frames after chunk {state.line.index}"
        packed = None
        if owner == state.rank:
            packed = packed_chunks(state.mine[place].unsettled[:count], self.engine.pool)
        with self.engine.clock.stage("emit"):
            packed = self.world.broadcast(what, packed, owner)
        video = state.line.video
        return video.emitter.flush(Trajectory(unsettled=unpacked_chunks(packed, video.lease)))

    def _balanced(self, state: State) -> State:
        """Histories move where ranks have more than their share of them."""
        before = state.board.owners
        after = rebalanced(before, self.world.size)
        if state.line.done or before == after:
            return state
        with self.engine.clock.stage("move"):
            moves = moves_between(before, after)
            mine = carried(moves, state.mine, self.world, state.line.video.lease)
        return state.with_mine(mine, after)

    @torch.no_grad()
    def _finish(self, state: State) -> list[ChunkEvent]:
        """What is left to show: of the survivor whose whole video the video reward likes most."""
        ghosts, best, recipe = state.board.ghosts, 0, state.line.video.recipe
        if len(ghosts) > 1 and recipe.policy.rates:
            place = self.engine.place(replace(state.line, index=state.line.index - 1))

            def rate() -> Opinion:
                return self.hands.final_opinion(state, place)

            owners = state.board.owners
            _, opinion = self._heard("final scores", rate, lambda made: made, owners)
            for incident in opinion.incidents:
                recipe.scorer.keep(incident, place)
            best = recipe.scorer.best(opinion.longs, place)
        return self._shown(state, best, len(ghosts[best].unsettled))

    def _heard(
        self,
        what: str,
        make: Callable[[], Made],
        of: Callable[[Made], Opinion],
        raters: Sequence[int],
    ) -> tuple[Made, Opinion]:
        """What ``make`` makes here, and the opinion on all rows, of which each rank has those that it rates."""
        rows = max(map(raters.count, set(raters)))
        made, told = self._made(what, make, lambda mine: of(mine).numbers(), width(rows))
        counts = [count for count, *_ in told]
        incidents = all_incidents(self.world, what, counts, of(made).incidents)
        return made, assembled(told, raters, incidents)

    def _made(
        self,
        what: str,
        make: Callable[[], Made],
        numbers: Callable[[Made], list[float]] = lambda made: [],
        width: int = 0,
    ) -> tuple[Made, list[list[float]]]:
        """What ``make`` makes here, and the numbers of it on every rank, at most ``width``; all stop where one fails."""
        try:
            made = make()
        except TROUBLES as error:
            with contextlib.suppress(RankFailed):
                self.world.exchange(what, [], width, f"{error}" or type(error).__name__)
            raise
        return made, self.world.exchange(what, numbers(made), width)


def _opinion_of(made: tuple[State, Work | None]) -> Opinion:
    _, work = made
    return work.opinion if work else Opinion()
