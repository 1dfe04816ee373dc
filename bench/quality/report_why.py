"""The diagnosis in the quality report: why search helps or does not, from the ``why.json`` that a diagnosis left in the folder.

python -m runtime.bench.quality.why --json out/quality/why.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.bench.quality.report_dots import Dot, dots, legend
from runtime.bench.quality.report_tables import table_of
from runtime.bench.report_svg import WIDTH, esc

FILE = "why.json"
REWARDS = {
    "short": "image reward",
    "long": "video reward",
    "fused": "both, as the search fuses them",
}
Json = Any


def section(folder: Path) -> str:
    """The section, or nothing without the file. A part that this code cannot read is said to be so."""
    path = folder / FILE
    if not path.is_file():
        return ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        about = _about(found["about"])
    except (ValueError, KeyError, TypeError) as error:
        return _wrapped(
            f'<p class="missing">{FILE} is no diagnosis of this version: {esc(error)}</p>'
        )
    return _wrapped(f'<p class="hint">{esc(about)}</p>', *(_part(found, name) for name in PARTS))


def _wrapped(*bodies: str) -> str:
    return f"<section><h2>Why: what limits the search</h2>{''.join(bodies)}</section>"


def _part(found: Mapping[str, Json], name: str) -> str:
    heading, hint, draw = PARTS[name]
    try:
        body = draw(found[name])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        body = f'<p class="missing">not readable ({esc(type(error).__name__)}: {esc(error)})</p>'
    return f'<h3>{esc(heading)}</h3><p class="hint">{esc(hint)}</p>{body}'


def _about(about: Mapping[str, Json]) -> str:
    return (
        f"{about['candidates']:,} candidates of {about['prompts']} prompts of the tuning list, "
        f"{about['seconds']:g} s each, every one judged by the analytic measures. "
        "Whiskers are 95 % intervals over prompts."
    )


def _agreement(rows: Json) -> str:
    figures = []
    for scope in ("chunk", "video"):
        end = f" of the {scope}"
        here = {
            (r["reward"], r["measure"].removesuffix(end)): r
            for r in rows
            if r["measure"].endswith(end)
        }
        names = dict.fromkeys(measure for _, measure in here)
        lines = {name: [_dot(here[reward, name], "within") for reward in REWARDS] for name in names}
        picture = dots(lines, list(REWARDS.values()), "Spearman's rho")
        figures.append(f"<figure><h3>Measures{esc(end)}</h3>{picture}</figure>")
    return f'{legend(list(REWARDS.values()))}<div class="panels">{"".join(figures)}</div>'


def _regret(table: Json) -> str:
    names = list(table["fused"])
    lines = {n: [_dot(table[reward][n], "share") for reward in REWARDS] for n in names}
    picture = dots(lines, list(REWARDS.values()), "share of what a perfect choice would win")
    rows = [
        [esc(name), *(_percent(row.get(key)) for key in ("picks_best", "chance", "share"))]
        + [_number(row.get(key)) for key in ("gained", "headroom")]
        for name, row in table["fused"].items()
    ]
    heads = ["measure", "best one kept", "by chance", "share won", "won", "to be won"]
    return (
        f'{legend(list(REWARDS.values()))}<div class="panels"><figure>{picture}</figure>'
        f"<figure><h3>Both rewards fused</h3>{table_of(heads, rows)}</figure></div>"
    )


def _oracle(rows: Json) -> str:
    names = [n for n in rows[0] if n not in ("method", "gain", "low", "high")]
    cells = [
        [esc(row["method"]), *(_number(row[n]) for n in names), _interval(row, "gain")]
        for row in rows
    ]
    return f'<div class="wide">{table_of(["method", *names, "gain of Total"], cells)}</div>'


def _siblings(table: Json) -> str:
    cells = [
        [esc(name), *(_number(row[k]) for k in ("spread", "std"))]
        + [_percent(row[k]) for k in ("share", "differ")]
        for name, row in table.items()
    ]
    heads = ["", "largest less smallest", "deviation", "of all variance", "chunks that differ"]
    return table_of(heads, cells)


def _gates(table: Json) -> str:
    marks = [key for key in next(iter(table.values())) if key.startswith("0.")]
    cells = [
        [esc(name), *(_number(gate[key]) for key in marks)]
        + [_number(gate["threshold"]), _percent(gate["above"])]
        for name, gate in table.items()
    ]
    heads = ["gate", *(f"{float(key):.0%}" for key in marks), "threshold", "above it"]
    return f'<div class="wide">{table_of(heads, cells)}</div>'


def _noise(table: Json) -> str:
    kinds = {
        "other_history": "same noise, other history",
        "next_chunk": "same noise, next chunk",
        "carried": "same history, fresh noise",
    }
    lines = {name: [_dot(row[kind], "r") for kind in kinds] for name, row in table.items()}
    return legend(list(kinds.values())) + dots(lines, list(kinds.values()), "correlation", WIDTH)


def _drift(table: Json) -> str:
    names = [name for name in table if name != "chunk"]
    chunks: Sequence[int] = table["chunk"]
    every = -(-len(chunks) // 10) or 1
    cells = [
        [esc(chunks[at] + 1), *(_number(table[name][at]) for name in names)]
        for at in range(0, len(chunks), every)
    ]
    return f'<div class="wide">{table_of(["chunk", *names], cells)}</div>'


def _dot(row: Mapping[str, Json], value: str) -> Dot:
    return Dot(*(None if row.get(k) is None else float(row[k]) for k in (value, "low", "high")))


def _number(value: Json) -> str:
    return "not known" if value is None else esc(f"{float(value):.3f}")


def _percent(value: Json) -> str:
    return "not known" if value is None else esc(f"{float(value):.0%}")


def _interval(row: Mapping[str, Json], key: str) -> str:
    if row[key] is None:
        return "not known"
    low, high = row["low"], row["high"]
    known = low is not None and high is not None
    size = f"({low:+.3f} to {high:+.3f})" if known else ""
    return f"{row[key]:+.3f}<small>{esc(size)}</small>"


PARTS: dict[str, tuple[str, str, Callable[[Json], str]]] = {
    "agreement": (
        "Do the rewards rank candidates as the judge does?",
        "Rank correlation among the candidates of one chunk: 1 is the same order, 0 no relation, below 0 the wrong way "
        "round. On the left with what the chunk shows, on the right with the video that it leads to.",
        _agreement,
    ),
    "regret": (
        "What does choosing by a reward win?",
        "Of the distance between a blind choice and the best one, the share that the reward's favourite covers.",
        _regret,
    ),
    "oracle": (
        "How far could a search go?",
        "The same search steered by the judge itself (oracle) is the ceiling of search in this world.",
        _oracle,
    ),
    "siblings": (
        "Is there anything to choose?",
        "How much the candidates of one chunk differ, in rewards and in measures.",
        _siblings,
    ),
    "gates": (
        "Are the gates of the memory set well?",
        "Quantiles of what the two gates look at, over kept candidates, and the share that passes the threshold.",
        _gates,
    ),
    "noise": (
        "Is good noise good again?",
        "Noise propagation can win only if a noise that was good for one chunk is good for the next one.",
        _noise,
    ),
    "drift": (
        "Does plain streaming drift?",
        "Means over videos of plain streaming, chunk by chunk.",
        _drift,
    ),
}
