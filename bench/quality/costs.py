"""What each video of a batch took, counted where the work is done: in the denoiser, the decoders and the rewards.

Nothing here knows how a method works. A forward of several rows is counted for the videos whose prompts the rows have;
decoded frames go to the videos of the newest candidates, in proportion; a judged clip to the video of its prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor

from runtime.bench.quality.row import Cost
from runtime.engine import Engine
from runtime.generators.wan import TextContext
from runtime.types import Clip, Picking, RewardModel

Shares = Counter[int]  # video -> how much of something is its


@dataclass
class _Tally:
    """Sums of one batch, by the video's place in it."""

    prompts: Sequence[str] = ()
    texts: list[TextContext] = field(default_factory=list)  # of the videos, as they first came
    newest: Shares = field(default_factory=Counter)  # rows of the last draw
    passes: Counter[int] = field(default_factory=Counter)
    frames: dict[int, Fraction] = field(default_factory=dict)
    images: dict[int, Fraction] = field(default_factory=dict)
    clips: dict[int, Fraction] = field(default_factory=dict)

    def owners(self, texts: Iterable[TextContext]) -> Shares:
        """How many of the rows are whose. The engine draws videos in the order of their prompts."""
        return Counter(map(self._owner, texts))

    def _owner(self, text: TextContext) -> int:
        for place, known in enumerate(self.texts):
            if known is text:
                return place
        self.texts.append(text)
        return len(self.texts) - 1

    def asking(self, prompt: str) -> Shares:
        """The videos of a prompt; usually one."""
        return Counter(place for place, text in enumerate(self.prompts) if text == prompt)


def _share_(sums: dict[int, Fraction], count: int, among: Shares) -> None:
    """Add ``count`` to ``sums``, divided as ``among`` says."""
    for video, part in among.items():
        sums[video] = sums.get(video, Fraction()) + Fraction(count * part, among.total())


class Meter:
    """Counts one engine's work from now on, batch by batch."""

    def __init__(self, engine: Engine) -> None:
        self._tally = _Tally()
        self._watch_denoiser_(engine)
        decoding = engine.decoding
        decoding.decoder = _Decoder(decoding.decoder, self)
        if decoding.scoring is not None:
            decoding.scoring = _Decoder(decoding.scoring, self)
        for role, guard in engine.guards.items():
            guard.model = _reward(guard.model, self, images=role == "image")

    def begin(self, prompts: Sequence[str]) -> None:
        """Forget what was counted; the next videos are those of ``prompts``, in one batch."""
        self._tally = _Tally(prompts)

    def costs(self, seconds: float) -> list[Cost]:
        """What each prompt's video took; ``seconds`` are the batch's."""
        tally, count = self._tally, len(self._tally.prompts)
        sums = (tally.frames, tally.images, tally.clips)
        return [
            Cost(tally.passes[video], *(round(s.get(video, 0)) for s in sums), seconds / count)
            for video in range(count)
        ]

    def drew(self, texts: Sequence[TextContext], passes: int) -> None:
        self._tally.newest = self._tally.owners(texts)
        self.ran(texts, passes)

    def ran(self, texts: Sequence[TextContext], passes: int) -> None:
        for video, rows in self._tally.owners(texts).items():
            self._tally.passes[video] += rows * passes

    def decoded(self, frames: Tensor) -> None:
        """frames [B, T, 3, H, W], whatever for."""
        _share_(self._tally.frames, math.prod(frames.shape[:2]), self._tally.newest)

    def judged(self, clip: Clip, images: bool) -> None:
        rows, frames = clip.frames.shape[:2]
        who = self._tally.asking(clip.prompt)
        if images:
            _share_(self._tally.images, rows * frames, who)
        else:
            _share_(self._tally.clips, rows, who)

    def _watch_denoiser_(self, engine: Engine) -> None:
        """Its two verbs, which every room calls on the one denoiser; below them a recorded graph would hide the work."""
        denoiser = engine.denoiser
        run, clean, every = denoiser.run, denoiser.clean, range(denoiser.schedule.passes)

        def counted_run(plan: Any, x: Tensor, texts: Any, passes: range | None = None) -> Tensor:
            self.drew(texts, len(passes or every))
            return run(plan, x, texts, passes)

        def counted_clean(plan: Any, latents: Tensor, texts: Any) -> None:
            self.ran(texts, 1)
            clean(plan, latents, texts)

        denoiser.run, denoiser.clean = counted_run, counted_clean  # type: ignore[method-assign]


@dataclass
class _Decoder:
    """A decoder whose frames are counted."""

    inner: Any
    meter: Meter

    def decode(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        frames, after = self.inner.decode(latents, state)
        self.meter.decoded(frames)
        return frames, after

    def rows(self, state: Any, rows: Sequence[int]) -> Any:
        return self.inner.rows(state, rows)

    def stack(self, states: Sequence[Any]) -> Any:
        return self.inner.stack(states)


@dataclass
class _Reward:
    """A reward whose clips are counted."""

    inner: Any
    meter: Meter
    images: bool  # what counts are frames, not clips

    @property
    def horizon(self) -> int:
        return self.inner.horizon

    def score(self, clip: Clip) -> Tensor:
        self.meter.judged(clip, self.images)
        return self.inner.score(clip)


class _PickingReward(_Reward):
    """The same for one that picks its frames."""

    def picks(self, frames: int, fps: int) -> Sequence[int]:
        return self.inner.picks(frames, fps)


def _reward(inner: RewardModel, meter: Meter, images: bool) -> RewardModel:
    kind = _PickingReward if isinstance(inner, Picking) else _Reward
    return kind(inner, meter, images)
