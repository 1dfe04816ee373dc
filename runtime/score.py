"""Runs the reward models on what they want to see, fuses their scores and decides each candidate's route.

The one place between noise and selection where numbers come to the host: one copy per chunk, one more for an early choice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.guarding import Guarded, merged, moved, one_score_each
from runtime.settings import MemorySettings, RewardSettings
from runtime.types import (
    Branch,
    Clip,
    Incident,
    Picking,
    RewardModel,
    Route,
    Scores,
    Trajectory,
    row_ranges,
)
from runtime.window import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the video a batch of clips ends."""

    prompt: str
    fps: int
    chunk: int  # index of the newest chunk
    chunks: int  # of the whole video
    number: int = 0  # of the video, among those that share a scorer


class Scorer:
    """Image reward over the newest chunk, video reward over the recent window, two gates."""

    def __init__(
        self,
        image: RewardModel | None,
        video: RewardModel | None,
        reward: RewardSettings,
        memory: MemorySettings,
        released: bool,
        batch_rows: int = 0,
    ) -> None:
        self.image, self.video, self.batch_rows = image, video, batch_rows
        self.reward, self.memory, self.released = reward, memory, released
        self._incidents: dict[int, list[Incident]] = {}  # by the numbers of videos

    def rate_images(
        self, frames: Tensor, spans: Sequence[slice], places: Sequence[Place]
    ) -> Tensor:
        """Image reward [B] of the newest chunk's frames [B, T, 3, H, W], of every ``stride``-th counted from the last.

        Rows ``spans[i]`` belong to the video at ``places[i]``.
        """
        stride = self.reward.stride
        picked = frames[:, (frames.shape[1] - 1) % stride :: stride]
        windows = [Window(picked[span]) for span in spans]
        return self._rate_all(self.image, windows, places, "image")

    def rate_videos(self, windows: Sequence[Window], places: Sequence[Place]) -> Tensor:
        """Video reward [B] of the recent windows of the videos at ``places``."""
        return self._rate_all(self.video, windows, places, "video")

    def rate_drafts(self, frames: Tensor, place: Place) -> list[float]:
        """Image reward of unfinished candidates, [B, T, 3, H, W] -> B numbers on the host, for an early choice."""
        return self.on_host(self._rate(self.image, Window(frames), place, "draft", self.batch_rows))

    @staticmethod
    def on_host(scores: Tensor) -> list[float]:
        """Scores [B] as numbers, as soon as the current stream has them."""
        return scores.double().cpu().tolist()

    def rate_whole(
        self,
        videos: Sequence[Tensor],
        place: Place,
        model: RewardModel | None = None,
        alone: bool = False,
    ) -> list[float]:
        """What ``model`` (default: the video reward) thinks of whole videos, each [T, 3, H, W], as numbers on the host.

        ``alone``: each is rated by itself, so that its score does not depend on its company.
        """
        window, rows = Window(torch.stack(list(videos))), 1 if alone else self.batch_rows
        return self.on_host(self._rate(model or self.video, window, place, "final", rows))

    def best(self, scores: Sequence[float], place: Place) -> int:
        """The highest of the final scores, the earliest of equals; one that is not finite never wins unless none is.

        RuntimeError, with the reasons, where the model failed for all of them and ``reward.on_error`` says so.
        """
        failed = self._failed("final", place)
        if len(failed) == len(scores) and self.reward.on_error == "fail":
            raise RuntimeError(
                f"none of the {len(scores)} videos has a final score: {self._reasons(place)}; mend the reward, or set "
                "reward.on_error='degrade' to take the best by its newest chunk"
            )
        return max(
            range(len(scores)), key=lambda row: (math.isfinite(scores[row]), scores[row], -row)
        )

    def decide(
        self,
        branches: Sequence[Branch],
        shorts: Sequence[float],
        longs: Sequence[float],
        place: Place,
    ) -> list[tuple[Scores, Route]]:
        """Scores and route of every candidate from its two rewards, one number each.

        A candidate that one of them did not judge has no finite score, and goes on only where ``reward.on_error`` lets a
        video go on without that reward. RuntimeError, with the reasons, where it does not.
        """
        table = list(zip(shorts, longs, strict=True))
        for role, column in (("image", shorts), ("video", longs)):
            self._note_unfinite(role, column, place)
        fused = self._fused(branches, table, place)
        return [
            self._judge(branch.parent, short, long, score, place.chunk)
            for branch, (short, long), score in zip(branches, table, fused, strict=True)
        ]

    def _note_unfinite(self, role: str, scores: Sequence[float], place: Place) -> None:
        """Notes candidates whose score is no number though nothing failed."""
        unfinite = {row for row, score in enumerate(scores) if not math.isfinite(score)}
        if rows := sorted(unfinite - self._failed(role, place)):
            reason = f"the model returns {scores[rows[0]]} for {len(rows)} of {len(scores)}"
            self._note(Incident(role, place.chunk, tuple(rows), reason, "not finite"), place)

    def _failed(self, role: str, place: Place) -> set[int]:
        """Rows that a reward failed to judge at this place."""
        noted = self._incidents.get(place.number, ())
        here = [one for one in noted if one.role == role and one.chunk == place.chunk]
        return {row for incident in here for row in incident.rows}

    def _fused(
        self, branches: Sequence[Branch], table: Sequence[Sequence[float]], place: Place
    ) -> list[float]:
        """The score that each candidate is chosen by. Where no candidate has both rewards: that of the reward which more
        of them have, the video reward among equals; without any the order of the histories."""
        weight = image_weight(place.chunk, place.chunks, self.reward.tau)
        both = [weight * short + (1 - weight) * long for short, long in table]
        if any(map(math.isfinite, both)):
            return both
        if self.reward.on_error == "fail":
            raise RuntimeError(
                f"none of the {len(both)} candidates has a finite score; a reward judged none of them: "
                f"{self._reasons(place)}; mend it, or set reward.on_error='degrade' to go on without it"
            )
        shorts, longs = ([*column] for column in zip(*table, strict=True))
        alone = max(longs, shorts, key=lambda column: sum(map(math.isfinite, column)))
        if any(map(math.isfinite, alone)):
            return alone
        return [branch.parent.score for branch in branches]

    def _reasons(self, place: Place) -> str:
        told = [i.sentence for i in self._incidents.get(place.number, ()) if i.chunk == place.chunk]
        return "; ".join(dict.fromkeys(told))

    def incidents(self, number: int) -> tuple[Incident, ...]:
        """What rewards did not judge of the video of this number since this was asked last."""
        return tuple(self._incidents.pop(number, ()))

    def _rate_all(
        self,
        model: RewardModel | None,
        windows: Sequence[Window],
        places: Sequence[Place],
        kind: str,
    ) -> Tensor:
        rated = zip(windows, places, strict=True)
        rows = self.batch_rows
        return torch.cat([self._rate(model, window, place, kind, rows) for window, place in rated])

    def _rate(
        self, model: RewardModel | None, window: Window, place: Place, kind: str, most: int
    ) -> Tensor:
        """Scores of a window's rows, of at most so many at a time; 0: all."""
        assert model is not None, (
            f"the policy asks the {kind} reward but the engine was built without one"
        )
        guard = model if isinstance(model, Guarded) else None
        end = guard.end if guard else None
        scores: list[Tensor] = []
        incidents: list[Incident] = []
        for rows in row_ranges(len(window), most):
            part = window[rows.start : rows.stop]
            clip = clip_for(model, part, place)
            score = guard.score(clip, end) if guard else model.score(clip)
            score = one_score_each(score, len(part), kind)
            scores.append(score + doubt(part.newest).to(score.device) if clip.picked else score)
            for incident in guard.take() if guard else ():
                incidents.append(replace(moved(incident, rows.start), role=kind))
        for incident in merged(incidents):
            self._note(incident, place)
        return torch.cat([score.to(scores[0].device) for score in scores])

    def _note(self, incident: Incident, place: Place) -> None:
        log.warning("%s", incident.sentence)
        self.keep(incident, place)

    def keep(self, incident: Incident, place: Place) -> None:
        """Remember what a reward did not judge, here or on another rank, until ``incidents`` is asked."""
        self._incidents.setdefault(place.number, []).append(incident)

    def _judge(
        self, parent: Trajectory, short: float, long: float, fused: float, chunk: int
    ) -> tuple[Scores, Route]:
        if chunk == 0:
            return Scores(short, long, fused), Route.DISCARD
        if self.released:
            known, total = parent.judged, parent.short_sum
        else:
            known, total = len(parent.shorts), sum(parent.shorts)
        # Where nothing is known of the past, neither gate opens: no comparison with NaN holds.
        gain = short - total / known if known else math.nan
        drop = parent.long - long
        route = Route.DISCARD
        if gain > self.memory.quality_threshold and math.isfinite(short + long):
            route = Route.APPEND if drop > self.memory.transition_threshold else Route.EMA
        return Scores(short, long, fused, gain, drop), route


