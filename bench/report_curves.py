"""The pictures of many chunks: how evenly they come, and how a chunk's time grows with what is asked of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.bench import report_svg as pen
from runtime.bench.report_result import Dist, Result

SWEEPS = {  # as results name them -> heading, horizontal axis
    "candidates": ("Candidates", "K x M, candidates of a chunk"),
    "context": ("Context", "blocks that a chunk attends to"),
    "length": ("Length", "index of the chunk"),
    "prompts": ("Prompts", "prompts in one batch"),
}
PANEL, TALL = 480.0, 250.0


def latency(result: Result, others: Sequence[Result] = ()) -> str:
    """Histogram of the time between two chunks where every value is known, and each run's percentiles on one scale."""
    between = result.dist("latency", "inter_chunk_ms")
    return (histogram(between) if between else "") + percentiles(_rows(result, others))


def histogram(dist: Dist) -> str:
    """Counts of ``dist.values``, with p50, p95 and p99 marked; empty for fewer than eight values."""
    values = sorted(dist.values)
    if len(values) < 8 or not values[-1] > values[0]:
        return ""
    bins = min(40, max(8, round(2 * len(values) ** 0.5)))
    low, high = values[0], values[-1]
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    x = pen.Scale(low, high, 50, pen.WIDTH - 30)
    y = pen.Scale(0, max(counts), 190, 62)
    parts = [pen.line(50, 190, pen.WIDTH - 30, 190, "axis")]
    step = (high - low) / bins
    for place, count in enumerate(counts):
        if count:
            left = x(low + place * step)
            width = x(low + (place + 1) * step) - left
            title = f"{count} from {pen.figure(low + place * step)} to {pen.figure(low + (place + 1) * step, 'ms')}"
            parts.append(pen.rect(left + 0.5, y(count), width - 1, 190 - y(count), "bar", title))
    for tick in _inner_ticks(low, high):
        parts.append(pen.text(x(tick), 207, pen.figure(tick), "tick", "middle"))
    marks = [
        (n, v)
        for n, v in (("p50", dist.p50), ("p95", dist.p95), ("p99", dist.p99))
        if v is not None
    ]
    for row, (name, value) in enumerate(marks):
        high = 4 + 17 * (len(marks) - 1 - row)
        parts.append(pen.line(x(value), high, x(value), 190, "mark"))
        words = f"{name} {pen.figure(value, 'ms')}"
        near = x(value) > pen.WIDTH - 160
        parts.append(
            pen.text(
                x(value) + (-6 if near else 6), high + 10, words, "note", "end" if near else "start"
            )
        )
    parts.append(
        pen.text(pen.WIDTH - 30, 224, f"ms between two chunks; {len(values)} chunks", "tick", "end")
    )
    return pen.svg(240, parts, "Histogram of the time between two chunks")


def percentiles(rows: Sequence[tuple[str, Dist]]) -> str:
    """One strip per distribution: least to most as a line, p50 to p95 as a box, p99 as a tick, the median as a dot."""
    rows = [(name, dist) for name, dist in rows if dist.median > 0]
    if not rows:
        return ""
    most = max(v for _, d in rows for v in (d.median, d.p95, d.p99, d.high) if v is not None)
    ticks = pen.nice_ticks(most, 7)
    x = pen.Scale(0, most, 230, pen.WIDTH - 240)
    bottom = 8 + 34 * len(rows)
    parts = [pen.line(x(t), 4, x(t), bottom) for t in ticks if t <= most * 1.001]
    parts += [
        pen.text(x(t), bottom + 15, pen.figure(t), "tick", "middle")
        for t in ticks
        if t <= most * 1.001
    ]
    parts.append(pen.text(pen.WIDTH - 236, bottom + 30, "ms", "tick", "end"))
    for place, (name, dist) in enumerate(rows):
        y = 8 + 34 * place + 17
        low, high = dist.low or dist.median, dist.high or dist.p99 or dist.median
        parts.append(pen.text(218, y + 4, name[:34], "name", "end"))
        parts.append(pen.line(x(low), y, x(high), y, "reach"))
        p50, p95 = dist.p50 or dist.median, dist.p95 or dist.median
        parts.append(pen.rect(x(p50), y - 7, x(p95) - x(p50), 14, "box"))
        if dist.p99 is not None:
            parts.append(pen.line(x(dist.p99), y - 9, x(dist.p99), y + 9, "mark"))
        parts.append(pen.dot(x(dist.median), y, 5, "accent"))
        words = f"{pen.figure(dist.median)}, p95 {pen.figure(dist.p95)}, p99 {pen.figure(dist.p99, 'ms')}"
        parts.append(pen.text(pen.WIDTH - 4, y + 4, words, "value", "end"))
    return pen.svg(bottom + 36, parts, "Percentiles of the waiting times")


