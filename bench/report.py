"""Makes one HTML page from what a benchmark measured: ``python -m runtime.bench.report result.json -o report.html``.

The page needs no network, no script and no plotting library; it holds its style and its pictures. Further results, say of
another machine or an earlier commit, are set beside the first:

    python -m runtime.bench.report result.json baseline.json -o report.html
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.bench import report_charts as charts
from runtime.bench import report_curves as curves
from runtime.bench import report_words as words
from runtime.bench.report_result import Result, checked, read
from runtime.bench.report_svg import esc, figure, share

MAX_BASELINES = 8
MAX_LISTED = 20_000  # characters of settings or quality that are printed as they are
STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(result: Mapping[str, Any], path: Path, baselines: Sequence[Result] = ()) -> None:
    """Write the page of ``result`` to ``path``. ValueError when it is no bench result or names a wrong type."""
    path.write_text(page(checked(result), baselines), encoding="utf-8")


def page(result: Result, baselines: Sequence[Result] = ()) -> str:
    """The whole page."""
    heading = words.title(result)
    commit = result.text("environment", "commit") or "not known"
    parts = [
        f"<header><p>Stream-T1 runtime, commit {esc(commit)}</p><h1>{esc(heading)}</h1></header>",
        _figures(result),
        _facts(result),
        _chunk(result, baselines),
        _stages(result),
        _machine(result),
        _even(result, baselines),
        _growth(result),
        _beside(result, baselines),
        _resources(result),
        _environment(result),
    ]
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(heading)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _section(heading: str, hint: str, *bodies: str) -> str:
    """A section, or nothing when it would be empty."""
    inner = "".join(body for body in bodies if body)
    if not inner:
        return ""
    return f'<section><h2>{esc(heading)}</h2><p class="hint">{esc(hint)}</p>{inner}</section>'


def _figures(result: Result) -> str:
    cells = [
        f"<div><b>{esc(line.value)}</b><span>{esc(line.unit)}</span><p>{esc(line.meaning)}</p></div>"
        for line in words.headlines(result)
    ]
    return f'<div class="figures">{"".join(cells)}</div>'


def _facts(result: Result) -> str:
    rows = []
    for question, answer in words.facts(result):
        style = ' class="missing"' if question == "Not measured" else ""
        rows.append(f"<dt>{esc(question)}</dt><dd{style}>{esc(answer)}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _chunk(result: Result, baselines: Sequence[Result]) -> str:
    bars = charts.bars_of(result, baselines)
    line = _section(
        "One chunk on the clock",
        "The chunk with the median total. A lane is a stream; what stands above something else ran at the same time.",
        charts.timeline(result),
    )
    compared = _section(
        "Where a chunk's time goes",
        "Wall time of a mean chunk, cut in the proportion of the stages' times; all bars on one scale.",
        charts.stage_bars(bars),
    )
    return line + compared


def _stages(result: Result) -> str:
    heads = (
        "stage",
        "median ms",
        "p95 ms",
        "p99 ms",
        "share of time",
        "work",
        "bytes",
        "TFLOP/s",
        "GB/s",
        "of its roof",
    )
    rows = []
    for row in words.stage_rows(result):
        part = result.number("stages", row[0], "share")
        cells = [esc(cell) for cell in row]
        if part is not None:
            width = 100 * min(max(part, 0.0), 1.0)
            cells[4] = (
                f'<span class="share"><i style="width:{width:.1f}%"></i></span><b>{esc(share(part))}</b>'
            )
        rows.append(cells)
    return _section(
        "Stages",
        "Per chunk, over the chunks in which the stage ran. Work is counted, not guessed; an empty cell is not known.",
        f'<div class="wide">{_table(heads, rows)}</div>' if rows else "",
    )


def _machine(result: Result) -> str:
    dtype = result.text("ceilings", "dtype")
    peak, copy = (result.number("ceilings", key) for key in ("matmul_tflop_per_s", "copy_gb_per_s"))
    hint = (
        f"Both ceilings were measured in the same run: a large {dtype or ''} matmul reached "
        f"{figure(peak, 'TFLOP/s')}, a large copy {figure(copy, 'GB/s')}. A stage cannot rise above "
        "them; one that takes under half a per cent of the time is left out."
    )
    return _section("Against the machine", hint, charts.roofline(result))


def _even(result: Result, baselines: Sequence[Result]) -> str:
    delay = result.dist("latency", "settle_delay_chunks")
    hint = "Line: least to most. Box: p50 to p95. Tick: p99. Dot: median."
    if delay:
        hint += (
            f" A chunk is shown when no history can take it back: {figure(delay.median)} chunks after it "
            f"was made (median; p95 {figure(delay.p95)})."
        )
    return _section("How evenly chunks come", hint, curves.latency(result, baselines))


def _growth(result: Result) -> str:
    panels = [
        f"<figure><h3>{esc(heading)}</h3>{picture}</figure>"
        for heading, picture in curves.growth(result).items()
    ]
    return _section(
        "Growth",
        "Median time of a chunk; the band reaches to p95. Pixel FPS stands at the points.",
        f'<div class="panels">{"".join(panels)}</div>' if panels else "",
    )


def _beside(result: Result, baselines: Sequence[Result]) -> str:
    if not baselines:
        return ""
    heads = ("result", "machine", "dtype", "commit", "pixel FPS", "ms per chunk", "first chunk ms")
    rows = []
    for other in (result, *baselines):
        first = other.dist("latency", "first_chunk_ms")
        place = [other.text("environment", key) or "" for key in ("dtype", "commit")]
        fps = figure(other.number("pixel_fps"))
        times = figure(other.chunk_ms), figure(first.median if first else None)
        rows.append([esc(cell) for cell in (other.name, other.device, *place, fps, *times)])
    hint = "Measured at other times or on other machines: compare with care."
    return _section("Beside other results", hint, f'<div class="wide">{_table(heads, rows)}</div>')


def _resources(result: Result) -> str:
    memory, power = (
        f"<figure><h3>{heading}</h3>{_pairs(rows)}</figure>"
        for heading, rows in (
            ("Memory", words.memory_rows(result)),
            ("Power", words.power_rows(result)),
        )
    )
    return _section(
        "Memory and power", "Over the whole run.", f'<div class="panels">{memory}{power}</div>'
    )


def _environment(result: Result) -> str:
    place = result.table("environment")
    rows = [
        (name, _brief(value))
        for name, value in place.items()
        if name not in ("implementations", "command")
    ]
    ran = [
        (op, _brief(impl)) for op, impl in result.table("environment", "implementations").items()
    ]
    left = f"<figure><h3>Software and machine</h3>{_pairs(rows)}</figure>"
    right = f"<figure><h3>Implementations that ran</h3>{_pairs(ran)}</figure>" if ran else ""
    command = result.text("environment", "command")
    lists = [
        (name, result.root.get(key))
        for key, name in (("quality", "Quality"), ("settings", "All settings"))
    ]
    more = [
        f"<details><summary>{name}</summary><pre>{esc(json.dumps(value, indent=1)[:MAX_LISTED])}</pre></details>"
        for name, value in lists
        if value
    ]
    return _section(
        "Environment",
        "What it takes to run this again.",
        f"<pre>{esc(command)}</pre>" if command else "",
        f'<div class="panels">{left}{right}</div>',
        *more,
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already HTML."""
    top = "".join(f"<th>{esc(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{esc(name)}</td><td>{esc(value)}</td></tr>" for name, value in rows)
    return f'<table class="plain"><tbody>{body}</tbody></table>'


def _brief(value: Any) -> str:
    return "none" if value is None else str(value)[:300]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("result", type=Path, help="JSON of python -m runtime.bench")
    parser.add_argument("baselines", type=Path, nargs="*", help="results to set beside it")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    args = parser.parse_args()
    if len(args.baselines) > MAX_BASELINES:
        parser.error(f"want at most {MAX_BASELINES} baselines, got {len(args.baselines)}")
    try:
        text = page(read(args.result), [read(path) for path in args.baselines])
        args.output.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output} ({len(text) / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
