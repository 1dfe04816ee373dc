"""Makes one HTML page from the rows of a comparison: ``python -m runtime.bench.quality.report out/quality -o report.html``.

The page needs no network and no script; it holds its style and its pictures. What was not measured is said, not drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.bench.quality import (
    curves,
    report_lines,
    report_routes,
    report_tables,
    report_why,
    tables,
)
from runtime.bench.quality.curves import LEVELS, View, of_length
from runtime.bench.quality.methods import METHODS
from runtime.bench.quality.report_lines import Frame
from runtime.bench.quality.row import REWARDED, SPAN, Row
from runtime.bench.quality.store import read
from runtime.bench.quality.sweeps import SWEEPS
from runtime.bench.report_svg import count, esc, nice_ticks

DRIFTS = {  # heading -> the methods of one figure
    "Ways to search": ("single", "best-of-n", "beam", "stream-t1"),
    "Stream-T1 and its parts": (
        "single",
        "stream-t1",
        "no-sinking",
        "no-propagation",
        "no-pruning",
    ),
}
STYLE = Path(__file__).parents[1] / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
BAND = (
    "The band is the 95 % bootstrap interval of the mean over prompts; axes do not start at zero."
)


def write(folder: Path, rows: Sequence[Row], facts: Mapping[str, Any], out: Path) -> None:
    """Write the page of ``rows`` to ``out``. ValueError when there are no rows.

    ``folder`` holds what rows name (frames for the strips) and ``why.json``, if it was made; ``facts`` says what made
    the rows: any plain values, shown as they are.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(folder, rows, facts), encoding="utf-8")


def page(folder: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """The whole page."""
    if not rows:
        raise ValueError(f"report: want at least one row, got none in {folder}; run the comparison")
    made = [
        table
        for world in sorted({row.key.world for row in rows})
        for table in tables.make([row for row in rows if row.key.world == world])
    ]
    parts = {
        "tables": report_tables.outcome(made) + report_tables.sections(made),
        "strips": _strips(folder, rows),
        "the scaling law": _each(rows, _scaling),
        "drift over time": _each(rows, _drift),
        "route maps": _each(rows, _routes),
        "sweeps": _each(rows, _sweeps),
        "diagnosis": report_why.section(folder),
    }
    missing = [name for name, part in parts.items() if not part]
    heading = "Does test-time scaling help?"
    body = "\n".join(
        [
            f"<header><p>Stream-T1 runtime, quality comparison</p><h1>{heading}</h1></header>",
            _introduction(rows, facts, missing),
            *(part for part in parts.values() if part),
            _made_by(facts),
        ]
    )
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title>\n<style>\n{style}</style></head>\n<body><main>\n{body}"
        "\n</main></body></html>\n"
    )


def section(heading: str, hint: str, *bodies: str) -> str:
    """A section, or nothing when it would be empty."""
    inner = "".join(body for body in bodies if body)
    if not inner:
        return ""
    return f'<section><h2>{esc(heading)}</h2><p class="hint">{esc(hint)}</p>{inner}</section>'


def _introduction(rows: Sequence[Row], facts: Mapping[str, Any], missing: Sequence[str]) -> str:
    lengths = ", ".join(
        f"{len(of_length(rows, world, seconds)):,} of {count(seconds, 's')} ({world})"
        for world, seconds in curves.lengths(rows)
    )
    prompts, seeds = ({getattr(row.key, name) for row in rows} for name in ("prompt", "seed"))
    lines = [
        (
            "Question",
            "A video generator that works chunk by chunk can draw several candidates of every chunk and keep the best. "
            "Are its videos better for it, and what is each part of Stream-T1 worth?",
        ),
        (
            "Method",
            "All methods make videos of the same prompts and seeds with the same weights. Differences are "
            "taken prompt by prompt; an interval comes from drawing prompts anew, with repetition.",
        ),
        (
            "Judged by",
            "Subject to Aesthetic and All right are measured on the frames and steer no method. VQ, MQ and TA are the "
            "learned video reward, which searches do steer by: a gain there alone is no proof.",
        ),
        ("Videos", f"{len(rows):,}: {lengths}; {len(prompts)} prompts, {len(seeds)} seeds"),
        *((name, facts[name]) for name in ("commit", "device") if name in facts),
    ]
    cells = [f"<dt>{esc(name)}</dt><dd>{esc(words)}</dd>" for name, words in lines]
    if missing:
        words = f"{', '.join(missing)}: no rows or files for them in this run"
        cells.append(f'<dt>Not measured</dt><dd class="missing">{esc(words)}</dd>')
    return f"<dl>{''.join(cells)}</dl>"


