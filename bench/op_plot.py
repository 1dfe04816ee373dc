"""Draws a kernel benchmark: one group of bars per shape, share of the measured ceiling, time written on each bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.bench.op import Row


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG or SVG, by the path's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(_group(row) for row in rows))
    impls = list(dict.fromkeys(row.impl for row in rows))
    height = 0.8 / len(impls)
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.22 * len(groups) * len(impls)))
    for place, impl in enumerate(impls):
        mine = [row for row in rows if row.impl == impl]
        at = [groups.index(_group(row)) + place * height for row in mine]
        shares = [100 * row.share_of_ceiling for row in mine]
        axes.barh(at, shares, height * 0.9, label=impl)
        for y, share, row in zip(at, shares, mine, strict=True):
            axes.text(share, y, f" {row.median_ms:.3g} ms", va="center", fontsize=7)
    labels = [
        f"{op}  {shape}\n{dtype}" + (f", {threads} threads" if threads else "")
        for op, shape, dtype, threads in groups
    ]
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(groups))], labels, fontsize=7)
    axes.set_ylim(len(groups) - 0.1, -0.4)
    axes.margins(x=0.15)
    axes.set_xlabel("% of the copy or matmul measured in the same run")
    axes.set_title(f"{rows[0].device}, commit {rows[0].commit}", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _group(row: Row) -> tuple[str, str, str, int]:
    return row.op, row.shape, row.dtype, row.threads
