"""The device work of one rank: everything that is done to the candidates of histories that it owns, and to nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from runtime.decode import Newest
from runtime.engine import Engine
from runtime.grow import grow, grow_candidates
from runtime.lines import Choice, Drawn, Line
from runtime.ranks.deal import Deal, Verdict
from runtime.ranks.state import State
from runtime.score import Place
from runtime.types import Trajectory


@dataclass(frozen=True, slots=True)
class Work:
    """A rank's rows of a chunk, drawn and judged."""

    rows: tuple[int, ...]  # of all ranks' rows
    drawn: Drawn
    newest: Newest
    verdicts: list[Verdict]


class Hands:
    """Uses an engine's rooms for one rank's rows."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def place(self, line: Line) -> Place:
        recipe = line.video.recipe
        return Place(line.video.prompt, self.engine.fps, line.index, recipe.chunks)

    def work(self, state: State, deal: Deal) -> Work | None:
        """This rank's rows of the deal, drawn and judged; None for no rows. RuntimeError for a reward that fails."""
        engine, line, rows = self.engine, state.line, deal.rows_of(state.rank)
        if not rows:
            return None
        parents = state.mine or {0: Trajectory()}
        branches = tuple(
            replace(branch, parent=parents[branch.rank])
            for branch in (deal.branches[row] for row in rows)
        )
        lines, where = [line], [self.place(line)]
        drawn = engine.drawing.draw_these(lines, [branches], where)
        with engine.clock.stage("decode"):
            newest = engine.decoding.newest(branches, drawn.latents, drawn.litters)
        (verdicts,), _ = engine.judging.judge(lines, drawn, newest, where)
        if isinstance(verdicts, RuntimeError):
            raise verdicts
        return Work(rows, drawn, newest, verdicts)

    def keep(self, line: Line, work: Work | None, kept: Sequence[int]) -> tuple[Trajectory, ...]:
        """The histories that end with those of the ``kept`` rows that are this rank's."""
        if work is None:
            return ()
        engine, drawn = self.engine, work.drawn
        mine = tuple(work.rows.index(row) for row in kept if row in work.rows)
        candidates = grow_candidates(drawn.branches, drawn.noise, drawn.latents, work.verdicts)
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
    def final_scores(self, line: Line) -> list[float]:
        """What the video reward thinks of this rank's whole videos."""
        if not line.survivors:
            return []
        video, recipe = line.video, line.video.recipe
        place = Place(video.prompt, self.engine.fps, recipe.chunks - 1, recipe.chunks)
        chunks = recipe.chunks - video.scene.chunk  # what the prompt at hand is about
        wholes = [video.emitter.whole(one, chunks) for one in line.survivors]
        alone = recipe.settings.run.litters
        return recipe.scorer.rate_whole(wholes, place, self.engine.parts.final, alone)
