"""One video over several ranks is the video of one rank, bit for bit; ranks here are threads, see ``tests/ranked.py``."""

import math

import pytest
import torch

from runtime.ranks.deal import Board, dealt
from tests.ranked import CHUNKS, engine_of, on_ranks, raw, told
from tests.tiny import Likes, motion, prettiness, tiny_dit, tiny_vae

SCENES = [(0, "one"), (4, "two")]


def both(ranks, changes=None, prompts="x", **parts):
    """What one engine tells, and what each of several ranks does; and the hub where they met."""
    one = told(engine_of(changes, **parts).stream(prompts))
    shared = {**(changes or {}), "run.ranks": ranks}  # with as much memory as each then has
    many, hub = on_ranks(
        ranks, lambda rank: engine_of(shared, **parts), lambda e: told(e.stream(prompts))
    )
    return one, many, hub


CASES = [
    {},
    {"search.histories": 4, "search.expansions": 3, "search.seed": 7},
    {"search.histories": 3, "search.horizon_chunks": 2},
    {"search.policy": "best-of-n"},
    {"search.policy": "beam", "search.histories": 3},
    {"search.pruning": False},
    {"search.histories": 4, "memory.rope": "relative", "memory.keep_last": True},
    {"fidelity": "released", "search.histories": 3},
    {"run.batch_rows": 1, "run.litters": False},
]


@pytest.mark.parametrize(
    "changes", CASES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()) or "default"
)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_video_is_that_of_one_rank_on_every_rank(ranks, changes):
    one, many, _ = both(ranks, changes)
    assert len(one) == CHUNKS
    assert many == [one] * ranks


def test_histories_move_only_to_balance_and_the_video_stays_the_same():
    changes = {"search.histories": 4, "search.seed": 3}
    one, many, hub = both(2, changes, chunks=12)  # blocks that were not let go would fill the pool
    assert many == [one, one]
    moves = [entry for entry in hub.log if entry.startswith("histories")]
    assert len(moves) > 3, "hardly a history moved, so this shows nothing"
    assert len(moves) < 12


def test_a_history_travels_with_its_blocks_and_what_a_merge_was_before_rounding():
    changes = {
        "search.histories": 4,
        "memory.transition_threshold": math.inf,  # everything good is merged
        "memory.quality_threshold": -math.inf,
        "search.seed": 3,
        "run.ranks": 2,
    }

    def holdings(engine, state):
        """What each history holds, by its place among all; every reference is counted."""
        pool = engine.engine.pool
        pool.check([one.memory for one in state.line.survivors])
        return {
            (state.line.index, place): [
                (raw(pool.kv[:, slot.block]), raw(pool.shadows.get(slot.block, torch.zeros(0))))
                for slot in one.memory.slots
            ]
            for place, one in state.mine.items()
        }

    def stream(engine):
        before, after, balanced = {}, {}, engine._balanced

        def watched(state):
            before.update(holdings(engine, state))
            state = balanced(state)
            after.update(holdings(engine, state))
            return state

        engine._balanced = watched
        return told(engine.stream("x")), before, after

    def build(rank):
        return engine_of(changes, chunks=12, dit=tiny_dit(dtype=torch.bfloat16))

    (first, second), _ = on_ranks(2, build, stream)
    alone = {**changes, "run.ranks": 1}
    one = told(engine_of(alone, chunks=12, dit=tiny_dit(dtype=torch.bfloat16)).stream("x"))
    assert first[0] == second[0] == one
    assert first[1] | second[1] == first[2] | second[2]
    moved = [key for key in first[1] if key not in first[2]]
    assert any(shadow for key in moved for _, shadow in first[1][key]), "no merged sink moved"


def test_scenes_change_on_all_ranks_and_the_final_rating_is_of_the_last():
    one, many, _ = both(2, {"search.histories": 3}, SCENES)
    assert many == [one, one]
    assert one != told(engine_of({"search.histories": 3}).stream("one"))


