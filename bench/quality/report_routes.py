"""Route maps of the quality report: what happened to every chunk of every video when it left the window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runtime.bench import report_svg as pen
from runtime.bench.quality.curves import label, of_method
from runtime.bench.quality.row import Row

ROUTES = {  # route -> colour class, words
    "discard": ("s0", "dropped"),
    "ema": ("s2", "merged into a sink"),
    "append": ("s3", "kept as a sink of its own"),
}
DRAWN = 24  # videos of a method, so that each keeps a height that can be seen
CELL, LEFT = 7.0, 212.0
UNKNOWN = "s4"
TALL = 44.0  # of the bars that stand for all videos


def route_map(rows: Sequence[Row]) -> str:
    """One block per method that has routes. Above: shares over all its videos; below: the first videos, one line each."""
    found = {m: [r for r in mine if r.routes] for m, mine in of_method(rows).items()}
    found = {method: mine for method, mine in found.items() if not _idle(mine)}
    if not found:
        return ""
    chunks = max(len(row.routes) for mine in found.values() for row in mine)
    wide = (pen.WIDTH - LEFT - 8) / chunks
    parts, top = [], 6.0
    for method, mine in found.items():
        parts += _names(method, mine, top)
        parts += _shares(mine, top, wide)
        top += TALL + 5
        drawn = sorted(mine, key=lambda r: (r.key.prompt, r.key.seed))[:DRAWN]
        parts += _videos(drawn, top, wide)
        top += CELL * max(len(drawn), 3) + 16
    every = max(1, round(28 / wide))
    for chunk in range(0, chunks, every):
        parts.append(pen.text(LEFT + (chunk + 0.5) * wide, top, chunk + 1, "tick", "middle"))
    parts.append(pen.text(pen.WIDTH - 8, top + 18, "chunk of the video", "tick", "end"))
    return pen.svg(top + 26, parts, f"Routes of chunks: {'; '.join(map(_said, found.values()))}")


def left_out(rows: Sequence[Row]) -> str:
    """A sentence on the methods that drop every chunk; empty when all have something to draw."""
    idle = [label(method) for method, mine in of_method(rows).items() if _idle(mine)]
    return f"Every chunk is dropped, and nothing drawn, for: {', '.join(idle)}." if idle else ""


def _idle(mine: Sequence[Row]) -> bool:
    """Whether nothing but dropping ever happened."""
    return {route for row in mine for route in row.routes} <= {"discard"}


def key() -> str:
    """The colours of the map, as HTML."""
    keys = [
        f'<span class="key"><svg viewBox="0 0 10 10" aria-hidden="true">'
        f"{pen.rect(0, 0, 10, 10, style)}</svg>{pen.esc(words)} <code>{pen.esc(route)}</code></span>"
        for route, (style, words) in ROUTES.items()
    ]
    return f'<p class="legend">{" ".join(keys)}</p>'


def counted(rows: Sequence[Row]) -> dict[str, float]:
    """Route -> its share of all chunks of ``rows``; a route of an unknown name is counted under that name."""
    counts = Counter(route for row in rows for route in row.routes)
    total = sum(counts.values())
    names = [*ROUTES, *sorted(set(counts) - set(ROUTES))]
    return {name: counts[name] / total for name in names} if total else {}


def _names(method: str, mine: Sequence[Row], top: float) -> list[str]:
    """The method's name and its shares, left of its block."""
    words = label(method)
    fitting = int((LEFT - 12) / 7.2)
    words = words if len(words) <= fitting else words[: fitting - 1] + "…"
    shown = min(len(mine), DRAWN)
    videos = f"{len(mine)} videos" if len(mine) == shown else f"{len(mine)} videos, {shown} drawn"
    lines = [
        pen.text(0, top + 12, words, "name"),
        pen.text(0, top + 28, videos, "note"),
    ]
    shares = ", ".join(f"{name} {pen.share(part) or '0 %'}" for name, part in counted(mine).items())
    lines.append(pen.text(0, top + 44, shares, "note") if len(shares) < 34 else "")
    if not lines[-1]:
        first, _, rest = shares.partition(", ")
        lines[-1] = pen.text(0, top + 44, first + ",", "note")
        lines.append(pen.text(0, top + 59, rest, "note"))
    return lines


def _shares(mine: Sequence[Row], top: float, wide: float) -> list[str]:
    parts = []
    for chunk in range(max(len(row.routes) for row in mine)):
        there = [row.routes[chunk] for row in mine if chunk < len(row.routes)]
        base = top + TALL
        for route, (style, words) in ROUTES.items():
            part = there.count(route) / len(there)
            if part:
                high = part * TALL
                title = f"chunk {chunk + 1}: {words} in {there.count(route)} of {len(there)} videos"
                parts.append(
                    pen.rect(LEFT + chunk * wide, base - high, wide - 1, high, style, title, 0)
                )
                base -= high
    return parts


def _videos(mine: Sequence[Row], top: float, wide: float) -> list[str]:
    """One line per video, all cells of a route in one path: a page holds thousands of them."""
    cells: dict[str, list[str]] = {}
    for line, row in enumerate(mine):
        y = top + line * CELL
        for chunk, route in enumerate(row.routes):
            style = ROUTES[route][0] if route in ROUTES else UNKNOWN
            x = LEFT + chunk * wide
            cells.setdefault(style, []).append(
                f"M{x:.1f} {y:.1f}h{wide - 1:.1f}v{CELL - 1.5:g}H{x:.1f}z"
            )
    return [f'<path d="{"".join(ways)}" class="{style}"/>' for style, ways in cells.items()]


def _said(mine: Sequence[Row]) -> str:
    shares = ", ".join(f"{name} {pen.share(part)}" for name, part in counted(mine).items())
    return f"{mine[0].key.method}: {shares}"
