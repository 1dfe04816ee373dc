"""Budget mode: how many candidates the next chunk of a video can afford, so that the video keeps a pace on average.

    budget = Budget(pace_fps=16, most=(4, 4, 1), costs=costs)
    choice = budget.choose(index, histories_now=len(survivors))     before a chunk
    budget.observe(choice, rows, kept, frames, stage_ms, share)     after it
    budget.report()

A pace is an average. What a chunk took less than its time is credit, what it took more is debt; both are bounded, so that
a fast stretch does not pay for a long slow one, and a long wait is not chased for the rest of the video. Of all (K, M,
stride) whose predicted time the balance allows, the one worth most is chosen; ``WORTH`` and ``KEPT_BY_STRIDE`` say what
each is worth. It moves up for nothing when that fits the pace, and by credit when the credit pays for two chunks, seldom;
it moves down when the debt would pass half a chunk. Between the two it stays.

On a GPU stage times are the host's unless the engine's clock is exact: make it so where a budget is kept.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.costs import Costs, Work

WORTH = (  # candidates a chunk -> gain in VQ + MQ + TA over one; bench/results/quality_cpu.md, "Test-time scaling", 5 s
    (1, 0.0),
    (2, 0.037),
    (4, 0.123),
    (8, 0.192),
    (16, 0.232),
)  # between and beyond: straight lines over the logarithm
# How the same candidates are split was not measured but for 1 x 2, 2 x 2, 2 x 4, 4 x 4: those shapes, and their like, win
# ties. A second history with one expansion each is no choice at all.
KEPT_BY_STRIDE = (  # stride of the image reward -> share of that gain that it keeps; bench/results/agreement_cpu.json
    (1, 1.0),
    (2, 0.991),  # not measured: a third of the loss at 4
    (4, 0.972),  # 2.8 % of a chunk's range of scores lost, same winner in 85 %
)
WALL = "wall"  # optional entry of stage_ms: ms since this video's last chunk; without it the stages' sum
FRAMES = 9, 12  # pixel frames of a first chunk and of another, until they are seen
CREDIT = 1.0  # most that is saved, in chunks' times
DEBT = 2.0  # most that is made up for
PAID_AHEAD = 2  # chunks of a higher choice that the credit must pay for
LATE = 0.5  # debt, in chunks' times, at which a choice that does not fit is given up
CATCH_UP = 4  # chunks over which debt is paid
BAND = 1.06  # how well a prediction is trusted
SETTLED = 5  # chunks between two moves up that only credit pays for
HISTORY = 4096
COUNTS = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
)  # K and M that are tried below the request's

Rung = tuple[int, int, int]  # K, M, stride


@dataclass(frozen=True, slots=True)
class Choice:
    """What a chunk is made with. ``predicted_ms`` is the whole turn's, other videos of the batch inside."""

    histories: int
    expansions: int
    stride: int
    predicted_ms: float  # nan: nothing was measured yet
    fits: bool  # False: not even one candidate keeps the pace
    why: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """What was chosen for a chunk and what it took."""

    choice: Choice
    rows: int
    frames: int
    ms: float
    allowed_ms: float  # frames / pace
    balance_ms: float  # after it; negative: late


