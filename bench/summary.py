"""One page about everything that a run of ``bench/gpu.sh`` measured: ``python -m runtime.bench.summary DIR``.

Reads every JSON file of the folder (rows of the kernels' benchmarks, results of the line), the logs of the tests and the
list of steps, and prints tables that read as text and as Markdown; ``-o FILE`` writes them too. Exit status 2 when the
folder holds nothing of the kind.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bench.report_result import REQUIRED, Result, checked, read_json
from runtime.bench.report_svg import figure, share, size_of
from runtime.bench.targets import TARGETS, candidates_of

MAX_FILES = 200
MAX_LOG = 4 << 20
NONE = "-"
OUTCOME = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected)\b")
ENDED = re.compile(r"^=*\s*(?=.*\b\d+ (?:passed|failed|error|skipped|deselected)).* in [\d.]+s.*$")


@dataclass
class Folder:
    """What was found."""

    results: list[Result] = field(default_factory=list)
    kernels: list[Result] = field(default_factory=list)  # one per row
    tests: dict[str, dict[str, int]] = field(default_factory=dict)  # log -> outcome -> count
    steps: list[tuple[str, str, str]] = field(default_factory=list)  # name, outcome, seconds
    unread: list[str] = field(default_factory=list)  # what could not be understood, and why

    @property
    def empty(self) -> bool:
        return not (self.results or self.kernels or self.tests or self.steps)


def gather(folder: Path) -> Folder:
    """Everything in ``folder`` and below. A file that is something else is listed, not fatal."""
    found = Folder()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) > MAX_FILES:
        raise ValueError(f"{folder}: want at most {MAX_FILES} files, got {len(files)}")
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            try:
                _take(found, read_json(path), name)
            except ValueError as error:
                found.unread.append(str(error))
        elif path.suffix == ".log" and (counts := outcomes(path)):
            found.tests[name] = counts
        elif path.name == "steps.tsv":
            rows = [line.split("\t") for line in path.read_text(errors="replace").splitlines()]
            found.steps += [(row[0], row[1], row[2]) for row in rows if len(row) == 3]
    return found


def _take(found: Folder, root: Any, name: str) -> None:
    if isinstance(root, dict) and all(key in root for key in REQUIRED):
        found.results.append(checked(root, name))
    elif isinstance(root, list) and root and all(_is_kernel(row) for row in root):
        found.kernels += [Result(f"{name}[{i}]", row) for i, row in enumerate(root)]
    else:
        found.unread.append(f"{name}: neither a bench result nor rows of a kernel's benchmark")


def _is_kernel(row: Any) -> bool:
    return isinstance(row, dict) and {"op", "impl", "shape", "median_ms"} <= row.keys()


def outcomes(path: Path) -> dict[str, int]:
    """How many tests passed, failed and so on, from the last line of a pytest log; empty for any other log."""
    with path.open("rb") as file:
        lines = file.read(MAX_LOG).decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if ENDED.match(line)), "")
    return {kind.removesuffix("s"): int(count) for count, kind in OUTCOME.findall(last)}


def summary(found: Folder) -> str:
    """The tables, as Markdown whose columns line up."""
    parts = [f"# Summary\n\n{_where(found)}"]
    parts.append(_part("Targets", target_table(found.results)))
    parts.append(_part("Steps", table(("step", "outcome", "s"), found.steps)))
    parts.append(_part("Tests", test_table(found.tests)))
    parts.append(_part("The line", line_table(found.results)))
    parts.append(_part("Kernels, best implementation of each shape", kernel_table(found.kernels)))
    if found.unread:
        parts.append("## Not read\n\n" + "\n".join(f"* {_cell(line)}" for line in found.unread))
    return "\n\n".join(part for part in parts if part) + "\n"


def target_table(results: Sequence[Result]) -> str:
    """Every target with what was measured, or the words "not measured"."""
    rows = []
    for target in TARGETS:
        value, verdict = target.verdict(results)
        rows.append((target.name, target.bound, _or_none(value, target.unit), verdict))
    return table(("target", "wanted", "measured", "verdict"), rows)


def test_table(tests: dict[str, dict[str, int]]) -> str:
    kinds = ("passed", "failed", "error", "skipped")
    rows = [(log, *(str(counts.get(kind, 0)) for kind in kinds)) for log, counts in tests.items()]
    return table(("log", *kinds), rows)


def line_table(results: Sequence[Result]) -> str:
    """A row per bench result."""
    heads = (
        "result",
        "candidates",
        "precision",
        "pixel FPS",
        "chunk ms",
        "first chunk ms",
        "x released",
        "x eager",
        "denoise ms",
        "of its roof",
        "GPU memory",
        "power",
    )
    return table(heads, [_line_row(result) for result in results])


def _line_row(result: Result) -> tuple[str, ...]:
    first, watts = result.dist("latency", "first_chunk_ms"), result.dist("power", "watts")
    gpu = result.number("memory", "gpu_peak_mb")
    linears = result.text("environment", "linears")
    dtype = result.text("environment", "dtype") or NONE
    seen = "random weights, " if result.random_weights else ""
    return (
        f"{result.name} ({seen}{result.text('environment', 'preset') or 'no preset named'})",
        str(candidates_of(result) or NONE),
        dtype if linears in (None, "dense") else f"{linears} and {dtype}",
        _or_none(result.number("pixel_fps")),
        _or_none(result.chunk_ms),
        _or_none(first.median if first else None),
        _or_none(result.number("speedup", "released")),
        _or_none(result.number("speedup", "eager")),
        _or_none(result.number("stages", "denoise", "median_ms")),
        share(result.number("stages", "denoise", "roofline_share")) or NONE,
        size_of(None if gpu is None else gpu * 1e6, NONE),
        _or_none(watts.median if watts else None, "W"),
    )


def kernel_table(rows: Sequence[Result]) -> str:
    """The fastest implementation of every op, shape, dtype and thread count, with its error."""
    groups: dict[tuple[str | None, ...], list[Result]] = {}
    for row in rows:
        if row.number("median_ms") is not None:
            key = tuple(row.text(name) for name in ("op", "shape", "dtype", "threads", "device"))
            groups.setdefault(key, []).append(row)
    heads = ("op", "shape", "dtype", "threads", "best", "ms", "of its ceiling", "x first", "error")
    lines = []
    for (op, shape, dtype, threads, _), group in groups.items():
        best = min(group, key=lambda row: row.number("median_ms") or 0.0)
        error = best.number("max_error")
        lines.append(
            (
                op or NONE,
                shape or NONE,
                dtype or NONE,
                NONE if threads in (None, "0") else threads,
                best.text("impl") or NONE,
                _or_none(best.number("median_ms")),
                share(best.number("share_of_ceiling")) or NONE,
                _or_none(best.number("speedup")),
                NONE if error is None else f"{error:.1e}",
            )
        )
    return table(heads, lines)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as text; empty without rows."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    wide = [max(len(row[i]) for row in (list(heads), *cells)) for i in range(len(heads))]
    lines = [list(heads), ["-" * width for width in wide], *cells]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)) + " |"
        for line in lines
    )


def _where(found: Folder) -> str:
    places = dict.fromkeys(
        f"{result.device}, torch {result.text('environment', 'torch') or 'not known'}, "
        f"commit {result.text('environment', 'commit') or 'not known'}"
        for result in found.results
    )
    places |= dict.fromkeys(
        f"{row.text('device')}, torch {row.text('torch')}, commit {row.text('commit')}"
        for row in found.kernels
    )
    if not places:
        return "No figures were taken."
    return f"Measured on {_cell('; '.join(places))}. FPS is pixel frames over wall time, everything inside."


def _part(heading: str, body: str) -> str:
    return f"## {heading}\n\n{body}" if body else f"## {heading}\n\nnot measured"


def _or_none(value: float | None, unit: str = "") -> str:
    return figure(value, unit, NONE)


def _cell(words: str) -> str:
    """``words`` on one line, without what Markdown or a terminal would take for more than text."""
    kept = "".join(c if c.isprintable() else " " for c in words)
    return kept.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.summary", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where bench/gpu.sh left its files")
    parser.add_argument("-o", "--output", type=Path, help="write the summary here too")
    args = parser.parse_args()
    try:
        if not args.folder.is_dir():
            raise ValueError(f"{args.folder}: want a folder")
        found = gather(args.folder)
        if found.empty:
            raise ValueError(f"{args.folder}: no results, no kernel rows and no test logs in it")
        text = summary(found)
        if args.output:
            args.output.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
