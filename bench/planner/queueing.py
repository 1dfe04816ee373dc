"""Many requests on many replicas, simulated event by event: who waits how long, who is refused, how busy the replicas are.

A replica makes one chunk of each of its videos per turn. Videos join and leave between turns, at most ``batch`` at a time; the
others wait in line, and who finds no room to wait is refused (429). Seeded: the same fleet and load give the same numbers.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

DISPATCHES = ("shortest", "shared", "random")
SPREADS = ("fixed", "lognormal", "exponential")
SIGMA = 0.2  # of the lognormal spread: about what chunks on a shared CPU showed


@dataclass(frozen=True, slots=True)
class Fleet:
    """``replicas`` engines. ``turn_ms(b)`` is the time of a turn with b videos; ``room`` how many may wait per replica.

    ``dispatch``: "shortest" gives a request to the replica with the fewest videos, "random" to any, "shared" keeps one line for
    all.
    """

    replicas: int
    batch: int
    turn_ms: Callable[[int], float]
    room: float = 64
    dispatch: str = "shortest"
    spread: str = "fixed"

    def __post_init__(self) -> None:
        if min(self.replicas, self.batch) < 1 or self.room < 0:
            raise ValueError(
                f"fleet: want at least one replica, batch of one, room of none: {self}"
            )
        if self.dispatch not in DISPATCHES or self.spread not in SPREADS:
            raise ValueError(f"fleet: want one of {DISPATCHES} and {SPREADS}: {self}")


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals of videos of ``chunks`` chunks; those of ``seconds`` after ``warmup`` count."""

    rate: float  # a second
    chunks: int
    seconds: float
    warmup: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.chunks >= 1 and self.seconds > 0 and self.warmup >= 0):
            raise ValueError(f"load: want a rate, chunks and seconds above 0: {self}")


@dataclass(slots=True)
class Video:
    arrived: float
    left: int  # chunks
    counts: bool  # arrived in the window that is looked at


@dataclass(slots=True)
class Replica:
    active: list[Video] = field(default_factory=list)
    waiting: deque[Video] = field(default_factory=deque)
    at: int = 0  # its place among those with as many videos

    @property
    def videos(self) -> int:
        return len(self.active) + len(self.waiting)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in seconds. ``first`` and ``done`` are of the counted videos, in the order in which they ended."""

    arrivals: int  # counted
    refused: int  # of them
    first: tuple[float, ...]  # until the first chunk was made
    done: tuple[float, ...]
    utilisation: float  # share of the window in which a replica was in a turn
    inside: float  # videos in the system, averaged over the window
    fill: float  # videos in a turn, of ``batch``
    turns: int

    @property
    def refused_share(self) -> float:
        return self.refused / self.arrivals if self.arrivals else 0.0


def percentile(values: tuple[float, ...], share: float) -> float:
    """Nearest rank; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def simulate(fleet: Fleet, load: Load) -> Outcome:
    """Run until all that arrived before the window's end are done; others go on arriving meanwhile."""
    return _Simulation(fleet, load).run()


