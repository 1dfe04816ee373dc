"""The bootstrap says what it should where the answer is known."""

import math
import random

import pytest

from runtime.bench.quality.stats import (
    BETTER,
    FEWEST_PROMPTS,
    NO_DIFFERENCE,
    TOO_FEW,
    WORSE,
    bootstrap,
    compare,
    values,
)
from tests.video_row import row


def noisy(prompts, seeds=1, shift=0.0, spread=0.01, seed=0):
    numbers = random.Random(seed)
    return {(p, s): shift + numbers.gauss(0, spread) for p in range(prompts) for s in range(seeds)}


def test_a_method_does_not_differ_from_itself():
    found = compare(noisy(20), noisy(20))
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.word == NO_DIFFERENCE


@pytest.mark.parametrize(("shift", "word"), [(0.02, BETTER), (-0.02, WORSE)])
def test_a_shift_of_two_deviations_is_seen_on_its_side(shift, word):
    assert compare(noisy(40, shift=shift), noisy(40, seed=1)).word == word


def test_prompts_are_paired_so_that_their_own_difficulty_cancels():
    hard = {video: 10.0 * video[0] for video in noisy(20)}
    ours = {video: value + 0.01 for video, value in hard.items()}
    assert compare(ours, hard).word == BETTER
    shuffled = {(19 - p, s): value for (p, s), value in hard.items()}
    assert compare(ours, shuffled).word == NO_DIFFERENCE


def test_more_seeds_of_the_same_prompts_are_not_more_prompts():
    """Copies of each prompt say nothing new: the interval must not shrink."""
    once = noisy(12)
    copied = {(p, s): value for (p, _), value in once.items() for s in range(8)}
    assert bootstrap(copied) == bootstrap(once)


def test_a_prompt_counts_once_however_many_seeds_it_has():
    uneven = {(0, 0): 1.0, **{(1, seed): 0.0 for seed in range(9)}}
    assert bootstrap(uneven).mean == 0.5


def test_the_interval_is_that_of_the_mean():
    """Of n normal values it is about mean +- 1.96 s / sqrt(n)."""
    table = noisy(400, spread=1.0)
    found, half = bootstrap(table), 1.96 / math.sqrt(400)
    assert found.low == pytest.approx(found.mean - half, abs=0.02)
    assert found.high == pytest.approx(found.mean + half, abs=0.02)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    hits = [
        found.low <= 0 <= found.high
        for seed in range(300)
        for found in [bootstrap(noisy(32, seed=seed), resamples=1000)]
    ]
    assert 0.90 <= sum(hits) / len(hits) <= 0.98


def test_the_same_rows_give_the_same_interval():
    assert bootstrap(noisy(20)) == bootstrap(dict(reversed(noisy(20).items())))


def test_a_handful_of_prompts_decides_nothing():
    few, enough = ({(p, 0): 1.0 for p in range(n)} for n in (FEWEST_PROMPTS - 1, FEWEST_PROMPTS))
    assert compare(few, dict.fromkeys(few, 0.0)).word == TOO_FEW
    assert compare(enough, dict.fromkeys(enough, 0.0)).word == BETTER


def test_only_videos_that_both_made_are_compared():
    ours, theirs = {(0, 0): 5.0, (1, 0): 1.0}, {(1, 0): 0.0, (1, 1): 9.0, (2, 0): 7.0}
    assert compare(ours, theirs).difference.mean == 1.0


def test_without_a_common_video_there_is_no_number():
    assert math.isnan(compare({(0, 0): 1.0}, {(1, 0): 1.0}).difference.mean)


def test_a_missing_score_is_no_score():
    rows = [row("single", 0, {"VQ": math.nan}), row("single", 1, {"VQ": 0.5}), row("single", 2)]
    assert values(rows, "VQ") == {(1, 42): 0.5}
