"""The numbers of every curve, from rows alone: the scaling law, drift over time, and sweeps. Drawn elsewhere.

A point is a mean over prompts (each prompt's seeds are averaged first) with its 95 % bootstrap interval: of a level, or of
a difference between two values of the same prompt and seed, whose interval is narrower, for prompts differ more than methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.bench.quality.methods import METHODS, SCALING, named
from runtime.bench.quality.row import COLUMNS, RIGHT, SPAN, Row
from runtime.bench.quality.stats import bootstrap
from runtime.bench.quality.sweeps import BASE, Sweep, place
from runtime.settings import Settings

Read = Callable[[Row], float]
FPS = 16  # of every generator's video
RESAMPLES = 1000  # of a band; tables take more


@dataclass(frozen=True, slots=True)
class Point:
    """A mean and its 95 % interval."""

    x: float
    mean: float
    low: float
    high: float
    prompts: int
    name: str = ""  # of the method, where a series has several
    chosen: bool = False  # the default of a sweep


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure. ``method`` is a name of ``METHODS``, or one with changes in brackets."""

    method: str
    points: tuple[Point, ...]
    loose: tuple[Point, ...] = ()  # measured, but not on the line


def label(method: str) -> str:
    """What a reader calls ``method``; the name itself if this code does not know it."""
    try:
        return named(method).label
    except ValueError:
        return method


def columns(rows: Iterable[Row]) -> list[str]:
    """The columns that at least one row has a number for, as the paper orders them, All right first."""
    there = {name for row in rows for name, value in row.scores.items() if math.isfinite(value)}
    return [name for name in (RIGHT, *COLUMNS) if name in there]


def methods(rows: Iterable[Row]) -> list[str]:
    """The methods that rows have, known ones in the tables' order, others after them by name."""
    order = {name: place for place, name in enumerate(METHODS)}
    return sorted({row.key.method for row in rows}, key=lambda m: (order.get(m, len(order)), m))


