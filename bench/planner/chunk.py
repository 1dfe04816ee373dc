"""Expected time of a chunk of one video over N ranks: who does what, what travels, and who waits.

Histories are divided: a rank draws, decodes and judges the candidates of its own, then all ranks exchange scores, and a
history moves to another rank only where survivors bunch up. The slowest rank is the chunk's time. More ranks than
histories do nothing, unless rewards have ranks of their own: those judge candidates, whatever history they extend.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from runtime.bench.planner.machine import REWARDS, Machine
from runtime.costs import Work

DRAWS = 2000  # selections that are tried out to count the moves


@dataclass(frozen=True, slots=True)
class Link:
    """What connects the ranks."""

    gb_per_s: float  # one direction, between two ranks
    gather_ms: float  # one exchange of a few numbers among all ranks, per doubling of their count

    def ms(self, size: float) -> float:
        return size / (self.gb_per_s * 1e6)


@dataclass(frozen=True, slots=True)
class Layout:
    """One video over ``ranks``, ``reward_ranks`` of which do nothing but judge."""

    ranks: int
    histories: int
    expansions: int
    stride: int = 1
    reward_ranks: int = 0

    def __post_init__(self) -> None:
        if min(self.ranks, self.histories, self.expansions, self.stride) < 1:
            raise ValueError(f"ranks, K, M, stride: want at least 1 each, got {self}")
        if not 0 <= self.reward_ranks < self.ranks:
            raise ValueError(
                f"reward ranks: want fewer than the {self.ranks} ranks, got {self.reward_ranks}"
            )

    @property
    def makers(self) -> int:
        """Ranks that draw."""
        return min(self.ranks - self.reward_ranks, self.histories)

    @property
    def share(self) -> int:
        """Histories of the rank that has most."""
        return math.ceil(self.histories / self.makers)

    @property
    def idle(self) -> int:
        return self.ranks - self.reward_ranks - self.makers


@dataclass(frozen=True, slots=True)
class ChunkTime:
    """Where one chunk's time goes, in milliseconds."""

    layout: Layout
    stages: dict[str, float]  # of the slowest rank
    gather: float
    send_clips: float
    moves: float  # expected
    frames: int

    @property
    def total(self) -> float:
        return sum(self.stages.values()) + self.gather + self.send_clips + self.moves

    @property
    def fps(self) -> float:
        """Pixel frames over time."""
        return 1e3 * self.frames / self.total


def chunk_time(machine: Machine, layout: Layout, link: Link, videos: int = 1) -> ChunkTime:
    """A chunk in mid-video, with a full window. ``videos`` share the turn on a single rank; ranks make one at a time."""
    if videos > 1 and layout.ranks > 1:
        raise ValueError("several ranks make one video at a time: want a batch of 1 or one rank")
    work = machine.work(layout.share, layout.expansions, layout.stride, videos)
    stages = machine.stage_ms(work)
    sent = 0.0
    if layout.reward_ranks:
        rows = layout.histories * layout.expansions
        most = math.ceil(rows / layout.reward_ranks)
        judged = Work(most, 0, most * math.ceil(machine.frames / layout.stride))
        stages |= {name: machine.stages[name].ms(judged) for name in REWARDS if name in stages}
        # A rank sends its candidates one after another; those who judge receive theirs at the same time.
        sent = link.ms(machine.clip_bytes * max(most, layout.share * layout.expansions))
    talking = layout.makers + layout.reward_ranks
    gather = link.gather_ms * math.ceil(math.log2(talking)) if talking > 1 else 0.0
    history = machine.history_blocks * machine.block_bytes + machine.state_bytes
    moves = link.ms(history) * expected_moves(layout.histories, layout.expansions, layout.makers)
    return ChunkTime(layout, stages, gather, sent, moves, machine.frames)


@lru_cache(maxsize=4096)
def expected_moves(histories: int, expansions: int, makers: int) -> float:
    """Histories that the busiest rank sends after a chunk, on average, if any K of the K x M candidates may survive.

    A good history's children survive together more often than that, so that this is on the low side.
    """
    if makers == 1:
        return 0.0
    source = random.Random(0)
    share = math.ceil(histories / makers)
    # Histories in neighbouring runs, as many for each rank as for any other.
    owners = [place * makers // histories for place in range(histories) for _ in range(expansions)]
    total = 0
    for _ in range(DRAWS):
        load = [0] * makers
        for owner in source.sample(owners, histories):
            load[owner] += 1
        total += max(max(count - share, 0) for count in load)
    return total / DRAWS
