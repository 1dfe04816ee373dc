"""Counts what an engine does for many, from its beginning on; ``Stats`` is one look at it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stats:
    """One look. Counts are from the beginning on."""

    queued: int
    running: int  # the paused among them
    paused: int
    blocks: int  # of KV memory
    blocks_used: int
    turns: int
    chunks: int
    frames: int
    rows: int  # candidates drawn
    batch_rows: int  # of the last turn
    busy_s: float  # in turns
    stage_ms: dict[str, float]
    routes: dict[str, int]
    ended: dict[str, int]  # done, failed, cancelled
    retried: int  # turns that failed and were tried again one video at a time


@dataclass
class Tally:
    """The counts behind ``Stats``."""

    turns: int = 0
    chunks: int = 0
    frames: int = 0
    rows: int = 0
    batch_rows: int = 0
    busy_s: float = 0.0
    retried: int = 0
    stage_ms: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    def look(self, queued: int, running: int, paused: int, blocks: int, used: int) -> Stats:
        return Stats(
            queued,
            running,
            paused,
            blocks,
            used,
            self.turns,
            self.chunks,
            self.frames,
            self.rows,
            self.batch_rows,
            self.busy_s,
            dict(self.stage_ms),
            dict(self.routes),
            dict(self.ended),
            self.retried,
        )