def numbers_of(answers: Sequence[Tensor]) -> list[list[float]]:
    """Scores [B] of several videos as numbers, all of them in one copy."""
    if not answers:
        return []
    flat = torch.cat([scores.to(answers[0].device, torch.float64) for scores in answers])
    told = iter(flat.cpu().tolist())
    return [[next(told) for _ in range(len(scores))] for scores in answers]


def clip_for(model: RewardModel, window: Window, place: Place) -> Clip:
    """What ``model`` is shown of a window: all of it, or the frames that it picks."""
    if isinstance(model, Picking):
        picks = model.picks(window.frames, place.fps)
        frames, twins, picked = window.pick(picks), window.twins(picks), True
    else:
        frames, twins, picked = window.whole(), window.twins(range(window.frames)), False
    return Clip(frames, place.prompt, place.fps, place.chunk, twins, picked)


def doubt(frames: Tensor) -> Tensor:
    """[B] float32 of frames [B, T, 3, H, W]: NaN for a row with a pixel that is not finite, else 0.

    Added to a score whose reward did not see every new frame; the older ones were seen by rewards before.
    """
    return frames.sum((1, 2, 3, 4), dtype=torch.float32).mul(0)


def image_weight(chunk: int, chunks: int, tau: float) -> float:
    """The image reward's share, growing with the chunk index up to ``tau``; 0 for a video of one chunk."""
    return min(chunk / (chunks - 1), tau) if chunks > 1 else 0.0
