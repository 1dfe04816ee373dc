"""The first half of a turn: histories to denoised candidates, those of all videos in one batch.

expand -> plan -> noise -> denoise        with an early choice: some passes, one frame of each, the rest for the best
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from runtime import noise as noise_room
from runtime.decode import Decoding
from runtime.denoise import Denoiser
from runtime.lines import Drawn, Line, litters_of, rows_in, spans_of
from runtime.parts import Parts
from runtime.plan import joined, plan_chunk
from runtime.score import Place
from runtime.telemetry import StageClock
from runtime.types import Branch, take_rows


class Drawing:
    """Draws the next chunk's candidates of lines by their search policies."""

    def __init__(
        self,
        parts: Parts,
        denoiser: Denoiser,
        decoding: Decoding,
        clock: StageClock,
        by_litter: bool = False,
    ) -> None:
        """``by_litter``: siblings share a forward with nobody else."""
        self.source, self.chunk_shape = parts.noise, parts.generator.chunk_shape
        self.denoiser, self.decoding, self.clock = denoiser, decoding, clock
        self.by_litter = by_litter

    def draw(self, lines: Sequence[Line], places: Sequence[Place]) -> Drawn:
        """The candidates of every line's next chunk, which is at ``places``. All lines can share a turn."""
        expanded = [line.video.recipe.policy.expand(line.survivors, line.index) for line in lines]
        return self.draw_these(lines, expanded, places)

    def draw_these(
        self,
        lines: Sequence[Line],
        expanded: Sequence[tuple[Branch, ...]],
        places: Sequence[Place],
    ) -> Drawn:
        """``draw`` for branches that were picked already, those of each line."""
        branches = tuple(branch for part in expanded for branch in part)
        texts = tuple(
            line.video.text for line, part in zip(lines, expanded, strict=True) for _ in part
        )
        with self.clock.stage("noise"):
            noise = self._noise(lines, expanded)
        drawn = self._drawn(
            lines, Drawn(branches, spans_of(map(len, expanded)), texts, noise, noise)
        )
        if lines[0].video.recipe.policy.draft_passes:
            return self._halved(lines, drawn, places)
        return self._denoised(lines, drawn, noise, None)

    def _noise(self, lines: Sequence[Line], expanded: Sequence[tuple[Branch, ...]]) -> Tensor:
        """Initial noise of all rows; neighbours with the same mixing in one call."""
        pairs = zip(lines, expanded, strict=True)
        parts = []
        for mixing, group in groupby(pairs, key=lambda pair: pair[0].video.recipe.mixing):
            rows = [branch for _, branches in group for branch in branches]
            parts.append(noise_room.propagate(rows, self.source, self.chunk_shape, mixing))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _halved(self, lines: Sequence[Line], drawn: Drawn, places: Sequence[Place]) -> Drawn:
        """The finalists of a batch, after the passes that all have and those that only they get."""
        cut = lines[0].video.recipe.policy.draft_passes
        drafts = self._denoised(lines, drawn, drawn.noise, range(cut)).latents
        scores = self._early_scores(lines, drawn, drafts, places)
        with self.clock.stage("select"):
            picked = [
                line.video.recipe.policy.finalists(drawn.branches[span], part)
                for line, span, part in zip(lines, drawn.spans, scores, strict=True)
            ]
        rows = rows_in(drawn.spans, picked)
        finalists = Drawn(
            tuple(drawn.branches[row] for row in rows),
            spans_of(map(len, picked)),
            tuple(drawn.texts[row] for row in rows),
            take_rows(drawn.noise, rows),
            take_rows(drafts, rows),
        )
        some = self._drawn(lines, finalists)
        rest = range(cut, self.denoiser.schedule.passes)
        return self._denoised(lines, some, some.latents, rest)

    def _early_scores(
        self,
        lines: Sequence[Line],
        drawn: Drawn,
        drafts: Tensor,
        places: Sequence[Place],
    ) -> list[list[float]]:
        """What the image reward thinks of one frame of every candidate, per line."""
        with self.clock.stage("decode"):
            frames = self.decoding.preview(drafts, drawn.litters)
        with self.clock.stage("image reward"):
            return [
                line.video.recipe.scorer.rate_drafts(frames[span], place)
                for line, span, place in zip(lines, drawn.spans, places, strict=True)
            ]

    def _denoised(
        self, lines: Sequence[Line], drawn: Drawn, x: Tensor, passes: range | None
    ) -> Drawn:
        with self.clock.stage("denoise"):
            plan = joined(
                [
                    plan_chunk(drawn.branches[span], line.index, line.video.recipe.memory)
                    for line, span in zip(lines, drawn.spans, strict=True)
                ]
            )
            parts = [
                self.denoiser.run(
                    plan.take(rows),
                    x[rows.start : rows.stop],
                    drawn.texts[rows.start : rows.stop],
                    passes,
                )
                for rows in drawn.litters or [range(plan.rows)]
            ]
        return replace(drawn, latents=parts[0] if len(parts) == 1 else torch.cat(parts))

    def _drawn(self, lines: Sequence[Line], drawn: Drawn) -> Drawn:
        """The batch as it is divided."""
        return replace(drawn, litters=litters_of(lines, drawn.spans)) if self.by_litter else drawn
