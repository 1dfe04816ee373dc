"""The middle of a turn: denoised candidates to scores and routes, by the rewards of each video's own settings.

One video's rewards may fail while the others' do not: what they raise is this video's outcome, and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from runtime.decode import Decoding, Newest
from runtime.lanes import Lanes
from runtime.lines import Ahead, Drawn, Line
from runtime.score import Place, Scorer
from runtime.speculation import Speculation
from runtime.telemetry import StageClock
from runtime.types import Route, Scores

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
        shorts, longs = self.answers(lines, drawn, newest, places)
        ahead = self._begun(lines, drawn, longs, places)
        self.lanes.join()
        with self.clock.stage("select"):
            scorers = [line.video.recipe.scorer for line in lines]
            answers = zip(scorers, drawn.spans, shorts, longs, places, strict=True)
            return [_decided(drawn, *answer) for answer in answers], ahead

    def answers(
        self, lines: Sequence[Line], drawn: Drawn, newest: Newest, places: Sequence[Place]
    ) -> tuple[list[Answer], list[Answer]]:
        """What the image and the video reward say of each line's rows, on lanes that nobody has joined yet."""
        judged = [line.video.recipe.policy.judges for line in lines]
        stage, beside = self.clock.stage, self.lanes.beside
        with stage("decode"):
            most = [line.video.recipe.window_chunks for line in lines]
            windows = self.decoding.windows(
                drawn.branches, drawn.spans, drawn.latents, newest, most, drawn.litters
            )
        scorers = [line.video.recipe.scorer for line in lines]
        with beside("video reward"), stage("video reward"):
            longs = [
                attempted(scorer.rate_videos, [window], [place]) if wanted else None
                for scorer, window, place, wanted in zip(
                    scorers, windows, places, judged, strict=True
                )
            ]
        with beside("image reward"), stage("image reward"):
            shorts = [
                attempted(scorer.rate_images, newest.frames[span], [slice(None)], [place])
                if wanted
                else None
                for scorer, span, place, wanted in zip(
                    scorers, drawn.spans, places, judged, strict=True
                )
            ]
        return shorts, longs

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


Answer = torch.Tensor | RuntimeError | None  # scores [B] of a line's rows; None: nobody asked


def attempted(work: Callable[..., T], *given: object) -> T | RuntimeError:
    """What a reward says, or the error that ends its video. A lack of memory is everybody's."""
    try:
        return work(*given)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return error


def _decided(
    drawn: Drawn, scorer: Scorer, span: slice, short: Answer, long: Answer, place: Place
) -> Verdicts:
    for answer in (short, long):
        if isinstance(answer, RuntimeError):
            return answer
    branches = drawn.branches[span]
    if not isinstance(short, torch.Tensor) or not isinstance(long, torch.Tensor):
        return [UNJUDGED] * len(branches)
    return attempted(scorer.decide, branches, short, long, place)
