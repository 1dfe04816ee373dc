"""What every rank knows of a search, and who draws what of the next chunk. Host values, equal on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.grow import grow, grow_candidates
from runtime.ranks.owners import first_owners
from runtime.search import SearchPolicy, within_horizon
from runtime.types import Branch, Candidate, Memory, Route, Scores, Shown, Trajectory

NOTHING = torch.empty(0)
UNSEEN = Shown(NOTHING, NOTHING, None, None)
Verdict = tuple[Scores, Route]
VERDICT_NUMBERS = 6
ROUTES = tuple(Route)


@dataclass(frozen=True, slots=True)
class Board:
    """All histories as facts without tensors, best first, and who owns each."""

    ghosts: tuple[Trajectory, ...] = (Trajectory(),)
    owners: tuple[int, ...] = ()  # (): nothing was drawn yet


@dataclass(frozen=True, slots=True)
class Deal:
    """The candidates of one chunk and who draws each."""

    branches: tuple[Branch, ...]  # of ghosts
    owners: tuple[int, ...]

    def rows_of(self, rank: int) -> tuple[int, ...]:
        return tuple(row for row, owner in enumerate(self.owners) if owner == rank)

    @property
    def width(self) -> int:
        """The most numbers that a rank's verdicts have."""
        return VERDICT_NUMBERS * max(map(self.owners.count, set(self.owners)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all ranks decide once a chunk's scores are known."""

    candidates: tuple[Candidate, ...]
    kept: tuple[int, ...]  # rows that survive, the horizon's will included, best first
    board: Board  # of the survivors, still where they were drawn


def dealt(policy: SearchPolicy, board: Board, index: int, ranks: int) -> Deal:
    """The candidates of chunk ``index``: each goes to its parent's owner, those of the first chunk by litters."""
    branches = policy.expand(board.ghosts, index)
    if board.owners:
        return Deal(branches, tuple(board.owners[branch.rank] for branch in branches))
    litters = first_owners(len(branches) // policy.litter, ranks)
    return Deal(branches, tuple(litters[row // policy.litter] for row in range(len(branches))))


def decided(
    policy: SearchPolicy, deal: Deal, verdicts: Sequence[Verdict], index: int, horizon: int
) -> Outcome:
    """Who survives. RuntimeError when no candidate has a finite score, on all ranks alike."""
    nothing = NOTHING.expand(len(verdicts), 0)
    candidates = grow_candidates(deal.branches, nothing, nothing, verdicts)
    kept = policy.select(candidates)
    grown = tuple(grow(candidates[row], index, Memory(), UNSEEN, 1) for row in kept)
    alive = within_horizon(grown, horizon) if policy.prunes else grown
    rows = tuple(
        row for row, ghost in zip(kept, grown, strict=True) if any(ghost is one for one in alive)
    )
    return Outcome(candidates, rows, Board(alive, tuple(deal.owners[row] for row in rows)))


def verdict_numbers(verdicts: Sequence[Verdict]) -> list[float]:
    """Verdicts as numbers, ``VERDICT_NUMBERS`` each."""
    return [
        number
        for one, route in verdicts
        for number in (
            one.short,
            one.long,
            one.fused,
            one.quality_gain,
            one.long_drop,
            float(ROUTES.index(route)),
        )
    ]


def gathered(deal: Deal, told: Sequence[Sequence[float]]) -> list[Verdict]:
    """The verdicts of all rows from the numbers of each rank, which has its own rows in order."""
    heads = [0] * len(told)
    verdicts = []
    for owner in deal.owners:
        first, heads[owner] = heads[owner], heads[owner] + VERDICT_NUMBERS
        *scores, route = told[owner][first : heads[owner]]
        verdicts.append((Scores(*scores), ROUTES[int(route)]))
    return verdicts
