"""What the paper published, and how far from it our rows come out. The numbers are the paper's; none of them was taken by us.

Source   the tables of the Stream-T1 paper: LongLive-1.3B as the generator, HPSv3 and VideoAlign as the rewards; 5 s on VBench's
         946 prompts, 30 s on the first 128 prompts of MovieGen. Subject to Aesthetic are VBench's, in percent; VQ, MQ and
         TA are VideoAlign's, in standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.bench.quality.row import COLUMNS, MEASURED, Row

NOT_SCORED = "not scored"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of one of the paper's tables, and the method here that it is a row of."""

    seconds: float
    method: str  # of ``runtime.bench.quality.methods.METHODS``
    label: str  # as the paper calls it
    scores: Mapping[str, float]


def _row(seconds: float, method: str, label: str, *values: float) -> PublishedRow:
    return PublishedRow(seconds, method, label, dict(zip(COLUMNS, values, strict=True)))


PUBLISHED_ROWS = (
    _row(5, "single", "LongLive", 97.00, 96.78, 99.12, 71.28, 65.28, 0.285, 0.350, 1.193),
    _row(5, "stream-t1", "Stream-T1", 97.25, 97.05, 99.15, 71.42, 65.98, 0.426, 0.629, 1.305),
    _row(30, "single", "LongLive", 97.90, 96.82, 98.78, 68.99, 61.56, -0.169, -0.002, 1.073),
    _row(30, "best-of-n", "Best-of-N", 98.13, 96.88, 98.86, 69.34, 61.97, -0.083, 0.062, 1.160),
    _row(30, "beam", "Beam search", 98.28, 97.03, 98.90, 69.05, 61.85, -0.077, 0.165, 1.159),
    _row(30, "stream-t1", "Stream-T1", 98.43, 97.18, 99.03, 69.10, 62.11, -0.073, 0.226, 1.170),
    _row(30, "no-sinking", "w/o sinking", 98.30, 97.04, 98.92, 69.51, 61.90, -0.083, 0.188, 1.146),
    _row(
        30, "no-propagation", "w/o propagation",
        98.35, 97.14, 98.98, 69.07, 61.99, -0.094, 0.176, 1.164,
    ),
    _row(30, "no-pruning", "w/o pruning", 98.04, 96.88, 98.87, 69.17, 61.22, -0.173, 0.014, 1.035),
)  # fmt: skip


def published(seconds: float, method: str) -> PublishedRow | None:
    """The paper's row of a method at a length; None where it published none."""
    same = (row for row in PUBLISHED_ROWS if (row.seconds, row.method) == (seconds, method))
    return next(same, None)


@dataclass(frozen=True, slots=True)
class Ours:
    """The mean of our rows of one method and length, and how many videos each column's mean is of."""

    seconds: float
    method: str
    videos: int
    means: Mapping[str, float]  # NaN: no video has the score
    counts: Mapping[str, int]


def ours_of(rows: Sequence[Row]) -> list[Ours]:
    """One for every method and length, in the order in which they come first."""
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.key.seconds, row.key.method), []).append(row)
    found = []
    for (seconds, method), group in groups.items():
        scores = {name: [row.scores.get(name, math.nan) for row in group] for name in COLUMNS}
        known = {name: [v for v in values if math.isfinite(v)] for name, values in scores.items()}
        means = {name: sum(v) / len(v) if v else math.nan for name, v in known.items()}
        counts = {name: len(v) for name, v in known.items()}
        found.append(Ours(seconds, method, len(group), means, counts))
    return found


def beside_the_paper(rows: Sequence[Row], made_by: str) -> str:
    """Our means, the paper's row and the difference, one under the other, as a Markdown table.

    ``made_by`` says with which preset, weights and commit ours were made. "" where the paper has no row for any of ours.
    """
    pairs = [(ours, published(ours.seconds, ours.method)) for ours in ours_of(rows)]
    lines: list[str] = []
    for ours, theirs in pairs:
        if theirs is None:
            continue
        cells = [_cell(name, ours.means[name]) for name in COLUMNS]
        apart = [_cell(name, ours.means[name] - theirs.scores[name], sign=True) for name in COLUMNS]
        paper = [_cell(name, theirs.scores[name]) for name in COLUMNS]
        length = f"{ours.seconds:g} s"
        lines += [
            _line([f"{ours.method}, {length}, ours ({_videos(ours)})", *cells]),
            _line([f"{theirs.label}, {length}, published", *paper]),
            _line(["difference", *apart]),
        ]
    if not lines:
        return ""
    head = [_line(["", *COLUMNS]), _line(["---", *("---:" for _ in COLUMNS)])]
    notes = [
        "",
        f"Ours: {made_by}. Published: the Stream-T1 paper, with LongLive-1.3B, HPSv3 and VideoAlign.",
    ]
    if any(math.isnan(ours.means[name]) for ours, theirs in pairs if theirs for name in COLUMNS):
        notes.append(f"{NOT_SCORED[0].upper()}{NOT_SCORED[1:]}: no score of that column exists for any of these videos.")  # fmt: skip
    return "\n".join(head + lines + notes) + "\n"


def _cell(name: str, value: float, sign: bool = False) -> str:
    if math.isnan(value):
        return "-" if sign else NOT_SCORED
    digits = 2 if name in MEASURED else 3
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _videos(ours: Ours) -> str:
    """How many videos the means are of; VBench's suite scores other prompts in every column."""
    few = {count for count in ours.counts.values() if count}
    if few <= {ours.videos}:
        return f"{ours.videos} videos"
    return f"{ours.videos} videos, {min(few)} to {max(few)} a column"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
