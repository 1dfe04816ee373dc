"""The figures of the quality report, one function per section: from rows to HTML, empty where rows do not suffice."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.bench.quality import curves, report_lines, report_routes
from runtime.bench.quality import strips as pictures
from runtime.bench.quality.curves import LEVELS, View, of_length
from runtime.bench.quality.methods import METHODS
from runtime.bench.quality.report_lines import Frame
from runtime.bench.quality.row import REWARDED, SPAN, Row
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
BAND = "The band is the 95 % interval, bootstrapped over prompts."


def section(heading: str, hint: str, *bodies: str) -> str:
    """A section, or nothing when it would be empty."""
    inner = "".join(body for body in bodies if body)
    if not inner:
        return ""
    return f'<section><h2>{esc(heading)}</h2><p class="hint">{esc(hint)}</p>{inner}</section>'


def each(rows: Sequence[Row], draw: Callable[[Sequence[Row], str], str]) -> str:
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


def _split(drawn: Sequence[tuple[str, str]], small: bool = False) -> str:
    """What is measured in full view, the reward's own columns folded away."""
    own = [(name, picture) for name, picture in drawn if name in REWARDED and picture]
    rest = [(name, picture) for name, picture in drawn if name not in REWARDED]
    return _panels(rest, small) + folded(
        f"{', '.join(name for name, _ in own)}: the reward's own columns", _panels(own, small)
    )


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{esc(summary)}</summary>{body}</details>" if body else ""


def scaling(rows: Sequence[Row], length: str) -> str:
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
        folded(
            "The levels themselves; their bands are wide, for prompts differ more than methods; axes do not start at zero",
            _panels([(name, scaling_chart(rows, name)) for name in names]),
        ),
        folded(
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


def drift(rows: Sequence[Row], length: str) -> str:
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
            folded(
                "The levels themselves; axes do not start at zero",
                _panels([(n, drift_chart(mine, n)) for n in names]),
            ),
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


def routes(rows: Sequence[Row], length: str) -> str:
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


def sweeps(rows: Sequence[Row], length: str) -> str:
    names = curves.columns(rows)
    bodies = []
    for sweep in SWEEPS.values():
        drawn = [(name, sweep_chart(rows, sweep.setting, name)) for name in names]
        panels = _split(drawn, small=True)
        if panels:
            bodies.append(
                f"<h3>{esc(sweep.symbol)}: {esc(sweep.meaning)} "
                f"(<code>{esc(sweep.setting)}</code>, default {sweep.default:g})</h3>{panels}"
            )
    return section(
        f"One setting at a time ({length})",
        "Stream-T1 with one setting changed. Shown is the difference to the default's video of the same prompt and seed; the "
        f"ring is the default, above zero is better. Values stand at even distances. {BAND}",
        *bodies,
    )


def sweep_chart(rows: Sequence[Row], setting: str, column: str) -> str:
    """One column over the values of ``setting``, evenly spaced; the default wears a ring."""
    series = curves.sweep(rows, SWEEPS[setting], column)
    if series is None:
        return ""
    even, ticks = curves.evenly(series)
    frame = Frame(column, setting, ticks, width=320, height=170, names=False, zero=True)
    return report_lines.chart([even], frame)


def strips(folder: Path, rows: Sequence[Row]) -> str:
    """A picture per prompt and length whose frames were kept. What keeps them from being drawn is said in their place."""
    kept = [row for row in rows if row.file and row.key.method in METHODS]
    if not kept:
        return ""
    order = {method: place for place, method in enumerate(METHODS)}
    kept.sort(key=lambda row: (-row.key.seconds, row.key.prompt, order[row.key.method]))
    heading = "What it looks like"
    try:
        drawn = pictures.strips(kept, folder)
    except (ValueError, RuntimeError) as error:
        return section(heading, "", f'<p class="missing">not drawn: {esc(error)}</p>')
    figures = [
        f"<figure><h3>{esc(strip.text)} ({count(strip.seconds, 's')})</h3>"
        f'<img class="strip" alt="{esc(strip.words)}" '
        f'src="data:image/png;base64,{base64.b64encode(strip.png).decode()}"></figure>'
        for strip in drawn
    ]
    return section(
        heading,
        "One line per method, frames over time, of the same prompt and seed. Below each line stands what the checker saw "
        "where it is not what the prompt says. The prompts are fixed before the run, not picked after it.",
        "".join(figures),
    )
