"""The first half of a turn: histories to denoised candidates, those of all videos in one batch.

expand -> plan -> noise -> denoise        with an early choice: some passes, one frame of each, the rest for the best
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from runtime import noise as noise_room
from runtime.decode import Decoding
from runtime.denoise import Denoiser
from runtime.lines import Drawn, Line, rows_in, spans_of
from runtime.parts import Parts, build_policy_of
from runtime.plan import plan_chunk
from runtime.score import Place, Scorer
from runtime.settings import Settings
from runtime.telemetry import StageClock
from runtime.types import take_rows


class Drawing:
    """Draws the candidates of a chunk by the search policy."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        denoiser: Denoiser,
        decoding: Decoding,
        scorer: Scorer,
        clock: StageClock,
    ) -> None:
        """ValueError for an early choice that would leave no pass to do."""
        self.memory = settings.memory
        self.policy = build_policy_of(settings)
        self.mixing = settings.noise if self.policy.propagates else None
        self.source, self.chunk_shape = parts.noise, parts.generator.chunk_shape
        self.denoiser, self.decoding, self.scorer, self.clock = denoiser, decoding, scorer, clock
        passes = parts.generator.schedule.passes
        if self.policy.draft_passes >= passes:
            raise ValueError(
                f"search.draft_passes: want fewer than the {passes} passes of a chunk, got {self.policy.draft_passes}"
            )

    def draw(self, lines: Sequence[Line], places: Sequence[Place], index: int) -> Drawn:
        """The candidates of chunk ``index`` of every line, which is at ``places``."""
        expanded = [self.policy.expand(line.survivors, index) for line in lines]
        branches = tuple(branch for part in expanded for branch in part)
        texts = tuple(
            line.video.text for line, part in zip(lines, expanded, strict=True) for _ in part
        )
        with self.clock.stage("noise"):
            noise = noise_room.propagate(branches, self.source, self.chunk_shape, self.mixing)
        drawn = Drawn(branches, spans_of(map(len, expanded)), texts, noise, noise)
        if self.policy.draft_passes:
            return self._halved(drawn, places, index)
        return self._denoised(drawn, noise, index, None)

    def _halved(self, drawn: Drawn, places: Sequence[Place], index: int) -> Drawn:
        """The finalists of a batch, after the passes that all have and those that only they get."""
        cut = self.policy.draft_passes
        drafts = self._denoised(drawn, drawn.noise, index, range(cut)).latents
        scores = self._early_scores(drafts, drawn.spans, places)
        with self.clock.stage("select"):
            picked = [
                self.policy.finalists(drawn.branches[span], part)
                for span, part in zip(drawn.spans, scores, strict=True)
            ]
        rows = rows_in(drawn.spans, picked)
        some = Drawn(
            tuple(drawn.branches[row] for row in rows),
            spans_of(map(len, picked)),
            tuple(drawn.texts[row] for row in rows),
            take_rows(drawn.noise, rows),
            take_rows(drafts, rows),
        )
        return self._denoised(some, some.latents, index, range(cut, self.denoiser.schedule.passes))

    def _early_scores(
        self, drafts: Tensor, spans: Sequence[slice], places: Sequence[Place]
    ) -> list[list[float]]:
        """What the image reward thinks of one frame of every candidate, per line."""
        with self.clock.stage("decode"):
            frames = self.decoding.preview(drafts)
        with self.clock.stage("image reward"):
            return [
                self.scorer.rate_drafts(frames[span], place)
                for span, place in zip(spans, places, strict=True)
            ]

    def _denoised(self, drawn: Drawn, x: Tensor, index: int, passes: range | None) -> Drawn:
        with self.clock.stage("denoise"):
            plan = plan_chunk(drawn.branches, index, self.memory)
            latents = self.denoiser.run(plan, x, drawn.texts, passes)
        return Drawn(drawn.branches, drawn.spans, drawn.texts, drawn.noise, latents)
