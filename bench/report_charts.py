"""The pictures of one chunk: where its time went, when, and how near to the machine's ceilings each stage came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.bench import report_svg as pen
from runtime.bench.report_result import Result
from runtime.telemetry import STAGES

LABELS = 150.0  # room for names at the left
BAR, GAP = 26.0, 16.0
LEFT, RIGHT, FLOOR = 60.0, 770.0, 360.0  # of the roofline
LEAST_SHARE = 0.005  # of the time that a stage takes to stand on the roofline
OTHERS = 3  # colours for stages that the runtime does not name


def stage_style(name: str) -> str:
    """The colour class of a stage; the same one in every picture."""
    if name in STAGES:
        return f"s{STAGES.index(name)}"
    return f"o{sum(map(ord, name)) % OTHERS}"


def legend(names: Sequence[str]) -> str:
    """Stage names beside their colours."""
    keys = [
        f'<span class="key"><svg viewBox="0 0 10 10"><rect width="10" height="10" rx="2" '
        f'class="{stage_style(name)}"/></svg>{pen.esc(name)}</span>'
        for name in names
    ]
    return f'<p class="legend">{"".join(keys)}</p>'


@dataclass(frozen=True, slots=True)
class Span:
    """One stage of the typical chunk on the clock."""

    stage: str
    start: float
    end: float
    stream: str


def spans_of(result: Result) -> list[Span]:
    """The time line's spans, earliest first, counted from the first one's start."""
    found = []
    for row in result.items("timeline"):
        start, end = row.number("start_ms"), row.number("end_ms")
        if start is not None and end is not None and end >= start:
            stage, stream = row.text("stage") or "unnamed", row.text("stream") or "main"
            found.append(Span(stage, start, end, stream))
    begin = min((span.start for span in found), default=0.0)
    found = [Span(s.stage, s.start - begin, s.end - begin, s.stream) for s in found]
    return sorted(found, key=lambda span: (span.start, -span.end))


def timeline(result: Result) -> str:
    """Stages of one chunk as spans, one lane per stream; empty when the result has no time line."""
    spans = spans_of(result)
    if not spans or not max(span.end for span in spans) > 0:
        return ""
    lanes = list(dict.fromkeys(span.stream for span in spans))
    ticks = pen.nice_ticks(max(span.end for span in spans), 8)
    last = max(span.end for span in spans)
    x = pen.Scale(0, last, LABELS if len(lanes) > 1 else 8, pen.WIDTH - 24)
    bottom = 10 + len(lanes) * (BAR + GAP)
    parts = []
    for tick in ticks:
        if tick <= last * 1.001:
            parts.append(pen.line(x(tick), 4, x(tick), bottom))
            parts.append(pen.text(x(tick), bottom + 16, pen.figure(tick), "tick", "middle"))
    parts.append(pen.text(pen.WIDTH - 4, bottom + 32, "ms since the chunk began", "tick", "end"))
    for row, lane in enumerate(lanes):
        y = 10 + row * (BAR + GAP)
        if len(lanes) > 1:
            parts.append(pen.text(LABELS - 12, y + BAR * 0.66, lane[:20], "name", "end"))
        for span in (span for span in spans if span.stream == lane):
            width = x(span.end) - x(span.start)
            spent = pen.figure(span.end - span.start, "ms")
            title = f"{span.stage}: {spent}, from {pen.figure(span.start)} to {pen.figure(span.end, 'ms')}"
            parts.append(pen.rect(x(span.start), y, width, BAR, stage_style(span.stage), title))
            full = f"{span.stage} {spent}"
            name = full if pen.fits(full, width) else span.stage
            if pen.fits(name, width):
                parts.append(pen.text(x(span.start) + 6, y + BAR * 0.66, name, "on"))
            elif pen.fits(full, room_after(span, spans, x)):
                parts.append(pen.text(x(span.end) + 7, y + BAR * 0.66, full, "value"))
    words = f"Time line of one chunk, {pen.figure(last, 'ms')}"
    return pen.svg(bottom + 40, parts, words) + legend(list(dict.fromkeys(s.stage for s in spans)))


def room_after(span: Span, spans: Sequence[Span], x: pen.Scale) -> float:
    """Pixels between a span's end and whatever comes next in its lane."""
    starts = [
        s.start for s in spans if s.stream == span.stream and s.start >= span.end and s is not span
    ]
    return (x(min(starts)) if starts else pen.WIDTH) - x(span.end)


