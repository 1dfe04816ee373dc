"""The device work of one rank: everything that is done to the candidates of histories that it owns, and to nobody else's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from runtime.decode import Newest
from runtime.engine import Engine
from runtime.grow import grow, grow_candidates
from runtime.judging import Answer
from runtime.lines import Choice, Drawn, Line
from runtime.ranks.deal import Deal, Outcome
from runtime.ranks.opinion import Opinion, of_all
from runtime.ranks.state import State
from runtime.score import Place, Scorer
from runtime.types import Trajectory


@dataclass(frozen=True, slots=True)
class Work:
    """A rank's rows of a chunk, drawn and rated."""

    rows: tuple[int, ...]  # of all ranks' rows
    drawn: Drawn
    newest: Newest
    opinion: Opinion  # its incidents by the rows of all ranks


class Hands:
    """Uses an engine's rooms for one rank's rows."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def work(self, state: State, deal: Deal) -> Work | None:
        """This rank's rows of the deal, drawn and rated; None for no rows. RuntimeError for what fails."""
        engine, line, rows = self.engine, state.line, deal.rows_of(state.rank)
        if not rows:
            return None
        parents = state.mine or {0: Trajectory()}
        branches = tuple(
            replace(branch, parent=parents[branch.rank])
            for branch in (deal.branches[row] for row in rows)
        )
        drawn = engine.drawing.draw_these([line], [branches], [engine.place(line)])
        with engine.clock.stage("decode"):
            newest = engine.decoding.newest(branches, drawn.latents, drawn.litters)
        return Work(rows, drawn, newest, self._opinion(line, rows, drawn, newest))

    def _opinion(self, line: Line, rows: Sequence[int], drawn: Drawn, newest: Newest) -> Opinion:
        engine, recipe = self.engine, line.video.recipe
        if not recipe.policy.judges:
            return Opinion()
        columns = engine.judging.answers([line], drawn, newest, [engine.place(line)])
        engine.lanes.join()
        shorts, longs = (_numbers(answer) for (answer,) in columns)
        incidents = of_all(recipe.scorer.incidents(line.video.number), rows)
        return Opinion(shorts, longs, incidents)

    def keep(self, line: Line, work: Work | None, outcome: Outcome) -> tuple[Trajectory, ...]:
        """The histories that end with those of the kept rows that are this rank's."""
        if work is None:
            return ()
        engine, drawn = self.engine, work.drawn
        mine = tuple(work.rows.index(row) for row in outcome.kept if row in work.rows)
        verdicts = [(c.scores, c.route) for c in (outcome.candidates[row] for row in work.rows)]
        candidates = grow_candidates(drawn.branches, drawn.noise, drawn.latents, verdicts)
        with engine.clock.stage("decode"):
            shown = engine.decoding.shown(drawn.branches, drawn.latents, work.newest, mine)
        with engine.clock.stage("memory"):
            memories = engine.remembering.write([line], drawn, [Choice(candidates, mine)])
        window = line.video.recipe.window_chunks
        return tuple(
            grow(candidates[row], line.index, memories[row], one, window)
            for row, one in zip(mine, shown, strict=True)
        )

    @torch.no_grad()
    def final_opinion(self, state: State, place: Place) -> Opinion:
        """What the video reward thinks of this rank's whole videos; their rows are their places among all."""
        if not state.line.survivors:
            return Opinion()
        longs = tuple(self.engine.final_scores(state.line, place))
        noted = state.line.video.recipe.scorer.incidents(place.number)
        return Opinion((math.nan,) * len(longs), longs, of_all(noted, tuple(state.mine)))


def _numbers(answer: Answer) -> tuple[float, ...]:
    """Scores on the host. Raises the error that is there instead."""
    if isinstance(answer, RuntimeError):
        raise answer
    assert answer is not None, "nobody asked a reward of a policy that judges"
    return tuple(Scorer.on_host(answer))
