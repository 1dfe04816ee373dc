"""An engine that keeps a pace: ``Engine.stream_many`` whose every chunk has the candidates that the time allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.budget import Budget
from runtime.costs import Costs
from runtime.engine import Engine
from runtime.pacing import Pacing
from runtime.scenes import Prompts, Scene, scenes_of
from runtime.settling import numbered_events
from runtime.types import ChunkEvent, ChunkRecord, Watch


class PacedEngine:
    """Makes one video after another, each at ``pace_fps`` pixel frames a second on average, its reader's time inside.

    What was learnt of the costs stays from video to video. ``budgets`` has what each chose and kept.
    """

    batch_prompts = 1

    def __init__(self, engine: Engine, pace_fps: float) -> None:
        """ValueError for settings that leave a budget nothing to choose."""
        policy, run = engine.settings.search.policy, engine.settings.run
        if not engine.recipe.policy.prunes:
            raise ValueError(f"--budget-fps: wants a search that selects, got policy {policy!r}")
        if run.speculate:
            raise ValueError("--budget-fps: wants run.speculate off; it begins chunks unasked")
        self.engine, self.pace_fps = engine, pace_fps
        self.costs = Costs()
        self.budgets: dict[int, Budget] = {}
        engine.clock.exact = True  # stage times are what is learnt

    @property
    def chunks(self) -> int:
        return self.engine.chunks

    @property
    def fps(self) -> int:
        return self.engine.fps

    @property
    def implementations(self) -> dict[str, str]:
        return self.engine.implementations

    def unknown_words(self, prompt: str) -> list[str]:
        return self.engine.unknown_words(prompt)

    def stream_many(
        self, prompts: Sequence[Prompts], *, watch: Watch | None = None
    ) -> Iterator[tuple[int, ChunkEvent]]:
        """As ``Engine.stream_many``, one video at a time."""
        told = [scenes_of(one, self.chunks) for one in prompts]
        return self._stream(told, watch)

    def _stream(
        self, told: Sequence[tuple[Scene, ...]], watch: Watch | None
    ) -> Iterator[tuple[int, ChunkEvent]]:
        engine = self.engine
        for number, scenes in enumerate(told):
            seen: list[tuple[int, int, int]] = []  # rows, kept, frames of the chunk at hand

            def note(record: ChunkRecord, seen: list[tuple[int, int, int]] = seen) -> None:
                rows, frames = record.frames.shape[:2]
                seen[:] = [(rows, len(record.kept), frames)]
                if watch is not None:
                    watch(record)

            with engine.pool.lease() as lease:
                engine.clock.take()
                pacing = Pacing(engine, engine.recipe, self.pace_fps, self.costs)
                self.budgets[number] = pacing.budget
                line = engine.begin(engine.recipe, scenes, lease, note, number)
                while not line.done:
                    after = engine.turn(engine.ready([pacing.chosen(line)]))
                    for _, error in after.fallen:
                        raise error
                    (line,) = after.lines
                    pacing.made(*seen[0], after.stage_ms, 1.0)
                    yield from after.settled
                yield from numbered_events(line.video, engine.finish(line))


def described(budget: Budget) -> list[Mapping[str, Any]]:
    """What was chosen for each chunk and what it took, for a trace."""
    return [
        {
            "histories": spent.choice.histories,
            "expansions": spent.choice.expansions,
            "reward_stride": spent.choice.stride,
            "predicted_ms": _finite(spent.choice.predicted_ms),
            "ms": spent.ms,
            "allowed_ms": spent.allowed_ms,
            "balance_ms": spent.balance_ms,
            "fits": spent.choice.fits,
            "why": spent.choice.why,
        }
        for spent in budget.history
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
