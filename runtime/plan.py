"""Branches to a ``ChunkPlan``: which blocks each candidate attends to and where they lie in time. Host integers only."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.settings import CHUNK_FRAMES, MemorySettings
from runtime.types import Branch, ChunkPlan, Memory, Slot


def plan_chunk(
    branches: Sequence[Branch],
    index: int,
    settings: MemorySettings,
    targets: Sequence[int] = (),
) -> ChunkPlan:
    """The plan of chunk ``index`` for a batch of candidates, one row per branch, in their order.

    ``targets`` are the blocks that a clean pass writes, one per row.
    """
    memories = [branch.parent.memory for branch in branches]
    start_frame = index * CHUNK_FRAMES
    return ChunkPlan(
        start_frames=(start_frame,) * len(branches),
        blocks=tuple(tuple(slot.block for slot in memory.slots) for memory in memories),
        shifts=tuple(_shifts(memory, start_frame, settings.rope) for memory in memories),
        seeds=tuple(branch.seed for branch in branches),
        seed_chunks=tuple(branch.seed_chunk for branch in branches),
        targets=tuple(targets),
    )


def joined(plans: Sequence[ChunkPlan]) -> ChunkPlan:
    """The rows of several plans as one. All of them have targets, or none has."""
    columns = zip(
        *([getattr(plan, name) for name in plan.__slots__] for plan in plans), strict=True
    )
    return ChunkPlan(*(sum(column, ()) for column in columns))


def plan_memory(
    memories: Sequence[Memory],
    slots: Sequence[Slot],
    ropes: Sequence[str],
    targets: Sequence[int],
) -> ChunkPlan:
    """The plan of a clean pass that writes ``targets`` with the chunks of ``slots``, each seeing its row of ``memories``.

    Rows may lie at different places of their videos, and have ``memory.rope`` of their own. Nothing is drawn.
    """
    nothing = (0,) * len(slots)
    return ChunkPlan(
        start_frames=tuple(slot.start_frame for slot in slots),
        blocks=tuple(tuple(slot.block for slot in memory.slots) for memory in memories),
        shifts=tuple(
            _shifts(memory, slot.start_frame, rope)
            for memory, slot, rope in zip(memories, slots, ropes, strict=True)
        ),
        seeds=nothing,
        seed_chunks=nothing,
        targets=tuple(targets),
    )


def _shifts(memory: Memory, start_frame: int, rope: str) -> tuple[int, ...]:
    """Frames by which each block's keys move. Relative positions put the sinks right before the window, in order."""
    if rope == "absolute":
        return (0,) * len(memory.slots)
    first_window = memory.window[0].start_frame if memory.window else start_frame
    places = [first_window - CHUNK_FRAMES * back for back in range(len(memory.sinks), 0, -1)]
    moved = [place - slot.start_frame for place, slot in zip(places, memory.sinks, strict=True)]
    return (*moved, *(0 for _ in memory.window))


def chunks_for(seconds: float, fps: int, time_stride: int) -> int:
    """Chunks of a video of about ``seconds``: its first latent frame is one frame, every later one ``time_stride``."""
    frames_per_chunk = CHUNK_FRAMES * time_stride
    return max(1, round((seconds * fps + time_stride - 1) / frames_per_chunk))