def _rows(result: Result, others: Sequence[Result]) -> list[tuple[str, Dist]]:
    found = [
        ("first chunk", result.dist("latency", "first_chunk_ms")),
        ("between two chunks", result.dist("latency", "inter_chunk_ms")),
    ]
    for name in result.names("latency_baseline"):
        for kind, words in (("first_chunk_ms", "first chunk"), ("inter_chunk_ms", "between")):
            found.append((f"{name}: {words}", result.dist("latency_baseline", name, kind)))
    for other in others:
        found.append((f"{other.name}: between", other.dist("latency", "inter_chunk_ms")))
    return [(name, dist) for name, dist in found if dist]


@dataclass(frozen=True, slots=True)
class Sample:
    """One point of a sweep."""

    x: float
    dist: Dist
    fps: float | None


def samples_of(result: Result, sweep: str) -> list[Sample]:
    """The points of a sweep from left to right."""
    found = []
    for row in result.items("growth", sweep):
        x, dist = row.number("x"), row.dist("chunk_ms")
        if x is not None and dist:
            found.append(Sample(x, dist, row.number("pixel_fps")))
    return sorted(found, key=lambda sample: sample.x)


def growth(result: Result) -> dict[str, str]:
    """Heading -> picture of every sweep that the result holds."""
    drawn = {}
    for sweep, (heading, axis) in SWEEPS.items():
        samples = samples_of(result, sweep)
        if samples:
            drawn[heading] = curve(samples, axis)
    return drawn


def curve(samples: Sequence[Sample], axis: str) -> str:
    """Milliseconds of a chunk over ``axis``: the median as a line, p50 to p95 as a band, pixel FPS at the points."""
    most = max(max(s.dist.median, s.dist.p95 or 0) for s in samples)
    ticks = pen.nice_ticks(most * 1.12, 4)
    left, right = 56.0, PANEL - 20
    lows, highs = samples[0].x, samples[-1].x
    margin = (highs - lows) * 0.09 or 1.0
    x = pen.Scale(lows - margin, highs + margin, left, right)
    y = pen.Scale(0, ticks[-1], TALL - 44, 26)
    parts = [pen.line(left, y(t), right, y(t)) for t in ticks]
    parts += [
        pen.text(left - 8, y(t) + 4, pen.figure(t) if t else "0", "tick", "end") for t in ticks
    ]
    every = math.ceil(len(samples) / 9)
    for sample in samples[::every]:
        parts.append(pen.text(x(sample.x), TALL - 27, f"{sample.x:g}", "tick", "middle"))
    parts.append(pen.text(right, TALL - 8, axis, "tick", "end"))
    parts.append(pen.text(4, 12, "ms of a chunk", "tick"))
    upper = [(x(s.x), y(s.dist.p95 or s.dist.median)) for s in samples]
    lower = [(x(s.x), y(s.dist.median)) for s in samples]
    if len(samples) > 1:
        parts.append(pen.path([*upper, *reversed(lower)], "band", closed=True))
        parts.append(pen.path(lower, "curve"))
    free = 0.0  # where the next label may begin
    for sample, (px, py) in zip(samples, lower, strict=True):
        fps = pen.figure(sample.fps, "FPS") if sample.fps else ""
        title = f"{axis} {sample.x:g}: {pen.figure(sample.dist.median, 'ms')}, {fps}"
        radius = 4 if len(samples) <= 24 else 2
        parts.append(pen.dot(px, py, radius, "accent", title))
        if fps and px - 28 >= free:
            high = y(sample.dist.p95 or sample.dist.median)
            parts.append(pen.text(px, min(py, high) - 9, fps, "note", "middle"))
            free = px + 34
    return pen.svg(TALL, parts, f"Milliseconds of a chunk over {axis}", PANEL)


def _inner_ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    step = pen.nice_ticks(high - low, 6)[1]
    first = math.ceil(low / step)
    return [step * i for i in range(first, first + 60) if step * i <= high]
