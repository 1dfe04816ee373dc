"""What every rank knows of a search, and who draws and who judges what of the next chunk. Host values, equal on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.grow import grow, grow_candidates
from runtime.judging import UNJUDGED
from runtime.ranks.crew import Crew
from runtime.ranks.opinion import Opinion
from runtime.ranks.owners import first_owners, rebalanced
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
    raters: tuple[int, ...] = ()  # who judged each; (): its owner


@dataclass(frozen=True, slots=True)
class Deal:
    """The candidates of one chunk, who draws each and who judges it."""

    branches: tuple[Branch, ...]  # of ghosts
    owners: tuple[int, ...]
    raters: tuple[int, ...]
    unseen: frozenset[int] = frozenset()  # places of parents whose past their rater does not have

    def rows_of(self, rank: int) -> tuple[int, ...]:
        """Those that ``rank`` draws."""
        return tuple(row for row, owner in enumerate(self.owners) if owner == rank)

    def rated_by(self, rank: int) -> tuple[int, ...]:
        return tuple(row for row, rater in enumerate(self.raters) if rater == rank)

    @property
    def travels(self) -> bool:
        """Candidates' frames go to other ranks to be judged."""
        return self.raters != self.owners


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all ranks decide once a chunk's scores are known."""

    candidates: tuple[Candidate, ...]
    kept: tuple[int, ...]  # rows that survive, the horizon's will included, best first
    board: Board  # of the survivors, still where they were drawn


def dealt(policy: SearchPolicy, board: Board, index: int, crew: Crew) -> Deal:
    """The candidates of chunk ``index``: each goes to its parent's owner and rater, those of the first chunk by litters."""
    branches, first = policy.expand(board.ghosts, index), not board.owners
    litters = len(branches) // policy.litter
    # Of each row: its litter at first, its parent's place later.
    homes = [row // policy.litter if first else one.rank for row, one in enumerate(branches)]
    owners = first_owners(litters, crew.makers) if first else board.owners
    drawn_by = tuple(owners[home] for home in homes)
    if not (crew.raters and policy.judges):
        return Deal(branches, drawn_by, drawn_by)
    raters = crew.divided(litters) if first else _balanced(board.raters, crew)
    pairs = enumerate(zip(board.raters, raters, strict=False))
    unseen = frozenset(place for place, (before, after) in pairs if before != after)
    return Deal(branches, drawn_by, tuple(raters[home] for home in homes), unseen)


def _balanced(raters: Sequence[int], crew: Crew) -> tuple[int, ...]:
    """Who judges the children of which history: who judged it, but nobody more than a share of them."""
    after = rebalanced([rater - crew.makers for rater in raters], crew.raters)
    return tuple(crew.makers + one for one in after)


def decided(recipe: Recipe, deal: Deal, opinion: Opinion, place: Place) -> Outcome:
    """Who survives by what the rewards say of all rows. RuntimeError, on all ranks alike, when nobody can."""
    policy, nothing = recipe.policy, NOTHING.expand(len(deal.branches), 0)
    verdicts = [UNJUDGED] * len(deal.branches)
    if policy.judges:
        for incident in opinion.incidents:
            recipe.scorer.keep(incident, place)
        verdicts = recipe.scorer.decide(deal.branches, opinion.shorts, opinion.longs, place)
    candidates = grow_candidates(deal.branches, nothing, nothing, verdicts)
    kept, window = policy.select(candidates), recipe.window_chunks
    grown = tuple(grow(candidates[row], place.chunk, Memory(), UNSEEN, window) for row in kept)
    horizon = recipe.settings.search.horizon_chunks
    alive = within_horizon(grown, horizon) if policy.prunes else grown
    rows = tuple(
        row for row, ghost in zip(kept, grown, strict=True) if any(ghost is one for one in alive)
    )
    owners = tuple(deal.owners[row] for row in rows)
    raters = tuple(deal.raters[row] for row in rows) if deal.travels else ()
    return Outcome(candidates, rows, Board(alive, owners, raters))
