"""What a clip of the embedded world really shows, as numbers: the judge that every reward is held against.

Nothing here is learned and nothing is shared with the rewards. All values lie in [0, 1]; higher is better.

Legend: T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from runtime.bench.quality.row import MEASURED, RIGHT
from runtime.bench.quality.sprites_measures import measure
from runtime.bench.sprites.checker import JUDGED, check_track
from runtime.bench.sprites.tracking import Track, track
from runtime.bench.sprites.world import Caption
from runtime.types import ChunkRecord

WORDS, TOTAL = "Words", "Total"
MEASURES = (*MEASURED, WORDS, RIGHT, TOTAL)


def judge(frames: Tensor, caption: Caption) -> dict[str, float]:
    """MEASURES of a clip [T, 3, 96, 96], uint8 or in [0, 1].

    The five columns are those of ``sprites_measures``. Words is the share of shape, colour, motion and background that are
    as the caption says, RIGHT is 1 where all are. TOTAL is the mean of Words and of the mean of the columns: half for what
    is shown, half for how well.
    """
    clip = tracked(frames)
    return _summed(measure(clip.frames, caption, clip.track).scores(), clip, caption)


@dataclass(frozen=True, slots=True)
class Tracked:
    """Frames and where the object is in them."""

    frames: Tensor  # [T, 3, 96, 96] in [0, 1]
    track: Track

    def __add__(self, after: Tracked) -> Tracked:
        pairs = ((getattr(self.track, f.name), getattr(after.track, f.name)) for f in fields(Track))
        return Tracked(torch.cat((self.frames, after.frames)), Track(*map(torch.cat, pairs)))


def tracked(frames: Tensor) -> Tracked:
    """Frames [T, 3, 96, 96], uint8 or in [0, 1], tracked on the CPU."""
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.detach().float()
    return Tracked(frames.cpu(), track(frames))


def judge_chunk(
    opening: Tracked | None, before: Tracked | None, chunk: Tracked, caption: Caption
) -> dict[str, float]:
    """MEASURES of a chunk of a video that began with ``opening``; ``before`` is the chunk before it. None: there is none.

    Subject and Background hold the chunk against the opening, so that drift costs. Motion and Words are read over ``before``
    and ``chunk`` in one, so that a leap between them costs.
    """
    near = before + chunk if before else chunk
    count = len(chunk.frames)
    measured = measure(near.frames, caption, near.track)
    # A leap halfway fits the path of either half; over both it costs whichever was fitted.
    columns = measured.scores(-count) | {"Motion": measured.scores()["Motion"]}
    if opening is not None and opening is not before:
        far = opening + chunk
        drifted = measure(far.frames, caption, far.track).scores(-count)
        columns |= {name: drifted[name] for name in ("Subject", "Background")}
    return _summed(columns, near, caption)


def _summed(columns: dict[str, float], clip: Tracked, caption: Caption) -> dict[str, float]:
    verdict = check_track(clip.track, caption)
    words = sum(verdict.right(name) for name in JUDGED) / len(JUDGED)
    total = (words + sum(columns.values()) / len(columns)) / 2
    return {**columns, WORDS: words, RIGHT: float(verdict.all_right), TOTAL: total}


@dataclass(frozen=True, slots=True)
class Past:
    """What judging a history's next chunk needs. Its noise is kept for its id to stay its own."""

    noise: Tensor
    opening: Tracked  # the first two chunks, or the first alone
    newest: Tracked


class Sight:
    """Judges the candidates of one video chunk by chunk, and remembers how each history began.

    A history is known by its newest noise, which nothing replaces while it lives.
    """

    OPENING_CHUNKS = 2

    def __init__(self, caption: Caption) -> None:
        self.caption = caption
        self.past: dict[int, Past] = {}

    def look(self, record: ChunkRecord) -> list[dict[str, float]]:
        """MEASURES of every candidate of ``record``, in order. Records come in order, too."""
        chunks = [tracked(frames) for frames in record.frames]
        parents = [id(candidate.branch.parent.noise) for candidate in record.candidates]
        pasts = [self.past[parent] if record.index else None for parent in parents]
        found = [
            judge_chunk(past and past.opening, past and past.newest, chunk, self.caption)
            for past, chunk in zip(pasts, chunks, strict=True)
        ]
        self.past = {}
        for row, history in zip(record.kept, record.survivors, strict=True):
            past, chunk = pasts[row], chunks[row]
            if past is None:
                opening = chunk
            elif record.index < self.OPENING_CHUNKS:
                opening = past.opening + chunk
            else:
                opening = past.opening
            assert history.noise is not None, "a history that was drawn has noise"
            self.past[id(history.noise)] = Past(history.noise, opening, chunk)
        return found
