"""The comparison beside the paper's: which differences point the same way. The paper's numbers are those of ``published_rows``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.bench.quality import tables
from runtime.bench.quality.methods import METHODS
from runtime.bench.quality.published_rows import published
from runtime.bench.quality.report_tables import difference_of, table_of
from runtime.bench.quality.row import COLUMNS
from runtime.bench.quality.stats import BETTER, WORSE
from runtime.bench.quality.tables import Line, Made
from runtime.bench.report_svg import esc

LABELS = {method.label: name for name, method in METHODS.items()}


def section(held: Mapping[str, Sequence[Made]]) -> str:
    """A table per world: the paper's difference above ours, marked by whether ours is of the same sign. "" without any."""
    parts = []
    for world, made in held.items():
        found = {
            (table.seconds, line.method, table.reference): line
            for table in made
            for line in table.lines
            if line.against and _paper(table, line)
        }
        if not found:
            continue
        rows = [
            [
                f"{esc(line.label)}<small>against {esc(reference)}, {seconds:g} s</small>",
                *(
                    _cell(line, column, _shift(seconds, method, reference, column))
                    for column in COLUMNS
                ),
            ]
            for (seconds, method, reference), line in found.items()
        ]
        parts.append(
            f'<h3>{esc(world)}</h3><div class="wide">{table_of(["", *COLUMNS], rows)}</div>'
        )
    if not parts:
        return ""
    return (
        "<section><h2>Beside the paper</h2>"
        '<p class="hint">Above: the difference that the Stream-T1 paper published, for LongLive on Wan2.1-1.3B, in its own '
        "units; not taken by us. Below: ours. On the sprites world generator and measures are others, so sizes cannot be "
        'compared, only directions: <span class="better">the same</span>, where ours is no accident of the prompts, or '
        f'<span class="worse">the opposite</span>.</p>{"".join(parts)}</section>'
    )


def _paper(made: Made, line: Line) -> bool:
    reference = LABELS.get(made.reference)
    return reference is not None and all(
        published(made.seconds, m) for m in (reference, line.method)
    )


def _shift(seconds: float, method: str, reference: str, column: str) -> float:
    ours, theirs = published(seconds, method), published(seconds, LABELS[reference])
    assert ours is not None and theirs is not None, "only published pairs are listed"
    return ours.scores[column] - theirs.scores[column]


def _cell(line: Line, column: str, shift: float) -> str:
    found = line.against.get(column)
    if found is None or not found.difference.prompts:
        return f"{shift:+.3g}<small>{esc(tables.NOT_MEASURED)}</small>"
    style = ""
    if found.word in (BETTER, WORSE):
        style = "better" if (found.word == BETTER) == (shift > 0) else "worse"
    size, mark = difference_of(found, column), tables.MARKS[found.word]
    return f'{shift:+.3g}<small class="{style}">{esc(size)} {esc(mark)}</small>'
