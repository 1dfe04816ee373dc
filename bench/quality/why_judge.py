"""What a clip of the embedded world really shows, as numbers: the judge that every reward is held against.

Nothing here is learned and nothing is shared with the rewards. All values lie in [0, 1]; higher is better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.bench.sprites.checker import JUDGED, check_clip
from runtime.bench.sprites.world import Caption
from runtime.types import Candidate

ALL_RIGHT, WORDS, TOTAL = "All right", "Words", "Total"
COLUMNS = ("Subject", "Background", "Motion", "Imaging", "Presence")
MEASURES = (*COLUMNS, WORDS, ALL_RIGHT, TOTAL)


def judge(frames: Tensor, caption: Caption) -> dict[str, float]:
    """MEASURES of a clip [T, 3, 96, 96] in [0, 1].

    ``Words`` is the share of shape, colour, motion and background that are as the caption says, ``All right`` 1 where all
    are. ``Total`` is the mean of Words and the mean of the columns: half for what is shown, half for how well.
    """
    verdict = check_clip(frames, caption)
    columns = (
        verdict.subject_consistency,
        verdict.background_consistency,
        verdict.smoothness,
        verdict.imaging,
        verdict.presence,
    )
    words = sum(verdict.right(name) for name in JUDGED) / len(JUDGED)
    return {
        **dict(zip(COLUMNS, columns, strict=True)),
        WORDS: words,
        ALL_RIGHT: float(verdict.all_right),
        TOTAL: (words + sum(columns) / len(columns)) / 2,
    }


def judge_candidate(candidate: Candidate, frames: Tensor, caption: Caption) -> dict[str, float]:
    """MEASURES of a candidate's chunk ``frames`` [T, 3, H, W], seen together with the chunk before it.

    Without that one a leap between the two would be nobody's fault.
    """
    return judge(torch.cat((*candidate.branch.parent.frames[-1:], frames)), caption)
