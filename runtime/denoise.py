"""Runs the passes of one chunk over its plan: denoising steps for candidates, one clean pass for survivors.

    plan -> PlanBuffers, noise and prompt -> fixed memory, then one recording per batch size does all passes of the chunk,
    and another one the clean pass; or the same work is called, where nothing is recorded (``runtime/graph.py``)

Legend: B rows of a batch, F latent frames of a chunk, C latent channels, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from runtime.attention import Context, build_attention
from runtime.buffers import DevicePlan, PlanBuffers
from runtime.generators.schedule import Schedule, to_x0
from runtime.generators.wan import Moment, TextContext, WanDiT
from runtime.graph import GraphRunner
from runtime.kernels.rotary import Positions
from runtime.memory import KVPool
from runtime.portions import Portions
from runtime.settings import RunSettings
from runtime.types import ChunkPlan, Draws, NoiseSource, row_ranges


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that share a forward: what they see and where they stand."""

    plan: DevicePlan
    context: Context
    text: TextContext

    @property
    def key(self) -> Hashable:
        """All that makes one batch another piece of work than the next, but for the contents of fixed memory."""
        host = self.plan.host
        moved = any(map(any, host.shifts))
        return host.rows, len(self.text.keys[0]), self.plan.aligned, moved


class Denoiser:
    """Drives the DiT over plans. ``run`` says how many candidates share a forward, by what attention, recorded or not."""

    def __init__(
        self,
        dit: WanDiT,
        pool: KVPool,
        schedule: Schedule,
        noise: NoiseSource,
        run: RunSettings,
    ) -> None:
        self.dit = dit
        self.pool = pool
        self.schedule = schedule
        self.noise = noise
        self.attention = build_attention(run.attention, pool.kv)
        device = pool.kv.device
        advice = "lower search.histories or memory.max_sink_frames"
        self.portions = Portions(run.batch_rows, "denoise", advice)
        self.clean_rows = 1 if run.litters else 0  # 0: as many as candidates
        self.buffers = PlanBuffers(pool.blocks, schedule.passes, device)
        self.graphs = GraphRunner(self._mode(run.graphs), device)
        # rows -> whose prompts lie there, and where
        self.texts: dict[int, tuple[tuple[TextContext, ...], TextContext]] = {}
        self.moments: dict[float, Moment] = {}  # of the few timesteps there are

    def _mode(self, asked: str) -> str:
        """Whether passes are recorded. ValueError for asking what attention or noise cannot do."""
        fixed = {"attention": self.attention.fixed, "noise": self.noise.fixed}
        if asked == "auto":
            return "cuda" if self.pool.kv.is_cuda and all(fixed.values()) else "off"
        if asked != "off" and not all(fixed.values()):
            lacking = ", ".join(name for name, is_fixed in fixed.items() if not is_fixed)
            raise ValueError(
                f"run.graphs={asked!r}: wants what reads its plan at fixed addresses, got another kind of {lacking} "
                f"(attention {self.attention.name!r}); use run.attention='triton' or run.graphs='off'"
            )
        return asked

    @torch.no_grad()
    def run(
        self,
        plan: ChunkPlan,
        x: Tensor,
        texts: Sequence[TextContext],
        passes: range | None = None,
    ) -> Tensor:
        """Latents x0 [B, F, C, h, w] after the last of ``passes``, by default all of the schedule.

        x [B, F, C, h, w] is noise before pass 0, else x0 after the pass before: it is noised again, as before every pass
        but the first. texts are the rows' prompts, of one row each.
        """
        passes = passes or range(self.schedule.passes)
        out = torch.empty_like(x)

        def part(rows: range) -> None:
            batch = self.batch(plan.take(rows), texts[rows.start : rows.stop])
            work = partial(self._passes, batch, passes)
            key = ("denoise", passes, batch.key)
            (x0,) = self.graphs.run(key, work, (x[rows.start : rows.stop],))
            out[rows.start : rows.stop] = x0

        self.portions.run(range(plan.rows), self.pool.kv.device, part)
        return out

    @torch.no_grad()
    def clean(self, plan: ChunkPlan, latents: Tensor, texts: Sequence[TextContext]) -> None:
        """The pass at timestep 0 that writes each row's keys and values to its target. latents [B, F, C, h, w]."""

        def part(rows: range) -> None:
            batch = self.batch(plan.take(rows), texts[rows.start : rows.stop])
            work = partial(self._clean, batch)
            self.graphs.run(("clean", batch.key), work, (latents[rows.start : rows.stop],))

        for rows in row_ranges(plan.rows, self.clean_rows):
            self.portions.run(rows, self.pool.kv.device, part)

    def flow(self, batch: Batch, x: Tensor, timestep: float) -> Tensor:
        """One forward, [B, F, C, h, w]."""
        positions = self._positions(batch, x)
        context = batch.context
        return self.dit(
            x, self._moment(timestep), batch.text, positions, context, context.destinations
        )

    def _passes(self, batch: Batch, passes: range, x: Tensor) -> tuple[Tensor]:
        host = batch.plan.host
        for number in passes:
            sigma = self.schedule.sigmas[number]
            if number:
                streams = batch.plan.streams[number]
                draws = Draws(host.seeds, host.seed_chunks, number, streams)
                x = self.noise.renoise(x, draws, sigma)
            x = to_x0(x, self.flow(batch, x, self.schedule.timesteps[number]), sigma)
        return (x,)

    def _clean(self, batch: Batch, x: Tensor) -> tuple[()]:
        store = partial(self._store, batch.plan.targets)
        positions, context = self._positions(batch, x), batch.context
        moment = self._moment(0.0)
        self.dit.remember(x, moment, batch.text, positions, context, store, context.destinations)
        return ()

    def _store(self, targets: Tensor, layer: int, k: Tensor, v: Tensor) -> None:
        self.pool.write(layer, targets, k, v)

    def _positions(self, batch: Batch, x: Tensor) -> Positions:
        frames = batch.plan.frames
        return self.dit.rope(frames[:1] if batch.plan.aligned else frames, *x.shape[-2:])

    def _moment(self, timestep: float) -> Moment:
        if timestep not in self.moments:
            times = torch.full((1, 1), timestep, dtype=torch.float64, device=self.pool.kv.device)
            self.moments[timestep] = self.dit.moment(times)
        return self.moments[timestep]

    def batch(self, plan: ChunkPlan, texts: Sequence[TextContext]) -> Batch:
        """A plan and its rows' prompts where a forward reads them; good until the next call for as many rows."""
        on_device = self.buffers.upload(plan)
        return Batch(on_device, self.attention.context(on_device), self._text(texts))

    def _text(self, texts: Sequence[TextContext]) -> TextContext:
        """The rows' prompts as one: of a single row where all have the same, at fixed addresses for a recording."""
        if all(text is texts[0] for text in texts):
            if self.graphs.mode == "off":
                return texts[0]
            texts = texts[:1]
        held = self.texts.get(len(texts))
        if held is None:
            keys, values = (
                tuple(layer.new_empty(len(texts), *layer.shape[1:]) for layer in part)
                for part in (texts[0].keys, texts[0].values)
            )
            held = (), TextContext(keys, values)
        owners, mine = held
        for row, text in enumerate(texts):
            if row >= len(owners) or owners[row] is not text:
                places = [layer[row : row + 1] for layer in (*mine.keys, *mine.values)]
                torch._foreach_copy_(places, [*text.keys, *text.values])
        self.texts[len(texts)] = tuple(texts), mine
        return mine