@dataclass(frozen=True, slots=True)
class Bar:
    """One run's chunk, cut into its stages."""

    name: str
    total_ms: float
    stages: tuple[tuple[str, float], ...]  # stage and milliseconds


def bar_of(result: Result, name: str, fps: float | None, *table: str) -> Bar | None:
    """A mean chunk of the run whose stages lie at ``table``: wall time, cut in the proportion of the stages' times."""
    stages = result.stages(*table)
    shares = [result.number(*table, stage, "share") or 0.0 for stage in stages]
    total = result.mean_chunk_ms(fps)
    if total is None or not sum(shares) > 0:
        times = [result.number(*table, stage, "median_ms") or 0.0 for stage in stages]
    else:
        times = [total * part / sum(shares) for part in shares]
    if not sum(times) > 0:
        return None
    return Bar(name, sum(times), tuple(zip(stages, times, strict=True)))


def bars_of(result: Result, others: Sequence[Result] = ()) -> list[Bar]:
    """The measured run, its baselines, then other results."""
    found = [bar_of(result, "this run", result.number("pixel_fps"), "stages")]
    for name in result.names("stages_baseline"):
        fps = result.number("pixel_fps_baseline", name)
        found.append(bar_of(result, name, fps, "stages_baseline", name))
    for other in others:
        found.append(bar_of(other, other.name, other.number("pixel_fps"), "stages"))
    return [bar for bar in found if bar]


def stage_bars(bars: Sequence[Bar]) -> str:
    """A mean chunk of every run as one bar, on one scale."""
    if not bars:
        return ""
    longest = max(bar.total_ms for bar in bars)
    x = pen.Scale(0, longest, LABELS, pen.WIDTH - 150)
    parts = []
    for row, bar in enumerate(bars):
        y, at = 6 + row * (BAR + GAP), 0.0
        parts.append(pen.text(LABELS - 12, y + BAR * 0.66, bar.name[:21], "name", "end"))
        for stage, spent in bar.stages:
            width = x(at + spent) - x(at)
            title = (
                f"{bar.name}, {stage}: {pen.figure(spent, 'ms')}, {pen.share(spent / bar.total_ms)}"
            )
            parts.append(pen.rect(x(at), y, width, BAR, stage_style(stage), title, 0))
            label = f"{stage} {pen.figure(spent)}"
            label = label if pen.fits(label, width) else stage
            if pen.fits(label, width):
                parts.append(pen.text(x(at) + 6, y + BAR * 0.66, label, "on"))
            at += spent
        ratio = bar.total_ms / bars[0].total_ms
        words = pen.figure(bar.total_ms, "ms") + (f"  ({ratio:.2f}x)" if row else "")
        parts.append(pen.text(x(at) + 8, y + BAR * 0.66, words, "value"))
    names = sorted(
        {stage for bar in bars for stage, _ in bar.stages},
        key=lambda n: STAGES.index(n) if n in STAGES else len(STAGES),
    )
    words = "Time of a mean chunk by stage, for every run"
    return pen.svg(8 + len(bars) * (BAR + GAP), parts, words) + legend(names)


@dataclass(frozen=True, slots=True)
class Point:
    """A stage on the roofline."""

    stage: str
    intensity: float  # FLOP per byte
    tflop_per_s: float
    roofline_share: float | None


def points_of(result: Result) -> list[Point]:
    """The stages that take ``LEAST_SHARE`` of the time and whose FLOP, bytes and rate are all known."""
    found = []
    for stage in result.stages():
        flops, moved, rate, part = (
            result.number("stages", stage, key)
            for key in ("flops", "bytes", "tflop_per_s", "roofline_share")
        )
        seen = (result.number("stages", stage, "share") or 1.0) >= LEAST_SHARE
        if seen and flops and moved and rate and min(flops, moved, rate) > 0:
            found.append(Point(stage, flops / moved, rate, part))
    return found