def of_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by their method, in the order of ``methods``."""
    rows = list(rows)
    found: dict[str, list[Row]] = {method: [] for method in methods(rows)}
    for row in rows:
        found[row.key.method].append(row)
    return found


def score(column: str) -> Read:
    """Reads one column of a row; NaN where it is missing."""
    return lambda row: row.scores.get(column, math.nan)


def over(read: Read, rows: Iterable[Row]) -> Read:
    """What ``read`` finds, less what it finds in that one of ``rows`` with the same prompt and seed; NaN without one."""
    base = {(row.key.prompt, row.key.seed): read(row) for row in rows}
    return lambda row: read(row) - base.get((row.key.prompt, row.key.seed), math.nan)


def point(x: float, rows: Iterable[Row], read: Read, **more: Any) -> Point | None:
    """The mean over prompts of what ``read`` finds, and its interval; None where nothing was measured."""
    found = {(row.key.prompt, row.key.seed): read(row) for row in rows}
    table = {video: value for video, value in found.items() if math.isfinite(value)}
    if not table:
        return None
    there = bootstrap(table, RESAMPLES)
    return Point(x, there.mean, there.low, there.high, there.prompts, **more)


def candidates(method: str) -> int | None:
    """K * M of a method: how many candidates of a chunk are drawn; None for an unknown method."""
    try:
        search = Settings().with_changes(named(method).changes).search
    except ValueError:
        return None
    return 1 if search.policy == "single" else search.histories * search.expansions


def passes(rows: Sequence[Row]) -> float:
    """Forward passes through the generator that a video of these rows takes on average."""
    return math.fsum(row.cost.passes for row in rows) / len(rows)


@dataclass(frozen=True, slots=True)
class View:
    """How the scaling law is looked at."""

    by_passes: bool = False  # against passes of a video instead of candidates of a chunk
    gain: bool = False  # the gain over plain streaming instead of the level


LEVELS = View()


def scaling(rows: Iterable[Row], column: str, view: View = LEVELS) -> list[Series]:
    """Quality against what is spent: one line per policy, from plain streaming (one candidate) upwards.

    A line holds the method itself and its ``[KxM]`` sizes; of two sizes with the same K * M, the one of ``SCALING`` is on
    the line and the other beside it. There is no gain where plain streaming was not measured.
    """
    by_method = of_method(rows)
    read = over(score(column), by_method.get("single", ())) if view.gain else score(column)
    groups: dict[str, list[tuple[str, Point]]] = {}
    for method, mine in by_method.items():
        family, size = _size(method), candidates(method)
        if family is None or size is None:
            continue
        x = passes(mine) if view.by_passes else float(size)
        found = point(x, mine, read, name=method)
        if found:
            groups.setdefault(family, []).append((method, found))
    start = groups.pop("single", [])
    return [_line(family, start + found) for family, found in groups.items()]


def _size(method: str) -> str | None:
    """The policy of which ``method`` is a size; None when it differs in more than its size."""
    base = method.partition("[")[0]
    try:
        changes, plain = named(method).changes, named(base).changes
    except ValueError:
        return None
    more = {name for name in changes if name not in plain or changes[name] != plain[name]}
    searches = {"single", "best-of-n", "beam", "stream-t1"}
    sizes = {"search.histories", "search.expansions"}
    return base if base in searches and more <= sizes else None


def _line(family: str, found: Sequence[tuple[str, Point]]) -> Series:
    line: dict[int, Point] = {}
    loose = []
    rank = {name: place for place, name in enumerate((family, *SCALING))}
    for method, here in sorted(found, key=lambda pair: rank.get(pair[0], len(rank))):
        size = candidates(method) or 1
        if size in line:
            if method in rank and line[size].name in rank:
                continue  # the same settings under two names
            loose.append(here)
        else:
            line[size] = here
    return Series(family, tuple(sorted(line.values(), key=lambda p: p.x)), tuple(loose))


def drift(rows: Iterable[Row], column: str, change: bool = False) -> list[Series]:
    """A column over the video's time, one line per method: its level, or its change since the video's first span.

    A point stands at the middle of its span of ``SPAN`` frames. A last span of less than a third of that is left out: too
    little to judge.
    """
    found = []
    for method, mine in of_method(rows).items():
        seconds = min(row.key.seconds for row in mine)
        spans = max((len(row.over_time.get(column, ())) for row in mine), default=0)
        points = []
        for span in range(spans):
            begin = span * SPAN / FPS
            end = min(begin + SPAN / FPS, seconds)
            if 3 * (end - begin) < SPAN / FPS:
                continue
            here = point((begin + end) / 2, mine, _span(column, span, change))
            if here:
                points.append(here)
        if points:
            found.append(Series(method, tuple(points)))
    return found


def _span(column: str, span: int, change: bool) -> Read:
    def read(row: Row) -> float:
        values = row.over_time.get(column, ())
        if span >= len(values):
            return math.nan
        return values[span] - values[0] if change else values[span]

    return read


def sweep(rows: Iterable[Row], of: Sweep, column: str) -> Series | None:
    """The difference that each value of one setting makes to the default's videos; None without the default or with it alone."""
    at: dict[float, list[Row]] = {}
    for method, mine in of_method(rows).items():
        x = place(method, of)
        if x is not None:
            at.setdefault(x, mine)  # names come sorted, the default's plain one first
    read = over(score(column), at.get(float(of.default), ()))
    found = [point(x, at[x], read, chosen=x == float(of.default)) for x in sorted(at)]
    points = tuple(p for p in found if p is not None)
    return Series(BASE, points) if len(points) > 1 else None


def lengths(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """The (world, seconds) that rows have, shortest first."""
    return sorted({(row.key.world, row.key.seconds) for row in rows})


def of_length(rows: Iterable[Row], world: str, seconds: float) -> list[Row]:
    return [row for row in rows if (row.key.world, row.key.seconds) == (world, seconds)]


def evenly(series: Series) -> tuple[Series, tuple[tuple[float, str], ...]]:
    """The series with its points 1 apart, and the ticks that say what they stand for: swept values cluster."""
    points = tuple(replace(p, x=float(at)) for at, p in enumerate(series.points))
    ticks = tuple((float(at), f"{p.x:g}") for at, p in enumerate(series.points))
    return Series(series.method, points), ticks
