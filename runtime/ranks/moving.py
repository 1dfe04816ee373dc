"""What travels between ranks: a history that moves, and the candidates' frames for those who watch."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.memory import Lease
from runtime.ranks.deal import Deal
from runtime.ranks.owners import Move
from runtime.ranks.packing import Packed, pack_history, unpack_history
from runtime.ranks.world import World
from runtime.types import Trajectory


def carry_(move: Move, mine: dict[int, Trajectory], world: World, lease: Lease) -> None:
    """Bring one history from rank to rank. ``mine`` loses it, or has it now; ``lease`` as well."""
    if move.source == world.rank:
        history = mine.pop(move.position)
        world.send("a history", pack_history(history, lease), move.target)
        lease.drop(history.memory.slots)
    if move.target == world.rank:
        mine[move.position] = unpack_history(world.receive("a history", move.source), lease)


def bring_frames(world: World, deal: Deal, mine: Tensor | None, watcher: int) -> Tensor | None:
    """The frames of all candidates [B, T, 3, H, W] where somebody watches, from those of each rank; None elsewhere."""
    if world.rank != watcher:
        if mine is not None:
            world.send("candidates' frames", Packed("frames", {"frames": mine}), watcher)
        return None
    rows: dict[int, Tensor] = {}
    for rank in sorted(set(deal.owners)):
        its = mine
        if rank != watcher:
            its = world.receive("candidates' frames", rank).tensors["frames"]
        assert its is not None, f"rank {rank} drew candidates and has no frames"
        rows.update(zip(deal.rows_of(rank), its, strict=True))
    return torch.stack([rows[row] for row in range(len(deal.owners))])
