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
TALL = 44.0  # of the bars that stand for all videos


def route_map(rows: Sequence[Row]) -> str:
    """One block per method that has routes. Above: shares over all its videos; below: the first videos, one line each."""
    found = {m: [r for r in mine if r.routes] for m, mine in of_method(rows).items()}
    found = {method: mine for method, mine in found.items() if mine}
    if not found:
        return ""
    chunks = max(len(row.routes) for mine in found.values() for row in mine)
    wide = (pen.WIDTH - LEFT - 8) / chunks
    parts, top = [], 6.0
    for method, mine in found.items():
        parts += _names(method, mine, top)
        parts += _shares(mine, top, wide)
        top += TALL + 5
        for row in sorted(mine, key=lambda r: (r.key.prompt, r.key.seed))[:DRAWN]:
            parts += _video(row, top, wide)
            top += CELL
        top += 20
    every = max(1, round(28 / wide))
    for chunk in range(0, chunks, every):
        parts.append(pen.text(LEFT + (chunk + 0.5) * wide, top, chunk + 1, "tick", "middle"))
    parts.append(pen.text(pen.WIDTH - 8, top + 18, "chunk of the video", "tick", "end"))
    return pen.svg(top + 26, parts, f"Routes of chunks: {'; '.join(map(_said, found.values()))}")


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


def _video(row: Row, top: float, wide: float) -> list[str]:
    parts = []
    for chunk, route in enumerate(row.routes):
        style, words = ROUTES.get(route, ("s4", route))
        title = f"prompt {row.key.prompt}, seed {row.key.seed}, chunk {chunk + 1}: {words}"
        parts.append(pen.rect(LEFT + chunk * wide, top, wide - 1, CELL - 1.5, style, title, 0))
    return parts


def _said(mine: Sequence[Row]) -> str:
    shares = ", ".join(f"{name} {pen.share(part)}" for name, part in counted(mine).items())
    return f"{mine[0].key.method}: {shares}"
