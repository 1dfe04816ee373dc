"""What a clip of the embedded world really shows, as numbers: the judge that every reward is held against.

Nothing here is learned and nothing is shared with the rewards. All values lie in [0, 1]; higher is better.

Legend: T frames.
"""

from __future__ import annotations

from dataclasses import fields

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
    frames = _plain(frames)
    found = track(frames)
    return _summed(measure(frames, caption, found).scores(), found, caption)


def judge_chunk(
    opening: Tensor, before: Tensor, chunk: Tensor, caption: Caption
) -> dict[str, float]:
    """MEASURES of a ``chunk`` [T, 3, 96, 96] of a video that began with ``opening``; ``before`` is the chunk before it.

    Both may be empty. Subject and Background hold the chunk against the opening, so that drift costs; Motion and Words are
    read from ``before`` and ``chunk`` in one, so that a leap between them is the chunk's fault.
    """
    opening, before, chunk = map(_plain, (opening, before, chunk))
    frames, count = torch.cat((opening, before, chunk)), len(chunk)
    found = track(frames)
    scores = measure(frames, caption, found).scores(-count)
    if len(opening):
        found = part(found, len(opening))
        scores["Motion"] = measure(frames[len(opening) :], caption, found).scores(-count)["Motion"]
    return _summed(scores, found, caption)


def _summed(columns: dict[str, float], found: Track, caption: Caption) -> dict[str, float]:
    verdict = check_track(found, caption)
    words = sum(verdict.right(name) for name in JUDGED) / len(JUDGED)
    total = (words + sum(columns.values()) / len(columns)) / 2
    return {**columns, WORDS: words, RIGHT: float(verdict.all_right), TOTAL: total}


def part(found: Track, first: int) -> Track:
    """What was tracked from frame ``first`` on."""
    return Track(**{field.name: getattr(found, field.name)[first:] for field in fields(Track)})


def _plain(frames: Tensor) -> Tensor:
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.detach().float().cpu()


class Sight:
    """Judges the candidates of one video chunk by chunk, and remembers how each history began.

    A history is known by its newest noise, which nothing replaces while it lives.
    """

    def __init__(self, caption: Caption) -> None:
        self.caption = caption
        self.began: dict[int, tuple[Tensor, Tensor]] = {}  # id of a noise -> the noise, the opening

    def look(self, record: ChunkRecord) -> list[dict[str, float]]:
        """MEASURES of every candidate of ``record``, in order. Records come in order, too."""
        nothing = record.frames[0, :0]
        openings = [nothing if record.index == 0 else self.began[id(c.branch.parent.noise)][1] for c in record.candidates]  # fmt: skip
        found = []
        for candidate, opening, chunk in zip(
            record.candidates, openings, record.frames, strict=True
        ):
            # At chunk 1 the chunk before is the opening.
            begin = opening if record.index > 1 else nothing
            before = candidate.branch.parent.frames[-1] if record.index else nothing
            found.append(judge_chunk(begin, before, chunk, self.caption))
        self.began = {
            id(history.noise): (
                history.noise,
                openings[row] if record.index else record.frames[row].clone(),
            )
            for row, history in zip(record.kept, record.survivors, strict=False)
            if history.noise is not None
        }
        return found
