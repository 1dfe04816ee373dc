"""Histories that never meet, and beside them candidates that are judged but never kept: a search policy for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtime.engine import Engine
from runtime.parts import Parts
from runtime.search import Independent
from runtime.settings import Settings
from runtime.types import Branch, Candidate, Trajectory

PROBE = 50  # first expansion number and seed offset of a probe; walks have smaller ones


@dataclass(frozen=True)
class Walks(Independent):
    """Plain streaming several times over, judged at every chunk; walk 0 is what policy ``single`` would make.

    Under the first ``probed`` histories ``probes`` further candidates are drawn, at every chunk and under every history from
    the same ``probes`` noises.
    """

    probes: int = 0
    probed: int = 0

    def expand(self, survivors: Sequence[Trajectory], index: int) -> tuple[Branch, ...]:
        walks = super().expand(survivors, index)
        seed = self.settings.seed + PROBE
        tried = [
            Branch(parent, rank, PROBE + number, seed + number, 0)
            for rank, parent in enumerate(survivors[: self.probed])
            for number in range(self.probes)
        ]
        return tuple(sorted((*walks, *tried), key=lambda branch: branch.rank))

    def select(self, candidates: Sequence[Candidate]) -> tuple[int, ...]:
        return tuple(c.row for c in candidates if not is_probe(c.branch))


def is_probe(branch: Branch) -> bool:
    return branch.expansion >= PROBE


def walking(settings: Settings, parts: Parts, walks: int, probed: int, probes: int) -> Engine:
    """An engine whose histories walk alone. Memory and noise are those of plain streaming; rewards judge and do nothing."""
    # Of the built-in policies it is beam search that asks rewards at every chunk and neither propagates nor sinks.
    plain = {"search.policy": "beam", "search.histories": walks, "search.expansions": 1}
    engine = Engine(settings.with_changes(plain), parts)
    search, released = engine.settings.search, False
    policy = Walks(search, walks, released, judges=True, probes=probes, probed=probed)
    engine.recipe = replace(engine.recipe, policy=policy)
    return engine