def _each(rows: Sequence[Row], draw: Callable[[Sequence[Row], str], str]) -> str:
    """``draw`` for every length of every world, longest first."""
    return "\n".join(
        draw(of_length(rows, world, seconds), f"{count(seconds, 's')}, {world}")
        for world, seconds in reversed(curves.lengths(rows))
    ).strip()


def _panels(drawn: Sequence[tuple[str, str]], small: bool = False) -> str:
    figures = [
        f"<figure><h3>{esc(heading)}</h3>{picture}</figure>"
        for heading, picture in drawn
        if picture
    ]
    style = "panels small" if small else "panels"
    return f'<div class="{style}">{"".join(figures)}</div>' if figures else ""


def _split(drawn: Sequence[tuple[str, str]]) -> str:
    """What is measured in full view, the reward's own columns folded away."""
    own = [(name, picture) for name, picture in drawn if name in REWARDED]
    return _panels([pair for pair in drawn if pair not in own]) + _folded(
        f"{', '.join(name for name, _ in own)}: the reward's own columns", _panels(own)
    )


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{esc(summary)}</summary>{body}</details>" if body else ""


def _scaling(rows: Sequence[Row], length: str) -> str:
    names = curves.columns(rows)
    levels = {name: curves.scaling(rows, name) for name in names}
    if not any(len(one.points) > 1 for series in levels.values() for one in series):
        return ""
    methods = list(dict.fromkeys(one.method for series in levels.values() for one in series))
    gain, passes = View(gain=True), View(by_passes=True)
    return section(
        f"What more candidates buy ({length})",
        "Each line is one way to search, from plain streaming (one candidate of each chunk) to K histories with M candidates "
        "each. Shown is the gain over plain streaming's video of the same prompt and seed; above zero is better. Open dots: "
        f"the same K × M, split otherwise. {BAND}",
        report_lines.legend(methods),
        _split([(name, scaling_chart(rows, name, gain)) for name in names]),
        _folded(
            "The levels themselves; their bands are wide, for prompts differ more than methods",
            _panels([(name, scaling_chart(rows, name)) for name in names]),
        ),
        _folded(
            "The levels against passes through the generator, which is what the time goes to",
            _panels([(name, scaling_chart(rows, name, passes)) for name in names]),
        ),
    )


def scaling_chart(rows: Sequence[Row], column: str, view: View = LEVELS) -> str:
    """One column against candidates of a chunk, or against passes of a video, both on a logarithmic scale."""
    series = curves.scaling(rows, column, view)
    places = sorted({p.x for one in series for p in (*one.points, *one.loose)})
    axis = "passes of a video (log)" if view.by_passes else "K × M, candidates of a chunk (log)"
    ticks = tuple((x, f"{x:,.0f}") for x in places)
    return report_lines.chart(series, Frame(column, axis, ticks, log=True, zero=view.gain))


