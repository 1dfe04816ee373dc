"""Makes one HTML page from the rows of a comparison: ``python -m runtime.bench.quality.report out/quality -o report.html``.

The page needs no network and no script; it holds its style and its pictures. What was not measured is said, not drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.bench.quality import curves, report_paper, report_tables, report_why, tables
from runtime.bench.quality import report_figures as figures
from runtime.bench.quality.curves import of_length
from runtime.bench.quality.row import Row
from runtime.bench.quality.store import TUNING, read, tuning_rows
from runtime.bench.report_svg import count, esc

STYLE = Path(__file__).parents[1] / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


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
    # Sweeps are made on prompts of their own; they are no result, and stand in figures of their own.
    held = [row for row in rows if not row.key.world.endswith(f"-{TUNING}")] or rows
    made = _tables(rows)
    worlds = sorted({row.key.world for row in held})
    parts = {
        "tables": report_tables.sections({w: made[w] for w in worlds}, made),
        "the paper's rows": report_paper.section({w: made[w] for w in worlds}),
        "strips": figures.strips(folder, held),
        "the scaling law": figures.each(held, figures.scaling),
        "drift over time": figures.each(held, figures.drift),
        "route maps": figures.each(held, figures.routes),
        "sweeps": figures.each(rows, figures.sweeps),
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


def _tables(rows: Sequence[Row]) -> dict[str, list[tables.Made]]:
    """World -> its tables."""
    worlds = sorted({row.key.world for row in rows})
    return {w: tables.make([row for row in rows if row.key.world == w]) for w in worlds}


def _introduction(rows: Sequence[Row], facts: Mapping[str, Any], missing: Sequence[str]) -> str:
    lengths = ", ".join(
        f"{len(of_length(rows, world, seconds)):,} of {count(seconds, 's')} ({world})"
        for world, seconds in curves.lengths(rows)
    )
    found = _flat(facts)
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
        ("Videos", f"{len(rows):,}: {lengths}; {_many(prompts, 'prompt')}, {_many(seeds, 'seed')}"),
        *((name.capitalize(), found[name]) for name in ("commit", "device") if found.get(name)),
    ]
    cells = [f"<dt>{esc(name)}</dt><dd>{esc(words)}</dd>" for name, words in lines]
    if missing:
        words = f"{', '.join(missing)}: no rows or files for them in this run"
        cells.append(f'<dt>Not here</dt><dd class="missing">{esc(words)}</dd>')
    return f"<dl>{''.join(cells)}</dl>"


def _many(found: set[int], name: str) -> str:
    return f"{len(found)} {name}{'' if len(found) == 1 else 's'}"


def _made_by(facts: Mapping[str, Any]) -> str:
    """The header of the rows: the command, what can be read at a glance, and all of it folded away."""
    flat = _flat(facts)
    command = flat.pop("command", None)
    cells = "".join(
        f"<tr><td>{esc(name)}</td><td>{esc(value)}</td></tr>"
        for name, value in flat.items()
        if not isinstance(value, Mapping | list | tuple)
    )
    listed = esc(json.dumps(facts, indent=1, default=str, ensure_ascii=False))
    return figures.section(
        "Made by",
        "What it takes to run this again.",
        f"<pre>{esc(command)}</pre>" if command else "",
        f'<table class="plain"><tbody>{cells}</tbody></table>' if cells else "",
        figures.folded("Everything that made the rows", f"<pre>{listed}</pre>") if facts else "",
    )


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """``facts`` with those under "made" beside the others."""
    made = facts.get("made")
    return {
        **{name: value for name, value in facts.items() if name != "made"},
        **(made if isinstance(made, Mapping) else {}),
    }


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
        write(args.folder, [*rows, *tuning_rows(args.folder)], facts, args.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output} ({args.output.stat().st_size / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
