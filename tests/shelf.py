"""A KV pool with blocks that are easy to tell apart, and a keeper to apply routes to it."""

import torch

from runtime.memory import KVPool, Lease, MemoryKeeper
from runtime.settings import MemorySettings
from runtime.types import Memory, Route, Slot, Trajectory

SHAPE = (2, 3, 1, 6)  # P, S, H, D of a block: one layer, one token a frame


class Shelf:
    """A pool, a lease on it and a keeper."""

    def __init__(
        self,
        blocks: int = 20,
        dtype=torch.float64,
        released: bool = False,
        seed: int = 0,
        **sizes,
    ) -> None:
        self.pool = KVPool(blocks, SHAPE, dtype, "cpu")
        self.lease = Lease(self.pool)
        self.settings = MemorySettings(**sizes)
        self.keeper = MemoryKeeper(self.settings, self.pool, released, seed)
        self.source = torch.Generator().manual_seed(0)

    def slot(self, start_frame: int, route: Route = Route.DISCARD) -> Slot:
        """A fresh block of random keys and values."""
        block = self.lease.allocate()
        values = torch.randn(self.pool.kv[:, block].shape, generator=self.source)
        self.pool.kv[:, block] = values.to(self.pool.kv.dtype)
        return Slot(block, start_frame, route)

    def full(self, route: Route) -> Memory:
        """One initial sink and a full window whose oldest chunk leaves by ``route``."""
        frames = (3 * i for i in range(1, 1 + self.settings.window_chunks))
        return Memory((self.slot(0),), tuple(self.slot(frame, route) for frame in frames))

    def room(self, *memories: Memory) -> list[Memory]:
        survivors = self.keeper.make_room([Trajectory(memory=m) for m in memories], self.lease)
        after = [survivor.memory for survivor in survivors]
        self.pool.check(after)
        return after

    def value(self, slot: Slot) -> torch.Tensor:
        return self.pool.kv[:, slot.block].clone()
