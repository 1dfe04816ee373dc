"""Ways of judging a chunk's candidates beside the engine's own; ``bench/agreement.py`` counts how far they agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime.decode import Decoding, Newest
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.score import Place, Scorer, numbers_of
from runtime.settings import Settings
from runtime.types import Branch, ChunkRecord, Trajectory

# Reward settings that ask for other models.
MODELS = ("image", "video", "decoder", "weights", "statistics")


class Judge(Protocol):
    """Another way of scoring a chunk's candidates. Rewards on other settings are one; early scores would be another."""

    def __call__(self, record: ChunkRecord, place: Place) -> Sequence[float]:
        """A score for each of ``record.candidates``, in their order, higher is better; NaN means "cannot judge"."""
        ...


class Rewards:
    """Judges as an engine with other reward settings would: its own decoding, its own scorer, its own view of the past.

    Where it sees what another decoder makes of the latents, it follows that decoder's state from survivor to survivor.
    A survivor is known by its newest latents, which nothing replaces. One judge follows one video at a time.
    """

    def __init__(
        self, full: Engine, changes: Mapping[str, Any], parts: Parts | None = None
    ) -> None:
        """``parts``: models to judge with instead of those that the settings name."""
        settings = full.settings.with_changes(changes)
        _check_judging(full.settings, settings, changes)
        old, new = full.settings.reward, settings.reward
        if parts is None:
            other = any(getattr(old, name) != getattr(new, name) for name in MODELS)
            parts = Parts.load(settings) if other else full.parts
        if new.decoder == "tiny" and parts.scoring is None:
            raise RuntimeError(
                f"reward.decoder: generator {settings.run.generator!r} came without a tiny decoder"
            )
        rows = full.decoding.portions.most
        self.decoding = Decoding(
            full.parts.generator.decoder, full.decoding.cold, rows, parts.scoring
        )
        self.scorer = Scorer(
            parts.image, parts.video, new, settings.memory, settings.released, rows
        )
        self.window_chunks = new.window_chunks
        self.sees_the_same = parts.scoring is full.parts.scoring
        self.past: list[tuple[Tensor, tuple[Tensor, ...], Any]] = []  # latents -> frames, state

    @torch.no_grad()
    def __call__(self, record: ChunkRecord, place: Place) -> Sequence[float]:
        branches = [candidate.branch for candidate in record.candidates]
        latents = torch.stack([candidate.latents for candidate in record.candidates])
        if self.sees_the_same:
            newest = Newest(record.frames)
        else:
            branches = [replace(branch, parent=self._seen(branch.parent)) for branch in branches]
            newest = self.decoding.newest(branches, latents)
            self._remember(record, branches, newest)
        span = [slice(0, len(branches))]
        windows = self.decoding.windows(branches, span, latents, newest, [self.window_chunks])
        shorts = self.scorer.rate_images(newest.frames, span, [place])
        longs = self.scorer.rate_videos(windows, [place])
        judged = self.scorer.decide(branches, *numbers_of([shorts, longs]), place)
        return [scores.fused for scores, _ in judged]

    def _seen(self, parent: Trajectory) -> Trajectory:
        """A history as this judge saw it."""
        for latents, frames, state in self.past:
            if parent.latents and parent.latents[-1] is latents:
                return replace(parent, frames=frames, scoring=state)
        return replace(parent, frames=(), scoring=None)

    def _remember(self, record: ChunkRecord, branches: Sequence[Branch], newest: Newest) -> None:
        decoder, past = self.decoding.scoring, max(self.window_chunks - 1, 1)
        self.past = [
            (
                survivor.latents[-1],
                (*branches[row].parent.frames, newest.frames[row].clone())[-past:],
                newest.state(row, decoder) if decoder and newest.states else None,
            )
            for row, survivor in zip(record.kept, record.survivors, strict=True)
        ]


def _check_judging(full: Settings, other: Settings, changes: Mapping[str, Any]) -> None:
    strange = [name for name in changes if not name.startswith("reward.")]
    if strange:
        raise ValueError(
            f"{strange[0]}: want a setting of the rewards (reward.*): judges see A's candidates, "
            f"so what makes those must stay as it is"
        )
    most = full.reward.window_chunks
    if other.reward.window_chunks > most:
        raise ValueError(
            f"reward.window_chunks: want at most {most}, which is what the full way remembers, "
            f"got {other.reward.window_chunks}"
        )