def _drift(rows: Sequence[Row], length: str) -> str:
    span = count(SPAN / curves.FPS, "s")
    bodies = []
    for heading, group in DRIFTS.items():
        # Sweeps' points would hide the methods; they have figures of their own.
        mine = [row for row in rows if row.key.method in group]
        names = curves.columns(mine)
        series = {n: curves.drift(mine, n, change=True) for n in names}
        names = [n for n in names if any(len(one.points) > 1 for one in series[n])]
        if not names:
            continue
        methods = dict.fromkeys(one.method for n in names for one in series[n])
        bodies += [
            f"<h3>{esc(heading)}</h3>",
            report_lines.legend(methods),
            _split([(name, drift_chart(mine, name, change=True)) for name in names]),
            _folded("The levels themselves", _panels([(n, drift_chart(mine, n)) for n in names])),
        ]
    return section(
        f"Drift over time ({length})",
        f"Each video is judged in spans of {span}. Shown is the change since the video's own first span: a line that falls is "
        "a video that gets worse as it goes on. Memory sinking is meant to stop that (stream-t1 against no-sinking). "
        f"{BAND}",
        *bodies,
    )


def drift_chart(rows: Sequence[Row], column: str, change: bool = False) -> str:
    """One column over the video's seconds: its level, or its change since the first span."""
    series = curves.drift(rows, column, change)
    seconds = max((row.key.seconds for row in rows), default=0.0)
    ticks = tuple((x, f"{x:g}") for x in nice_ticks(seconds, 6) if x <= seconds)
    return report_lines.chart(series, Frame(column, "seconds of the video", ticks, zero=change))


def _routes(rows: Sequence[Row], length: str) -> str:
    rows = [row for row in rows if row.key.method in METHODS and row.routes]
    drawn = report_routes.route_map(rows)
    if not drawn:
        return ""
    return section(
        f"What became of each chunk ({length})",
        "When a chunk leaves the attention window it is dropped, merged into a sink or kept as a sink; this is decided when it "
        "is made, by how it was rewarded. Bars: shares of all videos, chunk by chunk. Lines below: single videos. "
        f"{report_routes.left_out(rows)}",
        report_routes.key(),
        drawn,
    )


def _sweeps(rows: Sequence[Row], length: str) -> str:
    names = curves.columns(rows)
    bodies = []
    for sweep in SWEEPS.values():
        drawn = [(name, sweep_chart(rows, sweep.setting, name)) for name in names]
        panels = _panels(drawn, small=True)
        if panels:
            bodies.append(
                f"<h3>{esc(sweep.symbol)}: {esc(sweep.meaning)} "
                f"(<code>{esc(sweep.setting)}</code>, default {sweep.default:g})</h3>{panels}"
            )
    return section(
        f"One setting at a time ({length})",
        f"Stream-T1 with one setting changed; the ring is the default. Values stand at even distances. {BAND}",
        *bodies,
    )


def sweep_chart(rows: Sequence[Row], setting: str, column: str) -> str:
    """One column over the values of ``setting``, evenly spaced; the default wears a ring."""
    series = curves.sweep(rows, SWEEPS[setting], column)
    if series is None:
        return ""
    even, ticks = curves.evenly(series)
    frame = Frame(column, setting, ticks, width=320, height=170, names=False)
    return report_lines.chart([even], frame)


def _strips(folder: Path, rows: Sequence[Row]) -> str:
    return ""


def _made_by(facts: Mapping[str, Any]) -> str:
    short = [(n, v) for n, v in facts.items() if not isinstance(v, Mapping | list | tuple)]
    long = {n: v for n, v in facts.items() if isinstance(v, Mapping | list | tuple)}
    cells = "".join(f"<tr><td>{esc(name)}</td><td>{esc(value)}</td></tr>" for name, value in short)
    listed = esc(json.dumps(long, indent=1, default=str, ensure_ascii=False))
    return section(
        "Made by",
        "What it takes to run this again.",
        f'<table class="plain"><tbody>{cells}</tbody></table>' if cells else "",
        f"<details><summary>Everything else</summary><pre>{listed}</pre></details>" if long else "",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Read a folder, write a page."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.quality.report",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("folder", type=Path, help="what python -m runtime.bench.quality wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    args = parser.parse_args(argv)
    try:
        facts, rows = read(args.folder)
        write(args.folder, rows, facts, args.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output} ({args.output.stat().st_size / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
