"""The paper's tables from rows: means over the videos that all methods of a table made, each against one of them.

``make`` gives tables as values, ``as_text`` and ``as_markdown`` write them. Every figure in them comes from rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from runtime.bench.quality.methods import SCALING, TABLES, Table, named
from runtime.bench.quality.row import COLUMNS, RIGHT, Row
from runtime.bench.quality.stats import (
    BETTER,
    NO_DIFFERENCE,
    TOO_FEW,
    WORSE,
    Comparison,
    Video,
    bootstrap,
    compare,
    mean,
    values,
)
from runtime.settings import Settings

MARKS = {BETTER: "+", WORSE: "-", NO_DIFFERENCE: "=", TOO_FEW: "?"}
COSTS: Mapping[str, Callable[[Row], float]] = {
    "passes": lambda row: row.cost.passes,
    "decoded frames": lambda row: row.cost.decoder_frames,
    "image rewards": lambda row: row.cost.image_rewards,
    "video rewards": lambda row: row.cost.video_rewards,
    "seconds": lambda row: row.cost.seconds,
}
SAME_COMPUTE = 0.1  # of the reference's passes
NOT_MEASURED = "–"
_SIZED = re.compile(r"[a-z0-9-]+\[\d+x\d+\]")  # a method at another number of candidates


@dataclass(frozen=True, slots=True)
class Line:
    """One method of a table."""

    method: str
    label: str
    means: Mapping[str, float]  # column -> mean over prompts, NaN where nothing was measured
    against: Mapping[str, Comparison]  # column -> the difference to the reference; its own: none
    costs: Mapping[str, float]  # names of ``COSTS`` -> mean over videos

    def count(self, word: str) -> int:
        """Columns in which the method is ``word``."""
        return sum(comparison.word == word for comparison in self.against.values())


@dataclass(frozen=True, slots=True)
class Made:
    """A table: lines of the same videos."""

    title: str
    seconds: float
    reference: str  # the label that differences are against
    columns: tuple[str, ...]  # those that anything was measured of
    lines: tuple[Line, ...]
    prompts: int
    seeds: int
    note: str = ""

    @property
    def about(self) -> str:
        """What the numbers stand on, in a line."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        prompts = "1 prompt" if self.prompts == 1 else f"{self.prompts} prompts"
        return f"{self.seconds:g} s videos, {prompts} of {seeds}, against {self.reference}"


Rows = Mapping[str, Sequence[Row]]  # method -> its rows of one length


def make(rows: Iterable[Row]) -> list[Made]:
    """Every table that ``rows`` are enough for: those of ``TABLES``, equal compute, the scaling law, one per sweep."""
    rows, found = list(rows), []
    for seconds in sorted({row.key.seconds for row in rows}):
        by_method: dict[str, list[Row]] = {}
        for row in rows:
            if row.key.seconds == seconds:
                by_method.setdefault(row.key.method, []).append(row)
        tables = [
            made
            for table in (*TABLES.values(), *_more(by_method))
            if table.seconds is None or seconds in table.seconds
            if (made := _made(table, by_method, seconds)) is not None
        ]
        # Where few methods were made two tables may hold the same ones; the first stands for both.
        once = {tuple(line.method for line in made.lines): made for made in reversed(tables)}
        found += reversed(once.values())
    return found


def _more(rows: Rows) -> list[Table]:
    """The tables that depend on what was made."""
    more = [_scaling(rows), *_sweeps(rows)]
    anchors = {_meaning(name): name for name in rows if name.startswith("best-of-n")}
    equal = [_equal_compute(anchor, rows) for anchor in anchors.values()]
    return [table for table in (*equal, *more) if table is not None]


def _equal_compute(anchor: str, rows: Rows) -> Table | None:
    """What else takes about as many passes as ``anchor``: what plain streaming does with that compute."""
    passes = {method: mean([row.cost.passes for row in its]) for method, its in rows.items()}
    usual = [method for method in TABLES["passive"].methods if method in rows]
    usual += [method for method in rows if _SIZED.fullmatch(method)]
    near = [m for m in usual if abs(passes[m] / passes[anchor] - 1) <= SAME_COMPUTE]
    # Of several names of one method the first stands for all.
    different = {_meaning(method): method for method in reversed((anchor, *near))}
    methods = tuple(reversed(different.values()))
    if len(methods) < 2:
        return None
    return Table(f"Equal compute: about {passes[anchor]:.0f} passes", methods, methods[0])


def _meaning(method: str) -> str:
    return Settings().with_changes(named(method).changes).to_json()


def _scaling(rows: Rows) -> Table | None:
    some = tuple(method for method in SCALING if method in rows)
    return Table("Test-time scaling", some, some[0]) if len(some) > 2 else None


def _sweeps(rows: Rows) -> list[Table]:
    """One table per swept setting, if its other points were made."""
    try:
        from runtime.bench.quality.sweeps import BASE, SWEEPS
    except ImportError:
        return []
    tables = []
    for sweep in SWEEPS.values():
        points = tuple(method for method in sweep.methods if method in rows)
        if BASE in points and len(points) > 1:
            title = f"Sweep of {sweep.setting} ({sweep.symbol}); the default is {sweep.default:g}"
            tables.append(Table(title, points, BASE))
    return tables


