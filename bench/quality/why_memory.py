"""Where chunks are routed and what their gates looked at: the numbers that thresholds are set by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from runtime.bench.quality.why_seen import GATES, Seen
from runtime.settings import MemorySettings
from runtime.types import Route

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def routes(searched: Sequence[Seen]) -> list[dict[str, float | int]]:
    """Shares of the routes of kept candidates, by chunk. Chunk 0 has none: it is the first sink, and never leaves."""
    kept = [one for one in searched if one.place >= 0 and one.chunk > 0]
    rows = []
    for chunk in sorted({one.chunk for one in kept}):
        here = [one.route for one in kept if one.chunk == chunk]
        shares = {route.value: here.count(route.value) / len(here) for route in Route}
        rows.append({"chunk": chunk, **shares})
    return rows


def gates(searched: Sequence[Seen], settings: MemorySettings) -> dict[str, Any]:
    """Quantiles of what the two gates compare with their thresholds, over kept candidates from chunk 1 on.

    ``above`` is the share above the threshold in force; ``all`` the quantiles over every candidate, kept or not.
    """
    later = [one for one in searched if one.chunk > 0]
    kept = [one for one in later if one.place >= 0]
    thresholds = settings.quality_threshold, settings.transition_threshold
    return {
        gate: {
            **_quantiles(kept, gate),
            "threshold": threshold,
            "above": _share_above(kept, gate, threshold),
            "all": _quantiles(later, gate),
        }
        for gate, threshold in zip(GATES, thresholds, strict=True)
    }


def _quantiles(seen: Sequence[Seen], gate: str) -> dict[str, float]:
    if not seen:
        return {}
    values = torch.tensor([one.rewards[gate] for one in seen], dtype=torch.float64)
    found = values.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return {f"{share:g}": value for share, value in zip(QUANTILES, found, strict=True)}


def _share_above(seen: Sequence[Seen], gate: str, threshold: float) -> float | None:
    return sum(one.rewards[gate] > threshold for one in seen) / len(seen) if seen else None


def drift(walked: Sequence[Seen]) -> dict[str, Any]:
    """What plain streaming shows and what the rewards think of it, chunk by chunk: means over videos."""
    chunks = sorted({one.chunk for one in walked})
    table: dict[str, Any] = {"chunk": chunks}
    for name in [*walked[0].shows, "short", "long"] if walked else []:
        table[name] = [
            _mean([(one.shows | one.rewards)[name] for one in walked if one.chunk == chunk])
            for chunk in chunks
        ]
    return table


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