def test_a_real_decoder_s_state_goes_where_its_history_goes():
    one, many, hub = both(
        2, {"search.histories": 4}, decoder=tiny_vae(), dit=tiny_dit(dtype=torch.float32)
    )
    assert any(entry.startswith("histories") for entry in hub.log)
    assert many == [one, one]


def test_a_tiny_decoder_for_rewards_is_streamed_by_each_owner():
    one, many, _ = both(
        2,
        {"search.histories": 4},
        scoring=tiny_vae(),
        decoder=tiny_vae(),
        dit=tiny_dit(dtype=torch.float32),
    )
    assert many == [one, one]


def nan_for_two(frames, chunk):
    """A reward that cannot judge about every third clip."""
    return (
        math.nan if int(frames.double().abs().sum() * 1e6) % 3 == 0 else prettiness(frames, chunk)
    )


def test_candidates_that_cannot_be_judged_die_on_every_rank():
    one, many, _ = both(
        2, {"search.histories": 3, "search.expansions": 3}, image=Likes(nan_for_two)
    )
    assert many == [one, one]


def test_every_owner_rates_its_whole_videos_settled_chunks_included():
    def lengths(engine):
        seen = []

        def judge(frames, chunk):
            seen.append(len(frames))
            return motion(frames, chunk)

        inner = getattr(engine, "engine", engine)
        inner.guards["final"] = Likes(judge)
        return told(engine.stream("x")), seen

    one, single = lengths(engine_of(chunks=8))
    made, _ = on_ranks(2, lambda rank: engine_of(chunks=8), lengths)
    assert [events for events, _ in made] == [one, one]
    assert single == [8 * 6 - 1] * 2
    assert [seen for _, seen in made] == [[8 * 6 - 1]] * 2


def test_ranks_without_histories_wait_and_tell_the_same():
    one, many, hub = both(4, {"search.policy": "single"})
    assert many == [one] * 4
    assert not any(entry.startswith("histories") for entry in hub.log)
    made, _ = on_ranks(4, lambda rank: engine_of(), lambda engine: engine.idle)
    assert made == [False, False, True, True]


def test_every_rank_gives_its_blocks_back():
    def used(engine):
        for _ in engine.stream("x"):
            pass
        engine.engine.pool.check([])
        return engine.engine.pool.used, len(engine.engine.pool.shadows)

    made, _ = on_ranks(3, lambda rank: engine_of({"search.histories": 5}), used)
    assert made == [(0, 0)] * 3


def test_who_watches_sees_all_candidates_and_who_does_not_is_not_asked():
    def records(engine):
        seen = []
        watch = (
            seen.append
            if getattr(engine, "world", None) is None or engine.world.rank == 0
            else None
        )
        for _ in engine.stream("x", watch=watch):
            pass
        return seen

    single = records(engine_of({"search.histories": 3}))
    (first, second), _ = on_ranks(2, lambda rank: engine_of({"search.histories": 3}), records)
    assert second == []
    assert len(first) == len(single) == CHUNKS
    for mine, its in zip(first, single, strict=True):
        assert torch.equal(mine.frames, its.frames)
        assert (mine.index, mine.chunks, mine.kept) == (its.index, its.chunks, its.kept)
        assert [
            (c.row, c.branch.seed, c.branch.rank, repr(c.scores), c.route) for c in mine.candidates
        ] == [
            (c.row, c.branch.seed, c.branch.rank, repr(c.scores), c.route) for c in its.candidates
        ]
        assert [(s.seed, s.score) for s in mine.survivors] == [
            (s.seed, s.score) for s in its.survivors
        ]


# Litters


def test_a_litter_is_drawn_by_one_rank_whatever_their_number():
    policy = engine_of({"search.histories": 3, "search.expansions": 2}).policy
    owners = dealt(policy, Board(), 0, 2).owners
    assert owners == (0, 0, 0, 0, 1, 1)


def test_litters_make_a_video_independent_of_its_company():
    alone = [told(engine_of().stream(prompt)) for prompt in ("a", "b")]
    company = [[], []]
    for number, event in engine_of({"run.prompts": 2}).stream_many(["a", "b"]):
        company[number].append(event)
    assert [told(events) for events in company] == alone
