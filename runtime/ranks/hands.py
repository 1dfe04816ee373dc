"""What one rank does of a chunk. ``Maker`` draws, and judges unless others do; ``Rater`` judges what makers drew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from runtime.decode import Newest
from runtime.engine import Engine
from runtime.judging import Answer, Question, answers, final_scores
from runtime.lines import Drawn, Line
from runtime.ranks.deal import Deal, Outcome
from runtime.ranks.opinion import Opinion, of_all
from runtime.ranks.reward_engine import RewardEngine
from runtime.ranks.state import State
from runtime.score import Place, Scorer
from runtime.types import Trajectory


@dataclass(frozen=True, slots=True)
class Made:
    """Rows that were drawn here."""

    drawn: Drawn
    newest: Newest


@dataclass(frozen=True, slots=True)
class Work:
    """Rows of a chunk that this rank has to do with: it drew them, it judges them, or both."""

    rows: tuple[int, ...]  # of all ranks' rows
    question: Question | None  # None: others judge these, or nobody does
    made: Made | None  # None on a rater

    @property
    def frames(self) -> Tensor | None:
        """Of the rows that were drawn here, [B, T, 3, H, W]."""
        return self.made.newest.frames if self.made else None


class Hands(Protocol):
    """One rank's part, in the order in which it is asked for."""

    def draw(self, state: State, deal: Deal) -> tuple[State, Work | None]:
        """The state, ready for its chunk, and the rows that are drawn here; None for no rows."""
        ...

    def deliver(self, state: State, deal: Deal, work: Work | None) -> Work | None:
        """Sends frames to the raters, or receives them: the rows that are judged here have questions now, no others."""
        ...

    def judge(self, work: Work | None) -> Opinion:
        """What rewards say of the rows that have a question, incidents by the rows of all ranks."""
        ...

    def keep(self, line: Line, work: Work | None, outcome: Outcome) -> tuple[Trajectory, ...]:
        """What the rank holds of the kept rows, best first."""
        ...

    def endings(self, state: State, raters: tuple[int, ...]) -> Line:
        """The line with the whole videos that are rated here."""
        ...

    def rate(self, line: Line, place: Place, rows: tuple[int, ...]) -> Opinion:
        """What the video reward thinks of the line's whole videos, whose places among all are ``rows``."""
        ...


class Asking:
    """Asks the rewards that this rank has."""

    engine: Engine | RewardEngine

    def judge(self, work: Work | None) -> Opinion:
        if work is None or work.question is None:
            return Opinion()
        question, lanes = work.question, self.engine.lanes
        columns = answers([question], lanes, self.engine.clock)
        lanes.join()
        shorts, longs = (_numbers(answer) for (answer,) in columns)
        noted = question.scorer.incidents(question.place.number)
        return Opinion(shorts, longs, of_all(noted, work.rows))

    def rate(self, line: Line, place: Place, rows: tuple[int, ...]) -> Opinion:
        if not line.survivors:
            return Opinion()
        longs = tuple(final_scores(line, place, self.engine.guards.get("final")))
        noted = line.video.recipe.scorer.incidents(place.number)
        return Opinion((math.nan,) * len(longs), longs, of_all(noted, rows))


def _numbers(answer: Answer) -> tuple[float, ...]:
    """Scores on the host. Raises the error that is there instead."""
    if isinstance(answer, RuntimeError):
        raise answer
    assert answer is not None, "nobody asked a reward of a policy that judges"
    return tuple(Scorer.on_host(answer))
