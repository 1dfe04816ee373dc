"""Which ranks draw and which judge: with reward ranks the last ones hold nothing but the rewards, and the others none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.ranks.owners import first_owners


@dataclass(frozen=True, slots=True)
class Crew:
    """``size`` ranks, the last ``raters`` of which only judge; without raters every rank judges what it draws."""

    size: int
    raters: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.raters < self.size:
            raise ValueError(
                f"--reward-ranks: want 0 to {self.size - 1}, for {self.size} ranks of which one at least draws, "
                f"got {self.raters}"
            )

    @property
    def makers(self) -> int:
        """Ranks that draw: the first ones."""
        return self.size - self.raters

    def rates_only(self, rank: int) -> bool:
        return rank >= self.makers

    def divided(self, litters: int) -> tuple[int, ...]:
        """Raters for so many litters: neighbours together, as many for each as for any other."""
        return tuple(self.makers + one for one in first_owners(litters, self.raters))

    def final_raters(self, owners: Sequence[int]) -> tuple[int, ...]:
        """Who rates which whole video: its owner, or where rewards have ranks of their own those by turns of places."""
        return self.divided(len(owners)) if self.raters else tuple(owners)

    def why_idle(self, rank: int, histories: int) -> str:
        """A sentence for a rank that a search over so many histories has no work for; "" for one that has."""
        if self.rates_only(rank):
            if rank - self.makers < histories:
                return ""
            return (
                f"rank {rank} has no candidates to judge and waits: siblings stay together, and there are "
                f"{self.raters} reward ranks for histories = {histories}"
            )
        if rank < histories:
            return ""
        many = f"{self.makers} ranks" + (" that draw" if self.raters else "")
        return f"rank {rank} has no history to work on and waits: there are {many} for histories = {histories}"
