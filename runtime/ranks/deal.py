"""What every rank knows of a search, and who draws what of the next chunk. Host values, equal on all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime.grow import grow, grow_candidates
from runtime.judging import UNJUDGED
from runtime.ranks.opinion import Opinion
from runtime.ranks.owners import first_owners
from runtime.recipe import Recipe
from runtime.score import Place
from runtime.search import SearchPolicy, within_horizon
from runtime.types import Branch, Candidate, Memory, Shown, Trajectory

NOTHING = torch.empty(0)
UNSEEN = Shown(NOTHING, NOTHING, None, None)


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
    def most(self) -> int:
        """Rows of the rank that has the most."""
        return max(map(self.owners.count, set(self.owners)))


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


def decided(recipe: Recipe, deal: Deal, opinion: Opinion, place: Place) -> Outcome:
    """Who survives by what the rewards say of all rows. RuntimeError, on all ranks alike, when nobody can."""
    policy, nothing = recipe.policy, NOTHING.expand(len(deal.branches), 0)
    verdicts = [UNJUDGED] * len(deal.branches)
    if policy.judges:
        for incident in opinion.incidents:
            recipe.scorer.keep(incident, place)
        shorts, longs = torch.tensor([opinion.shorts, opinion.longs], dtype=torch.float64)
        verdicts = recipe.scorer.decide(deal.branches, shorts, longs, place)
    candidates = grow_candidates(deal.branches, nothing, nothing, verdicts)
    kept, window = policy.select(candidates), recipe.window_chunks
    grown = tuple(grow(candidates[row], place.chunk, Memory(), UNSEEN, window) for row in kept)
    horizon = recipe.settings.search.horizon_chunks
    alive = within_horizon(grown, horizon) if policy.prunes else grown
    rows = tuple(
        row for row, ghost in zip(kept, grown, strict=True) if any(ghost is one for one in alive)
    )
    return Outcome(candidates, rows, Board(alive, tuple(deal.owners[row] for row in rows)))
