"""Rewards on ranks of their own: the video stays that of one rank, and frames go where they are judged, once."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.ranks.agreement import check_kind
from runtime.ranks.clips import Clips
from runtime.ranks.crew import Crew
from runtime.ranks.deal import Board, dealt
from runtime.ranks.reward_engine import Film, RewardEngine
from runtime.ranks.world import RankFailed
from runtime.settings import Settings
from runtime.types import Trajectory
from tests.ranked import CHUNKS, engine_of, maker_of, on_ranks, rater_of, told
from tests.tiny import Echo, Likes, motion, prettiness, tiny_dit, tiny_vae

SCENES = [(0, "one"), (4, "two")]
BUNCHED = {
    "search.histories": 4,
    "search.seed": 3,
}  # survivors of one rater, so that others take over


def on_crew(makers, raters, use, changes=None, chunks=CHUNKS, **parts):
    """``use`` on so many ranks that draw and so many that judge."""
    shared = {**(changes or {}), "run.ranks": makers}

    def build(rank):
        return (maker_of if rank < makers else rater_of)(shared, chunks, **parts)

    return on_ranks(makers + raters, build, use, raters)


def same_video(makers, raters, changes=None, prompts="x", **parts):
    """Every rank of the crew tells what one engine tells, or its own error; then what went from whom to whom."""
    one = told(engine_of(changes, **parts).stream(prompts))
    many, hub = on_crew(makers, raters, lambda e: told(e.stream(prompts)), changes, **parts)
    assert len(one) == CHUNKS
    assert many == [one] * (makers + raters)
    return hub.log


@pytest.mark.parametrize(
    ("makers", "raters", "changes"),
    [
        (2, 2, {"search.histories": 4, "search.expansions": 3, "search.seed": 7}),
        (1, 2, {"search.histories": 3, "search.horizon_chunks": 2}),
        (2, 1, {"search.pruning": False}),
        (1, 1, {"reward.window_chunks": 1}),
        (2, 1, {"fidelity": "released", "search.histories": 3}),
    ],
    ids=str,
)
def test_the_video_is_that_of_one_rank_on_every_rank(makers, raters, changes):
    same_video(makers, raters, changes)


def test_a_new_scene_is_judged_by_its_own_frames_and_prompt():
    log = same_video(2, 2, BUNCHED, SCENES)
    assert any(entry.startswith("histories") for entry in log), "no history moved as well"


def test_rewards_with_a_decoder_of_their_own_are_shown_its_frames_and_at_the_end_the_video_s():
    real = {"decoder": tiny_vae(), "dit": tiny_dit(dtype=torch.float32)}
    same_video(1, 2, {"search.histories": 3}, scoring=tiny_vae(), **real)


def records(engine):
    """Chunks, and who was out at which for what."""
    seen = []
    events = told(engine.stream("x", watch=seen.append))
    return events, [sorted((i.role, i.kind, i.reason, i.rows) for i in r.incidents) for r in seen]


def fussy(frames, chunk):
    """Cannot judge about a third of the clips, and stumbles over some more."""
    number = int(frames.double().abs().sum() * 1e6)
    if chunk and number % 5 == 1:
        raise RuntimeError("I do not like this one")
    return math.nan if number % 3 == 0 else prettiness(frames, chunk)


def test_candidates_that_cannot_be_judged_are_out_with_the_incidents_of_one_rank():
    changes = {"search.histories": 3, "search.expansions": 3, "reward.on_error": "degrade"}
    one = records(engine_of(changes, image=Likes(fussy)))
    kinds = {kind for chunk in one[1] for _, kind, *_ in chunk}
    assert kinds == {"raised", "not finite"}, "a kind did not come up, so this shows too little"
    many, _ = on_crew(2, 2, records, changes, image=Likes(fussy))
    assert many == [one] * 4


def test_a_reward_that_always_fails_ends_the_video_in_the_same_sentence_on_all_ranks():
    def broken(frames, chunk):
        raise RuntimeError("out of order")

    def sentence(engine):
        with pytest.raises(RuntimeError) as error:
            list(engine.stream("x"))
        return str(error.value)

    one = sentence(engine_of(image=Likes(broken)))
    many, _ = on_crew(1, 1, sentence, image=Likes(broken))
    assert "out of order" in one and many == [one] * 2


def test_a_rank_that_cannot_draw_is_named_before_anybody_waits_for_its_frames():
    class Broken(Echo):
        def decode(self, latents, state):
            raise RuntimeError("the decoder broke")

    def build(rank):
        if rank == 2:
            return rater_of({})
        return maker_of({}, decoder=Broken() if rank == 1 else Echo())

    made, _ = on_ranks(3, build, lambda engine: list(engine.stream("x")), 1)
    assert isinstance(made[0], RankFailed) and isinstance(made[2], RankFailed)
    assert str(made[2]) == "rank 1 gave up: the decoder broke"


def sent(monkeypatch):
    """What ``Clips`` travel, from here on."""
    seen, packed = [], Clips.packed

    def noted(clips):
        seen.append(clips)
        return packed(clips)

    monkeypatch.setattr(Clips, "packed", noted)
    return seen


def test_only_new_frames_travel_but_for_histories_whose_rater_changed(monkeypatch):
    seen = sent(monkeypatch)
    same_video(1, 2, {**BUNCHED, "reward.window_chunks": 3})
    assert Counter(row for clips in seen for row in clips.newest) == dict.fromkeys(range(8), CHUNKS)
    assert not any(clips.cold for clips in seen)
    moved = [place for clips in seen for place in clips.past]
    assert 0 < len(moved) < CHUNKS * 4 / 2, (
        "a history's past travels where its rater changed, and only there"
    )


def test_what_histories_share_travels_once(monkeypatch):
    shared, own, new = torch.zeros(2), torch.ones(2), torch.zeros(3)
    packed = Clips({4: new}, {}, {0: (shared, own), 3: (shared,)}).packed()
    assert len(packed.tensors) == 3
    again = Clips.unpacked(packed)
    assert again.past[0][0] is again.past[3][0], "siblings stay siblings"
    assert torch.equal(again.past[0][1], own) and list(again.newest) == [4]


def test_the_video_reward_knows_what_siblings_share_as_on_one_rank():
    seen = []

    class Looks(Likes):
        def score(self, clip):
            seen.append((clip.chunk, len(clip.frames), clip.twins))
            return super().score(clip)

    list(engine_of(video=Looks(motion, 10)).stream("x"))
    alone, seen = sorted(seen[:-2]), []  # without the final ratings
    on_crew(1, 2, lambda engine: list(engine.stream("x")), video=Looks(motion, 10))
    assert sorted(seen[:-2]) == alone
    assert any(twins[1][0] == 0 for *_, twins in alone), (
        "siblings share nothing, so this shows nothing"
    )


def test_a_rater_keeps_the_windows_of_its_share_and_nothing_else():
    def held(engine):
        seen, keep = [], engine.hands.keep

        def noted(line, work, outcome):
            kept = keep(line, work, outcome)
            seen.append(kept)
            return kept

        engine.hands.keep = noted
        list(engine.stream("x"))
        return seen

    made, _ = on_crew(1, 1, held, {"search.histories": 3, "reward.window_chunks": 4})
    for index, kept in enumerate(made[1]):
        assert len(kept) == 3
        for one in kept:
            assert len(one.frames) == min(index + 1, 3), "three chunks before the newest"
            assert one.decoder is None and not one.unsettled and not one.memory.slots


def test_whole_videos_are_rated_where_the_rewards_are():
    seen = {rank: [] for rank in range(3)}

    def build(rank):
        if rank < 1:
            return maker_of({"run.ranks": 1}, 8)

        def judge(frames, chunk):
            seen[rank].append(len(frames))
            return motion(frames, chunk)

        return rater_of({"run.ranks": 1}, 8, final=Likes(judge))

    made, _ = on_ranks(3, build, lambda engine: told(engine.stream("x")), 2)
    assert made == [told(engine_of(chunks=8).stream("x"))] * 3
    assert seen == {0: [], 1: [8 * 6 - 1], 2: [8 * 6 - 1]}, "settled chunks included"


def test_whoever_watches_on_a_rater_sees_what_a_maker_sees():
    def look(engine):
        seen = []
        list(engine.stream("x", watch=seen.append))
        return [
            (r.index, r.kept, [(s.seed, s.score) for s in r.survivors], r.frames.sum().item())
            for r in seen
        ]

    made, _ = on_crew(1, 1, look)
    assert made == [look(engine_of())] * 2


# Who judges what


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.data())
def test_siblings_are_judged_together_and_nobody_judges_more_than_a_share(k, m, raters, data):
    policy = engine_of({"search.histories": k, "search.expansions": m}).policy
    crew = Crew(2 + raters, raters)
    before = data.draw(st.tuples(*[st.integers(2, 1 + raters)] * k))
    board = Board(tuple(Trajectory(seed=n) for n in range(k)), (0,) * k, before)
    for deal in (dealt(policy, Board(), 0, crew), dealt(policy, board, 3, crew)):
        litters = [set(deal.raters[row : row + m]) for row in range(0, k * m, m)]
        assert all(len(whose) == 1 for whose in litters)
        load = Counter(deal.raters)
        assert set(load) <= set(range(2, 2 + raters)) and max(load.values()) <= -(-k // raters) * m
    assert deal.unseen == {at for at in range(k) if deal.raters[at * m] != before[at]}


# What is loaded


def boom(*arguments, **named):
    raise AssertionError("this rank has no use for that")


def test_a_rank_that_judges_loads_no_generator_and_has_no_kv_memory(monkeypatch):
    monkeypatch.setattr("runtime.generators.folder.load_folder", boom)
    monkeypatch.setattr("runtime.generators.folder.random_folder", boom)
    engine = RewardEngine.load(Settings())
    assert set(engine.guards) == {"image", "video"}
    assert engine.pool.nbytes == 0
    assert (engine.fps, engine.chunks) == (16, 7), "of the generator's sizes"


def test_a_rank_that_draws_loads_no_reward(monkeypatch):
    from runtime.ranks.door import build_maker

    monkeypatch.setattr("runtime.parts.load_backed", boom)
    engine = build_maker(Settings())
    assert engine.guards == {} and engine.parts.image is engine.parts.video is None
    with pytest.raises(AssertionError, match="engine was built without"):
        next(engine.stream("a red circle"))


# Refusals


@pytest.mark.parametrize(("size", "raters"), [(1, 1), (2, 2), (2, -1)])
def test_one_rank_at_least_draws(size, raters):
    with pytest.raises(ValueError, match=f"--reward-ranks: want 0 to {size - 1}, for {size} ranks"):
        Crew(size, raters)


@pytest.mark.parametrize(
    ("build", "rank", "raters", "sentence"),
    [
        (maker_of, 0, 0, "engine: want an Engine with its rewards on rank 0, for 0 of 2 ranks"),
        (rater_of, 1, 0, "engine: want an Engine with its rewards on rank 1, for 0 of 2 ranks"),
        (engine_of, 0, 1, "engine: want an Engine without rewards on rank 0, for 1 of 2 ranks"),
        (maker_of, 1, 1, "engine: want a RewardEngine on rank 1, for 1 of 2 ranks only judge"),
    ],
)
def test_an_engine_of_another_kind_is_refused(build, rank, raters, sentence):
    with pytest.raises(ValueError) as error:
        check_kind(build({}), Crew(2, raters), rank)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("policy", ["single", "best-of-n"])
def test_a_search_that_asks_no_reward_has_no_use_for_reward_ranks(policy):
    changes = {"search.policy": policy, "search.histories": 1, "search.expansions": 1}
    made, _ = on_crew(1, 1, lambda engine: None, changes)
    for error in made:
        assert isinstance(error, ValueError)
        assert (
            str(error)
            == f"--reward-ranks: want 0 for search.policy={policy!r}, which asks no reward, got 1"
        )


def test_raters_without_candidates_say_so_and_wait():
    made, _ = on_crew(1, 3, lambda engine: (engine.why_idle, told(engine.stream("x"))))
    assert [why for why, _ in made[:3]] == ["", "", ""]
    assert [video for _, video in made] == [told(engine_of().stream("x"))] * 4
    assert made[3][0] == (
        "rank 3 has no candidates to judge and waits: siblings stay together, and there are 3 reward ranks for "
        "histories = 2"
    )


class Weighed(Likes):
    """A reward with a weight."""

    def __init__(self, weight):
        super().__init__(prettiness)
        self.net = torch.nn.ParameterList([torch.tensor([weight])])


@pytest.mark.parametrize(
    ("rater", "sentence"),
    [
        (lambda: rater_of({"search.seed": 5}), "search.seed: want 42 on all ranks, as on rank 0"),
        (lambda: rater_of({}, chunks=4), "seconds: want 18.0 on all ranks"),
        (
            lambda: RewardEngine(rater_of({}).settings, rater_of({}).rewards, Film(4, 2)),
            "fps: want 2 on all ranks, as on rank ",
        ),
        (
            lambda: rater_of({}, image=Weighed(1.0)),
            "weights of the image reward: want ",
        ),
    ],
    ids=["seed", "seconds", "fps", "weights"],
)
def test_a_rater_that_differs_is_refused_by_the_name_of_what_differs(rater, sentence):
    builds = [lambda: maker_of({}), lambda: rater_of({}, image=Weighed(0.0)), rater]
    made, _ = on_ranks(3, lambda rank: builds[rank](), lambda engine: None, 2)
    for error in made:
        assert isinstance(error, ValueError) and str(error).startswith(sentence), error
