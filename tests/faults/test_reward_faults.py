"""A reward that fails costs a video what that reward knew: which candidate is chosen, and how, without it."""

import math

import pytest
import torch

from runtime.types import Clip, Route
from tests.faulty import AT, CHUNKS, DEGRADE, JUDGES, ROUTES, Faulty, at, broken, column, made, once
from tests.tiny import ByRow, tiny_engine

NAN = math.nan


@pytest.mark.parametrize("role", ["image", "video"])
def test_a_reward_that_raises_once_a_chunk_changes_nothing(role):
    latents, records = made(tiny_engine(CHUNKS, ROUTES))
    again, told = made(broken(role, once(), ROUTES))
    assert torch.equal(again, latents)
    assert [r.kept for r in told] == [r.kept for r in records]
    assert all(record.incidents == () for record in told)


@pytest.mark.parametrize("on_error", ["fail", "degrade"])
@pytest.mark.parametrize("role", ["image", "video"])
def test_a_candidate_that_a_reward_cannot_take_is_never_selected(role, on_error):
    _, records = made(tiny_engine(CHUNKS, ROUTES))
    best = records[AT].kept[0]
    unliked = column(records[AT], "short" if role == "image" else "long")[best]

    def trouble(clip: Clip, call: int) -> None:
        if clip.chunk == AT and any(JUDGES[role](f, AT) == unliked for f in clip.frames):
            raise ValueError("not this one")

    _, told = made(broken(role, trouble, {**ROUTES, "reward.on_error": on_error}))
    assert best not in told[AT].kept and len(told[AT].kept) == 2
    (incident,) = told[AT].incidents
    assert (incident.role, incident.rows, incident.kind) == (role, (best,), "raised")
    assert "ValueError: not this one" in incident.reason
    assert told[AT].candidates[best].route is Route.DISCARD
    assert [record.incidents for record in told if record.index != AT] == [()] * (CHUNKS - 1)


@pytest.mark.parametrize("role", ["image", "video"])
@pytest.mark.parametrize("chunk", [0, AT, CHUNKS - 1])
def test_a_reward_that_judges_nothing_ends_the_video_with_its_reason(role, chunk):
    engine = broken(role, at(chunk), ROUTES)
    reason = (
        rf"none of the 4 candidates has a finite score; .*{role} reward: no score for 4 candidates "
        rf"of chunk {chunk} \(raised\): ValueError: broken on purpose; mend it, or set reward.on_error"
    )
    with pytest.raises(RuntimeError, match=reason):
        made(engine)
    engine.pool.check([])


@pytest.mark.parametrize("role", ["image", "video"])
@pytest.mark.parametrize("chunk", [0, AT, CHUNKS - 1])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_a_degraded_video_goes_on_by_the_other_reward(role, chunk, fidelity):
    _, told = made(broken(role, at(chunk), {**DEGRADE, "fidelity": fidelity}))
    assert len(told) == CHUNKS
    record = told[chunk]
    known, lost = ("long", "short") if role == "image" else ("short", "long")
    scores = column(record, known)
    assert list(record.kept) == sorted(range(4), key=lambda row: -scores[row])[:2]
    assert column(record, "fused") == scores and all(map(math.isnan, column(record, lost)))
    assert {candidate.route for candidate in record.candidates} == {Route.DISCARD}
    assert [incident.role for incident in record.incidents] == [role]


