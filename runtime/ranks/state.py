"""One rank between two chunks, and what it tells those who watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from runtime.lines import Line
from runtime.ranks.deal import Board, Outcome
from runtime.types import ChunkRecord, Incident, Trajectory


@dataclass(frozen=True, slots=True)
class State:
    """What a rank has: histories of its own, and the facts of all."""

    line: Line  # survivors: its own, best first
    board: Board
    rank: int

    @property
    def mine(self) -> dict[int, Trajectory]:
        """Its own histories by their places among all."""
        places = [place for place, owner in enumerate(self.board.owners) if owner == self.rank]
        return dict(zip(places, self.line.survivors, strict=True))

    def with_mine(self, histories: Mapping[int, Trajectory], owners: Sequence[int]) -> State:
        """With other owners, and other histories of its own."""
        survivors = tuple(histories[place] for place in sorted(histories))
        board = replace(self.board, owners=tuple(owners))
        return replace(self, line=replace(self.line, survivors=survivors), board=board)

    def next(self, settled: int) -> State:
        """At the next chunk, without the first ``settled`` of all histories' unsettled chunks."""

        def rest(histories: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
            return tuple(replace(one, unsettled=one.unsettled[settled:]) for one in histories)

        line = replace(self.line, survivors=rest(self.line.survivors), index=self.line.index + 1)
        return replace(self, line=line, board=replace(self.board, ghosts=rest(self.board.ghosts)))


def tell(
    state: State,
    outcome: Outcome,
    frames: Tensor,
    spent: Mapping[str, float],
    incidents: tuple[Incident, ...],
) -> None:
    """Call the watcher of this rank with what became of the chunk that ``state`` ends with.

    ``frames`` [B, T, 3, H, W] are all candidates'. Of other ranks' histories the record has no unsettled chunks.
    """
    video, mine = state.line.video, state.mine
    assert video.watch is not None, f"nobody watches on rank {state.rank}"
    survivors = tuple(
        mine.get(place) or replace(ghost, unsettled=())
        for place, ghost in enumerate(state.board.ghosts)
    )
    index, chunks = state.line.index, video.recipe.chunks
    who = outcome.candidates, outcome.kept, survivors
    video.watch(ChunkRecord(index, chunks, *who, frames, dict(spent), video.number, incidents))
