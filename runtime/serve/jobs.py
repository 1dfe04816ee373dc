"""The nouns of the server: what somebody ordered, and what has become of it. All frozen."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

ID = r"^video_[0-9a-f]{32}$"


class State(str, Enum):
    """Where a job stands. An interrupted one goes on when the server is started again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    DELETED = "deleted"  # nobody sees it any more; its files are on their way out


OPEN = (State.QUEUED, State.RUNNING)
STATUS = {  # as OpenAI's clients know it
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.DONE: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
    State.INTERRUPTED: "failed",
}
CODES = {
    State.FAILED: "generation_failed",
    State.CANCELLED: "cancelled",
    State.INTERRUPTED: "interrupted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for, checked. ``settings`` are changes to the server's own, by dotted name."""

    prompts: tuple[tuple[int, str], ...]  # (chunk, prompt), the first at 0
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    deadline_s: float | None = None
    budget_fps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An order and how far it is."""

    id: str
    order: Order
    model: str
    size: str
    created: float  # seconds since 1970, as all times here
    state: State = State.QUEUED
    began: float | None = None
    ended: float | None = None
    chunks: int | None = None  # it is going to have
    settled: int = 0  # chunks in the video
    saved: int | None = None  # chunk from which its newest snapshot goes on
    bytes: int = 0  # of the video that are valid
    frames: int | None = None  # once it is done
    reason: str | None = None  # why it did not get done
    degraded: tuple[str, ...] = ()  # what went wrong and was survived

    @property
    def open(self) -> bool:
        return self.state in OPEN

    @property
    def progress(self) -> int:
        """Percent; 100 only when it is done."""
        if self.state is State.DONE:
            return 100
        return min(99, 100 * self.settled // self.chunks) if self.chunks else 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def new_job(order: Order, model: str, size: str, slot: str = "") -> Job:
    """A queued job with a name that nobody can guess; it begins with ``slot``."""
    return Job(
        id=f"video_{slot}{secrets.token_hex(16)[len(slot) :]}",
        order=order,
        model=model,
        size=size,
        created=time.time(),
    )


def job_from(text: str) -> Job:
    """What ``Job.to_json`` wrote. Raises ValueError for anything else."""
    try:
        fields = json.loads(text)
        order = fields.pop("order")
        order["prompts"] = tuple((int(chunk), str(prompt)) for chunk, prompt in order["prompts"])
        fields["degraded"] = tuple(fields["degraded"])
        return Job(order=Order(**order), **fields | {"state": State(fields["state"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a job: {type(error).__name__} {error}") from None
