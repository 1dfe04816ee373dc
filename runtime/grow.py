"""Candidates out of branches, and histories out of the candidates that were kept. Values in, values out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from runtime.types import Branch, Candidate, Chunk, Memory, Route, Scores, Shown, Trajectory


def grow_candidates(
    branches: Sequence[Branch],
    noise: Tensor,
    latents: Tensor,
    verdicts: Sequence[tuple[Scores, Route]],
) -> tuple[Candidate, ...]:
    """Branches with what was drawn, denoised and decided for them."""
    return tuple(
        Candidate(branch, row, noise[row], latents[row], *verdicts[row])
        for row, branch in enumerate(branches)
    )


def grow(
    candidate: Candidate, index: int, memory: Memory, shown: Shown, window_chunks: int
) -> Trajectory:
    """The history that ends with this candidate. Its tensors are cloned: a row of the batch would keep the losers."""
    parent, scores = candidate.branch.parent, candidate.scores
    latents, frames = candidate.latents.clone(), shown.frames.clone()
    seen = frames if shown.seen is shown.frames else shown.seen.clone()
    chunk = Chunk(index, candidate.branch.seed, latents, frames, scores, candidate.route)
    past = max(window_chunks - 1, 1)
    # What a reward did not judge changes nothing of what was known before.
    short = [scores.short] if math.isfinite(scores.short) else []
    return Trajectory(
        memory=memory,
        seed=candidate.branch.seed,
        seed_chunk=candidate.branch.seed_chunk,
        noise=candidate.noise.clone(),
        decoder=shown.state,
        scoring=shown.scoring,
        latents=(*parent.latents, latents)[-past:],
        frames=(*parent.frames, seen)[-past:],
        shorts=(*parent.shorts, *short)[-past:],
        short_sum=parent.short_sum + sum(short),
        judged=parent.judged + len(short),
        long=scores.long if math.isfinite(scores.long) else parent.long,
        score=scores.fused,
        unsettled=(*parent.unsettled, chunk),
    )
