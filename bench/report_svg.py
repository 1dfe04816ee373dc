"""The pencil of the report: numbers as people write them, scales, and SVG elements whose every text is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 1000.0  # of every picture; the page scales it
CHARACTER = 7.7  # width of one at 12 px, roughly
NOT_KNOWN = "not known"


def esc(text: object) -> str:
    """``text`` for HTML or SVG, between tags or in a quoted attribute."""
    return html.escape(str(text), quote=True)


def figure(value: float | None, unit: str = "", unknown: str = NOT_KNOWN) -> str:
    """Three digits that matter and a unit: 0.0612 s, 97.3 ms, 1,240 FPS."""
    if value is None:
        return unknown
    size = abs(value)
    if size >= 100 or value == 0:
        text = f"{value:,.0f}"
    else:
        digits = 2 - math.floor(math.log10(size))
        text = f"{value:.{min(digits, 6)}f}"
    return f"{text} {unit}".rstrip()


def count(value: float | None, unit: str = "") -> str:
    """A number that was set or counted, as it is: 5 s, 81 frames."""
    return NOT_KNOWN if value is None else f"{value:,.10g} {unit}".rstrip()


def share(value: float | None) -> str:
    """A part of one in per cent."""
    if value is None:
        return ""
    if 0 < value < 5e-4:
        return "< 0.1 %"
    return f"{100 * value:.{0 if value >= 0.0995 else 1}f} %"


def size_of(count: float | None, unknown: str = NOT_KNOWN) -> str:
    """Bytes with a decimal unit: 0.86 GB."""
    if count is None:
        return unknown
    for step, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= step / 2:
            return figure(count / step, unit)
    return figure(count, "B")


def work_of(flops: float | None, unknown: str = NOT_KNOWN) -> str:
    """FLOP with a decimal unit: 35.8 TFLOP."""
    if flops is None:
        return unknown
    step, unit = (1e12, "TFLOP") if abs(flops) >= 5e11 else (1e9, "GFLOP")
    return figure(flops / step, unit)


def nice_ticks(high: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to at least ``high``."""
    if not high > 0:
        return [0.0, 1.0]
    raw = high / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * m for m in (1, 2, 2.5, 5, 10) if scale * m >= raw * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold ``low`` to ``high`` between them, evenly on a logarithmic scale or nearly so."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    below = [tick for tick in ticks if tick <= low * 1.0001]
    above = [tick for tick in ticks if tick >= high * 0.9999]
    return [tick for tick in ticks if below[-1] <= tick <= (above or ticks)[0 if above else -1]]


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        part = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(part, -0.1), 1.1) * (self.end - self.start)


def svg(height: float, parts: Sequence[str], label: str, width: float = WIDTH) -> str:
    """One picture; ``label`` is read out where it cannot be seen."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{esc(label)}">'
        f"{''.join(parts)}</svg>"
    )


def rect(
    x: float, y: float, w: float, h: float, style: str, title: str = "", radius: float = 2
) -> str:
    """A box of class ``style``; ``title`` shows under a resting pointer."""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(w, 0.5):.2f}" height="{h:.2f}" rx="{radius:g}" '
        f'class="{esc(style)}">{_title(title)}</rect>'
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> str:
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{esc(style)}"/>'


def text(x: float, y: float, words: object, style: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" class="{esc(style)}">{esc(words)}'
        "</text>"
    )


def dot(x: float, y: float, radius: float, style: str, title: str = "") -> str:
    return (
        f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" class="{esc(style)}">{_title(title)}'
        "</circle>"
    )


def path(points: Sequence[tuple[float, float]], style: str, closed: bool = False) -> str:
    way = " L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return f'<path d="M{way}{" Z" if closed else ""}" class="{esc(style)}"/>'


def fits(words: str, width: float) -> bool:
    """Whether ``words`` at 12 px have room in ``width``."""
    return len(words) * CHARACTER + 8 <= width


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """``heights`` moved down just enough that no two are closer than ``gap``; their order is kept."""
    placed: dict[int, float] = {}
    last = -math.inf
    for place in sorted(range(len(heights)), key=lambda p: heights[p]):
        last = placed[place] = max(heights[place], last + gap)
    return [placed[place] for place in range(len(heights))]


def _title(words: str) -> str:
    return f"<title>{esc(words)}</title>" if words else ""
