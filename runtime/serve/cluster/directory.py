"""Who is there: the replicas by what they said last, and which of them a request belongs to."""

from __future__ import annotations

import collections
import contextlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

AWAY_S = 120.0  # for which a slot that nobody holds counts as about to come back


@dataclass(frozen=True, slots=True)
class Replica:
    """One server, as it reported itself."""

    name: str
    slots: tuple[str, ...]
    around: tuple[str, ...]  # slots whose folders it sees, whoever holds them
    host: str
    port: int
    state: str
    videos: int  # unfinished

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Replica:
        return cls(**{**report, "slots": tuple(report["slots"]), "around": tuple(report["around"])})


class Directory:
    """The newest reports. A replica that is being stopped reports no more, and answers until it has ended."""

    def __init__(self) -> None:
        self._there: dict[str, Replica] = {}
        self._leaving: dict[str, Replica] = {}
        self._seen: dict[str, float] = {}  # slot -> when it was last held
        self._around: set[str] = set()  # slots whose folders somebody sees
        self._promised: list[
            tuple[str, int]
        ] = []  # replica and the round of reports it was asked in
        self._round = 0

    def update(self, reports: Iterable[Mapping[str, Any]], now: float) -> None:
        """Take note of everybody who reported at ``now``."""
        there = {found.name: found for found in map(Replica.of, reports)}
        gone = {name: old for name, old in self._there.items() if name not in there}
        self._leaving = {name: old for name, old in (self._leaving | gone).items() if name not in there}  # fmt: skip
        self._there = there
        self._round += 1
        self._promised = [one for one in self._promised if one[1] >= self._round - 1]
        self._around = {slot for replica in there.values() for slot in replica.around}
        self._seen |= {slot: now for replica in there.values() for slot in replica.slots}
        self._seen = {slot: when for slot, when in self._seen.items() if now - when <= AWAY_S}

    def lost(self, replica: Replica) -> None:
        """It does not answer; until it reports again it is not asked again."""
        self._there.pop(replica.name, None)
        self._leaving.pop(replica.name, None)

    def promise(self, replica: Replica) -> tuple[str, int]:
        """Count an order that is on its way to a replica: until it refuses, or has had time to report it itself."""
        self._promised.append((replica.name, self._round))
        return self._promised[-1]

    def refused(self, promised: tuple[str, int]) -> None:
        """A promise that came to nothing."""
        with contextlib.suppress(ValueError):  # it is old and forgotten
            self._promised.remove(promised)

    def holder(self, slot: str) -> Replica | None:
        """Who has the videos of a slot."""
        for known in (self._there, self._leaving):
            for replica in known.values():
                if slot in replica.slots:
                    return replica
        return None

    def away(self, slot: str, now: float) -> bool:
        """Nobody has the slot now, but its folder is there, or somebody had it a moment ago."""
        return slot in self._around or now - self._seen.get(slot, -AWAY_S - 1) <= AWAY_S

    def everybody(self) -> list[Replica]:
        return sorted(self._there.values(), key=lambda replica: replica.name)

    def for_orders(self) -> list[Replica]:
        """Who can take an order, the least busy first and equals in any order: there may be other fronts."""
        ready = [replica for replica in self._there.values() if replica.state == "ready"]
        promised = collections.Counter(name for name, _ in self._promised)
        return sorted(ready, key=lambda one: (one.videos + promised[one.name], random.random()))
