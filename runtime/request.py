"""What a caller asks an engine for, what it may ask for at most, and how it is told no."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from runtime.packing import Packed
from runtime.scenes import Prompts
from runtime.settings import LONGEST_SECONDS, MAX_CANDIDATES, Settings

PRIORITIES = range(-8, 9)
MAX_BACKLOG = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One video. ``settings`` are its own but for what the engine was built with: ``run``, ``fidelity``, the rewards' models."""

    prompts: Prompts  # one prompt, or pairs of a chunk and the prompt from there on
    settings: Settings | None = None  # None: the engine's
    name: str = ""  # for logs
    priority: int = 0  # each step doubles its share of the engine
    deadline_s: float | None = None  # from submission; what is not done then fails
    budget_fps: float | None = None  # K, M and reward stride are chosen per chunk to keep this pace
    backlog: int = 8  # settled chunks that wait for the reader before the video pauses
    resume: Packed | None = field(default=None, repr=False)  # a video to go on with

    def __post_init__(self) -> None:
        if self.priority not in PRIORITIES:
            raise ValueError(
                f"priority: want {PRIORITIES[0]} to {PRIORITIES[-1]}, got {self.priority}"
            )
        if not 1 <= self.backlog <= MAX_BACKLOG:
            raise ValueError(f"backlog: want 1 to {MAX_BACKLOG} chunks, got {self.backlog}")
        for name in ("deadline_s", "budget_fps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: want a number above 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine takes on at most. What is beyond is refused before anything is allocated."""

    videos: int = 4  # of the engine's own settings, whose memory is set aside; 0: what memory holds
    queued: int = 64  # requests that wait for room
    batch_rows: int = 64  # candidates of all videos in one turn
    candidates: int = 64  # of one video in one chunk
    seconds: float = 600.0  # of one video

    def __post_init__(self) -> None:
        for name, low, high in (
            ("videos", 0, 1000),
            ("queued", 0, 1_000_000),
            ("batch_rows", 1, MAX_CANDIDATES),
            ("candidates", 1, MAX_CANDIDATES),
            ("seconds", 0.0, LONGEST_SECONDS),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"limits.{name}: want {low} to {high}, got {value}")

    def check(self, settings: Settings) -> None:
        """ValueError for a video that is more than these limits allow."""
        search = settings.search
        drawn = search.drafts if search.policy == "halving" else search.expansions
        rows = 1 if search.policy == "single" else search.histories * drawn
        if rows > self.candidates:
            raise ValueError(
                f"search: want at most {self.candidates} candidates a chunk, got {rows}; "
                f"lower search.histories or search.expansions"
            )
        if settings.seconds > self.seconds:
            raise ValueError(f"seconds: want at most {self.seconds:g}, got {settings.seconds:g}")


class Busy(RuntimeError):
    """The queue is full; there may be room ``retry_after_s`` seconds from now."""

    def __init__(self, queued: int, retry_after_s: float) -> None:
        super().__init__(f"{queued} requests wait already; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class JobFailed(RuntimeError):
    """A video ended without being finished; what was settled before stays good."""


class JobCancelled(JobFailed):
    """Somebody cancelled it."""
