"""Who rides the next turn: videos share the engine by weight, in turns of as many candidates as a batch may have.

A video's virtual time grows by the candidates that it had drawn, divided by its weight; the one that is furthest behind
goes next and takes along whoever can share its batch. Nobody starves, and nobody gains by having waited.
Source: start-time fair queueing (Goyal, Vin, Cheng 1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.job import Job
from runtime.lines import Line
from runtime.memory import Lease


@dataclass
class Ride:
    """A video that runs: its line from turn to turn, and its share so far."""

    job: Job
    line: Line
    lease: Lease
    virtual: float  # time
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
