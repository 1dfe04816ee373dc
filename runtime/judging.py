"""The middle of a turn: denoised candidates to scores and routes, by the rewards of each video's own settings.

One video's rewards may fail while the others' do not: what they raise is this video's outcome, and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from runtime.decode import Decoding, Newest
from runtime.lanes import Lanes
from runtime.lines import Ahead, Drawn, Line
from runtime.score import Place, Scorer, numbers_of
from runtime.speculation import Speculation
from runtime.telemetry import StageClock
from runtime.types import RewardModel, Route, Scores
from runtime.window import Window

T = TypeVar("T")
UNJUDGED = Scores(math.nan, math.nan, math.nan), Route.DISCARD
Verdicts = (
    list[tuple[Scores, Route]] | RuntimeError
)  # of a line's candidates, or why there are none


class Judging:
    """Asks the rewards about a batch, the two of them beside each other."""

    def __init__(
        self, decoding: Decoding, lanes: Lanes, clock: StageClock, speculation: Speculation | None
    ) -> None:
        """``speculation`` begins the next chunk of a line that is alone, while the image reward is asked."""
        self.decoding, self.lanes, self.clock = decoding, lanes, clock
        self.speculation = speculation

    def judge(
        self, lines: Sequence[Line], drawn: Drawn, newest: Newest, places: Sequence[Place]
    ) -> tuple[list[Verdicts], Ahead | None]:
        """Scores and route of every candidate by line, and what was begun meanwhile.

        The two rewards see the same frames and need not wait for each other.
        """
        if not any(line.video.recipe.policy.judges for line in lines):
            return [[UNJUDGED] * (span.stop - span.start) for span in drawn.spans], None
        questions = self.questions(lines, drawn, newest, places)
        shorts, longs = answers(questions, self.lanes, self.clock)
        ahead = self._begun(lines, drawn, longs, places)
        self.lanes.join()
        with self.clock.stage("select"):
            told = iter(numbers_of([x for x in (*shorts, *longs) if isinstance(x, Tensor)]))
            short, long = (
                [next(told) if isinstance(x, Tensor) else x for x in said]
                for said in (shorts, longs)
            )
            scorers = [line.video.recipe.scorer for line in lines]
            heard = zip(scorers, drawn.spans, short, long, places, strict=True)
            return [_decided(drawn, *one) for one in heard], ahead

    def questions(
        self, lines: Sequence[Line], drawn: Drawn, newest: Newest, places: Sequence[Place]
    ) -> list[Question | None]:
        """What each line's rewards are asked; None where the policy asks nothing."""
        with self.clock.stage("decode"):
            most = [line.video.recipe.window_chunks for line in lines]
            windows = self.decoding.windows(
                drawn.branches, drawn.spans, drawn.latents, newest, most, drawn.litters
            )
        return [
            Question(line.video.recipe.scorer, place, newest.frames[span], window)
            if line.video.recipe.policy.judges
            else None
            for line, place, span, window in zip(lines, places, drawn.spans, windows, strict=True)
        ]

    def _begun(
        self,
        lines: Sequence[Line],
        drawn: Drawn,
        longs: Sequence[Answer],
        places: Sequence[Place],
    ) -> Ahead | None:
        (line, *others), (place, *_), (long, *_) = lines, places, longs
        if self.speculation is None or others or not isinstance(long, torch.Tensor):
            return None
        after = place.chunk + 1
        if after >= place.chunks or line.video.scene_at(after) is not line.video.scene:
            return None
        with self.lanes.beside("video reward"):
            early = Scorer.on_host(long)
        if not any(map(math.isfinite, early)):
            return None
        return self.speculation.begin(line, drawn, early, place)


Answer = Tensor | RuntimeError | None  # scores [B] of a line's rows; None: nobody asked
Heard = list[float] | RuntimeError | None  # the same on the host


@dataclass(frozen=True, slots=True)
class Question:
    """Candidates of one video as its two rewards see them."""

    scorer: Scorer
    place: Place
    frames: Tensor  # [B, T, 3, H, W], the newest chunk, for the image reward
    window: Window  # for the video reward


def answers(
    questions: Sequence[Question | None], lanes: Lanes, clock: StageClock
) -> tuple[list[Answer], list[Answer]]:
    """What the image and the video reward say of each question's rows, on lanes that nobody has joined yet."""
    with lanes.beside("video reward"), clock.stage("video reward"):
        longs = [
            attempted(q.scorer.rate_videos, [q.window], [q.place]) if q else None for q in questions
        ]
    with lanes.beside("image reward"), clock.stage("image reward"):
        every = [slice(None)]
        shorts = [
            attempted(q.scorer.rate_images, q.frames, every, [q.place]) if q else None
            for q in questions
        ]
    return shorts, longs


def final_scores(line: Line, place: Place, model: RewardModel | None) -> list[float]:
    """What ``model`` (None: the video reward) thinks of each survivor's whole video, which ends at ``place``."""
    video, recipe = line.video, line.video.recipe
    chunks = recipe.chunks - video.scene.chunk  # what the prompt at hand is about
    wholes = [video.emitter.whole(survivor, chunks) for survivor in line.survivors]
    return recipe.scorer.rate_whole(wholes, place, model, recipe.settings.run.litters)


def attempted(work: Callable[..., T], *given: object) -> T | RuntimeError:
    """What a reward says, or the error that ends its video. A lack of memory is everybody's."""
    try:
        return work(*given)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return error


def _decided(
    drawn: Drawn, scorer: Scorer, span: slice, short: Heard, long: Heard, place: Place
) -> Verdicts:
    for answer in (short, long):
        if isinstance(answer, RuntimeError):
            return answer
    branches = drawn.branches[span]
    if short is None or long is None:
        return [UNJUDGED] * len(branches)
    return attempted(scorer.decide, branches, short, long, place)
