"""The tables of the quality report, and what they say in words. All numbers are those of ``tables``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from runtime.bench.quality import tables
from runtime.bench.quality.methods import TABLES
from runtime.bench.quality.row import MEASURED, REWARDED, RIGHT
from runtime.bench.quality.stats import BETTER, NO_DIFFERENCE, TOO_FEW, WORSE, Comparison
from runtime.bench.quality.tables import COSTS, Line, Made
from runtime.bench.report_svg import esc

STYLES = {BETTER: "better", WORSE: "worse"}
Tables = Mapping[str, Sequence[Made]]  # world -> its tables
SWEEP = "Sweep of"  # begins the title of a sweep's table; the figures of sweeps say more


def outcome(made: Sequence[Made]) -> str:
    """All comparisons of the paper's tables at a glance: one row each, one coloured difference per measured column. HTML."""
    named = {table.title for table in TABLES.values()}
    found = {
        (table.seconds, line.method, table.reference): (table, line)
        for table in made
        if table.title in named
        for line in table.lines
        if line.against
    }
    if not found:
        return ""
    columns = [
        c for c in (RIGHT, *MEASURED) if any(c in table.columns for table, _ in found.values())
    ]
    rows = [
        [
            f"{esc(line.label)}<small>against {esc(table.reference)}, {table.seconds:g} s</small>",
            *(_glance(line, column) for column in columns),
            esc(_counted(line, columns)),
        ]
        for _, (table, line) in sorted(found.items(), key=lambda item: -item[0][0])
    ]
    return (
        "<section><h2>What came out</h2>"
        '<p class="hint">Mean differences in the columns that steer no method. A difference is called '
        '<span class="better">better +</span> or <span class="worse">worse -</span> where its 95 % interval, from the paired '
        "bootstrap over prompts, leaves zero out; = is no difference, ? too few prompts to say. All right is in points of per "
        f'cent.</p><div class="wide">{table_of(["", *columns, "in words"], rows)}</div></section>'
    )


def _glance(line: Line, column: str) -> str:
    found = line.against.get(column)
    if found is None or not found.difference.prompts:
        return tables.NOT_MEASURED
    style = STYLES.get(found.word, "same")
    return f'<span class="{style}">{esc(difference_of(found, column))} {esc(tables.MARKS[found.word])}</span>'


def difference_of(found: Comparison, column: str) -> str:
    """The mean difference as tables show it; one that is not zero but would be rounded to it as a power of ten."""
    mean = found.difference.mean
    if mean and column != RIGHT and abs(mean) < 0.0005:
        return f"{mean:+.0e}"
    return tables.difference(found, column).partition(" ")[0]


def _counted(line: Line, columns: Sequence[str]) -> str:
    """The verdict over ``columns`` alone."""
    words = [line.against[column].word for column in columns if column in line.against]
    if words and all(word == TOO_FEW for word in words):
        return TOO_FEW
    better, worse = words.count(BETTER), words.count(WORSE)
    if not better and not worse:
        return NO_DIFFERENCE
    return f"better in {better}, worse in {worse} of {len(words)}"


def sections(held: Tables, every: Tables) -> str:
    """What came out, a section per table of the ``held`` worlds, and the sweeps' tables of ``every`` world, folded. HTML."""
    parts = [outcome([table for made in held.values() for table in made])]
    for world, made in held.items():
        parts += [
            f"<section><h2>{esc(_title(table, world))}</h2>{_body(table)}</section>"
            for table in made
            if not table.title.startswith(SWEEP)
        ]
    swept = [(w, t) for w, made in every.items() for t in made if t.title.startswith(SWEEP)]
    if swept:
        inner = "".join(
            f"<h3>{esc(_title(table, world))}</h3>{_body(table)}" for world, table in swept
        )
        parts.append(
            f"<section><h2>Sweeps in numbers</h2><details><summary>{len(swept)} tables</summary>{inner}"
            "</details></section>"
        )
    return "\n".join(parts).strip()


def _title(made: Made, world: str) -> str:
    return f"{made.title} ({made.seconds:g} s, {world})"


def _body(made: Made) -> str:
    note = f"{made.about}. {made.note}".strip()
    return (
        f'<p class="hint">{esc(note[0].upper() + note[1:])} Under a mean stands its difference to the reference '
        "with the 95 % interval of the paired bootstrap over prompts. Higher is better. * steers searches.</p>"
        f'<div class="wide tight">{_scores(made)}</div>'
        f'<h3>What it took, per video</h3><div class="wide">{_costs(made)}</div>'
    )


def _scores(made: Made) -> str:
    heads = ["method", *(_head(column) for column in made.columns)]
    rows = [[_name(line), *(_score(line, c) for c in made.columns)] for line in made.lines]
    return table_of(heads, rows)


def _costs(made: Made) -> str:
    heads = ["method", *COSTS]
    rows = [
        [_name(line), *(esc(tables.cost(line.costs[name], name)) for name in COSTS)]
        for line in made.lines
    ]
    return table_of(heads, rows)


def _name(line: Line) -> str:
    return f"{esc(line.label)}<small><code>{esc(line.method)}</code></small>"


def _head(column: str) -> str:
    return f"{column} *" if column in REWARDED else column


def _score(line: Line, column: str) -> str:
    """A mean; below it the difference to the reference, in the colour of its word."""
    mean = esc(tables.number(line.means[column], column))
    if column not in line.against:
        return mean
    found = line.against[column]
    size, interval = (
        difference_of(found, column),
        tables.difference(found, column).partition(" ")[2],
    )
    interval = interval.strip("()").replace(" to ", ", ")
    if column != RIGHT:
        interval = re.sub(r"(?<=[+-])0(?=\.)", "", interval)  # +.027, for nine columns must fit
    style = STYLES.get(found.word, "")
    return (
        f'{mean}<small class="{style}">{esc(size)} {esc(tables.MARKS[found.word])}</small>'
        f"<small>{esc(interval)}</small>"
    )


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are already HTML."""
    top = "".join(f"<th>{esc(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
