"""Many numbers in few: median, percentiles, extremes. One home, so that every table means the same by them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Dist = dict[str, float | int | None]
PERCENTS = (50, 95, 99)


def dist(values: Sequence[float]) -> Dist:
    """The distribution of ``values``; None everywhere and count 0 where there are none."""
    if not values:
        return {**dict.fromkeys(("median", "p50", "p95", "p99", "min", "max")), "count": 0}
    return {
        "median": statistics.median(values),
        **{f"p{percent}": percentile(values, percent) for percent in PERCENTS},
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least ``percent`` of all do not exceed."""
    ordered = sorted(values)
    rank = -(-percent * len(ordered) // 100)  # rounded up
    return ordered[max(int(rank), 1) - 1]
