"""What stops a video over several ranks stops it on all of them, in the same sentence; ranks here are threads."""

import math

import pytest
import torch

from runtime.__main__ import main
from runtime.ranks.world import RankFailed
from tests.ranked import engine_of, on_ranks, told
from tests.tiny import ByRow, Likes, prettiness, tiny_dit


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "run.ranks=2"], "run.ranks: want 2 processes, got one; start them by torchrun"),
        (["--rank-timeout", "0"], "--rank-timeout: want more than 0, got 0.0"),
    ],
)
def test_ranks_are_torchrun_s_to_say(arguments, sentence, capsys, tmp_path):
    assert main(["x", "-o", str(tmp_path / "x.mp4"), *arguments], lambda settings: None) == 2
    assert sentence in capsys.readouterr().err
