"""A rank that only judges: it receives the candidates' frames from those who drew them, and keeps the survivors'."""

from __future__ import annotations

from dataclasses import replace

from runtime.judging import Question
from runtime.lines import Line
from runtime.ranks.clips import Clips, assembled
from runtime.ranks.deal import Deal, Outcome
from runtime.ranks.hands import Asking, Work
from runtime.ranks.moving import unpacked_chunks
from runtime.ranks.reward_engine import RewardEngine
from runtime.ranks.state import State
from runtime.ranks.world import World
from runtime.types import Chunk, Trajectory


class Rater(Asking):
    """Of a history that it judged it holds the frames of the reward window, and no other tensor. See ``Hands``."""

    def __init__(self, engine: RewardEngine, world: World) -> None:
        self.engine: RewardEngine = engine
        self.world = world

    def draw(self, state: State, deal: Deal) -> tuple[State, Work | None]:
        return replace(state, line=self.engine.ready(state.line)), None

    def deliver(self, state: State, deal: Deal, work: Work | None) -> Work | None:
        rows = deal.rated_by(state.rank)
        if not rows:
            return None
        makers = sorted({deal.owners[row] for row in rows})
        what = f"clips of chunk {state.line.index}"
        clips = [Clips.unpacked(self.world.receive(what, maker)) for maker in makers]
        held = {place: one.frames for place, one in state.mine.items()}
        frames, window = assembled(clips, deal, rows, held)
        scorer, place = state.line.video.recipe.scorer, self.engine.place(state.line)
        return Work(rows, Question(scorer, place, frames, window), None)

    def keep(self, line: Line, work: Work | None, outcome: Outcome) -> tuple[Trajectory, ...]:
        if work is None:
            return ()
        assert work.question is not None, "a rater keeps what it judged"
        frames, window = work.question.frames, work.question.window
        before = line.video.recipe.window_chunks - 1
        kept = []
        for row, ghost in zip(outcome.kept, outcome.board.ghosts, strict=True):
            if row in work.rows:
                at = work.rows.index(row)
                past = (*(window.past[at] if window.past else ()), frames[at].clone())
                seen = past[max(len(past) - before, 0) :]
                kept.append(replace(ghost, frames=seen, unsettled=()))
        return tuple(kept)

    def endings(self, state: State, raters: tuple[int, ...]) -> Line:
        lease, owners = state.line.video.lease, state.board.owners
        mine = [place for place, rater in enumerate(raters) if rater == state.rank]
        ends: dict[int, tuple[Chunk, ...]] = {}
        for maker in sorted({owners[place] for place in mine}):
            places = [place for place in mine if owners[place] == maker]
            chunks = unpacked_chunks(self.world.receive("endings", maker), lease)
            each = len(chunks) // len(places)
            for at, place in enumerate(places):
                ends[place] = chunks[at * each : (at + 1) * each]
        wholes = tuple(Trajectory(unsettled=ends[place]) for place in mine)
        return replace(state.line, survivors=wholes)