class Budget:
    """Chooses for one video. Deterministic: the same observations, the same choices."""

    def __init__(
        self,
        pace_fps: float,
        most: Rung,
        costs: Costs | None = None,
        frames: tuple[int, int] = FRAMES,
    ) -> None:
        """``most``: the request's own K, M and smallest stride; never exceeded."""
        if not (math.isfinite(pace_fps) and pace_fps > 0):
            raise ValueError(f"budget_fps: want a pace above 0, got {pace_fps}")
        if min(most) < 1:
            raise ValueError(f"budget: want K, M and stride of at least 1, got {most}")
        self.pace_fps, self.most = pace_fps, most
        self.costs = costs if costs is not None else Costs()
        self.balance_ms = 0.0
        self._frames = list(frames)
        self._rungs = rungs(most)
        self._at: Rung | None = None  # what the chunk before aimed at
        self._next = self._rungs[-1]  # what the chunk that is chosen for aims at
        self._on_floor = False  # the last chunk was drawn as cheaply as there is
        self._others = 0.0  # rows of the other videos in this one's last batch
        self._outside = deque([0.0], maxlen=5)  # wall time beyond the stages, lately
        self._since_up = SETTLED
        self._history: deque[Spent] = deque(maxlen=HISTORY)
        self._chosen: Counter[Rung] = Counter()
        self._chunks, self._kept_frames, self._kept_ms = 0, 0, 0.0

    @property
    def history(self) -> tuple[Spent, ...]:
        """The last chunks, at most ``HISTORY``."""
        return tuple(self._history)

    @property
    def kept_fps(self) -> float:
        """Pixel frames over time of all chunks so far; nan before the first."""
        return 1e3 * self._kept_frames / self._kept_ms if self._kept_ms else math.nan

    def choose(self, index: int, histories_now: int) -> Choice:
        """K, M and stride for chunk ``index`` of a video that has ``histories_now`` histories; again is the same."""
        if not self.costs.known:
            self._next = self._rungs[-1]
            return Choice(*self._next, math.nan, True, "nothing is measured yet: as asked for")
        frames = self._frames[min(index, 1)]
        allowed = 1e3 * frames / self.pace_fps
        self._next, why = self._aim(frames, allowed)
        histories, expansions, stride = self._next
        now = histories_now if index else None  # every candidate of a first chunk has one parent
        if now is not None and now > histories:
            # Too many histories for this K are still there: each is drawn from at least once, and no oftener than
            # the chunk can pay for. From the next chunk on there are K.
            limit = max(allowed, self._predict(self._next, frames))
            fitting = (
                m
                for m in range(expansions, 0, -1)
                if self._predict((histories, m, stride), frames, now) <= limit
            )
            expansions = next(fitting, 1)
        floor = self._predict(self._rungs[0], frames)
        # Said of what was tried, not of what a line over larger sizes makes of it.
        fits = floor <= allowed * BAND or not self._on_floor
        if not fits:
            why = f"one candidate takes {floor:.0f} ms, {self.pace_fps:g} FPS allow {allowed:.0f}"
        predicted = self._predict((histories, expansions, stride), frames, now)
        return Choice(histories, expansions, stride, predicted, fits, why)

    def _aim(self, frames: int, allowed: float) -> tuple[Rung, str]:
        """The rung to be on, and why."""
        balance, at = self.balance_ms, self._at
        late = balance < 0
        if late:
            limit = allowed + balance / CATCH_UP
        elif self._since_up < SETTLED:
            limit = allowed / BAND  # what needs no credit may come at once
        else:
            limit = allowed + balance / PAID_AHEAD
        fitting = [rung for rung in self._rungs if self._predict(rung, frames) <= limit]
        best = fitting[-1] if fitting else self._rungs[0]  # rungs are in order of worth
        state = f"{abs(balance):.0f} ms {'late' if late else 'saved'}"
        if at is not None and at != best:
            better = self._rungs.index(best) > self._rungs.index(at)
            stays = self._predict(at, frames) <= max(limit, balance + (1 + LATE) * allowed)
            if stays and not better:
                return at, f"as before: {state}"
            return best, f"{'more' if better else 'less'}: {state}"
        if best == self._rungs[-1]:
            return best, "as asked for: it fits"
        return best, f"the most that fits: {state}"

    def observe(
        self,
        choice: Choice,
        rows: int,
        kept: int,
        frames: int,
        stage_ms: Mapping[str, float],
        share: float = 1.0,
    ) -> None:
        """Learn what the chunk took. ``stage_ms`` is the turn's, ``share`` this video's part of the turn's rows.

        A reader's pause is not the engine's: leave it out of ``stage_ms["wall"]``.
        """
        if not 0 < share <= 1:
            raise ValueError(f"budget: want a share in (0, 1], got {share}")
        stages = {name: ms for name, ms in stage_ms.items() if name != WALL}
        inside = sum(stages.values())
        took = stage_ms.get(WALL, inside)
        allowed = 1e3 * frames / self.pace_fps
        self._outside.append(took - inside)
        self._others = max(0.0, rows / share - rows)
        self.costs.observe(self._work(rows, kept, frames, choice.stride), stages, self)
        self.balance_ms = min(
            max(self.balance_ms + allowed - took, -DEBT * allowed), CREDIT * allowed
        )
        self._frames[1 if self._chunks else 0] = frames
        up = self._at is not None and self._rungs.index(self._next) > self._rungs.index(self._at)
        self._since_up = 0 if up else self._since_up + 1
        self._at = self._next
        self._on_floor = self._at == self._rungs[0] and rows == self._at[0] * self._at[1]
        self._chunks, self._kept_frames = self._chunks + 1, self._kept_frames + frames
        self._kept_ms += took
        self._chosen[choice.histories, choice.expansions, choice.stride] += 1
        self._history.append(Spent(choice, rows, frames, took, allowed, self.balance_ms))

    def _predict(self, rung: Rung, frames: int, now: int | None = None) -> float:
        """Milliseconds of a turn on ``rung`` with ``now`` histories (default: its own K), beside the other videos."""
        histories, expansions, stride = rung
        rows = (histories if now is None else now) * expansions
        work = self._work(rows, min(histories, rows), frames, stride)
        return self.costs.predict(work) + statistics.median(self._outside)

    def _work(self, rows: int, kept: int, frames: int, stride: int) -> Work:
        """The whole turn's. What the other videos keep and look at is taken to be like this one's."""
        total = rows + self._others
        others = self._others * math.ceil(frames / self.most[2])
        pictures = rows * math.ceil(frames / stride) + others
        return Work(total, kept * total / rows, pictures)

    def report(self) -> str:
        """One line: what was chosen how often, and the pace that was kept."""
        if not self._chunks:
            return f"{self.pace_fps:g} FPS: no chunk was made"
        often = self._chosen.most_common()
        words = [
            f"K {k} M {m} stride {stride} for {count} chunk{'s' if count > 1 else ''}"
            for (k, m, stride), count in often[:4]
        ]
        if len(often) > 4:
            words.append(f"others for {sum(count for _, count in often[4:])}")
        last = self._history[-1].choice
        end = "" if last.fits else f"; the pace cannot be kept: {last.why}"
        return f"{self.pace_fps:g} FPS: {', '.join(words)}; kept {self.kept_fps:.1f}{end}"


