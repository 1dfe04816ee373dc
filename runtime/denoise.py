"""Runs the passes of one chunk over its plan: four denoising steps for candidates, one clean pass for survivors.

Legend: B rows of a batch, S tokens of a chunk, H heads, D head dim, T tokens of the longest context in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from runtime.generators.schedule import Schedule, to_x0
from runtime.generators.wan import TextContext, WanDiT
from runtime.generators.wan_layers import dense_attention
from runtime.kernels.ema_merge import shift_keys
from runtime.memory import KVPool
from runtime.settings import CHUNK_FRAMES
from runtime.types import ChunkPlan, row_ranges

# x0 of some rows, which rows of the batch they are, pass number from 0, its sigma -> the same rows noised again
Renoise = Callable[[Tensor, range, int, float], Tensor]


class PlanBuffers:
    """The context of a batch, gathered from the pool once per chunk; each pass only rewrites its own keys and values.

    A row is laid out [own chunk | context blocks]: the own part sits at a fixed place however long the context is.
    """

    def __init__(self, pool: KVPool, plan: ChunkPlan) -> None:
        planes, _, self.tokens, heads, head_dim = pool.kv.shape
        self.layers = planes // 2
        longest = 1 + max(len(row) for row in plan.blocks)
        shape = (self.layers, plan.rows, longest * self.tokens, heads, head_dim)
        self.keys, self.values = (
            pool.kv.new_empty(shape),
            pool.kv.new_empty(shape),
        )  # [layers, B, S + T, H, D]
        self.spans = list(_equal_runs([len(row) for row in plan.blocks]))
        for row, (blocks, shifts) in enumerate(zip(plan.blocks, plan.shifts, strict=True)):
            for place, (block, shift) in enumerate(zip(blocks, shifts, strict=True), start=1):
                span = slice(place * self.tokens, (place + 1) * self.tokens)
                self.keys[:, row, span] = shift_keys(pool.kv[: self.layers, block], shift)
                self.values[:, row, span] = pool.kv[self.layers :, block]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the chunk's queries to itself and its context; all [B, S, H, D], keys rotated."""
        self.keys[layer, :, : self.tokens] = k
        self.values[layer, :, : self.tokens] = v
        out = torch.empty_like(q)
        for first, last, blocks in self.spans:
            rows, length = slice(first, last), (1 + blocks) * self.tokens
            out[rows] = dense_attention(
                q[rows], self.keys[layer, rows, :length], self.values[layer, rows, :length]
            )
        return out


def _equal_runs(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbours with the same value, as (first, past last, value)."""
    first = 0
    for value, run in groupby(values):
        last = first + len(list(run))
        yield first, last, value
        first = last


class Denoiser:
    """Drives the DiT over plans. ``batch_rows`` bounds how many candidates share a forward; 0 means all."""

    def __init__(self, dit: WanDiT, pool: KVPool, schedule: Schedule, batch_rows: int = 0) -> None:
        self.dit = dit
        self.pool = pool
        self.schedule = schedule
        self.batch_rows = batch_rows

    @torch.no_grad()
    def run(self, plan: ChunkPlan, noise: Tensor, renoise: Renoise, text: TextContext) -> Tensor:
        """Latents x0 of every candidate. noise [B, F, C, h, w]; ``renoise`` is called before every pass but the first."""
        out = torch.empty_like(noise)
        for rows in row_ranges(plan.rows, self.batch_rows):
            part = plan.take(rows)
            buffers = PlanBuffers(self.pool, part)
            x = noise[rows.start : rows.stop]
            for number, (timestep, sigma) in enumerate(
                zip(self.schedule.timesteps, self.schedule.sigmas, strict=True)
            ):
                if number:
                    x = renoise(x, rows, number, sigma)
                x = to_x0(x, self.flow(part, x, timestep, buffers, text), sigma)
            out[rows.start : rows.stop] = x
        return out

    @torch.no_grad()
    def clean(
        self, plan: ChunkPlan, latents: Tensor, blocks: Sequence[int], text: TextContext
    ) -> None:
        """The pass at timestep 0 that writes each row's keys and values to its block. latents [B, F, C, h, w]."""
        for rows in row_ranges(plan.rows, self.batch_rows):
            part, ids = plan.take(rows), blocks[rows.start : rows.stop]
            x, timestep, rope = self._inputs(part, latents[rows.start : rows.stop], 0.0)
            buffers = PlanBuffers(self.pool, part)

            def store(layer: int, k: Tensor, v: Tensor, ids: Sequence[int] = ids) -> None:
                self.pool.write(layer, ids, k, v)

            self.dit.remember(x, timestep, text, rope, buffers.attend, store)

    def flow(
        self, plan: ChunkPlan, x: Tensor, timestep: float, buffers: PlanBuffers, text: TextContext
    ) -> Tensor:
        """One forward over a gathered plan, [B, F, C, h, w]."""
        x, times, rope = self._inputs(plan, x, timestep)
        return self.dit(x, times, text, rope, buffers.attend)

    def _inputs(
        self, plan: ChunkPlan, x: Tensor, timestep: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        frames = plan.start_frame + torch.arange(CHUNK_FRAMES, device=x.device)
        times = torch.full((len(x), CHUNK_FRAMES), timestep, dtype=torch.float64, device=x.device)
        return x, times, self.dit.rope(frames[None], *x.shape[-2:])
