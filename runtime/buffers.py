"""The fixed device memory that a plan's integers go to: one copy per chunk, to addresses that a captured graph knows.

Legend: B rows, C columns of a block table, F latent frames of a chunk, N passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.kernels.philox import stream_words
from runtime.settings import CHUNK_FRAMES
from runtime.types import ChunkPlan


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A plan and its integers on the device. The tensors' addresses depend on the number of rows alone."""

    host: ChunkPlan
    frames: Tensor  # [B, F] int64, absolute latent frames
    streams: Tensor  # [N, B, 3] int64, of each pass's draw
    targets: Tensor  # [B] int64, blocks that a clean pass writes
    table: Tensor  # [B, C] int32, block ids, zeros beyond a row's count
    shifts: Tensor  # [B, C] int32
    counts: Tensor  # [B] int32

    @property
    def aligned(self) -> bool:
        """All rows stand at the same place in their videos."""
        return len(set(self.host.start_frames)) == 1


class PlanBuffers:
    """One piece of memory per number of rows, kept as long as this object."""

    def __init__(self, columns: int, passes: int, device: torch.device | str) -> None:
        """``columns`` is the most blocks that a row can see, ``passes`` how many draws a chunk can ask for."""
        # Wide enough from the start, and rows of a multiple of 16 bytes.
        self.columns = -(-max(columns, 1) // 4) * 4
        self.passes = passes
        self.device = torch.device(device)
        self.memory: dict[int, Tensor] = {}  # rows -> words on the device

    def upload(self, plan: ChunkPlan) -> DevicePlan:
        """Bring a plan to the device in one copy that nobody waits for. The last one of as many rows is gone."""
        rows = plan.rows
        parts = [
            torch.tensor([[frame + f for f in range(CHUNK_FRAMES)] for frame in plan.start_frames]),
            self._streams(plan),
            torch.tensor(plan.targets or [0] * rows),
            self._padded(plan.blocks),
            self._padded(plan.shifts),
            torch.tensor([*map(len, plan.blocks)], dtype=torch.int32),
        ]
        host = torch.cat([_words(part) for part in parts])
        if rows not in self.memory:
            self.memory[rows] = torch.empty_like(host, device=self.device)
        if self.device.type == "cuda":
            # From pageable memory the copy would make the host wait.
            host = host.pin_memory()
        self.memory[rows].copy_(host, non_blocking=True)
        sizes = [len(_words(part)) for part in parts]
        there = self.memory[rows].split(sizes)
        frames, streams, targets, table, shifts, counts = (
            words.view(part.dtype)[: part.numel()].view(part.shape)
            for words, part in zip(there, parts, strict=True)
        )
        return DevicePlan(plan, frames, streams, targets, table, shifts, counts)

    def _streams(self, plan: ChunkPlan) -> Tensor:
        passes = (
            stream_words(plan.seeds, plan.seed_chunks, number) for number in range(self.passes)
        )
        return torch.tensor([*passes]).view(self.passes, plan.rows, 3)

    def _padded(self, rows: tuple[tuple[int, ...], ...]) -> Tensor:
        cells = [[*row, *[0] * (self.columns - len(row))] for row in rows]
        return torch.tensor(cells, dtype=torch.int32)


def _words(part: Tensor) -> Tensor:
    """``part`` as int64 words, padded so that what follows begins at a multiple of 16 bytes."""
    flat = part.flatten()
    spare = -flat.nbytes % 16 // flat.itemsize
    return torch.cat([flat, flat.new_zeros(spare)]).view(torch.int64)
