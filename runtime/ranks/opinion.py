"""What rewards say of candidates, by whoever was asked, and how all ranks come to hear all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from runtime.guarding import merged
from runtime.ranks.world import World
from runtime.types import Incident


@dataclass(frozen=True, slots=True)
class Opinion:
    """The two rewards of some rows, and what they could not judge. Without a reward both are empty."""

    shorts: tuple[float, ...] = ()
    longs: tuple[float, ...] = ()
    incidents: tuple[Incident, ...] = ()

    def numbers(self) -> list[float]:
        """For an exchange of at most ``width(rows)`` numbers."""
        return [float(len(self.incidents)), *self.shorts, *self.longs]


def width(rows: int) -> int:
    """The most numbers of an opinion on so many rows."""
    return 1 + 2 * rows


def assembled(
    told: Sequence[Sequence[float]], raters: Sequence[int], incidents: Sequence[Incident]
) -> Opinion:
    """The opinion on all rows, by what each rank says of those that it rates, in order."""
    tables = [(numbers[1:], (len(numbers) - 1) // 2) for numbers in told]
    columns = [
        (iter(numbers[:rows]), iter(numbers[rows:])) if rows else None for numbers, rows in tables
    ]
    pairs = [(next(column[0]), next(column[1])) for r in raters if (column := columns[r])]
    shorts, longs = zip(*pairs, strict=True) if pairs else ((), ())
    return Opinion(tuple(shorts), tuple(longs), tuple(incidents))


def all_incidents(
    world: World, what: str, counts: Sequence[float], mine: Sequence[Incident]
) -> tuple[Incident, ...]:
    """The incidents of all ranks, ``counts`` of each; nothing is said where there are none."""
    if not any(counts):
        return ()
    told = world.texts(f"incidents {what}", json.dumps([asdict(one) for one in mine]))
    heard = [
        Incident(**{**one, "rows": tuple(one["rows"])}) for text in told for one in json.loads(text)
    ]
    return tuple(replace(one, rows=tuple(sorted(one.rows))) for one in merged(heard))


def of_all(incidents: Sequence[Incident], rows: Sequence[int]) -> tuple[Incident, ...]:
    """Incidents with the numbers that their rows have among those of all ranks."""
    return tuple(replace(one, rows=tuple(rows[row] for row in one.rows)) for one in incidents)
