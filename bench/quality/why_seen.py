"""One candidate chunk as the rewards and the analytic judge saw it: what the diagnosis is counted from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REWARDS = ("short", "long", "fused")
GATES = ("quality_gain", "long_drop")


@dataclass(frozen=True, slots=True)
class Seen:
    """A candidate, its rewards, and what it shows. ``video`` is what the finished video shows that it is a part of."""

    prompt: int
    run: str  # "search", "walk" or "probe"
    chunk: int
    history: int  # rank of the history that it extends
    noise: int  # which of the noises that were tried
    place: int  # among those that were kept, 0 is the best; -1: not kept
    rewards: Mapping[str, float]  # REWARDS and GATES
    route: str
    shows: Mapping[str, float]  # measures of the chunk
    video: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {name: dict(plain[name]) for name in ("rewards", "shows", "video")}


def groups(seen: Iterable[Seen]) -> list[list[Seen]]:
    """Those that competed, or could have: one prompt, one chunk, one run. In order of appearance."""
    table: dict[tuple[int, str, int], list[Seen]] = {}
    for one in seen:
        table.setdefault((one.prompt, one.run, one.chunk), []).append(one)
    return list(table.values())


def histories(walked: Iterable[Seen]) -> list[list[Seen]]:
    """The chunks of each walk from chunk 1 on: the first one is a frame short of the others, and judged against itself."""
    table: dict[tuple[int, int], list[Seen]] = {}
    for one in walked:
        if one.chunk > 0:
            table.setdefault((one.prompt, one.history), []).append(one)
    return list(table.values())


def of_run(seen: Sequence[Seen], run: str) -> list[Seen]:
    return [one for one in seen if one.run == run]
