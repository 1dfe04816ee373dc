"""Draws the search of one video as a tree: ``python -m runtime.bench.tree trace.json -o tree.png``.

Chunks go from left to right, every candidate is a picture, lines lead from parents to children. Candidates stand in
the order of their parents, so that no two lines cross. All lengths are inches unless a name says otherwise.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.trace import Trace, TraceCandidate, TraceChunk, read_trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CHUNKS = 60  # in one picture
MAX_CANDIDATES = 128  # of one chunk
WIDTH, HEIGHT = 20.0, 12.0  # that a picture should not exceed by much
LARGEST, SMALLEST = 1.05, 0.22  # width of a candidate's picture
STRIP = 0.09  # height of the strip that shows the route, of the picture's width
LEGIBLE = 0.7  # from this width on there is room for scores, seeds and ranks
SUFFIXES = (".png", ".svg", ".pdf")

INK, PALE, PAPER, ACCENT = "#22262e", "#9aa1ac", "#ffffff", "#e4572e"
ROUTES = {"discard": "#a3a8b0", "ema": "#2f7ed8", "append": "#2ca25f"}
FIRST = INK  # chunk 0 has no route: it is the sink that the video begins with
MEANING = {"discard": "discard: dropped", "ema": "EMA: merged", "append": "append: new sink"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything stands; the origin is the lower left corner."""

    picture: tuple[float, float]  # width and height of a candidate's picture
    pitch: tuple[float, float]  # from column to column and from row to row
    margin: float
    top: float  # for title and column heads
    bottom: float  # for the legend
    size: tuple[float, float]

    @property
    def text(self) -> bool:
        return self.picture[0] >= LEGIBLE

    def place(self, column: int, row: int, rows: int) -> tuple[float, float]:
        """Lower left corner of the picture in a column of ``rows``, which stands in the middle."""
        middle = self.bottom + (self.size[1] - self.top - self.bottom) / 2
        x = self.margin + column * self.pitch[0]
        y = middle + ((rows - 1) / 2 - row) * self.pitch[1] - self.picture[1] / 2
        return x, y + (0.12 if self.text else 0.0)


def plan_layout(columns: int, rows: int, aspect: float) -> Layout:
    """The largest pictures with which ``columns`` times ``rows`` of them fit; ``aspect`` is height over width."""
    fit = min(WIDTH / (1.62 * columns), HEIGHT / (1.45 * rows * aspect), LARGEST)
    width = max(fit, SMALLEST)
    height = width * aspect
    text = 0.42 if width >= LEGIBLE else 0.0
    pitch = (width * 1.62, height * 1.16 + text)
    margin, top, bottom = 0.35, 1.2, 0.75
    across = 2 * margin + (columns - 1) * pitch[0] + width
    high = top + bottom + rows * pitch[1]
    return Layout((width, height), pitch, margin, top, bottom, (max(across, 8.2), high))


def planar(chunks: Sequence[TraceChunk]) -> list[list[TraceCandidate]]:
    """The candidates of every chunk from top to bottom: in the order of their parents, then of their expansions."""
    columns: list[list[TraceCandidate]] = []
    places: dict[int | None, int] = {}  # rank of a survivor -> where it stands
    for chunk in chunks:
        column = sorted(chunk.candidates, key=lambda c: (places.get(c.parent, 0), c.expansion))
        columns.append(column)
        places = {c.rank: row for row, c in enumerate(column) if c.rank is not None}
    return columns


