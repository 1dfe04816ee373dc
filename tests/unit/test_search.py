"""Which candidates are drawn, from which seeds, and which of them go on."""

import math

import pytest

from runtime.search import Independent, Pruned, build_policy, within_horizon
from runtime.settings import SearchSettings
from runtime.types import Branch, Candidate, Chunk, Route, Scores, Trajectory

NAN, INF = math.nan, math.inf


def policy(released: bool = False, sinking: bool = True, **search):
    return build_policy(SearchSettings(**search), released, sinking)


def survivors(count: int) -> list[Trajectory]:
    return [Trajectory(seed=7 + rank, seed_chunk=rank) for rank in range(count)]


def seeds(branches) -> list[int]:
    return [branch.seed for branch in branches]


def candidates(*scores: float) -> list[Candidate]:
    return [
        Candidate(
            Branch(Trajectory(), 0, row, row, 0), row, None, None, Scores(0, 0, score), Route.EMA
        )
        for row, score in enumerate(scores)
    ]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("histories", "expansions"), [(1, 1), (2, 2), (3, 1), (1, 4)])
def test_the_first_chunk_draws_every_candidate_from_a_seed_of_its_own(
    histories, expansions, released
):
    branches = policy(released, histories=histories, expansions=expansions).expand(
        [Trajectory()], 0
    )
    assert seeds(branches) == [42 + i for i in range(histories * expansions)]
    assert all(branch.seed_chunk == 0 for branch in branches)


def test_later_chunks_draw_fresh_seeds_in_rank_order():
    branches = policy(histories=3, expansions=2, seed=5).expand(survivors(3), 4)
    assert seeds(branches) == [4005, 4006, 4105, 4106, 4205, 4206]
    assert [(b.rank, b.expansion) for b in branches] == [(r, i) for r in range(3) for i in range(2)]
    assert all(branch.seed_chunk == 4 for branch in branches)


def test_the_released_first_expansion_repeats_its_historys_draws():
    branches = policy(True, histories=2, expansions=3).expand(survivors(2), 6)
    assert seeds(branches) == [7, 6043, 6044, 8, 6143, 6144]
    assert [branch.seed_chunk for branch in branches] == [0, 6, 6, 1, 6, 6]


def test_a_pool_that_shrank_draws_fewer_candidates():
    branches = policy(histories=4, expansions=2).expand(survivors(1), 3)
    assert [(b.rank, b.expansion) for b in branches] == [(0, 0), (0, 1)]


def test_no_two_draws_of_a_paper_search_share_a_seed():
    search = policy(histories=10, expansions=100)
    drawn = [
        (branch.seed, branch.seed_chunk)
        for index in range(4)
        for branch in search.expand(survivors(10) if index else [Trajectory()], index)
    ]
    assert len(set(drawn)) == len(drawn) == 4000


def test_the_best_go_on_best_first():
    assert policy(histories=3).select(candidates(0.1, 0.9, -1.0, 0.5, 0.7)) == (1, 4, 3)


def test_earlier_candidates_win_ties():
    assert policy(histories=3).select(candidates(0.5, 1.0, 0.5, 1.0, 0.5)) == (1, 3, 0)


def test_fewer_candidates_than_histories_all_go_on():
    assert policy(histories=4).select(candidates(0.1, 0.2)) == (1, 0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_score_that_is_not_finite_is_never_selected(bad):
    assert policy(histories=3).select(candidates(bad, -9.0, bad, -10.0, bad)) == (1, 3)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_no_finite_score_at_all_is_an_error(bad):
    with pytest.raises(RuntimeError, match="none of the 4 candidates has a finite score; a reward"):
        policy(histories=2).select(candidates(bad, bad, bad, bad))


def test_histories_that_never_meet_select_nothing():
    search = policy(policy="best-of-n", histories=2, expansions=2)
    assert search.select(candidates(0.1, NAN, 0.9, 0.5)) == (0, 1, 2, 3)
    assert seeds(search.expand([Trajectory()], 0)) == [42, 43, 44, 45]
    assert seeds(search.expand(survivors(4), 2)) == [2042, 2142, 2242, 2342]


@pytest.mark.parametrize(
    ("search", "kind", "histories", "true"),
    [
        ({}, Pruned, 2, "propagates sinks judges rates prunes"),
        ({"propagation": False}, Pruned, 2, "sinks judges rates prunes"),
        ({"pruning": False}, Independent, 1, "propagates sinks judges"),
        ({"pruning": False, "propagation": False}, Independent, 1, "sinks judges"),
        ({"policy": "beam"}, Pruned, 2, "judges rates prunes"),
        ({"policy": "single"}, Independent, 1, ""),
        ({"policy": "best-of-n"}, Independent, 6, "rates"),
        ({"policy": "best-of-n", "histories": 1, "expansions": 1}, Independent, 1, ""),
    ],
    ids=str,
)
def test_a_policy_is_its_switches(search, kind, histories, true):
    built = policy(**{"histories": 2, "expansions": 3, **search})
    assert type(built) is kind and built.histories == histories
    switches = ("propagates", "sinks", "judges", "rates", "prunes")
    assert [name for name in switches if getattr(built, name)] == true.split()


def test_without_sinking_the_memory_is_not_routed():
    assert not policy(sinking=False).sinks and not policy(sinking=False, pruning=False).sinks


def lineage(*chunks: Chunk) -> Trajectory:
    return Trajectory(unsettled=chunks)


def chunk(index: int) -> Chunk:
    return Chunk(index, 0, None, None, Scores(0, 0, 0), Route.EMA)


def test_an_old_disagreement_is_settled_for_the_best_history():
    """Leader and follower differ three chunks ago; the third history differs in the newest only."""
    a, b, c = chunk(0), chunk(1), chunk(2)
    pool = (lineage(a, b, c), lineage(chunk(0), b, c), lineage(a, b, chunk(2)))
    assert within_horizon(pool, 3) == pool
    assert within_horizon(pool, 2) == (pool[0], pool[2])
    assert within_horizon(pool, 1) == (pool[0], pool[2])


def test_a_horizon_of_one_leaves_what_shares_all_but_the_newest():
    a, b = chunk(0), chunk(1)
    pool = (lineage(a, b), lineage(a, chunk(1)), lineage(chunk(0), b))
    assert within_horizon(pool, 1) == pool[:2]
