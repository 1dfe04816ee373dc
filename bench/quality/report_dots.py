"""Dots with whiskers: one line per name, one dot per kind, each with its interval, all on one scale around zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.bench import report_svg as pen
from runtime.bench.quality.report_lines import tick_text, ticks_between

COLOURS = ("c2", "c3", "c1")
LINE, LEFT = 13.0, 108.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A value and its 95 % interval; None where it is not known."""

    value: float | None
    low: float | None
    high: float | None


def dots(
    rows: Mapping[str, Sequence[Dot]], kinds: Sequence[str], axis: str, width: float = 480.0
) -> str:
    """An SVG of ``rows`` (name -> a dot for each of ``kinds``). Empty when no value is known."""
    known = [v for found in rows.values() for d in found for v in (d.value, d.low, d.high)]
    values = [0.0, *(v for v in known if v is not None)]
    if len(values) == 1:
        return ""
    ticks = ticks_between(min(values), max(values))
    x = pen.Scale(ticks[0], ticks[-1], LEFT, width - 16)
    tall = LINE * len(kinds) + 8
    bottom = 6 + tall * len(rows)
    parts = [pen.line(x(t), 2, x(t), bottom, "zero" if t == 0 else "grid") for t in ticks]
    parts += [pen.text(x(t), bottom + 15, tick_text(t, ticks), "tick", "middle") for t in ticks]
    parts.append(pen.text(width - 16, bottom + 32, axis, "tick", "end"))
    for place, (name, found) in enumerate(rows.items()):
        top = 6 + place * tall
        parts.append(pen.text(0, top + tall / 2 + 1, name[:15], "name"))
        for line, (kind, dot) in enumerate(zip(kinds, found, strict=True)):
            parts += _dot(dot, f"{name}, {kind}", x, (top + LINE * (line + 0.5), COLOURS[line % 3]))
    return pen.svg(bottom + 38, parts, axis, width)


def legend(kinds: Sequence[str]) -> str:
    """The colours of ``kinds``, as HTML."""
    keys = [
        '<span class="key"><svg viewBox="0 0 10 10" aria-hidden="true">'
        f"{pen.dot(5, 5, 4, f'filled {COLOURS[place % 3]}')}</svg>{pen.esc(kind)}</span>"
        for place, kind in enumerate(kinds)
    ]
    return f'<p class="legend">{" ".join(keys)}</p>'


def _dot(dot: Dot, name: str, x: pen.Scale, look: tuple[float, str]) -> list[str]:
    y, style = look
    if dot.value is None:
        return [pen.text(x(0) + 6, y + 4, "not known", "note")]
    parts = []
    interval = ""
    if dot.low is not None and dot.high is not None:
        parts.append(pen.line(x(dot.low), y, x(dot.high), y, f"stroke {style}"))
        interval = f" ({dot.low:+.3f} to {dot.high:+.3f})"
    parts.append(
        pen.dot(x(dot.value), y, 4, f"filled {style}", f"{name}: {dot.value:+.3f}{interval}")
    )
    return parts
