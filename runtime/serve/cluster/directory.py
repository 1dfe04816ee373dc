"""Who is there: the replicas by what they said last, and which of them a request belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

AWAY_S = 120.0  # for which a slot that nobody holds counts as about to come back


@dataclass(frozen=True, slots=True)
class Replica:
    """One server, as it reported itself."""

    name: str
    slots: tuple[str, ...]
    host: str
    port: int
    state: str
    videos: int  # unfinished

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Replica:
        return cls(**{**report, "slots": tuple(report["slots"])})


class Directory:
    """The newest reports. A replica that is being stopped reports no more, and answers until it has ended."""

    def __init__(self) -> None:
        self._there: dict[str, Replica] = {}
        self._leaving: dict[str, Replica] = {}
        self._seen: dict[str, float] = {}  # slot -> when it was last held

    def update(self, reports: Iterable[Mapping[str, Any]], now: float) -> None:
        """Take note of everybody who reported at ``now``."""
        there = {found.name: found for found in map(Replica.of, reports)}
        gone = {name: old for name, old in self._there.items() if name not in there}
        self._leaving = {name: old for name, old in (self._leaving | gone).items() if name not in there}  # fmt: skip
        self._there = there
        self._seen |= {slot: now for replica in there.values() for slot in replica.slots}
        self._seen = {slot: when for slot, when in self._seen.items() if now - when <= AWAY_S}

    def lost(self, replica: Replica) -> None:
        """It does not answer; until it reports again it is not asked again."""
        self._there.pop(replica.name, None)
        self._leaving.pop(replica.name, None)

    def took(self, replica: Replica) -> None:
        """It has one more video; its next report tells so too."""
        if known := self._there.get(replica.name):
            self._there[replica.name] = replace(known, videos=known.videos + 1)

    def holder(self, slot: str) -> Replica | None:
        """Who has the videos of a slot."""
        for known in (self._there, self._leaving):
            for replica in known.values():
                if slot in replica.slots:
                    return replica
        return None

    def away(self, slot: str, now: float) -> bool:
        """Nobody has the slot now, but somebody had it a moment ago."""
        return now - self._seen.get(slot, -AWAY_S - 1) <= AWAY_S

    def everybody(self) -> list[Replica]:
        return sorted(self._there.values(), key=lambda replica: replica.name)

    def for_orders(self) -> list[Replica]:
        """Who can take an order, the least busy first."""
        ready = [replica for replica in self._there.values() if replica.state == "ready"]
        return sorted(ready, key=lambda replica: (replica.videos, replica.name))