@pytest.mark.parametrize("chunk", [0, 1, AT])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_without_any_reward_the_histories_keep_their_order(chunk, fidelity):
    def every(clip: Clip, call: int) -> None:
        at(chunk)(clip, call)

    parts = {role: Faulty(role, every) for role in JUDGES}
    _, told = made(tiny_engine(CHUNKS, {**DEGRADE, "fidelity": fidelity}, **parts))
    assert told[chunk].kept == (0, 1)
    assert [incident.role for incident in told[chunk].incidents] == ["video", "image"]
    parents = [candidate.branch.parent.score for candidate in told[chunk].candidates]
    assert column(told[chunk], "fused") == parents
    assert len(told) == CHUNKS and not told[-1].incidents


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_what_was_not_judged_poisons_neither_means_nor_gates(fidelity):
    parts = {role: Faulty(role, at(AT)) for role in JUDGES}
    _, told = made(tiny_engine(CHUNKS, {**DEGRADE, "fidelity": fidelity}, **parts))
    for before in told[AT].candidates:
        parent = before.branch.parent
        for after in (s for s in told[AT].survivors if s.seed == before.branch.seed):
            assert (after.shorts, after.short_sum, after.judged) == (parent.shorts, parent.short_sum, AT)  # fmt: skip
            assert (after.long, after.score) == (parent.long, parent.score)
    for candidate in told[AT + 1].candidates:
        parent, scores = candidate.branch.parent, candidate.scores
        mean = sum(parent.shorts) / AT  # chunks that were judged
        assert scores.quality_gain == pytest.approx(scores.short - mean)
        assert scores.long_drop == parent.long - scores.long
        assert candidate.route is not Route.DISCARD  # the threshold lets everything through


@pytest.mark.parametrize("role", ["image", "video"])
def test_a_first_chunk_that_was_not_judged_leaves_gates_shut_and_not_guessed(role):
    _, told = made(broken(role, at(0)))
    for candidate in told[1].candidates:
        unknown = candidate.scores.quality_gain if role == "image" else candidate.scores.long_drop
        assert math.isnan(unknown)
        assert candidate.route is (Route.DISCARD if role == "image" else Route.EMA)
    assert all(
        math.isfinite(c.scores.quality_gain + c.scores.long_drop) for c in told[2].candidates
    )


def test_a_reward_that_is_never_there_still_makes_a_video():
    def never(clip: Clip, call: int) -> None:
        raise OSError("no such model server")

    parts = {role: Faulty(role, never) for role in JUDGES}
    halving = {"search.policy": "halving", "search.draft_passes": 1}
    latents, told = made(tiny_engine(CHUNKS, {**DEGRADE, **halving}, **parts))
    assert latents.isfinite().all() and len(latents) == 3 * CHUNKS
    assert {i.role for record in told for i in record.incidents} == {"image", "video", "draft"}


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf], ids=str)
def test_numbers_that_are_none_are_noted_as_another_kind(bad):
    scores = ByRow(lambda chunk, rows: [bad if chunk == AT and row == 1 else 0.0 for row in range(rows)])  # fmt: skip
    _, told = made(tiny_engine(CHUNKS, DEGRADE, video=scores))
    (incident,) = told[AT].incidents
    assert (incident.role, incident.kind, incident.rows) == ("video", "not finite", (1,))
    assert f"the model returns {bad} for 1 of 4" in incident.reason
    assert 1 not in told[AT].kept


def test_rewards_that_judge_different_candidates_leave_the_one_that_judged_more():
    image = ByRow(lambda chunk, rows: [NAN, NAN, NAN, 5.0] if chunk == AT else [0.0] * rows)
    video = ByRow(lambda chunk, rows: [1.0, 2.0, NAN, NAN] if chunk == AT else [0.0] * rows)
    _, told = made(tiny_engine(CHUNKS, DEGRADE, image=image, video=video))
    assert told[AT].kept == (1, 0)
    with pytest.raises(RuntimeError, match="none of the 4 candidates has a finite score"):
        made(tiny_engine(CHUNKS, ROUTES, image=image, video=video))


@pytest.mark.parametrize("on_error", ["fail", "degrade"])
def test_a_final_rating_that_fails_falls_to_the_best_so_far_or_ends_the_video(on_error):
    def never(clip: Clip, call: int) -> None:
        raise ValueError("broken on purpose")

    apart = ByRow(lambda chunk, rows: [float(row % 2 == 0) for row in range(rows)])
    engine = tiny_engine(
        CHUNKS, {"reward.on_error": on_error}, video=apart, final=Faulty("video", never)
    )
    if on_error == "fail":
        with pytest.raises(RuntimeError, match="none of the 2 videos has a final score: .*on purp"):
            made(engine)
        engine.pool.check([])
        return
    latents, told = made(engine)
    assert torch.equal(latents[-3:], told[-1].candidates[told[-1].kept[0]].latents)
    assert [i.role for i in engine.recipe.scorer.incidents(0)] == ["final"]
