"""One video over several ranks is the video of one rank, bit for bit; ranks here are threads, see ``tests/ranked.py``."""

import math
from collections import Counter

import pytest
import torch

from runtime.ranks.deal import Board, dealt
from runtime.ranks.world import RankFailed
from tests.ranked import on_ranks
from tests.tiny import ByRow, Likes, prettiness, tiny_dit, tiny_engine, tiny_vae

ROUTES = {"memory.quality_threshold": -0.3, "memory.transition_threshold": 0.0}
ALIKE = {**ROUTES, "run.litters": True}
CHUNKS = 6
SCENES = [(0, "one"), (4, "two")]


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def told(events) -> list:
    """Everything of a video that a user could compare."""
    return [
        (
            e.index,
            e.seed,
            e.route,
            repr(e.scores),
            raw(e.frames),
            raw(e.latents),
        )
        for e in events
    ]


def engine_of(changes=None, chunks=CHUNKS, **parts):
    return tiny_engine(chunks, {**ALIKE, **(changes or {})}, **parts)


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
    one, many, hub = both(2, changes)
    assert many == [one, one]
    moves = [entry for entry in hub.log if entry.startswith("histories")]
    assert moves, "no history moved, so this shows nothing"
    assert len(moves) < CHUNKS * 2


def test_a_merged_sink_travels_with_what_it_was_before_rounding():
    changes = {
        "search.histories": 4,
        "memory.transition_threshold": math.inf,  # everything good is merged
        "memory.quality_threshold": -math.inf,
        "memory.ema_alpha": 0.7,
        "search.seed": 3,
    }
    one, many, hub = both(2, changes, dit=tiny_dit(dtype=torch.bfloat16))
    assert Counter(route.value for _, _, route, *_ in one)["ema"] > 3
    assert any(entry.startswith("histories") for entry in hub.log)
    assert many == [one, one]


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


# One that fails stops all


def fails_on(rank, error):
    """An engine whose decoder raises on one rank, from chunk 3 on."""

    def build(mine):
        engine = engine_of({"search.histories": 3})
        decoder = engine.parts.generator.decoder
        decode, calls = decoder.decode, []

        def broken(latents, state):
            if state is not None:
                calls.append(latents)
            if mine == rank and len(calls) > 2:
                raise error
            return decode(latents, state)

        decoder.decode = broken
        return engine

    return build


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("no memory"),
            "rank 1 gave up: no memory to decode one candidate; ",
        ),
        (RuntimeError("the decoder broke"), "rank 1 gave up: the decoder broke"),
        (OSError(), "rank 1 gave up: OSError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_that_fails_stops_all_at_the_same_chunk_by_its_name(error, sentence):
    def use(engine):
        events = []
        try:
            for event in engine.stream("x"):
                events.append(event.index)
        except Exception as reason:
            return events, reason, engine.engine.pool.used
        return events, None, None

    (zero, one, two), _ = on_ranks(3, fails_on(1, error), use)
    assert one[1] is error or one[1].__cause__ is error
    for events, reason, used in (zero, two):
        assert isinstance(reason, RankFailed) and str(reason).startswith(sentence)
        assert (events, used) == (one[0], 0)


@pytest.mark.parametrize("on_error", ["fail", "degrade"])
def test_clips_that_a_reward_fails_for_are_out_on_every_rank(on_error):
    def fussy(frames, chunk):
        if chunk and int(frames.double().abs().sum() * 1e6) % 3 == 0:
            raise RuntimeError("I do not like this one")
        return prettiness(frames, chunk)

    changes = {"search.histories": 3, "search.expansions": 3, "reward.on_error": on_error}

    def records(engine):
        seen = []
        events = told(engine.stream("x", watch=seen.append))
        return events, [
            sorted((i.role, i.kind, row) for i in r.incidents for row in i.rows) for r in seen
        ]

    one = records(engine_of(changes, image=Likes(fussy)))
    assert any(one[1]), "no clip failed, so this shows nothing"
    many, _ = on_ranks(2, lambda rank: engine_of(changes, image=Likes(fussy)), records)
    assert many == [one, one]


@pytest.mark.parametrize("on_error", ["fail", "degrade"])
def test_a_reward_that_always_fails_ends_or_degrades_the_video_on_all_ranks(on_error):
    def broken(frames, chunk):
        raise RuntimeError("out of order")

    def outcome(engine):
        try:
            return told(engine.stream("x"))
        except RuntimeError as error:
            return str(error)

    def build(rank):
        return engine_of({"reward.on_error": on_error, "search.histories": 3}, image=Likes(broken))

    many, _ = on_ranks(2, build, outcome)
    assert many == [outcome(build(0))] * 2
    assert isinstance(many[0], str) == (on_error == "fail")


def test_no_finite_score_is_said_alike_by_all():
    made, _ = on_ranks(
        2,
        lambda rank: engine_of(image=ByRow(lambda chunk, rows: [math.nan] * rows)),
        lambda engine: list(engine.stream("x")),
    )
    assert [str(error) for error in made] == [str(made[0])] * 2
    assert "none of the 4 candidates has a finite score" in str(made[0])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda rank: engine_of({"search.seed": rank}),
            "search.seed: want 0 on all ranks, as on rank 0, got 1 on rank 1",
        ),
        (lambda rank: engine_of(chunks=6 + rank), "seconds: want 18.0 on all ranks"),
        (lambda rank: engine_of(dit=tiny_dit(1 + rank)), "weights of the generator: want "),
    ],
    ids=["seed", "seconds", "weights"],
)
def test_ranks_that_differ_are_refused_by_the_name_of_what_differs(build, sentence):
    made, _ = on_ranks(2, build, lambda engine: None)
    for error in made:
        assert isinstance(error, ValueError) and str(error).startswith(sentence), error


def test_one_changed_weight_is_another_model():
    def build(rank):
        dit = tiny_dit()
        with torch.no_grad():
            weight = dit.blocks[0].ffn[0].weight if rank else None
            if weight is not None:
                weight[0, :2] = weight[0, [1, 0]]  # their sum stays the same
        return engine_of(dit=dit)

    made, _ = on_ranks(2, build, lambda engine: None)
    assert all("weights of the generator" in str(error) for error in made), made


def test_other_prompts_on_another_rank_are_refused():
    made, _ = on_ranks(
        2,
        lambda rank: engine_of(),
        lambda engine: list(engine.stream(f"of rank {engine.world.rank}")),
    )
    assert [str(error) for error in made] == [
        "prompts: want the same on all ranks, got 2 kinds"
    ] * 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"run.speculate": True},
            "run.speculate: want false for a video over several ranks, got True",
        ),
        ({"run.schedule": "released"}, "run.schedule: want survivors for"),
        ({"run.prompts": 2}, "run.prompts: want 1 for"),
        (
            {"search.policy": "halving", "search.draft_passes": 1},
            "search.policy: want any other policy for",
        ),
    ],
    ids=["speculate", "schedule", "prompts", "halving"],
)
def test_what_ranks_cannot_do_is_refused(changes, sentence):
    made, _ = on_ranks(2, lambda rank: engine_of(changes), lambda engine: None)
    assert all(isinstance(e, ValueError) and str(e).startswith(sentence) for e in made), made


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
