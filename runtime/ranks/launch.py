"""Which process this is of those that torchrun started together. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.settings import torchrun


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