def draw(trace: Trace, first: int = 0, count: int = MAX_CHUNKS) -> Figure:
    """The tree of ``count`` chunks from chunk ``first``. Raises ValueError when there are none, or too many rows."""
    from matplotlib.figure import Figure

    chunks = trace.chunks[first : first + count]
    if not chunks or not any(chunk.candidates for chunk in chunks):
        raise ValueError(f"want a chunk to draw, but the trace has {len(trace.chunks)}")
    columns = planar(chunks)
    rows = max(map(len, columns))
    if rows > MAX_CANDIDATES:
        raise ValueError(f"want at most {MAX_CANDIDATES} candidates per chunk, got {rows}")
    sample = next(_pixels(c) for column in columns for c in column)
    layout = plan_layout(len(columns), rows, sample.shape[0] / sample.shape[1])
    figure = Figure(layout.size, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    shown = {id(candidate) for candidate in trace.shown()}
    for index, column in enumerate(columns):
        _draw_column(axes, layout, index, column, shown)
        if index:
            _draw_edges(axes, layout, index, columns[index - 1], column, shown)
        step = 1 if layout.text or len(columns) <= 20 else 5
        if (first + index) % step == 0:
            _draw_head(
                axes, layout, index, f"chunk {first + index}" if layout.text else first + index
            )
    _draw_title(axes, layout, trace)
    _draw_legend(axes, layout, bool(shown))
    axes.set_xlim(0, layout.size[0])
    axes.set_ylim(0, layout.size[1])
    return figure


def _draw_column(
    axes: Axes, layout: Layout, index: int, column: Sequence[TraceCandidate], shown: set[int]
) -> None:
    from matplotlib.patches import Rectangle

    width, height = layout.picture
    strip = STRIP * width
    for row, candidate in enumerate(column):
        x, y = layout.place(index, row, len(column))
        kept, winner = candidate.rank is not None, id(candidate) in shown
        alpha = 1.0 if kept else 0.42
        box = (x, x + width, y, y + height)
        axes.imshow(_pixels(candidate), extent=box, alpha=alpha, zorder=3, interpolation="lanczos")
        colour = ROUTES[candidate.route] if candidate.parent is not None else FIRST
        axes.add_patch(
            Rectangle(
                (x, y - strip), width, strip, color=colour, alpha=max(alpha, 0.7), lw=0, zorder=4
            )
        )
        if kept:
            edge, line = (ACCENT, 3.0) if winner else (INK, 1.4)
            line *= 1.0 if layout.text else 0.5
            frame = Rectangle(
                (x, y - strip), width, height + strip, fill=False, ec=edge, lw=line, zorder=6
            )
            frame.set_joinstyle("round")
            axes.add_patch(frame)
        if layout.text:
            _draw_words(
                axes, (x, y), layout, candidate, ACCENT if winner else INK if kept else PALE
            )


def _draw_words(
    axes: Axes, corner: tuple[float, float], layout: Layout, candidate: TraceCandidate, colour: str
) -> None:
    """Score and seed under a picture, and a survivor's rank in its corner."""
    (x, y), (width, height) = corner, layout.picture
    under = y - STRIP * width - 0.07
    score = f"{candidate.fused:.3f}" if math.isfinite(candidate.fused) else "no score"
    weight = "bold" if candidate.rank is not None else "normal"
    axes.text(x, under, score, size=8.5, color=colour, va="top", weight=weight)
    seed = f"seed {candidate.seed}" if candidate.seed < 10**6 else f"…{candidate.seed % 10**6:06d}"
    axes.text(x, under - 0.155, seed, size=6.5, color=PALE, va="top")
    if candidate.rank is not None:
        badge = {"boxstyle": "circle,pad=0.25", "fc": colour, "ec": PAPER, "lw": 0.8}
        at = (x + 0.13, y + height - 0.13)
        axes.text(*at, str(candidate.rank + 1), size=6.5, color=PAPER, weight="bold",
                  ha="center", va="center", bbox=badge, zorder=7)  # fmt: skip


def _draw_edges(
    axes: Axes,
    layout: Layout,
    index: int,
    parents: Sequence[TraceCandidate],
    column: Sequence[TraceCandidate],
    shown: set[int],
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    width, height = layout.picture
    places = {c.rank: row for row, c in enumerate(parents) if c.rank is not None}
    scale = 1.0 if layout.text else 0.5
    for row, candidate in enumerate(column):
        parent = places[candidate.parent]
        x0, y0 = layout.place(index - 1, parent, len(parents))
        x1, y1 = layout.place(index, row, len(column))
        start, end = (x0 + width, y0 + height / 2), (x1, y1 + height / 2)
        bend = (end[0] - start[0]) * 0.55
        curve = Curve(
            [start, (start[0] + bend, start[1]), (end[0] - bend, end[1]), end],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        if id(candidate) in shown and id(parents[parent]) in shown:
            colour, line, order = ACCENT, 3.2, 2
        elif candidate.rank is not None:
            colour, line, order = INK, 1.3, 1
        else:
            colour, line, order = "#c9cdd4", 1.0, 0
        axes.add_patch(
            PathPatch(curve, fill=False, ec=colour, lw=line * scale, zorder=order, capstyle="round")
        )


def _draw_head(axes: Axes, layout: Layout, index: int, words: str | int) -> None:
    x = layout.margin + index * layout.pitch[0] + layout.picture[0] / 2
    y = layout.size[1] - layout.top + 0.12
    axes.text(x, y, str(words), size=8.5 if layout.text else 7, color=INK, ha="center")


def _draw_title(axes: Axes, layout: Layout, trace: Trace) -> None:
    """The prompt, and under it how the search was set."""
    room = int(layout.size[0] * 7.5)  # characters of this size
    prompt = " ".join(trace.prompt.split())
    prompt = prompt if len(prompt) <= room else prompt[: room - 1] + "…"
    top = layout.size[1]
    axes.text(
        layout.margin, top - 0.42, prompt, size=13, weight="bold", color=INK, parse_math=False
    )
    search = trace.settings.get("search")
    search = search if isinstance(search, dict) else {}
    words = [str(search.get("policy", "?")), f"fidelity {trace.settings.get('fidelity', '?')}"]
    words.append(f"K = {search.get('histories', '?')}, M = {search.get('expansions', '?')}")
    words.append(f"seed {search.get('seed', '?')}")
    if trace.outcome != "finished":
        words.append(f"{trace.outcome} after {len(trace.chunks)} of {trace.planned_chunks} chunks")
    axes.text(layout.margin, top - 0.68, "  ·  ".join(words), size=9, color=PALE, parse_math=False)


def _draw_legend(axes: Axes, layout: Layout, highlighted: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(color=FIRST, label="first sink")]
    entries += [Patch(color=ROUTES[route], label=words) for route, words in MEANING.items()]
    entries.append(Patch(fc=PAPER, ec=INK, lw=1.4, label="kept"))
    if highlighted:
        entries.append(Line2D([], [], color=ACCENT, lw=3.2, label="the video"))
    place = (layout.margin / layout.size[0], 0.16 / layout.size[1])
    axes.legend(handles=entries, loc="lower left", bbox_to_anchor=place, ncols=len(entries), frameon=False,
                fontsize=8.5, labelcolor=INK, handlelength=1.3, handleheight=0.8, columnspacing=1.6,
                borderpad=0, borderaxespad=0)  # fmt: skip


def _pixels(candidate: TraceCandidate) -> Any:
    """The picture as an array [H, W, 3]; grey when it cannot be read."""
    import numpy as np
    from matplotlib import image

    try:
        return image.imread(io.BytesIO(candidate.thumbnail), format="jpg")
    except (OSError, SyntaxError, ValueError):
        return np.full((96, 96, 3), 225, np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the arguments name and return the exit code; an error is one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.tree", description=__doc__.split("\n")[0]
    )
    parser.add_argument("trace", type=Path, help="what `python -m runtime --trace` wrote")
    parser.add_argument(
        "-o", "--output", type=Path, help="PNG, SVG or PDF (default: beside the trace)"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="chunk to begin with")
    parser.add_argument(
        "--count", type=int, default=MAX_CHUNKS, metavar="N", help="chunks (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    output = options.output or options.trace.with_suffix(".png")
    try:
        if output.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"output: want a name that ends in {', '.join(SUFFIXES)}, got {output}"
            )
        if not output.parent.is_dir():
            raise ValueError(f"output: there is no folder {output.parent}; make it first")
        if options.first < 0 or not 1 <= options.count <= MAX_CHUNKS:
            raise ValueError(f"want --first of at least 0 and --count of 1 to {MAX_CHUNKS}")
        trace = read_trace(options.trace)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a prompt may be in any script
            draw(trace, options.first, options.count).savefig(output, dpi=160)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}; run `pip install 'stream-t1-runtime[plot]'`", file=sys.stderr)
        return 1
    drawn = min(options.count, len(trace.chunks) - options.first)
    print(f"{output.resolve()}: {drawn} of {len(trace.chunks)} chunks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
