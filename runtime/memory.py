"""The only mutable tensors that outlive a chunk, and the rules for who still needs them.

A block holds the rotated keys and the values of one chunk, all layers. A history's memory is a handful of block ids, so
siblings share blocks by holding the same ids. Nothing is copied but a sink that an EMA must change while others need it.

Legend: P = 2 * layers planes (keys then values), N blocks, S tokens of a chunk, H heads, D head dim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from runtime.kernels.dispatch import implementation
from runtime.kernels.ema_merge import OFFERS, Ema, ema_merge_
from runtime.settings import CHUNK_FRAMES, MemorySettings
from runtime.types import Memory, Route, Slot, Trajectory


class KVPool:
    """Blocks with reference counts."""

    def __init__(
        self,
        blocks: int,
        block_shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        impl: str = "auto",
    ) -> None:
        """``block_shape`` is (P, S, H, D); ``impl`` asks for what merges, see ``kernels/dispatch.py``."""
        planes, *rest = block_shape
        self.impl = implementation(impl, device, dtype, OFFERS)
        self.kv = torch.zeros(planes, blocks, *rest, dtype=dtype, device=device)  # [P, N, S, H, D]
        self.counts = [0] * blocks
        # block -> what a merged sink was before it was rounded, [P, S, H, D] float32
        self.shadows: dict[int, Tensor] = {}

    @property
    def blocks(self) -> int:
        return len(self.counts)

    @property
    def used(self) -> int:
        return sum(count > 0 for count in self.counts)

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes + sum(shadow.nbytes for shadow in self.shadows.values())

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Holds what one video needs; gives everything back however the video ends."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease.close()

    def allocate(self) -> int:
        """A free block, held once. RuntimeError when there is none."""
        try:
            block = self.counts.index(0)
        except ValueError:
            raise RuntimeError(
                f"KV pool is full: all {self.blocks} blocks are in use; lower search.histories or memory.max_sink_frames"
            ) from None
        self.counts[block] = 1
        return block

    def release(self, block: int) -> None:
        assert self.counts[block] > 0, f"block {block} was released more often than it was held"
        self.counts[block] -= 1
        if self.counts[block] == 0:
            self.shadows.pop(block, None)

    def check(self, memories: Iterable[Memory]) -> None:
        """Recount every reference; RuntimeError names the first block whose count is not what ``memories`` hold."""
        wanted = Counter(slot.block for memory in memories for slot in memory.slots)
        for block, count in enumerate(self.counts):
            if count != wanted[block]:
                raise RuntimeError(
                    f"KV block {block}: {wanted[block]} memories hold it, its count is {count}"
                )

    def write(self, layer: int, blocks: Tensor, k: Tensor, v: Tensor) -> None:
        """Store one layer's rotated keys and values [B, S, H, D] into blocks [B] int64, all different."""
        layers = self.kv.shape[0] // 2
        self.kv[layer].index_copy_(0, blocks, k)
        self.kv[layers + layer].index_copy_(0, blocks, v)

    def merge_(self, target: int, source: int, evicted: int, how: Ema) -> None:
        """Block ``target`` becomes the EMA of blocks ``source`` and ``evicted``; target and source may be the same.

        A float32 or float64 pool has no use for a shadow or for random rounding: there it is one rounding a merge.
        """
        wide = self.kv.dtype in (torch.float32, torch.float64)
        if wide and how.storage != "released":
            how = replace(how, storage="once")
        shadow_in = shadow_out = None
        if how.storage == "fp32_shadow":
            shadow_in = self.shadows.get(source)
            if target not in self.shadows:
                self.shadows[target] = torch.empty_like(
                    self.kv[:, target],
                    dtype=torch.float32,
                    memory_format=torch.contiguous_format,
                )
            shadow_out = self.shadows[target]
        ema_merge_(
            self.kv[:, target],
            self.kv[:, source],
            self.kv[:, evicted],
            how,
            shadow_in=shadow_in,
            shadow_out=shadow_out,
            impl=self.impl,
        )


