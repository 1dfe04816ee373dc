"""The diagnosis as a page of plain text: tables, and under each the sentence that it comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.bench.quality.row import MEASURED, RIGHT
from runtime.bench.quality.why_judge import MEASURES, TOTAL, WORDS
from runtime.bench.quality.why_seen import REWARDS
from runtime.types import Route

ROUTES = tuple(route.value for route in Route)
SCOPES = ("of the chunk", "of the video", "along the video")
SO = "=> "  # begins the sentence that a section comes to
# How strong a rank correlation within siblings is called.
STRENGTHS = ((0.6, "good"), (0.3, "fair"), (0.1, "weak"))


def page(report: Mapping[str, Any]) -> str:
    """All sections, ready to print."""
    about = report["about"]
    head = (
        f"{about['prompts']} tuning captions, {about['seconds']:g} s, seed {about['seed']}, "
        f"{about['candidates']} candidates judged\n"
        "[a, b] are 95 % intervals over prompts; rho is Spearman's"
    )
    sections = (
        _agreement(report["agreement"]),
        _regret(report["regret"]),
        _ceiling(report["oracle"]),
        _siblings(report["siblings"]),
        _routes(report["routes"], report["gates"]),
        _noise(report["noise"]),
        _drift(report["drift"]),
    )
    told = [list(section) for section in sections]
    short = [line for section in told for line in section if line.startswith(SO)]
    return "\n\n".join("\n".join(part) for part in ([head], ["In short", *short], *told))


def _agreement(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "Do rewards rank as the judge does?   rho within one chunk's candidates [95 %], and over all candidates"
    table = {(row["reward"], row["measure"]): row for row in rows}
    for scope in SCOPES:
        yield f"  {scope:<16}" + "".join(f"{name:^34}" for name in REWARDS)
        for measure in MEASURES:
            found = [table[name, f"{measure} {scope}"] for name in REWARDS]
            cells = (
                f"{_signed(r['within'])} {_range(r):>16} {_signed(r['overall'])}" for r in found
            )
            yield f"  {measure:<16}" + "".join(f"{cell:^34}" for cell in cells)
    for reward, scope in (("fused", SCOPES[0]), ("fused", SCOPES[1]), ("short", SCOPES[2])):
        row = table[reward, f"{TOTAL} {scope}"]
        yield (
            f"{SO}The {reward} score ranks by {TOTAL} {scope} {strength(row)} "
            f"({_signed(row['within'])} {_range(row)}, {row['groups']} groups)."
        )


def strength(row: Mapping[str, Any]) -> str:
    """In words: how sure and how strong a ``within`` is."""
    rho, low, high = row["within"], row["low"], row["high"]
    if rho is None:
        return "not at all: nothing differs"
    if low is None or high is None:
        return "in a way that so few prompts cannot tell"
    if low <= 0 <= high:
        return "no better than chance, as far as these prompts can tell"
    word = next((word for least, word in STRENGTHS if abs(rho) >= least), "hardly")
    return f"with {word} agreement" if rho > 0 else f"the wrong way round ({word})"


def _regret(table: Mapping[str, Any]) -> Iterator[str]:
    yield "What does choosing by it win?   share of the headroom [95 %]; how often its favourite is the best (blind)"
    for measure in (TOTAL, RIGHT):
        for reward in REWARDS:
            row = table[reward][measure]
            if row["share"] is None:
                yield f"  {measure:<12}{reward:<8}the candidates never differ"
                continue
            yield (
                f"  {measure:<12}{reward:<8}{_signed(row['share'])} {_range(row):>16}   "
                f"best in {row['picks_best']:4.0%} ({row['chance']:.0%})   "
                f"wins {row['gained']:+.3f} of {row['headroom']:.3f}   {row['chunks']} chunks"
            )


def _ceiling(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "How far could search go?   whole videos; gain of Total over plain streaming (mean of the walks)"
    yield f"  {'':<20}" + "".join(f"{name:>12}" for name in MEASURES) + "        gain"
    for row in rows:
        cells = "".join(f"{row[name]:>12.3f}" for name in MEASURES)
        yield f"  {row['method']:<20}{cells}   {_signed(row['gain'])} {_range(row)}"
    gain = {row["method"]: row["gain"] for row in rows}
    ceiling, won = gain["oracle"], gain["stream-t1"]
    if ceiling is not None and won is not None:
        share = f", {won / ceiling:.0%} of it" if ceiling > 0 else ""
        yield f"{SO}The same search steered by the judge itself gains {ceiling:+.3f}; the rewards gain {won:+.3f}{share}."


def _siblings(table: Mapping[str, Any]) -> Iterator[str]:
    yield "Is there anything to choose?   among the candidates of one chunk"
    yield f"  {'':<12}{'largest - smallest':>20}{'std':>10}{'of all variance':>18}{'chunks that differ':>20}"
    for name, row in table.items():
        yield (
            f"  {name:<12}{_plain(row['spread']):>20}{_plain(row['std']):>10}"
            f"{_share(row['share']):>18}{_share(row['differ']):>20}"
        )
    if table[TOTAL]["std"] is not None:
        yield (
            f"{SO}Candidates of one chunk differ by {table[TOTAL]['std']:.3f} in {TOTAL} (standard deviation); "
            f"in {table[RIGHT]['differ']:.0%} of chunks some are all right and some are not."
        )


def _routes(routes: Sequence[Mapping[str, Any]], gates: Mapping[str, Any]) -> Iterator[str]:
    yield "Where do chunks go?   routes of kept candidates by chunk"
    for row in _thinned(routes):
        cells = "".join(f"   {name} {row[name]:4.0%}" for name in ROUTES)
        yield f"  chunk {row['chunk']:>3}{cells}"
    for name, gate in gates.items():
        marks = {key: value for key, value in gate.items() if key.startswith("0.")}
        yield f"  {name:<14}" + "".join(f"{float(key):>8.0%}" for key in marks)
        yield f"  {'':<14}" + "".join(f"{value:>8.3f}" for value in marks.values())
        if gate["above"] is not None:
            yield f"  {'':<14}{gate['above']:.0%} lie above the threshold of {gate['threshold']:g}"
    if routes:
        mean = {name: sum(row[name] for row in routes) / len(routes) for name in ROUTES}
        yield f"{SO}Of the kept chunks " + ", ".join(f"{mean[n]:.0%} {n}" for n in ROUTES) + "."


def _noise(table: Mapping[str, Any]) -> Iterator[str]:
    yield "Is noise good or bad by itself?   correlation of deviations [95 %]"
    heads = ("same noise, other history", "same noise, next chunk", "history alone, next chunk")
    yield f"  {'':<12}" + "".join(f"{head:>30}" for head in heads)
    for name, row in table.items():
        cells = (row[key] for key in ("other_history", "next_chunk", "carried"))
        yield f"  {name:<12}" + "".join(f"{_signed(c['r']) + ' ' + _range(c):>30}" for c in cells)
    found = {name: row["next_chunk"] for name, row in table.items() if name not in REWARDS}
    sure = {
        n: c for n, c in found.items() if c["low"] is not None and not c["low"] <= 0 <= c["high"]
    }
    if sure:
        told = ", ".join(f"{name} {_signed(cell['r'])}" for name, cell in sure.items())
        yield f"{SO}A noise does to the next chunk what it did to this one with correlation {told}: beta should have that sign."
    elif all(cell["low"] is None for cell in found.values()):
        yield f"{SO}Whether a noise that was good for one chunk is good for the next, so few prompts cannot tell."
    else:
        yield f"{SO}Nothing says that a noise that was good for one chunk is good for the next: propagation has nothing to hand on."


def _drift(table: Mapping[str, Any]) -> Iterator[str]:
    yield "Does plain streaming drift?   means over videos, by chunk"
    told = (TOTAL, RIGHT, "Subject", "Background")
    names = (*MEASURED, WORDS, RIGHT, TOTAL, "short", "long")
    yield f"  {'chunk':<8}" + "".join(f"{name:>12}" for name in names)
    rows = [
        {"chunk": chunk, **{name: table[name][i] for name in names}}
        for i, chunk in enumerate(table["chunk"])
    ]
    for row in _thinned(rows):
        yield f"  {row['chunk']:<8}" + "".join(f"{row[name]:>12.3f}" for name in names)
    if len(rows) > 2:
        falls = (
            f"{name} {rows[-1][name] - rows[1][name]:+.3f}" for name in (*told, "short", "long")
        )
        yield f"{SO}From chunk 1 to the last, plain streaming changes by: {', '.join(falls)}."


def _thinned(rows: Sequence[Mapping[str, Any]], most: int = 14) -> Sequence[Mapping[str, Any]]:
    """About ``most`` of the rows, evenly, the last one among them."""
    step = -(-len(rows) // most) or 1
    return rows[(len(rows) - 1) % step :: step]


def _signed(value: float | None) -> str:
    return "     -" if value is None else f"{value:+.3f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _range(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    return "" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"
