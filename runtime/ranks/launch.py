"""Which process this is of those that torchrun started together. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.settings import Settings, torchrun


@dataclass(frozen=True, slots=True)
class Launch:
    """One process among several."""

    rank: int
    size: int
    local_rank: int  # on this machine


def launch() -> Launch | None:
    """What torchrun says; None without it, or for a single process."""
    here = Launch(*torchrun())
    return here if here.size > 1 else None


def check_alone(settings: Settings, reward_ranks: int) -> None:
    """ValueError for what only several processes can do."""
    if settings.run.ranks != 1:
        raise ValueError(
            f"run.ranks: want {settings.run.ranks} processes, got one; start them by torchrun"
        )
    if reward_ranks:
        raise ValueError(
            f"--reward-ranks: want 0 for a single process, got {reward_ranks}; start several by torchrun"
        )
