"""What travels between ranks: histories that move, chunks that are shown, and candidates' frames for those who watch.

Nothing is copied to be sent but a KV block, whose planes lie apart; and of those one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from runtime.memory import KVPool, Lease
from runtime.packing import Packed, Packer, Unpacker
from runtime.ranks.deal import Deal
from runtime.ranks.owners import Move
from runtime.ranks.world import World
from runtime.types import Chunk, Trajectory


def carried(
    moves: Sequence[Move], mine: Mapping[int, Trajectory], world: World, lease: Lease
) -> dict[int, Trajectory]:
    """This rank's histories by their places, after all moves. Those with one way travel together: what siblings share,
    blocks above all, is sent once. ``lease`` lets go what leaves and holds what arrives."""
    after = dict(mine)

    def way(move: Move) -> tuple[int, int]:
        return move.source, move.target

    for (source, target), group in groupby(sorted(moves, key=way), key=way):
        places = [move.position for move in group]
        if source == world.rank:
            leaving = [after.pop(place) for place in places]
            world.send("histories", packed_histories(leaving, lease.pool), target)
            for history in leaving:
                lease.drop(history.memory.slots)
        if target == world.rank:
            arrived = world.receive("histories", source)
            after |= zip(places, unpacked_histories(arrived, lease), strict=True)
    return after


def packed_histories(histories: Sequence[Trajectory], pool: KVPool) -> Packed:
    packer = Packer(pool, _as_it_is)
    trees = packer.histories(histories)
    return Packed({"histories": trees, "chunks": packer.chunks}, packer.tensors)


def unpacked_histories(packed: Packed, lease: Lease) -> tuple[Trajectory, ...]:
    unpacker = Unpacker(packed, packed.tree["chunks"], lease.pool, lease)
    return unpacker.histories(packed.tree["histories"])


def packed_chunks(chunks: Sequence[Chunk], pool: KVPool) -> Packed:
    packer = Packer(pool, _as_it_is)
    places = [packer.chunk(chunk) for chunk in chunks]
    return Packed({"places": places, "chunks": packer.chunks}, packer.tensors)


def unpacked_chunks(packed: Packed, lease: Lease) -> tuple[Chunk, ...]:
    unpacker = Unpacker(packed, packed.tree["chunks"], lease.pool, lease)
    return unpacker.chunks(packed.tree["places"])


def bring_frames(world: World, deal: Deal, mine: Tensor | None, watcher: int) -> Tensor | None:
    """The frames of all candidates [B, T, 3, H, W] where somebody watches, from those of each rank; None elsewhere."""
    if world.rank != watcher:
        if mine is not None:
            world.send("candidates' frames", Packed({}, {"frames": mine}), watcher)
        return None
    rows: dict[int, Tensor] = {}
    for rank in sorted(set(deal.owners)):
        its = mine
        if rank != watcher:
            its = world.receive("candidates' frames", rank).tensors["frames"]
        assert its is not None, f"rank {rank} drew candidates and has no frames"
        rows.update(zip(deal.rows_of(rank), its, strict=True))
    return torch.stack([rows[row] for row in range(len(deal.owners))])


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
