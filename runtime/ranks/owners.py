"""Which rank owns which history and which row: pure functions of numbers, the same on every rank.

A *litter* is the candidates of one parent. It is drawn whole, where its parent's blocks are; at chunk 0, where all
candidates have one parent that holds nothing, the candidates that one history will draw later are a litter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """A history that changes its rank."""

    position: int  # among the survivors, best first
    source: int
    target: int


def first_owners(litters: int, ranks: int) -> tuple[int, ...]:
    """Who draws which of the first chunk's litters: neighbours together, as many for each rank as for any other."""
    _check_ranks(ranks)
    return tuple(
        litter * ranks // litters if litters > ranks else litter for litter in range(litters)
    )


def rebalanced(owners: Sequence[int], ranks: int) -> tuple[int, ...]:
    """The owners after as few moves as bring every rank to at most its share, ``ceil(histories / ranks)``.

    Of a rank that has too many, the worst-ranked histories go, the worst of all first, each to the rank that has the
    fewest then; the lower rank of equals.
    """
    _check_ranks(ranks)
    share = share_of(len(owners), ranks)
    after, load = list(owners), Counter(owners)
    for position in reversed(range(len(after))):
        source = after[position]
        if load[source] > share:
            target = min(range(ranks), key=lambda rank: load[rank])
            load[source] -= 1
            load[target] += 1
            after[position] = target
    return tuple(after)


def moves_between(before: Sequence[int], after: Sequence[int]) -> tuple[Move, ...]:
    """What has to travel, in an order that every rank follows."""
    pairs = enumerate(zip(before, after, strict=True))
    return tuple(Move(at, source, target) for at, (source, target) in pairs if source != target)


def share_of(histories: int, ranks: int) -> int:
    """The most histories that one rank owns once they are balanced."""
    return -(-histories // ranks)


def _check_ranks(ranks: int) -> None:
    if ranks < 1:
        raise ValueError(f"ranks: want at least 1, got {ranks}")
