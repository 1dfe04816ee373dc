"""Is one method better than another? Paired bootstrap over prompts, and one word for the answer.

The unit is the prompt: a prompt's videos from several seeds are averaged first, for they are not independent of each
other. Both methods made the same prompts from the same seeds, so what is resampled are the prompts' differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.bench.quality.row import Row

RESAMPLES = 10_000
SEED = 0  # of the resampling: the same rows give the same interval
COVERED = 0.95
FEWEST_PROMPTS = 8  # below this an interval from resampling is too narrow to be believed
BETTER, WORSE, NO_DIFFERENCE, TOO_FEW = "better", "worse", "no difference", "too few prompts"

Video = tuple[int, int]  # prompt, seed


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over prompts and the 95 % interval of that mean."""

    mean: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method's mean difference to the reference in one column, over the videos that both made."""

    difference: Interval

    @property
    def word(self) -> str:
        """Better, worse or no difference: whether the interval leaves zero out, and on which side."""
        if self.difference.prompts < FEWEST_PROMPTS:
            return TOO_FEW
        if self.difference.low > 0:
            return BETTER
        return WORSE if self.difference.high < 0 else NO_DIFFERENCE


def values(rows: Iterable[Row], column: str) -> dict[Video, float]:
    """A column's finite values by video. Rows of one method and one length."""
    found = {(row.key.prompt, row.key.seed): row.scores.get(column, math.nan) for row in rows}
    return {video: value for video, value in found.items() if math.isfinite(value)}


def compare(ours: Mapping[Video, float], theirs: Mapping[Video, float]) -> Comparison:
    """How ``ours`` differs from ``theirs``; videos that only one of them has are left out."""
    both = ours.keys() & theirs.keys()
    return Comparison(bootstrap({video: ours[video] - theirs[video] for video in both}))


def bootstrap(table: Mapping[Video, float], resamples: int = RESAMPLES) -> Interval:
    """Mean over prompts of the mean over seeds, with its percentile interval. NaN without a single video."""
    means = per_prompt(table)
    count = len(means)
    if not count:
        return Interval(math.nan, math.nan, math.nan, 0)
    drawn = means[_indices(count, resamples)].mean(1)
    tail = (1 - COVERED) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(float(means.mean()), float(low), float(high), count)


def per_prompt(table: Mapping[Video, float]) -> np.ndarray:
    """The mean over seeds of each prompt, in the prompts' order."""
    by_prompt: dict[int, list[float]] = {}
    for (prompt, _), value in sorted(table.items()):
        by_prompt.setdefault(prompt, []).append(value)
    return np.array([sum(found) / len(found) for found in by_prompt.values()])


def mean(numbers: Sequence[float]) -> float:
    """The mean of the finite numbers; NaN without one."""
    finite = [number for number in numbers if math.isfinite(number)]
    return sum(finite) / len(finite) if finite else math.nan


def _indices(count: int, resamples: int) -> np.ndarray:
    """Which prompts each resample holds, [resamples, count]."""
    return np.random.default_rng(SEED).integers(count, size=(resamples, count))
