"""Runs the passes of one chunk over its plan: four denoising steps for candidates, one clean pass for survivors.

Legend: B rows of a batch, F latent frames of a chunk, C latent channels, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runtime.attention import Context, build_attention
from runtime.generators.schedule import Schedule, to_x0
from runtime.generators.wan import Moment, TextContext, WanDiT
from runtime.kernels.rotary import Positions
from runtime.memory import KVPool
from runtime.settings import CHUNK_FRAMES
from runtime.types import ChunkPlan, row_ranges

# x0 of some rows, which rows of the batch they are, pass number (the first is 0), its sigma -> the same rows noised again
Renoise = Callable[[Tensor, range, int, float], Tensor]


class Denoiser:
    """Drives the DiT over plans. ``batch_rows`` bounds how many candidates share a forward; 0 means all.

    ``attention`` names an implementation, as ``build_attention`` does.
    """

    def __init__(
        self,
        dit: WanDiT,
        pool: KVPool,
        schedule: Schedule,
        batch_rows: int = 0,
        attention: str = "auto",
    ) -> None:
        self.dit = dit
        self.pool = pool
        self.schedule = schedule
        self.batch_rows = batch_rows
        self.attention = build_attention(attention, pool.kv)
        self.moments: dict[
            float, Moment
        ] = {}  # of the few timesteps there are, made when first used

    @torch.no_grad()
    def run(self, plan: ChunkPlan, noise: Tensor, renoise: Renoise, text: TextContext) -> Tensor:
        """Latents x0 of every candidate. noise [B, F, C, h, w]; ``renoise`` is called before every pass but the first."""
        out = torch.empty_like(noise)
        for rows in row_ranges(plan.rows, self.batch_rows):
            part = plan.take(rows)
            context = self.attention.context(part)
            x = noise[rows.start : rows.stop]
            for number, (timestep, sigma) in enumerate(
                zip(self.schedule.timesteps, self.schedule.sigmas, strict=True)
            ):
                if number:
                    x = renoise(x, rows, number, sigma)
                x = to_x0(x, self.flow(part, x, timestep, context, text), sigma)
            out[rows.start : rows.stop] = x
        return out

    @torch.no_grad()
    def clean(
        self, plan: ChunkPlan, latents: Tensor, blocks: Sequence[int], text: TextContext
    ) -> None:
        """The pass at timestep 0 that writes each row's keys and values to its block. latents [B, F, C, h, w]."""
        for rows in row_ranges(plan.rows, self.batch_rows):
            part, ids = plan.take(rows), blocks[rows.start : rows.stop]
            x = latents[rows.start : rows.stop]
            moment, rope = self._inputs(part, x, 0.0)
            context = self.attention.context(part)

            def store(layer: int, k: Tensor, v: Tensor, ids: Sequence[int] = ids) -> None:
                self.pool.write(layer, ids, k, v)

            self.dit.remember(x, moment, text, rope, context, store, context.destinations)

    def flow(
        self, plan: ChunkPlan, x: Tensor, timestep: float, context: Context, text: TextContext
    ) -> Tensor:
        """One forward over a plan, [B, F, C, h, w]."""
        moment, rope = self._inputs(plan, x, timestep)
        return self.dit(x, moment, text, rope, context, context.destinations)

    def _inputs(self, plan: ChunkPlan, x: Tensor, timestep: float) -> tuple[Moment, Positions]:
        if timestep not in self.moments:
            times = torch.full((1, 1), timestep, dtype=torch.float64, device=x.device)
            self.moments[timestep] = self.dit.moment(times)
        frames = plan.start_frame + torch.arange(CHUNK_FRAMES, device=x.device)
        return self.moments[timestep], self.dit.rope(frames[None], *x.shape[-2:])
