"""A rank that draws: everything that is done to the candidates of histories that it owns, and to nobody else's."""

from __future__ import annotations

from dataclasses import replace

from runtime.engine import Engine
from runtime.grow import grow, grow_candidates
from runtime.lines import Choice, Line
from runtime.ranks.clips import clips_for
from runtime.ranks.deal import Deal, Outcome
from runtime.ranks.hands import Asking, Made, Work
from runtime.ranks.moving import packed_chunks
from runtime.ranks.state import State
from runtime.ranks.world import World
from runtime.types import Trajectory


class Maker(Asking):
    """Uses an engine's rooms for one rank's rows. See ``Hands`` for what its methods mean."""

    def __init__(self, engine: Engine, world: World) -> None:
        self.engine: Engine = engine
        self.world = world

    def draw(self, state: State, deal: Deal) -> tuple[State, Work | None]:
        engine, rows = self.engine, deal.rows_of(state.rank)
        (line,) = engine.ready([state.line])
        state = replace(state, line=line)
        if not rows:
            return state, None
        parents = state.mine or {0: Trajectory()}
        branches = tuple(
            replace(branch, parent=parents[branch.rank])
            for branch in (deal.branches[row] for row in rows)
        )
        places = [engine.place(line)]
        drawn = engine.drawing.draw_these([line], [branches], places)
        with engine.clock.stage("decode"):
            newest = engine.decoding.newest(branches, drawn.latents, drawn.litters)
        if not line.video.recipe.policy.judges:
            return state, Work(rows, None, Made(drawn, newest))
        (question,) = engine.judging.questions([line], drawn, newest, places)
        return state, Work(rows, question, Made(drawn, newest))

    def deliver(self, state: State, deal: Deal, work: Work | None) -> Work | None:
        if work is None:
            return None
        assert work.question is not None, "frames travel to be judged"
        for rater in sorted(set(deal.raters)):
            clips = clips_for(rater, deal, work.rows, work.question, self.engine.decoding.cold)
            if clips is not None:
                self.world.send(f"clips of chunk {state.line.index}", clips.packed(), rater)
        return replace(work, question=None)

    def keep(self, line: Line, work: Work | None, outcome: Outcome) -> tuple[Trajectory, ...]:
        if work is None:
            return ()
        assert work.made is not None, "a maker keeps what it drew"
        engine, drawn, newest = self.engine, work.made.drawn, work.made.newest
        mine = tuple(work.rows.index(row) for row in outcome.kept if row in work.rows)
        verdicts = [(c.scores, c.route) for c in (outcome.candidates[row] for row in work.rows)]
        candidates = grow_candidates(drawn.branches, drawn.noise, drawn.latents, verdicts)
        with engine.clock.stage("decode"):
            shown = engine.decoding.shown(drawn.branches, drawn.latents, newest, mine)
        with engine.clock.stage("memory"):
            memories = engine.remembering.write([line], drawn, [Choice(candidates, mine)])
        window = line.video.recipe.window_chunks
        return tuple(
            grow(candidates[row], line.index, memories[row], one, window)
            for row, one in zip(mine, shown, strict=True)
        )

    def endings(self, state: State, raters: tuple[int, ...]) -> Line:
        mine, horizon = state.mine, state.line.video.emitter.horizon
        if raters == state.board.owners:
            return state.line
        for rater in sorted(set(raters)):
            places = [place for place in mine if raters[place] == rater]
            if places:
                chunks = [chunk for at in places for chunk in mine[at].unsettled[-horizon:]]
                self.world.send("endings", packed_chunks(chunks, self.engine.pool), rater)
        return replace(state.line, survivors=())
