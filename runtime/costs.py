"""What a chunk costs on this machine, learnt while chunks are made: per stage a line over its work. Needs no torch.

    costs.observe(Work(rows=4, kept=2, pictures=48), stage_ms)      after a turn
    costs.predict(Work(rows=8, kept=4, pictures=96))                before the next: milliseconds

Times are noisy, few, and mostly of one and the same work. So: work that was done lately is expected to take the median of
its last times; other work lies on a line a + b * work through those medians. The same work that takes another time twice
in a row says that the machine changed its pace, and everything known is scaled; other work that takes another time says
something about the line. One engine has one ``Costs``, shared by all its videos; it can be kept in a file.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "stream-t1-costs"
VERSION = 1
GROWS_WITH = {  # stage -> what its time grows with; a stage that is not here: rows
    "memory": "kept",
    "emit": "kept",
    "image reward": "pictures",
}
ONCE = ("text", "recache")  # stages that most chunks do not have: no part of what is predicted
FIXED = 0.2  # share of a stage's time that does not grow, as long as only one size was seen
DOUBT = 0.25  # how many samples that guess is worth
FADE = 0.97  # what a sample is worth one turn later, where another size is predicted
KEPT = 5  # samples of one size; the oldest goes
SIZES = 64  # sizes remembered per stage; the one that was not seen for longest goes
STALE = 200  # turns after which a size is learnt anew when it comes back
JUMP = 1.25  # the same work taking this much more, or less, twice in a row: another pace
FIRST = 1.5  # how far above the line the first sample of a size is believed
MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Work:
    """What a turn does: candidates drawn, histories kept, pictures that the image reward sees; of all its videos."""

    rows: float
    kept: float
    pictures: float


@dataclass(slots=True)
class Size:
    """The last times of a stage at one amount of work."""

    times: list[float]  # ms, newest last
    turn: int  # when it was seen last

    @property
    def ms(self) -> float:
        return statistics.median(self.times)


@dataclass(slots=True)
class Costs:
    """Times per stage and size. ``place`` says what was measured (device, model, precision): files of another are refused."""

    place: str = ""
    turns: int = 0
    _stages: dict[str, dict[float, Size]] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)  # of the turns before, to what was expected
    _last: tuple[Work, dict[str, float]] | None = None
    _told: set[int] = field(default_factory=set)  # who told of it
    _lines: dict[str, tuple[float, float]] = field(default_factory=dict)  # until the next turn

    @property
    def known(self) -> bool:
        return bool(self._stages)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._stages)

    def observe(self, work: Work, stage_ms: Mapping[str, float], teller: object = None) -> None:
        """Learn from one turn. The same turn told by each of its videos, the tellers, counts once."""
        times = {
            name: float(ms)
            for name, ms in stage_ms.items()
            if name not in ONCE and math.isfinite(ms) and ms >= 0
        }
        if not times:
            return
        if self._last == (work, times) and id(teller) not in self._told:
            self._told.add(id(teller))
            return
        self._last, self._told = (work, times), {id(teller)}
        self.turns += 1
        self._follow_pace_(work, times)
        for name, ms in times.items():
            self._learn_(name, _amount(name, work), ms)
        self._lines.clear()

    def predict(self, work: Work) -> float:
        """Milliseconds of a turn. Raises RuntimeError when nothing was observed."""
        if not self.known:
            raise RuntimeError("costs: nothing was measured yet; run a chunk first, or load a file")
        return sum(self.stage(name, _amount(name, work)) for name in self._stages)

    def stage(self, name: str, amount: float) -> float:
        """Milliseconds of one stage: what it took lately at this size, and the line where that is little or long ago."""
        fixed, each = self.line(name)
        expected = fixed + each * amount
        size = self._stages[name].get(amount)
        if size is None:
            return expected
        weight = self._weight(size)
        return (weight * size.ms + DOUBT * expected) / (weight + DOUBT)

    def line(self, name: str) -> tuple[float, float]:
        """a and b of the stage's a + b * amount: least squares over the sizes, neither of them negative."""
        if name not in self._lines:
            self._lines[name] = self._line(name)
        return self._lines[name]

    def _line(self, name: str) -> tuple[float, float]:
        points = [(x, s.ms, self._weight(s)) for x, s in self._stages[name].items()]
        n = sum(w for _, _, w in points)
        x1, m1 = sum(w * x for x, _, w in points), sum(w * m for _, m, w in points)
        x2, xm = sum(w * x * x for x, _, w in points), sum(w * x * m for x, m, w in points)
        guess = FIXED * m1 / n
        rest = (n + DOUBT) * x2 - x1 * x1
        if rest <= 0 or x2 == 0:
            return m1 / n, 0.0
        fixed = ((m1 + DOUBT * guess) * x2 - x1 * xm) / rest
        each = ((n + DOUBT) * xm - (m1 + DOUBT * guess) * x1) / rest
        if each < 0:
            return m1 / n, 0.0
        return (fixed, each) if fixed >= 0 else (0.0, xm / x2)

    def _weight(self, size: Size) -> float:
        return len(size.times) * FADE ** (self.turns - size.turn)

    def _follow_pace_(self, work: Work, times: Mapping[str, float]) -> None:
        """Scale everything when the same work took another time twice in a row."""
        expected = got = 0.0
        for name, ms in times.items():
            size = self._stages.get(name, {}).get(_amount(name, work))
            if size is not None and self.turns - size.turn < STALE:
                expected, got = expected + size.ms, got + ms
        if expected <= 0 or got <= 0:
            return
        self._ratios = [*self._ratios[-1:], got / expected]
        low, high = min(self._ratios), max(self._ratios)
        if len(self._ratios) < 2 or not (low > JUMP or high < 1 / JUMP):
            return
        scale = low if low > JUMP else high  # the more cautious of the two
        for sizes in self._stages.values():
            for size in sizes.values():
                size.times = [ms * scale for ms in size.times]
        self._ratios = []

    def _learn_(self, name: str, amount: float, ms: float) -> None:
        sizes = self._stages.setdefault(name, {})
        size = sizes.get(amount)
        if size is not None and self.turns - size.turn < STALE:
            size.times = [*size.times[1 - KEPT :], ms]
            size.turn = self.turns
            return
        if sizes:
            fixed, each = self._line(name)
            ms = min(ms, FIRST * (fixed + each * amount))  # a hiccup is never too fast
        sizes[amount] = Size([ms], self.turns)
        if len(sizes) > SIZES:
            del sizes[min(sizes, key=lambda x: sizes[x].turn)]

    def to_json(self) -> str:
        stages = {
            name: [[x, size.times, size.turn] for x, size in sizes.items()]
            for name, sizes in self._stages.items()
        }
        head = {"format": FORMAT, "version": VERSION, "place": self.place, "turns": self.turns}
        return json.dumps({**head, "stages": stages}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, place: str = "") -> Costs:
        """What ``to_json`` wrote. Raises ValueError when it is something else, or was measured elsewhere."""
        try:
            raw = json.loads(text)
            head = (raw["format"], raw["version"])
            if head != (FORMAT, VERSION):
                raise ValueError(
                    f"want {FORMAT} version {VERSION}, got {head[0]} version {head[1]}"
                )
            costs = Costs(str(raw["place"]), _whole(raw["turns"]))
            for name, sizes in raw["stages"].items():
                costs._stages[name] = {
                    _number(x): Size([_number(ms) for ms in times][-KEPT:], _whole(turn))
                    for x, times, turn in sizes[:SIZES]
                    if times
                }
            costs._stages = {name: sizes for name, sizes in costs._stages.items() if sizes}
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise ValueError(f"costs: not a file of measured costs: {error}") from None
        if place and costs.place != place:
            raise ValueError(
                f"costs: measured on {costs.place!r}, but this is {place!r}; remove the file to learn anew"
            )
        return costs

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(self.to_json(), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path, place: str = "") -> Costs:
        """Raises ValueError as ``from_json``, and OSError."""
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"costs: {path} has more than {MAX_BYTES} bytes")
        return Costs.from_json(path.read_text(encoding="utf-8"), place)


def _amount(stage: str, work: Work) -> float:
    return round(float(getattr(work, GROWS_WITH.get(stage, "rows"))), 3)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"want a number, got {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"want a number that is not negative, got {value}")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"want a count, got {value!r}")
    return value
