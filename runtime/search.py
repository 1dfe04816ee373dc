"""The paper's part 2, the search: which candidates to draw and which histories to keep.

Seeds: chunk 0 draws ``seed + i``; later history b (in rank order) draws ``seed + 1000 n + 100 b + i``. In the released
fidelity expansion 0 repeats the history's last seed, and with it the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.settings import MAX_EXPANSIONS, SearchSettings
from runtime.types import Branch, Candidate, Trajectory


class SearchPolicy(Protocol):
    """Grows a pool of histories chunk by chunk."""

    @property
    def histories(self) -> int:
        """The most that survive a chunk."""
        ...

    @property
    def propagates(self) -> bool:
        """Blends a chunk's noise with its parent's."""
        ...

    @property
    def sinks(self) -> bool:
        """Routes what leaves the window by its rewards."""
        ...

    @property
    def judges(self) -> bool:
        """Asks the rewards at every chunk."""
        ...

    @property
    def rates(self) -> bool:
        """Asks the video reward for the whole video at the end."""
        ...

    @property
    def prunes(self) -> bool:
        """Histories compete, so an old disagreement may have to be settled by rank."""
        ...

    @property
    def litter(self) -> int:
        """Candidates that one history has after the first chunk."""
        ...

    @property
    def draft_passes(self) -> int:
        """Denoising passes after which some candidates are given up; 0: all are finished."""
        ...

    def finalists(self, branches: Sequence[Branch], scores: Sequence[float]) -> tuple[int, ...]:
        """Rows that are finished, in order, by early scores of all. Only asked with ``draft_passes``."""
        ...

    def expand(self, survivors: Sequence[Trajectory], index: int) -> tuple[Branch, ...]:
        """The candidates of chunk ``index``, in the order of their parents' ranks."""
        ...

    def select(self, candidates: Sequence[Candidate]) -> tuple[int, ...]:
        """Rows of the candidates that survive, best first."""
        ...


@dataclass(frozen=True)
class Pruned:
    """Beam search: K histories times M expansions, the K best scores go on. Earlier rows win ties."""

    settings: SearchSettings
    released: bool
    propagates: bool
    sinks: bool
    judges: bool = True
    rates: bool = True
    prunes: bool = True

    @property
    def litter(self) -> int:
        return self.settings.expansions

    @property
    def draft_passes(self) -> int:
        return 0

    def finalists(self, branches: Sequence[Branch], scores: Sequence[float]) -> tuple[int, ...]:
        return tuple(range(len(branches)))

    @property
    def histories(self) -> int:
        return self.settings.histories

    def expand(self, survivors: Sequence[Trajectory], index: int) -> tuple[Branch, ...]:
        return _expand(survivors, index, self.settings, self.settings.expansions, self.released)

    def select(self, candidates: Sequence[Candidate]) -> tuple[int, ...]:
        fit = [c for c in candidates if math.isfinite(c.scores.fused)]
        if not fit:
            raise RuntimeError(
                f"none of the {len(candidates)} candidates has a finite score; "
                f"a reward model returns NaN or infinity for every clip"
            )
        best = sorted(fit, key=lambda c: -c.scores.fused)  # stable: earlier rows win ties
        return tuple(c.row for c in best[: self.histories])


@dataclass(frozen=True)
class Halving(Pruned):
    """Pruned search with an early cut: of the drafts of each history its M best after the first passes are finished."""

    @property
    def draft_passes(self) -> int:
        return self.settings.draft_passes

    def expand(self, survivors: Sequence[Trajectory], index: int) -> tuple[Branch, ...]:
        return _expand(survivors, index, self.settings, self.settings.drafts, self.released)

    def finalists(self, branches: Sequence[Branch], scores: Sequence[float]) -> tuple[int, ...]:
        """Earlier rows win ties (sorting is stable); a score that is not finite loses against every other."""
        ranks = sorted({branch.rank for branch in branches})
        first = branches[0].parent.noise is None  # all candidates of a first chunk have one parent
        quota = self.settings.expansions * (self.settings.histories if first else 1)
        keep: list[int] = []
        for rank in ranks:
            rows = [row for row, branch in enumerate(branches) if branch.rank == rank]
            rows.sort(key=lambda row: -scores[row] if math.isfinite(scores[row]) else math.inf)
            keep += rows[:quota]
        return tuple(sorted(keep))


@dataclass(frozen=True)
class Independent:
    """Histories that never meet: one for plain streaming, N for best-of-N, which rates whole videos at the end."""

    settings: SearchSettings
    histories: int
    released: bool
    propagates: bool = False
    sinks: bool = False
    judges: bool = False
    rates: bool = False
    prunes: bool = False
    draft_passes: int = 0
    litter: int = 1

    def finalists(self, branches: Sequence[Branch], scores: Sequence[float]) -> tuple[int, ...]:
        return tuple(range(len(branches)))

    def expand(self, survivors: Sequence[Trajectory], index: int) -> tuple[Branch, ...]:
        if index == 0:
            root = survivors[0]
            return tuple(
                Branch(root, 0, i, self.settings.seed + i, 0) for i in range(self.histories)
            )
        return _expand(survivors, index, self.settings, 1, self.released)

    def select(self, candidates: Sequence[Candidate]) -> tuple[int, ...]:
        return tuple(range(len(candidates)))


def _expand(
    survivors: Sequence[Trajectory],
    index: int,
    settings: SearchSettings,
    expansions: int,
    released: bool,
) -> tuple[Branch, ...]:
    if index == 0:
        count = settings.histories * expansions
        return tuple(Branch(survivors[0], 0, i, settings.seed + i, 0) for i in range(count))
    branches = []
    for rank, parent in enumerate(survivors):
        for i in range(expansions):
            if released and i == 0:
                branches.append(Branch(parent, rank, i, parent.seed, parent.seed_chunk))
            else:
                seed = settings.seed + 1000 * index + MAX_EXPANSIONS * rank + i
                branches.append(Branch(parent, rank, i, seed, index))
    return tuple(branches)


def build_policy(settings: SearchSettings, released: bool, sinking: bool) -> SearchPolicy:
    """The policy that ``settings`` name, with its ablation switches."""
    if settings.policy == "single":  # plain streaming draws fresh noise in every fidelity
        return Independent(settings, 1, released=False)
    if settings.policy == "best-of-n":
        count = settings.histories * settings.expansions
        return Independent(settings, count, released=False, rates=count > 1)
    if settings.policy == "beam":
        return Pruned(settings, released, propagates=False, sinks=False)
    if not settings.pruning:  # rewards still route the memory, but choose nothing
        return Independent(settings, 1, released, settings.propagation, sinking, judges=True)
    kind = Halving if settings.policy == "halving" else Pruned
    return kind(settings, released, settings.propagation, sinking)


def within_horizon(survivors: Sequence[Trajectory], horizon: int) -> tuple[Trajectory, ...]:
    """Survivors once everything older than ``horizon`` chunks is decided in favour of the best-ranked history."""
    leader = survivors[0].unsettled
    excess = len(leader) - horizon
    if excess <= 0:
        return tuple(survivors)
    return tuple(
        s
        for s in survivors
        if all(a is b for a, b in zip(s.unsettled[:excess], leader, strict=False))
    )