class Lease:
    """The references that one running video holds; ``close`` drops whatever is left of them."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.held: Counter[int] = Counter()

    def allocate(self) -> int:
        block = self.pool.allocate()
        self.held[block] += 1
        return block

    def hold(self, memory: Memory) -> None:
        for slot in memory.slots:
            self.pool.counts[slot.block] += 1
            self.held[slot.block] += 1

    def drop(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self.pool.release(slot.block)
            self.held[slot.block] -= 1

    def close(self) -> None:
        for block, count in self.held.items():
            for _ in range(count):
                self.pool.release(block)
        self.held.clear()


class MemoryKeeper:
    """Applies routes: what happens to the oldest chunk of a full window before the next chunk is drawn."""

    def __init__(
        self, settings: MemorySettings, pool: KVPool, released: bool, seed: int = 0
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.storage = settings.ema_storage
        if self.storage == "auto":
            self.storage = "released" if released else "fp32_shadow"
        self.seed = seed  # of the stochastic rounding

    def make_room(
        self, survivors: Sequence[Trajectory], lease: Lease, trial: bool = False
    ) -> tuple[Trajectory, ...]:
        """Every survivor whose window is full lets its oldest chunk go by its route, once per history.

        On ``trial`` the histories before may yet go on in another way, and shadows of their sinks are kept for that.
        """
        merged: dict[tuple[int, int], int] = {}
        after = tuple(replace(s, memory=self._room(s.memory, lease, merged)) for s in survivors)
        if not trial:
            self.forget_shadows(survivors, after)
        return after

    def forget_shadows(self, before: Sequence[Trajectory], after: Sequence[Trajectory]) -> None:
        """What is no longer the latest sink of any history is never merged into again."""
        for block in _latest_sinks(before) - _latest_sinks(after):
            self.pool.shadows.pop(block, None)

    def _room(self, memory: Memory, lease: Lease, merged: dict[tuple[int, int], int]) -> Memory:
        if len(memory.window) < self.settings.window_chunks:
            return memory
        leaving, *window = memory.window
        sinks = memory.sinks
        route = leaving.route if self.settings.sinking else Route.DISCARD
        if route is Route.APPEND and len(sinks) < self.settings.max_sink_chunks:
            return Memory((*sinks, leaving), tuple(window))
        if route is not Route.DISCARD:
            sinks = (*sinks[:-1], self._merge(sinks[-1], leaving, lease, merged))
        lease.drop([leaving])
        return Memory(sinks, tuple(window))

    def _merge(
        self, sink: Slot, leaving: Slot, lease: Lease, merged: dict[tuple[int, int], int]
    ) -> Slot:
        """The sink after the EMA. Histories that agree on both blocks share the result, in place when nobody else
        needs the old one."""
        pair = (sink.block, leaving.block)
        if pair in merged:
            block = merged[pair]
            lease.hold(Memory((replace(sink, block=block),)))
            lease.drop([sink])
            return replace(sink, block=block)
        shared = self.pool.counts[sink.block] > 1
        target = lease.allocate() if shared else sink.block
        how = Ema(
            self.settings.ema_alpha,
            sink.start_frame - leaving.start_frame,
            self.storage,
            self.seed,
            step=leaving.start_frame // CHUNK_FRAMES,
        )
        self.pool.merge_(target, sink.block, leaving.block, how)
        if shared:
            merged[pair] = target
            lease.drop([sink])
        return replace(sink, block=target)

    def remember(self, memory: Memory, slot: Slot, index: int) -> Memory:
        """``memory`` with the newest chunk's block: an initial sink for the first chunks, else in the window."""
        if index < self.settings.sink_chunks:
            return replace(memory, sinks=(*memory.sinks, slot))
        return replace(memory, window=(*memory.window, slot))


def _latest_sinks(histories: Sequence[Trajectory]) -> set[int]:
    return {history.memory.sinks[-1].block for history in histories if history.memory.sinks}


def pool_blocks(settings: MemorySettings, histories: int, ranks: int = 1) -> int:
    """Blocks that ``histories`` survivors can need at once on each of some ranks.

    When a chunk is drawn a rank has its share of the histories, each without its oldest block; then a new block for each
    survivor, of which it can have all until they are balanced; and a merge in progress.
    """
    share = -(-histories // ranks)
    return share * (settings.max_blocks - 1) + histories + 1
