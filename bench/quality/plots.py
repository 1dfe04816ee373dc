"""Draws curves of a comparison as PNG for documents: the scaling law, or drift over time.

    python -m runtime.bench.quality.plots out/quality --scaling Subject "All right" -o docs/scaling.png
    python -m runtime.bench.quality.plots out/quality --drift Subject Background --seconds 30 -o docs/drift.png

The numbers are those of the HTML report (``curves``), and a method has the same colour in both. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.bench.quality import curves
from runtime.bench.quality.curves import Series, View, label, of_length
from runtime.bench.quality.report_figures import DRIFTS
from runtime.bench.quality.report_lines import colour, dashes
from runtime.bench.quality.row import Row
from runtime.bench.quality.store import read

STYLE = Path(__file__).parents[1] / "report.css"
DASHES = {"d0": "-", "d1": (0, (5, 3)), "d2": (0, (1.5, 2)), "d3": (0, (6, 2, 1.5, 2))}
PAPER, SOFT = "#ffffff", "#5b6472"


def scaling(rows: Sequence[Row], columns: Sequence[str], path: Path) -> None:
    """One panel per column: the gain over plain streaming against candidates of a chunk. Rows of one length.

    ValueError for a column that has no curve.
    """
    found = [curves.scaling(rows, column, View(gain=True)) for column in columns]
    panels = _checked(columns, found, "plain streaming and at least one more size of a search")
    ticks = sorted({p.x for series in found for one in series for p in one.points})

    def finish(axes: Any) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("K × M, candidates of a chunk")

    _draw(panels, "gain over plain streaming", finish, path)


def drift(
    rows: Sequence[Row], columns: Sequence[str], path: Path, group: Sequence[str] = ()
) -> None:
    """One panel per column: its change since each video's first span, over the video's time. Rows of one length.

    ``group`` are the methods that are drawn; by default Stream-T1, its parts and plain streaming. ValueError for a column
    that has no curve.
    """
    group = group or DRIFTS["Stream-T1 and its parts"]
    mine = [row for row in rows if row.key.method in group]
    found = [curves.drift(mine, column, change=True) for column in columns]
    panels = _checked(columns, found, "videos of at least two spans")
    _draw(
        panels,
        "change since the first span",
        lambda axes: axes.set_xlabel("seconds of the video"),
        path,
    )


def _checked(
    columns: Sequence[str], found: Sequence[list[Series]], wanted: str
) -> list[tuple[str, list[Series]]]:
    panels = list(zip(columns, found, strict=True))
    for column, series in panels:
        if not any(len(one.points) > 1 for one in series):
            raise ValueError(
                f"{column}: no curve to draw, for there are no rows of {wanted} with this column"
            )
    return panels


def _draw(panels: Sequence[tuple[str, list[Series]]], axis: str, finish: Any, path: Path) -> None:
    """Panels beside each other, one legend for all below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    inks, used = palette(), {}
    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.7), squeeze=False, facecolor=PAPER
    )
    for axes, (column, series) in zip(grid[0], panels, strict=True):
        for one in series:
            ink, look = inks[colour(one.method)], DASHES[dashes(one.method)]
            x = [p.x for p in one.points]
            low, high = ([getattr(p, side) for p in one.points] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=ink, alpha=0.14, lw=0)
            (line,) = axes.plot(
                x, [p.mean for p in one.points], color=ink, ls=look, lw=2, marker="o", ms=4
            )
            used[label(one.method)] = line
        axes.axhline(0, color=SOFT, lw=0.8, zorder=0)
        axes.grid(axis="y", color="#dde1e7", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(column, fontsize=10, loc="left", fontweight="bold")
        finish(axes)
    grid[0][0].set_ylabel(axis)
    figure.legend(
        used.values(), used.keys(), loc="lower center", ncols=3, frameon=False, fontsize=8.5
    )
    rows_of_legend = -(-len(used) // 3)
    figure.tight_layout(rect=(0, 0.06 * rows_of_legend, 1, 1))
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def palette() -> dict[str, str]:
    """Colour class -> its value in the report's light colours, read from its style."""
    style = STYLE.read_text(encoding="utf-8")
    light = style[: style.index("@media")]
    found = re.findall(r"--([so])(\d): (#[0-9a-f]{6})", light)
    return {f"{'c' if kind == 's' else 'o'}{number}": value for kind, number, value in found}


def main(argv: Sequence[str] | None = None) -> int:
    """Read a folder, write one picture."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.quality.plots",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("folder", type=Path, help="what python -m runtime.bench.quality wrote")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scaling", nargs="+", metavar="COLUMN")
    what.add_argument("--drift", nargs="+", metavar="COLUMN")
    add("--methods", nargs="+", default=(), metavar="NAME", help="of --drift")
    add("--seconds", type=float, help="length of the videos; by default the longest")
    add("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        rows = _of_length(read(args.folder)[1], args.seconds)
        if args.scaling:
            scaling(rows, args.scaling, args.output)
        else:
            drift(rows, args.drift, args.output, args.methods)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: pictures are drawn by matplotlib: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}")
    return 0


def _of_length(rows: Sequence[Row], seconds: float | None) -> list[Row]:
    """Rows of the wanted length, or of the longest. ValueError for a length that was not made."""
    known = curves.lengths(rows)
    wanted = [pair for pair in known if seconds is None or pair[1] == seconds]
    if not wanted:
        lengths = ", ".join(f"{length:g}" for _, length in known)
        raise ValueError(f"--seconds: want one of {lengths}, got {seconds:g}")
    world, length = max(wanted, key=lambda pair: pair[1])
    return of_length(rows, world, length)


if __name__ == "__main__":
    sys.exit(main())
