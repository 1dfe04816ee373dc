"""More candidates are begun than finished: the early choice is made per history, on one frame, and costs fewer passes."""

import math

import pytest
import torch

from runtime.rewards.stub import Stub
from runtime.search import build_policy
from runtime.settings import SearchSettings, Settings
from runtime.types import Branch, Clip, Trajectory
from tests.tiny import ByRow, tiny_engine, tiny_vae

CHANGES = {
    "search.policy": "halving",
    "search.drafts": 4,
    "search.draft_passes": 1,
    "memory.quality_threshold": -0.3,
    "memory.transition_threshold": 0.0,
}


def policy(**settings):
    return build_policy(SearchSettings(policy="halving", **settings), False, True)


def branches(*ranks: int, first: bool = False) -> tuple[Branch, ...]:
    noise = None if first else torch.zeros(1)
    parents = [Trajectory(noise=noise) for _ in range(max(ranks) + 1)]
    return tuple(Branch(parents[rank], rank, i, i, 0) for i, rank in enumerate(ranks))


@pytest.mark.parametrize(
    ("scores", "rows"),
    [
        ([1, 4, 2, 3, 9, 8, 7, 6], (1, 3, 4, 5)),  # each history keeps its two best
        ([0] * 8, (0, 1, 4, 5)),  # earlier rows win ties
        ([math.nan, 1, math.inf, 0, -math.inf, math.nan, -5, -6], (1, 3, 6, 7)),
        ([math.nan] * 8, (0, 1, 4, 5)),
    ],
    ids=["best", "ties", "not finite", "nothing finite"],
)
def test_each_history_finishes_its_best_drafts(scores, rows):
    drawn = branches(0, 0, 0, 0, 1, 1, 1, 1)
    assert policy(drafts=4).finalists(drawn, scores) == rows


def test_a_first_chunk_finishes_as_many_as_all_histories_would():
    drawn = branches(*[0] * 8, first=True)
    assert policy(drafts=4).finalists(drawn, [3, 1, 4, 1, 5, 9, 2, 6]) == (2, 4, 5, 7)


def run(changes: dict, chunks: int = 5, **parts) -> tuple[list, torch.Tensor, list[int]]:
    engine, records, rows = tiny_engine(chunks, changes, **parts), [], []
    forward = engine.denoiser.dit.forward

    def counted(x, *args):
        rows.append(len(x))
        return forward(x, *args)

    engine.denoiser.dit.forward = counted
    events = list(engine.stream("x", watch=records.append))
    engine.pool.check([])
    return records, torch.cat([event.latents for event in events]), rows


def test_drafts_get_some_passes_and_finalists_the_rest():
    records, _, rows = run(CHANGES)
    assert rows == [8, 4] * 5  # two passes: K x drafts rows, then K x M
    assert [len(record.candidates) for record in records] == [4] * 5


def test_finishing_every_draft_is_the_full_search():
    """Same seeds, same noise, same decisions: the cut alone is what the policy adds."""
    full, latents, _ = run({**CHANGES, "search.policy": "stream-t1", "search.expansions": 4})
    cut, same, _ = run({**CHANGES, "search.expansions": 4})
    assert [r.kept for r in cut] == [r.kept for r in full]
    assert (same - latents).abs().max() < 1e-12


def test_a_finalist_is_the_candidate_it_would_have_been():
    """The rest of the passes knows the draft's own noise."""
    full, _, _ = run({**CHANGES, "search.policy": "stream-t1", "search.expansions": 4}, 1)
    cut, _, _ = run(CHANGES, 1)
    whole = {c.branch.seed: c.latents for c in full[0].candidates}
    for candidate in cut[0].candidates:
        assert (candidate.latents - whole[candidate.branch.seed]).abs().max() < 1e-12


def test_the_early_choice_sees_one_frame_of_every_draft():
    seen: list[tuple[int, ...]] = []

    class Noting(Stub):
        def score(self, clip: Clip) -> torch.Tensor:
            seen.append(tuple(clip.frames.shape[:2]))
            return super().score(clip)

    run(CHANGES, 2, image=Noting(), decoder=tiny_vae())
    assert seen == [(8, 1), (4, 9), (8, 1), (4, 12)]


def test_the_best_drafts_are_the_ones_that_win():
    """A reward that likes two rows early keeps exactly those."""
    wanted = [0.0, 5.0, 0.0, 4.0, 0.0, 0.0, 3.0, 2.0]
    by_row = ByRow(lambda chunk, rows: wanted if rows == 8 else [0.0] * rows)
    records, _, _ = run(CHANGES, 1, image=by_row)
    assert [c.branch.seed - 42 for c in records[0].candidates] == [1, 3, 6, 7]


def test_passes_that_leave_nothing_to_finish_are_refused():
    with pytest.raises(ValueError, match="draft_passes: want fewer than the 2 passes of a chunk"):
        tiny_engine(1, {**CHANGES, "search.draft_passes": 2})
    with pytest.raises(ValueError, match="search.drafts: want at least 2, got 1"):
        Settings().with_changes({"search.policy": "halving", "search.drafts": 1})
