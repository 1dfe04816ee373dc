"""Line charts of the quality report: series with error bands, told apart by colour, dashes and a name at their end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.bench import report_svg as pen
from runtime.bench.quality.curves import Point, Series, label
from runtime.bench.quality.methods import METHODS

# A method looks the same in every figure. Names are classes of report.css: a colour, and how a line is dashed.
COLOURS = {
    "single": "c0",
    "best-of-n": "c3",
    "beam": "c1",
    "stream-t1": "c2",
    "no-sinking": "c4",
    "no-propagation": "c5",
    "no-pruning": "c8",
    "released": "o1",
}
DASHES = {"no-sinking": "d1", "no-propagation": "d2", "no-pruning": "d3", "released": "d2"}
OTHERS = ("c7", "o2", "o0", "c6")  # for variants, in turn
LABEL = 16  # characters of a name at a line's end
LINE = 13.0  # pixels between two names


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything of a chart but its lines."""

    title: str
    axis: str  # what runs along x, with its unit
    ticks: tuple[tuple[float, str], ...]  # along x
    log: bool = False
    width: float = 480.0
    height: float = 230.0
    names: bool = True  # write each line's name at its end
    zero: bool = False  # values are differences: zero is shown, and its line is stronger


def colour(method: str) -> str:
    """The colour class of a method; a variant's is fixed by its name."""
    return COLOURS.get(method) or OTHERS[sum(method.encode()) % len(OTHERS)]


def dashes(method: str) -> str:
    """The dash class of a method's line."""
    return DASHES.get(method, "d0" if method in METHODS else "d1")


def chart(series: Sequence[Series], frame: Frame) -> str:
    """An SVG: a line, its points and its 95 % band per series. Empty when no series has a point."""
    points = [p for one in series for p in (*one.points, *one.loose)]
    if not points:
        return ""
    shown = [v for p in points for v in (p.low, p.high)] + [0.0] * frame.zero
    y_ticks = ticks_between(min(shown), max(shown))
    left, top, bottom = 54.0, 14.0, frame.height - 40
    right = frame.width - (8 + LABEL * 6.6 if frame.names else 16)
    marks = [x for x, _ in frame.ticks] + [p.x for p in points]
    x = _x_scale(min(marks), max(marks), (left + 8, right - 8), frame.log)
    y = pen.Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [
        pen.line(left, y(t), right, y(t), "zero" if frame.zero and t == 0 else "grid")
        for t in y_ticks
    ]
    parts += [pen.text(left - 7, y(t) + 4, tick_text(t, y_ticks), "tick", "end") for t in y_ticks]
    parts += _x_axis(frame, x, bottom)
    parts.append(pen.text(right, frame.height - 6, frame.axis, "tick", "end"))
    for one in series:
        parts += _band(one, x, y)
    for one in series:
        parts += _stroke(one, x, y, frame.axis)
    if frame.names:
        parts += _names(series, y, (right, top, bottom))
    said = "; ".join(f"{one.method}: {_said(one)}" for one in series)
    return pen.svg(frame.height, parts, f"{frame.title} over {frame.axis}. {said}", frame.width)


def legend(methods: Iterable[str]) -> str:
    """The colours, dashes and names of ``methods``, as HTML."""
    keys = []
    for method in methods:
        sample = pen.path([(0, 5), (26, 5)], f"stroke {colour(method)} {dashes(method)}")
        picture = f'<svg class="sample" viewBox="0 0 26 10" aria-hidden="true">{sample}</svg>'
        keys.append(
            f'<span class="key">{picture}{pen.esc(label(method))} '
            f"<code>{pen.esc(method)}</code></span>"
        )
    return f'<p class="legend">{" ".join(keys)}</p>'


def ticks_between(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers with ``low`` and ``high`` inside; a span of less than 0.01 is widened, so that noise stays small."""
    if high - low < 0.01:
        middle = (low + high) / 2
        low, high = middle - 0.005, middle + 0.005
    raw = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * m for m in (1, 2, 2.5, 5, 10) if scale * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, last + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """``value`` with as many decimals as it takes to tell the ticks apart."""
    step = ticks[1] - ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, decimals) - step) > step / 100:
        decimals += 1  # steps of 0.25
    return f"{value + 0.0:.{decimals}f}"  # without the sign of -0.0


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """``heights`` moved until they are ``gap`` apart, in the same order, and within ``low`` to ``high`` if there is room."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    placed = pen.apart(heights, gap)
    limit = high
    for place in reversed(order):
        placed[place] = min(placed[place], limit)
        limit = placed[place] - gap
    over = max(0.0, low - limit - gap) / 2  # too many: they stand out above and below alike
    return [height + over for height in placed]


def _x_scale(low: float, high: float, span: tuple[float, float], log: bool) -> pen.Scale:
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    return pen.Scale(low, high, *span, log=log)


def _x_axis(frame: Frame, x: pen.Scale, bottom: float) -> list[str]:
    """Tick labels, each left out where it would touch the one before."""
    parts, free = [], -math.inf
    for value, words in sorted(frame.ticks):
        half = len(words) * 3.6
        if x(value) - half < free:
            continue
        parts.append(pen.line(x(value), bottom, x(value), bottom + 4, "axis"))
        parts.append(pen.text(x(value), bottom + 17, words, "tick", "middle"))
        free = x(value) + half + 6
    return parts


def _band(one: Series, x: pen.Scale, y: pen.Scale) -> list[str]:
    if len(one.points) < 2:
        return []
    upper = [(x(p.x), y(p.high)) for p in one.points]
    lower = [(x(p.x), y(p.low)) for p in reversed(one.points)]
    return [pen.path([*upper, *lower], f"spread {colour(one.method)}", closed=True)]


def _stroke(one: Series, x: pen.Scale, y: pen.Scale, axis: str) -> list[str]:
    style, parts = colour(one.method), []
    if len(one.points) > 1:
        line = [(x(p.x), y(p.mean)) for p in one.points]
        parts.append(pen.path(line, f"stroke {style} {dashes(one.method)}"))
    for p in one.loose if len(one.points) > 1 else (*one.points, *one.loose):
        parts.append(pen.line(x(p.x), y(p.low), x(p.x), y(p.high), f"reach {style}"))
    for p in (*one.points, *one.loose):
        if p.chosen:
            parts.append(pen.dot(x(p.x), y(p.mean), 8, f"ring {style}"))
        title = (
            f"{p.name or one.method}, {axis} {p.x:.6g}: {p.mean:.4f} "
            f"({p.low:.4f} to {p.high:.4f}, {p.prompts} prompts)"
        )
        look = "open" if p in one.loose else "filled"
        parts.append(pen.dot(x(p.x), y(p.mean), 3.5, f"{look} {style}", title))
    return parts


def _names(series: Sequence[Series], y: pen.Scale, place: tuple[float, float, float]) -> list[str]:
    right, top, bottom = place
    ends = [(one.method, (one.points or one.loose)[-1].mean) for one in series]
    heights = spread([y(mean) + 4 for _, mean in ends], LINE, top, bottom + 4)
    return [
        pen.text(right + 6, height, _short(method), f"end {colour(method)}")
        for (method, _), height in zip(ends, heights, strict=True)
    ]


def _short(method: str) -> str:
    return method if len(method) <= LABEL else method[: LABEL - 1] + "…"


def _said(one: Series) -> str:
    return ", ".join(_value(p) for p in (*one.points, *one.loose))


def _value(p: Point) -> str:
    return f"{p.mean:.4f} at {p.x:g}"
