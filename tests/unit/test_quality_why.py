"""The diagnosis counts right: agreement, regret, noise, gates, on numbers whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch

from runtime.bench.quality.why_agreement import agreement, regret, siblings
from runtime.bench.quality.why_intervals import interval, mean_of, ratio, sums_by_prompt
from runtime.bench.quality.why_judge import MEASURES, TOTAL
from runtime.bench.quality.why_memory import drift, gates, routes
from runtime.bench.quality.why_noise import noise
from runtime.bench.quality.why_seen import GATES, REWARDS, Seen
from runtime.settings import MemorySettings

PROMPTS = range(6)


def seen(prompt=0, chunk=1, value=0.0, reward=0.0, **fields):
    """A candidate whose measures are all ``value`` and whose rewards are all ``reward``."""
    plain = {"run": "search", "history": 0, "noise": 0, "place": -1, "route": "ema"}
    rewards = dict.fromkeys((*REWARDS, *GATES), reward)
    shows = dict.fromkeys(MEASURES, value)
    return Seen(prompt=prompt, chunk=chunk, rewards=rewards, shows=shows, **plain | fields)


def row_of(rows, reward, measure):
    (row,) = (row for row in rows if (row["reward"], row["measure"]) == (reward, measure))
    return row


def test_ranking_within_siblings_is_told_from_ranking_prompts():
    """Easy prompts are liked more, and within each prompt the worse candidate is: overall it looks fine, and is useless."""
    found = [
        seen(prompt, value=10 * prompt + i, reward=10 * prompt - i)
        for prompt in PROMPTS
        for i in range(4)
    ]
    row = row_of(agreement(found, []), "fused", f"{TOTAL} of the chunk")
    assert row["within"] == pytest.approx(-1) and row["overall"] > 0.9
    assert (row["low"], row["high"]) == pytest.approx((-1, -1))
    assert row["candidates"] == 24 and row["groups"] == 6


def test_the_video_that_a_walk_leads_to_is_another_question_than_its_chunk():
    found = [
        seen(p, value=i, reward=i, run="walk", video=dict.fromkeys(MEASURES, float(-i)))
        for p in PROMPTS
        for i in range(4)
    ]
    rows = agreement(found, found)
    assert row_of(rows, "short", f"{TOTAL} of the chunk")["within"] == pytest.approx(1)
    assert row_of(rows, "short", f"{TOTAL} of the video")["within"] == pytest.approx(-1)


def test_along_a_video_chunks_are_compared_with_those_of_the_same_history():
    """Histories differ the right way and each goes the wrong way. The first chunk does not count."""
    found = [
        seen(
            p,
            chunk=c,
            value=10 * h + c,
            reward=10 * h - c if c else -99,
            run="walk",
            history=h,
            video=dict.fromkeys(MEASURES, 0),
        )  # fmt: skip
        for p in PROMPTS
        for c in range(5)
        for h in range(3)
    ]
    row = row_of(agreement([], found), "short", f"{TOTAL} along the video")
    assert row["within"] == pytest.approx(-1) and row["groups"] == 18


def test_groups_in_which_nothing_differs_say_nothing():
    flat = [seen(p, value=0.5, reward=i) for p in PROMPTS for i in range(4)]
    row = row_of(agreement(flat, []), "long", f"{TOTAL} of the chunk")
    assert row["within"] is None and row["overall"] is None and row["groups"] == 0
    one = [*flat, *(seen(9, value=i, reward=i) for i in range(4))]
    assert row_of(agreement(one, []), "long", f"{TOTAL} of the chunk")["within"] == pytest.approx(1)


def test_a_perfect_choice_wins_all_the_headroom_and_the_worst_loses_it():
    values = (0.0, 1.0, 2.0, 5.0)
    for sign, share, hits in ((1, 1.0, 1.0), (-1, -2 / 3, 0.0)):
        found = [seen(p, value=v, reward=sign * v) for p in PROMPTS for v in values]
        row = regret(found)["fused"][TOTAL]
        assert row["share"] == pytest.approx(share) and row["picks_best"] == hits
        assert row["headroom"] == pytest.approx(3.0) and row["chance"] == pytest.approx(0.25)


def test_blind_chance_counts_ties_and_chunks_without_a_choice_are_left_out():
    found = [seen(0, value=v, reward=i) for i, v in enumerate((1.0, 1.0, 0.0, 0.0))]
    found += [seen(1, value=1.0, reward=i) for i in range(4)]
    row = regret(found)["short"][TOTAL]
    assert row["chance"] == pytest.approx(0.5) and row["chunks"] == 1 and row["picks_best"] == 0
    assert regret(found[4:])["short"][TOTAL]["share"] is None


def test_spread_among_siblings_is_told_from_spread_between_prompts():
    between = [seen(p, value=float(p)) for p in PROMPTS for _ in range(4)]
    among = [seen(p, value=float(i)) for p in PROMPTS for i in range(4)]
    assert siblings(between)[TOTAL] == {"spread": 0, "std": 0, "share": 0, "differ": 0}
    row = siblings(among)[TOTAL]
    assert row["spread"] == 3 and row["share"] == pytest.approx(1) and row["differ"] == 1
    assert row["std"] == pytest.approx(torch.arange(4.0).std().item())


def probes(effect, histories=3, chunks=8):
    """Probes whose value is what ``effect(prompt, chunk, history, noise)`` says."""
    return [
        seen(p, chunk=c, value=effect(p, c, h, s), run="probe", history=h, noise=s)
        for p in PROMPTS
        for c in range(chunks)
        for h in range(histories if c else 1)
        for s in range(3)
    ]


def drawn(*key):
    return torch.randn((), generator=torch.Generator().manual_seed(hash(key) % 2**40)).item()


@pytest.mark.parametrize(
    ("effect", "other", "later"),
    [
        (lambda p, c, h, s: drawn(p, s) + 9 * drawn(p, c, h), 1.0, 1.0),
        (lambda p, c, h, s: (-1) ** c * drawn(p, s), 1.0, -1.0),
        (lambda p, c, h, s: drawn(p, c, s), 1.0, 0.0),
        (lambda p, c, h, s: drawn(p, c, h, s), 0.0, 0.0),
        (lambda p, c, h, s: drawn(p, h, s), 0.0, 1.0),
    ],
    ids=["always good", "good, then bad", "anew at each chunk", "mere chance", "with its history"],
)
def test_what_noise_does_is_told_from_what_history_does(effect, other, later):
    row = noise([], probes(effect))[TOTAL]
    assert row["other_history"]["r"] == pytest.approx(other, abs=0.35 if not other else 1e-6)
    assert row["next_chunk"]["r"] == pytest.approx(later, abs=0.35 if not later else 1e-6)
    if later == 1.0:
        assert row["next_chunk"]["low"] > 0.99
    assert row["carried"]["r"] is None


def test_a_video_that_stays_ahead_is_carried_by_its_history():
    walks = [
        seen(p, chunk=c, value=drawn(p) + h, run="walk", history=h)
        for p in PROMPTS
        for c in range(4)
        for h in range(4)
    ]
    assert noise(walks, [])[TOTAL]["carried"]["r"] == pytest.approx(1)
    assert noise(walks, [])[TOTAL]["next_chunk"]["r"] is None


def test_routes_and_gates_are_those_of_the_kept_from_chunk_one_on():
    found = [
        seen(chunk=0, route="discard", place=0, reward=99.0),
        seen(chunk=1, route="append", place=0, reward=0.5),
        seen(chunk=1, route="ema", place=1, reward=0.1),
        seen(chunk=1, route="discard", place=-1, reward=-7.0),
        seen(chunk=2, route="ema", place=0, reward=0.3),
    ]
    assert routes(found) == [
        {"chunk": 1, "discard": 0.0, "ema": 0.5, "append": 0.5},
        {"chunk": 2, "discard": 0.0, "ema": 1.0, "append": 0.0},
    ]
    table = gates(found, MemorySettings(quality_threshold=0.1, transition_threshold=0.4))
    quality, drop = table["quality_gain"], table["long_drop"]
    assert quality["0.5"] == pytest.approx(0.3) and quality["all"]["0.01"] < -6
    assert quality["above"] == pytest.approx(2 / 3), "strictly above, as the gate asks"
    assert drop["above"] == pytest.approx(1 / 3) and drop["threshold"] == 0.4


def test_drift_is_the_mean_over_videos_by_chunk():
    walks = [seen(p, chunk=c, value=p - c, reward=c, run="walk") for p in (0, 2) for c in (0, 1)]
    table = drift(walks)
    assert table["chunk"] == [0, 1] and table[TOTAL] == [1, 0] and table["short"] == [0, 1]


def test_intervals_draw_prompts_again_and_not_candidates():
    """Copies of the same candidates say nothing new."""
    values = {prompt: drawn(prompt) for prompt in range(12)}
    once = mean_of(values.items())
    often = mean_of([pair for pair in values.items() for _ in range(50)])
    assert often["low"] == pytest.approx(once["low"]) and often["count"] == 600
    error = 1.96 * torch.tensor(list(values.values())).std().item() / math.sqrt(12)
    assert once["high"] - once["low"] == pytest.approx(2 * error, rel=0.25)
    assert once["low"] < once["mean"] < once["high"]


def test_too_few_prompts_get_no_interval_and_none_no_estimate():
    assert mean_of([(0, 1.0), (1, 3.0)]) == {"mean": 2.0, "low": None, "high": None, "count": 2}
    assert interval(sums_by_prompt([(0, (0.0, 0.0))]), ratio) == (None, None, None)
    assert mean_of([])["mean"] is None


def test_a_row_survives_json():
    one = replace(seen(value=0.5), video={TOTAL: 1.0})
    assert Seen(**one.to_json()) == one