def _made(table: Table, rows: Rows, seconds: float) -> Made | None:
    """``table`` from the videos that all its methods made; None where there is nothing to compare."""
    methods = [method for method in table.methods if method in rows]
    if len(methods) < 2 or table.reference not in methods:
        return None
    shared = set.intersection(*({_video(row) for row in rows[method]} for method in methods))
    if not shared:
        return None
    kept = {method: [row for row in rows[method] if _video(row) in shared] for method in methods}
    known = [c for c in (*COLUMNS, RIGHT) if any(values(its, c) for its in kept.values())]
    theirs = {column: values(kept[table.reference], column) for column in known}
    lines = []
    for method in methods:
        against = {} if method == table.reference else theirs
        lines.append(_line(method, kept[method], known, against))
    prompts, seeds = ({video[place] for video in shared} for place in (0, 1))
    dropped = max(len(its) for its in rows.values()) - len(shared)
    note = (
        f"{dropped} videos that not all of these methods made yet are left out." if dropped else ""
    )
    return Made(
        title=table.title,
        seconds=seconds,
        reference=named(table.reference).label,
        columns=tuple(known),
        lines=tuple(lines),
        prompts=len(prompts),
        seeds=len(seeds),
        note=note,
    )


def _line(
    method: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    reference: Mapping[str, Mapping[Video, float]],
) -> Line:
    ours = {column: values(rows, column) for column in columns}
    return Line(
        method=method,
        label=named(method).label,
        means={column: bootstrap(found, 1).mean for column, found in ours.items()},
        against={column: compare(ours[column], theirs) for column, theirs in reference.items()},
        costs={name: mean([cost(row) for row in rows]) for name, cost in COSTS.items()},
    )


def _video(row: Row) -> Video:
    return row.key.prompt, row.key.seed


def number(value: float, column: str) -> str:
    """A mean of ``column`` as tables show it."""
    if not math.isfinite(value):
        return NOT_MEASURED
    if column == RIGHT:
        return f"{value:.1%}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def cost(value: float, name: str) -> str:
    """A mean of one of ``COSTS`` as tables show it."""
    return f"{value:.2f}" if name == "seconds" else f"{value:,.0f}"


def difference(comparison: Comparison, column: str) -> str:
    """The mean difference and its interval: ``+0.021 (0.012 to 0.030)``; in points where the column is a share."""
    found, scale, digits = comparison.difference, 1.0, 3
    if not found.prompts:
        return NOT_MEASURED
    if column == RIGHT:
        scale, digits = 100.0, 1
    mid, low, high = (f"{scale * x:+.{digits}f}" for x in (found.mean, found.low, found.high))
    return f"{mid} ({low} to {high})"


def verdict(line: Line, made: Made) -> str:
    """A row's word: in how many columns it is better and worse than the reference."""
    if not line.against:
        return "reference"
    if line.count(TOO_FEW) == len(line.against):
        return TOO_FEW
    better, worse = line.count(BETTER), line.count(WORSE)
    if not better and not worse:
        return NO_DIFFERENCE
    return f"better in {better}, worse in {worse} of {len(made.columns)}"


def cells(line: Line, made: Made) -> list[str]:
    """Name, scores with their marks, verdict and costs of a method: one row of the table."""
    scores = []
    for column in made.columns:
        mark = MARKS[line.against[column].word] if column in line.against else " "
        scores.append(f"{number(line.means[column], column)}{mark}")
    costs = [cost(line.costs[name], name) for name in COSTS]
    return [line.label, *scores, *costs, verdict(line, made)]


def head(made: Made) -> list[str]:
    """What stands above ``cells``."""
    return ["Method", *made.columns, *COSTS, "Verdict"]


def details(made: Made) -> list[list[str]]:
    """The differences with their intervals, one row per method but the reference, its label first."""
    return [
        [line.label, *(difference(line.against[column], column) for column in made.columns)]
        for line in made.lines
        if line.against
    ]


SHORT = {"Background": "Backgr.", "Aesthetic": "Aesth.", "decoded frames": "frames", "image rewards": "images",
         "video rewards": "clips", "seconds": "s"}  # fmt: skip


def as_text(made: Made) -> str:
    """A table for the terminal, and below it in words how each method differs from the reference."""
    rows = [head(made), *(cells(line, made) for line in made.lines)]
    rows[0] = [SHORT.get(name, name) for name in rows[0]]
    table = _aligned([row[:-1] for row in rows])  # the verdicts stand below
    parts = [
        f"{made.title}: {made.about}",
        *table,
        *(_words(line, made) for line in made.lines if line.against),
    ]
    return "\n".join([*parts, *([made.note] if made.note else [])])


def _words(line: Line, made: Made) -> str:
    """A method's verdict, with the columns that make it."""
    found = [
        f"{column} {difference(line.against[column], column)}"
        for word in (BETTER, WORSE)
        for column in made.columns
        if line.against[column].word == word
    ]
    return f"  {line.label}: {verdict(line, made)}" + (f": {'; '.join(found)}" if found else "")


def as_markdown(made: Made) -> str:
    """The same for a document: the table, then every difference with its interval."""
    parts = [
        f"### {made.title}",
        made.about + ".",
        _piped([head(made), *(cells(line, made) for line in made.lines)]),
    ]
    if made.note:
        parts.append(made.note)
    parts.append(_piped([["Difference (95 % interval)", *made.columns], *details(made)]))
    return "\n\n".join(parts)


LEGEND = (
    "+ better, - worse, = no difference to the reference (95 % interval of the paired bootstrap over prompts), "
    "? too few prompts. Higher is better in all columns of quality; costs are means over videos."
)


def document(tables: Sequence[Made], facts: str) -> str:
    """All tables as one Markdown text; ``facts`` say where they come from."""
    return "\n\n".join(["# Quality", facts, LEGEND, *map(as_markdown, tables)]) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, the first cell to the left and the others to the right of their columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _piped(rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join(
        f"| {' | '.join(cell.strip() for cell in row)} |" for row in (rows[0], rule, *rows[1:])
    )