def roofline(result: Result) -> str:
    """Arithmetic intensity against TFLOP/s under both measured ceilings; empty when either is unknown."""
    peak = result.number("ceilings", "matmul_tflop_per_s")
    copy = result.number("ceilings", "copy_gb_per_s")
    points = points_of(result)
    if not points or not (peak and copy and min(peak, copy) > 0):
        return ""
    ridge = 1e3 * peak / copy  # FLOP per byte at which the two ceilings meet
    works = [ridge / 8, ridge * 8, *(p.intensity for p in points)]
    narrow = result.number("ceilings", "narrow_tflop_per_s") or 0.0  # of 8-bit products
    rates = [peak / 12, 1.2 * max(peak, narrow), *(p.tflop_per_s / 1.5 for p in points)]
    across, up = (pen.log_ticks(min(v), max(v)) for v in (works, rates))
    x = pen.Scale(across[0], across[-1], LEFT, RIGHT, log=True)
    y = pen.Scale(up[0], up[-1], FLOOR, 14, log=True)
    parts = [pen.line(x(v), 14, x(v), FLOOR) for v in across]
    parts += [pen.text(x(v), FLOOR + 18, _plain(v), "tick", "middle") for v in across]
    parts += [pen.line(LEFT, y(v), RIGHT, y(v)) for v in up]
    parts += [pen.text(LEFT - 8, y(v) + 4, _plain(v), "tick", "end") for v in up]
    parts.append(pen.text(RIGHT, FLOOR + 38, "arithmetic intensity, FLOP per byte", "tick", "end"))
    parts.append(pen.text(LEFT, FLOOR + 38, "up: TFLOP/s", "tick"))
    corner = max(across[0], 1e3 * up[0] / copy)
    roof = [(corner, corner * copy / 1e3), (ridge, peak), (across[-1], peak)]
    parts.append(pen.path([(x(a), y(b)) for a, b in roof], "roof"))
    middle = ((x(corner) + x(ridge)) / 2 - 12, (y(corner * copy / 1e3) + y(peak)) / 2 - 6)
    parts.append(pen.text(*middle, f"copy {pen.figure(copy, 'GB/s')}", "note", "end"))
    top = f"{result.text('ceilings', 'dtype') or ''} matmul {pen.figure(peak, 'TFLOP/s')}"
    parts.append(pen.text(x(ridge), y(peak) - 8, top.strip(), "note", "middle"))
    if narrow > peak:
        flat = [(x(1e3 * narrow / copy), y(narrow)), (RIGHT, y(narrow))]
        parts.append(pen.path([(x(ridge), y(peak)), *flat], "roof thin"))
        words = f"8-bit matmul {pen.figure(narrow, 'TFLOP/s')}"
        parts.append(pen.text(RIGHT - 6, y(narrow) - 8, words, "note", "end"))
    parts += _labels(points, x, y)
    return pen.svg(FLOOR + 46, parts, "Roofline: every stage under the measured ceilings")


def _labels(points: Sequence[Point], x: pen.Scale, y: pen.Scale) -> list[str]:
    """A dot per stage and its name at the right, where nothing is in the way."""
    parts = []
    heights = pen.apart([y(p.tflop_per_s) for p in points], 36)
    over = max(0.0, max(heights) - FLOOR + 10)
    for point, height in zip(points, heights, strict=True):
        at, high = x(point.intensity), y(point.tflop_per_s)
        label = height - over
        rate = pen.figure(point.tflop_per_s, "TFLOP/s")
        part = pen.share(point.roofline_share)
        rate += f", {part} of its roof" if part else ""
        title = f"{point.stage}: {rate}, {pen.figure(point.intensity, 'FLOP per byte')}"
        parts.insert(0, pen.path([(at, high), (RIGHT + 10, label), (RIGHT + 16, label)], "leader"))
        parts.append(pen.dot(at, high, 7, stage_style(point.stage) + " point", title))
        parts.append(pen.dot(RIGHT + 22, label, 4.5, stage_style(point.stage)))
        parts.append(pen.text(RIGHT + 33, label + 4, point.stage[:24], "name"))
        parts.append(pen.text(RIGHT + 33, label + 19, rate, "note"))
    return parts


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