class _Simulation:
    def __init__(self, fleet: Fleet, load: Load) -> None:
        self.fleet, self.load = fleet, load
        self.random = random.Random(load.seed)
        self.replicas = [Replica() for _ in range(fleet.replicas)]
        # Replicas by the number of their videos, so that the emptiest is found at once.
        self.shelves: list[list[Replica]] = [[]]
        for replica in self.replicas:
            self._shelve(replica)
        self.line: deque[Video] = deque()  # of all, where it is shared
        self.ends: list[tuple[float, int, Replica]] = []  # of the turns at hand
        self.begin, self.end = load.warmup, load.warmup + load.seconds
        self.number = self.arrivals = self.refused = self.open = self.turns = self.drawn = 0
        self.first: list[float] = []
        self.done: list[float] = []
        self.busy = self.inside = 0.0  # seconds within the window
        self.lengths = [0.0, *(fleet.turn_ms(b) / 1e3 for b in range(1, fleet.batch + 1))]

    def run(self) -> Outcome:
        draw, rate = self.random.expovariate, self.load.rate
        arrival = draw(rate)
        while arrival < self.end or self.open:
            if self.ends and self.ends[0][0] <= arrival:
                now, _, replica = heapq.heappop(self.ends)
                self._turned(replica, now)
            else:
                self._arrived(arrival)
                arrival += draw(rate)
        window = self.end - self.begin
        fill = self.drawn / (self.turns * self.fleet.batch) if self.turns else 0.0
        return Outcome(
            self.arrivals,
            self.refused,
            tuple(self.first),
            tuple(self.done),
            self.busy / (window * self.fleet.replicas),
            self.inside / window,
            fill,
            self.turns,
        )

    def _arrived(self, now: float) -> None:
        video = Video(now, self.load.chunks, self.begin <= now < self.end)
        self.arrivals += video.counts
        replica = self._pick()
        if replica is None:
            self.refused += video.counts
            return
        self.open += now < self.end
        if self.fleet.dispatch == "shared" and replica.active:
            self.line.append(video)
            return
        self._unshelve(replica)
        replica.waiting.append(video)
        if not replica.active:
            self._begin_turn(replica, now)
        self._shelve(replica)

    def _pick(self) -> Replica | None:
        """Where a request goes; None: refused."""
        if self.fleet.dispatch == "random":
            replica = self.random.choice(self.replicas)
        else:
            shelf = next(shelf for shelf in self.shelves if shelf)
            replica = shelf[-1]
        if self.fleet.dispatch == "shared":
            # An idle replica begins at once; whoever has room takes from the line between its turns.
            full = replica.active and len(self.line) >= self.fleet.room * self.fleet.replicas
        else:
            full = replica.videos >= self.fleet.batch + self.fleet.room
        return None if full else replica

    def _turned(self, replica: Replica, now: float) -> None:
        """A chunk of each of the replica's videos is made."""
        self._unshelve(replica)
        stay = []
        for video in replica.active:
            if video.counts and video.left == self.load.chunks:
                self.first.append(now - video.arrived)
            video.left -= 1
            if video.left:
                stay.append(video)
                continue
            self.inside += self._within(video.arrived, now)
            self.open -= video.arrived < self.end
            if video.counts:
                self.done.append(now - video.arrived)
        replica.active = stay
        while self.line and replica.videos < self.fleet.batch:
            replica.waiting.append(self.line.popleft())
        self._begin_turn(replica, now)
        self._shelve(replica)

    def _begin_turn(self, replica: Replica, now: float) -> None:
        while replica.waiting and len(replica.active) < self.fleet.batch:
            replica.active.append(replica.waiting.popleft())
        if not replica.active:
            return
        length = self._length(len(replica.active))
        self.number += 1
        heapq.heappush(self.ends, (now + length, self.number, replica))
        spent = self._within(now, now + length)
        self.busy += spent
        if spent:
            self.turns, self.drawn = self.turns + 1, self.drawn + len(replica.active)

    def _length(self, videos: int) -> float:
        mean = self.lengths[videos]
        if self.fleet.spread == "exponential":
            return self.random.expovariate(1 / mean)
        if self.fleet.spread == "lognormal":
            return mean * self.random.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        return mean

    def _within(self, start: float, end: float) -> float:
        return max(0.0, min(end, self.end) - max(start, self.begin))

    def _shelve(self, replica: Replica) -> None:
        videos = replica.videos
        while len(self.shelves) <= videos:
            self.shelves.append([])
        replica.at = len(self.shelves[videos])
        self.shelves[videos].append(replica)

    def _unshelve(self, replica: Replica) -> None:
        """Before its videos change."""
        shelf = self.shelves[replica.videos]
        last = shelf.pop()
        if last is not replica:
            shelf[replica.at] = last
            last.at = replica.at
