"""Two ways of judging the same candidates: what is counted, that nothing is disturbed, and that B is really B."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from runtime.bench import agreement
from runtime.bench.agreement import Agreement, compare, kendall_tau, measure
from runtime.bench.judges import Rewards
from runtime.score import Place
from tests.tiny import Echo, Likes, motion, prettiness, tiny_engine

PROMPT = "a red circle"
CHUNKS = 4


def judged(judges_of, changes=None, seeds=1, **parts):
    engine = tiny_engine(CHUNKS, changes, **parts)
    return {a.name: a for a in measure(engine.settings, [PROMPT], seeds, judges_of, engine.parts)}


def same(record, place):
    return [candidate.scores.fused for candidate in record.candidates]


def reverse(record, place):
    return [-candidate.scores.fused for candidate in record.candidates]


def test_the_same_scores_agree_everywhere():
    table = judged(lambda engine: {"same": same})["same"].table()
    assert table["chunks"] == CHUNKS and table["identical_scores"]
    assert table["same_winner"]["rate"] == table["same_set"]["rate"] == 1.0
    assert table["kendall_tau"] == {"mean": 1.0, "min": 1.0, "count": CHUNKS}
    assert table["lost"] == {"mean": 0.0, "max": 0.0, "count": CHUNKS}


def test_the_reverse_never_agrees_and_loses_what_there_is_to_lose():
    table = judged(
        lambda engine: {"reverse": reverse}, {"search.histories": 1, "search.expansions": 3}
    )["reverse"].table()
    assert table["same_winner"]["count"] == table["same_set"]["count"] == 0
    assert table["kendall_tau"]["mean"] == -1.0
    assert table["lost"]["mean"] == pytest.approx(1.0)  # K = 1: the worst instead of the best
    assert table["same_set"]["chance"] == pytest.approx(1 / 3)


def test_judges_do_not_disturb_what_they_watch():
    plain = [event.latents for event in tiny_engine(CHUNKS).stream(PROMPT)]
    watched = []
    engine = tiny_engine(CHUNKS)
    judges = {"reverse": reverse, "rewards": Rewards(engine, {"reward.window_chunks": 1})}
    found = {name: Agreement(name) for name in judges}
    stream = engine.stream

    def kept(prompt, *, watch):
        for event in stream(prompt, watch=watch):
            watched.append(event.latents)
            yield event

    engine.stream = kept
    agreement.watch_with(engine, PROMPT, judges, found)
    assert len(plain) == len(watched) == CHUNKS
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert engine.pool.used == 0


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_rewards_with_nothing_changed_score_bit_for_bit_alike(fidelity):
    found = judged(lambda engine: {"rewards": Rewards(engine, {})}, {"fidelity": fidelity}, seeds=2)
    table = found["rewards"].table()
    assert table["identical_scores"] and table["chunks"] == 2 * CHUNKS


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_another_decoder_is_followed_from_survivor_to_survivor(fidelity):
    """A second decoder of the same kind must come to the same frames, so to the same scores, by its own states."""

    def judges_of(engine):
        own = replace(engine.parts, scoring=Echo())
        return {"own decoder": Rewards(engine, {}, own)}

    changes = {"fidelity": fidelity, "reward.window_chunks": 3}
    assert judged(judges_of, changes, seeds=2)["own decoder"].table()["identical_scores"]


def test_a_fast_decoder_is_judged_by_what_it_shows():
    class Dim(Echo):
        def decode(self, latents, state):
            frames, state = super().decode(latents, state)
            return 0.5 * frames, state

    def judges_of(engine):
        return {"dim": Rewards(engine, {}, replace(engine.parts, scoring=Dim()))}

    tiny = tiny_engine(CHUNKS)
    scores = []
    rewards = judges_of(tiny)["dim"]

    def look(record):
        place = Place(PROMPT, tiny.fps, record.index, record.chunks)
        scores.append((list(rewards(record, place)), [c.scores.fused for c in record.candidates]))

    list(tiny.stream(PROMPT, watch=look))
    for got, full in scores:  # both rewards are linear in the frames
        assert got == pytest.approx([0.5 * score for score in full], rel=1e-9)


def test_the_real_decoder_can_judge_what_a_fast_one_selected():
    class Dim(Echo):
        def decode(self, latents, state):
            frames, state = super().decode(latents, state)
            return 0.5 * frames, state

    def judges_of(engine):
        return {"real": Rewards(engine, {}, replace(engine.parts, scoring=None))}

    table = judged(judges_of, scoring=Dim())["real"].table()
    assert not table["identical_scores"]
    assert table["same_set"]["rate"] == 1.0 and table["kendall_tau"]["mean"] == 1.0


def test_stride_is_a_way_of_judging():
    table = judged(
        lambda engine: {"stride": Rewards(engine, {"reward.stride": 4})}, {"search.expansions": 3}
    )["stride"].table()
    assert not table["identical_scores"] and table["chunks"] == CHUNKS


def test_rewards_judge_by_their_own_settings():
    seen = []

    def judges_of(engine):
        without = Rewards(engine, {"reward.tau": 0.0})
        short = Rewards(engine, {"reward.tau": 0.0, "reward.window_chunks": 1})

        def check(record, place):
            assert list(without(record, place)) == [c.scores.long for c in record.candidates]
            wanted = [motion(frames, record.index) for frames in record.frames]
            got = list(short(record, place))
            assert got == pytest.approx(wanted, rel=1e-12)
            seen.append(got != list(without(record, place)))
            return got

        return {"check": check}

    table = judged(judges_of)["check"].table()
    assert seen == [False, True, True, True]  # the first chunk's window is the chunk alone
    assert not table["identical_scores"]


def test_a_judge_that_sees_fewer_frames_can_be_plugged_in():
    image = Likes(prettiness)

    def strided(record, place):
        frames = record.frames[:, 1::2]
        return [image.judge(clip, place.chunk) for clip in frames]

    table = judged(lambda engine: {"strided": strided}, {"search.expansions": 4})["strided"].table()
    assert table["same_winner"]["of"] == CHUNKS
    assert -1 <= table["kendall_tau"]["mean"] <= 1
    assert table["kendall_tau"]["mean"] != 1.0 and not table["identical_scores"]


def test_every_judge_sees_every_chunk_of_every_seed_and_prompt():
    places = []

    def note(record, place):
        places.append((place, len(record.candidates)))
        return same(record, place)

    judged(lambda engine: {"note": note}, seeds=2)
    assert [place for place, _ in places] == 2 * [
        Place(PROMPT, 2, i, CHUNKS) for i in range(CHUNKS)
    ]
    assert {count for _, count in places} == {4}


def test_seeds_draw_different_candidates():
    winners = []

    def note(record, place):
        winners.append(tuple(candidate.branch.seed for candidate in record.candidates))
        return same(record, place)

    judged(lambda engine: {"note": note}, seeds=2)
    assert not set(winners[0]) & set(winners[CHUNKS])


def test_a_judge_that_cannot_judge_agrees_with_nobody():
    table = judged(lambda engine: {"blind": lambda record, place: [math.nan] * 4})["blind"].table()
    assert table["same_winner"]["rate"] == 0.0 and table["kendall_tau"]["count"] == 0
    assert table["lost"] == {"mean": None, "max": None, "count": 0}


def test_one_candidate_leaves_nothing_to_agree_on():
    table = judged(lambda engine: {"same": same}, {"search.histories": 1, "search.expansions": 1})[
        "same"
    ].table()
    assert table["same_winner"]["of"] == table["same_set"]["of"] == 0
    assert "nothing to choose" in agreement.show([table])


def test_compare_counts_by_hand():
    turn = compare([4.0, 3.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0], chosen=[0, 1], again=[1, 2])
    assert not turn.same_winner and not turn.same_set
    assert turn.lost == pytest.approx((3.5 - 2.5) / 4)
    assert turn.tau == pytest.approx((4 - 2) / 6)
    assert turn.chance == pytest.approx(1 / 6)
    swapped = compare([4.0, 3.0, 2.0], [3.0, 4.0, 2.0], chosen=[0, 1], again=[1, 0])
    assert swapped.same_set and not swapped.same_winner and swapped.lost == 0.0


def test_equal_scores_lose_nothing():
    assert compare([1.0, 1.0], [2.0, 1.0], [0], [0]).lost == 0.0
    assert compare([1.0, 1.0], [1.0, 2.0], [0], [1]).lost == 0.0


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3], [1, 3, 2], 1 / 3),
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(2 * 3)),  # tau-b: a tie takes its pair from one side
        ([1, 1, 1], [1, 2, 3], None),
        ([1.0], [2.0], None),
        ([1, math.nan], [1, 2], None),
    ],
)
def test_kendall_tau(a, b, tau):
    got = kendall_tau(a, b)
    assert got == (None if tau is None else pytest.approx(tau))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search.expansions": 3}, r"search.expansions: want a setting of the rewards"),
        ({"reward.window_chunks": 11}, r"reward.window_chunks: want at most 10"),
        ({"reward.tua": 1.0}, r"did you mean reward.tau"),
    ],
)
def test_settings_that_cannot_judge_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Rewards(tiny_engine(1), changes)


def test_a_policy_without_rewards_has_nothing_to_agree_with():
    with pytest.raises(RuntimeError, match="'single' asks no rewards"):
        judged(lambda engine: {}, {"search.policy": "single"})


def test_a_judge_with_too_few_scores_is_told_so():
    with pytest.raises(RuntimeError, match="short: want 4 scores, one per candidate, got 1"):
        judged(lambda engine: {"short": lambda record, place: [1.0]})


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    tiny = tiny_engine(2)
    engine = replace(tiny.parts, image=Likes(prettiness), video=Likes(motion, 10))
    monkeypatch.setattr(agreement.Parts, "load", staticmethod(lambda settings: engine))
    path = tmp_path / "a.json"
    call = "agreement --against reward.tau=0 --against reward.window_chunks=1 reward.tau=0.1 --prompts 2 --seconds 6"
    monkeypatch.setattr(sys, "argv", [*call.split(), "--json", str(path)])
    assert agreement.main() == 0
    tables = json.loads(path.read_text())["judges"]
    assert [table["name"] for table in tables] == [
        "reward.tau=0",
        "reward.window_chunks=1 reward.tau=0.1",
    ]
    assert tables[0]["chunks"] == tables[1]["chunks"] > 0
    assert "reward.window_chunks=1 reward.tau=0.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "pair", ["reward.tau", "reward.tua=1", "search.histories=2", "reward.tau=x"]
)
def test_the_command_refuses_in_one_line(pair, monkeypatch, capsys):
    tiny = tiny_engine(2)
    monkeypatch.setattr(agreement.Parts, "load", staticmethod(lambda settings: tiny.parts))
    monkeypatch.setattr(sys, "argv", ["agreement", "--against", pair, "--prompts", "1"])
    assert agreement.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