def rungs(most: Rung) -> tuple[Rung, ...]:
    """Every (K, M, stride) within ``most`` that is worth a thought, in order of worth; the first is the cheapest there is,
    the last is ``most`` itself."""
    histories, expansions, least = most
    strides = sorted({least, *(s for s, _ in KEPT_BY_STRIDE if s > least)})
    pairs = [
        (k, m)
        for k in sorted({histories, *(k for k in COUNTS if k < histories)})
        for m in sorted({expansions, *(m for m in COUNTS if m < expansions)})
        # Two histories that are drawn from once each leave nothing to choose.
        if m > 1 or k == 1 or (k, m) == (histories, expansions)
    ]
    found = sorted(((k, m, s) for k, m in pairs for s in strides), key=worth)
    found.remove(most)
    return (*found, most)


def worth(rung: Rung) -> tuple[float, float, int]:
    """A sorting key: the gain of so many candidates, the likeness of their split to what was measured, the finer stride."""
    histories, expansions, stride = rung
    if expansions == 1:
        return 0.0, float(histories), -stride
    gain = _between(WORTH, histories * expansions) * _between(KEPT_BY_STRIDE, stride)
    lean = math.log2(expansions / histories)  # measured: 0 and 1
    return round(gain, 6), -max(-lean, lean - 1, 0.0), -stride


def _between(table: tuple[tuple[int, float], ...], count: int) -> float:
    """The table's value at ``count``: straight lines over the logarithm, the last one goes on."""
    at = max(i for i, (x, _) in enumerate(table[:-1]) if x <= count)
    (low, a), (high, b) = table[at], table[at + 1]
    return a + (b - a) * math.log(count / low) / math.log(high / low)
