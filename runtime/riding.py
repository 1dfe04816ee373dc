"""Who rides the next turn: videos share the engine by weight, in turns of as many candidates as a batch may have.

A video's virtual time grows by the candidates that it had drawn, divided by its weight; the one that is furthest behind
goes next and takes along whoever can share its batch. Nobody starves, and nobody gains by having waited.
Source: start-time fair queueing (Goyal, Vin, Cheng 1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtime.job import Job, Switch
from runtime.lines import Line
from runtime.memory import Lease
from runtime.pacing import Pacing
from runtime.scenes import MAX_SCENES, Scene


@dataclass
class Ride:
    """A video that runs: its line from turn to turn, and its share so far."""

    job: Job
    line: Line
    lease: Lease
    virtual: float  # time
    pacing: Pacing | None = None  # None: no budget is kept
    kept: int = 0  # candidates of its last chunk
    frames: int = 0  # of it
    error: Exception | None = None  # of its watcher

    @property
    def rows(self) -> int:
        """Candidates that its next chunk draws."""
        return len(self.line.video.recipe.policy.expand(self.line.survivors, self.line.index))

    def charge(self, rows: int) -> None:
        """Count candidates that were drawn for it."""
        self.virtual += rows / 2.0**self.job.request.priority


def pick(rides: Sequence[Ride], most_rows: int) -> list[Ride]:
    """The rides of the next turn, furthest behind first: never none, and ``most_rows`` in all unless one alone has more."""
    order = sorted(rides, key=lambda ride: (ride.virtual, ride.job.number))
    first, *others = order
    together, rows = [first], first.rows
    for ride in others:
        if ride.line.together == first.line.together and rows + ride.rows <= most_rows:
            together.append(ride)
            rows += ride.rows
    return together


def start(rides: Sequence[Ride]) -> float:
    """The virtual time at which a newcomer joins: that of whoever is furthest behind."""
    return min((ride.virtual for ride in rides), default=0.0)


def switched(line: Line, wish: Switch) -> tuple[Line, int]:
    """The line with a prompt that holds from a chunk on, and that chunk. What was planned for later chunks stays.

    ValueError for a chunk that is made already, or does not exist.
    """
    video, chunks = line.video, line.video.recipe.chunks
    chunk = line.index if wish.chunk is None else wish.chunk
    if line.done:
        raise ValueError("chunk: all chunks of this video are made")
    if not line.index <= chunk < chunks:
        raise ValueError(
            f"chunk: want {line.index} to {chunks - 1}, which are not made yet, got {chunk}"
        )
    others = [scene for scene in video.scenes if scene.chunk != chunk]
    if len(others) >= MAX_SCENES:
        raise ValueError(f"prompts: want at most {MAX_SCENES} scenes")
    scenes = sorted([*others, Scene(chunk, wish.prompt)], key=lambda scene: scene.chunk)
    return replace(line, video=replace(video, scenes=tuple(scenes))), chunk
