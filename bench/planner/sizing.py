"""How many GPUs a rate of requests needs: the smallest fleet that keeps a promise about waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from runtime.bench.planner.queueing import Fleet, Load, Outcome, percentile, simulate

MOST_REPLICAS = 1_000_000


@dataclass(frozen=True, slots=True)
class Promise:
    """Seconds that 95 % of accepted requests wait at most, and the share that may be refused."""

    done_p95: float = math.inf
    first_p95: float = math.inf
    refused: float = 0.01

    def kept(self, outcome: Outcome) -> bool:
        return (
            outcome.refused_share <= self.refused
            and not percentile(outcome.done, 0.95) > self.done_p95
            and not percentile(outcome.first, 0.95) > self.first_p95
        )

    def hopeless(self, turn_ms: Callable[[int], float], chunks: int) -> str:
        """Why no number of replicas would do: a video alone on one takes longer. "" when it does not."""
        first = turn_ms(1) / 1e3
        for name, alone, limit in (
            ("its first chunk", first, self.first_p95),
            ("a video", first * chunks, self.done_p95),
        ):
            if alone > limit:
                return (
                    f"alone on a replica {name} takes {alone:.2f} s, and {limit:g} s are promised"
                )
        return ""


@dataclass(frozen=True, slots=True)
class Sized:
    """The smallest fleet that was found, and what the simulation said of it."""

    fleet: Fleet
    outcome: Outcome


def smallest(fleet_of: Callable[[int], Fleet], load: Load, promise: Promise) -> Sized:
    """Doubles the replicas until the promise is kept, then halves the interval. Raises ValueError where none would do.

    A fleet that cannot do all of the work, arrivals times the cheapest turn per video, is not tried: what it piles up may take
    longer to show than a simulation lasts.
    """
    fleet = fleet_of(1)
    if why := promise.hopeless(fleet.turn_ms, load.chunks):
        raise ValueError(f"no number of replicas keeps this promise: {why}")
    each = min(fleet.turn_ms(b) / b for b in range(1, fleet.batch + 1)) / 1e3
    low = max(math.ceil(load.rate * load.chunks * each), 1) - 1
    step, high = max(low // 16, 1), low + 1
    while not promise.kept(outcome := simulate(fleet_of(high), load)):
        low, high, step = high, high + step, 2 * step
        if high > MOST_REPLICAS:
            raise ValueError(f"more than {MOST_REPLICAS} replicas: lower the rate")
    found = outcome
    while high - low > max(1, low // 500):  # to a fifth of a per cent: the seed moves it as much
        middle = (low + high) // 2
        outcome = simulate(fleet_of(middle), load)
        if promise.kept(outcome):
            high, found = middle, outcome
        else:
            low = middle
    return Sized(fleet_of(high), found)
