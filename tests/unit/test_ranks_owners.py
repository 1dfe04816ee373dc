"""Who owns what: pure numbers, checked against what they promise for any number of histories and ranks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.memory import pool_blocks
from runtime.ranks.owners import first_owners, moves_between, rebalanced
from runtime.settings import MemorySettings


@st.composite
def owned(draw):
    ranks = draw(st.integers(1, 9))
    return draw(st.lists(st.integers(0, ranks - 1), min_size=1, max_size=24)), ranks


@given(owned())
def test_nobody_has_more_than_a_share_and_no_more_moves_than_needed(case):
    owners, ranks = case
    after = rebalanced(owners, ranks)
    share = -(-len(owners) // ranks)
    assert max(Counter(after).values()) <= share
    assert set(after) <= set(range(ranks))
    needed = sum(max(0, count - share) for count in Counter(owners).values())
    assert len(moves_between(owners, after)) == needed


@given(owned())
def test_balanced_histories_stay_where_they_are(case):
    after = rebalanced(*case)
    assert rebalanced(after, case[1]) == after


@given(st.integers(1, 40), st.integers(1, 9))
def test_first_litters_are_neighbours_and_evenly_divided(litters, ranks):
    owners = first_owners(litters, ranks)
    assert list(owners) == sorted(owners)
    loads = Counter(owners)
    assert len(loads) == min(litters, ranks)
    assert max(loads.values()) - min(loads.values()) <= 1


def test_the_worst_histories_travel_to_the_emptiest_rank():
    assert rebalanced([0, 0, 0, 1], 2) == (0, 0, 1, 1)
    assert rebalanced([1, 1, 1, 1], 4) == (1, 3, 2, 0)
    assert [
        (m.position, m.source, m.target) for m in moves_between([0, 0, 0, 1], [0, 0, 1, 1])
    ] == [(2, 0, 1)]


def test_a_rank_holds_its_share_alone_and_every_survivor_for_a_moment():
    memory = MemorySettings()
    assert memory.max_blocks == 8
    assert pool_blocks(memory, 4) == pool_blocks(memory, 4, 1) == 4 * 8 + 1
    assert pool_blocks(memory, 4, 2) == 2 * 7 + 4 + 1
    assert pool_blocks(memory, 5, 2) == 3 * 7 + 5 + 1


def test_no_ranks_are_refused():
    with pytest.raises(ValueError, match="ranks: want at least 1, got 0"):
        rebalanced([0], 0)
