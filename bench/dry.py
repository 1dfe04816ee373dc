"""One chunk of the full-size DiT without weights or arithmetic: shapes only, on torch's meta device, FLOPs counted.

    for row in dry_run(settings): print(row)

It walks the engine's own denoiser over the engine's own plan for every context a history can have, so a shape that does
not fit shows on a laptop, and what the kernels would multiply can be held against the formulas of ``runtime.bench.cost``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from runtime.bench.cost import DiTShape
from runtime.denoise import Denoiser
from runtime.generators.schedule import Schedule
from runtime.generators.wan import PATCH, DiTConfig, WanDiT
from runtime.memory import KVPool
from runtime.settings import CHUNK_FRAMES, RunSettings, Settings
from runtime.types import ChunkPlan, Draws

FULL_LATENT = (16, 60, 104)  # channels, height, width of a latent frame at 832x480
META = torch.device("meta")


class NoNoise:
    """A ``NoiseSource`` for latents without values: what it makes has the shape of what it is given."""

    fixed = False

    def draw(self, draws: Draws, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(len(draws.seeds), *shape, device=META)

    def propagate(
        self, previous: Tensor, parents: Sequence[int], draws: Draws, beta: float, mode: str
    ) -> Tensor:
        return previous.new_empty(len(parents), *previous.shape[1:])

    def renoise(self, x0: Tensor, draws: Draws, sigma: float) -> Tensor:
        return x0


@dataclass(frozen=True, slots=True)
class DryChunk:
    """One chunk of one candidate with ``blocks`` blocks of context: FLOPs counted while it ran, and by formula."""

    blocks: int
    denoise_flops: int
    denoise_formula: int
    clean_flops: int
    clean_formula: int


def dry_run(
    settings: Settings,
    config: DiTConfig | None = None,
    latent: tuple[int, int, int] = FULL_LATENT,
    contexts: Sequence[int] | None = None,
) -> Iterator[DryChunk]:
    """A chunk for each number of context blocks in ``contexts``; None: all that ``settings.memory`` allows.

    ``config`` None: Wan2.1-T2V-1.3B, at a latent size of 832x480. The first chunks of a video have the small contexts.

    Raises whatever a wrong shape raises in the model.
    """
    config = config or DiTConfig()
    tokens = CHUNK_FRAMES * (latent[1] // PATCH) * (latent[2] // PATCH)
    shape = DiTShape(config, tokens)
    most = settings.memory.max_blocks
    schedule = Schedule.warped()
    with META:
        dit = WanDiT(config).to(torch.bfloat16).eval().requires_grad_(False)
        block = (2 * config.layers, tokens, config.heads, config.head_dim)
        pool = KVPool(most + 1, block, torch.bfloat16, META, "torch")
        text = dit.text_context(torch.empty(1, 1, config.text_dim, dtype=torch.bfloat16))
        noise = torch.empty(1, CHUNK_FRAMES, *latent, dtype=torch.bfloat16)
    run = RunSettings(attention="sdpa", graphs="off")
    denoiser = Denoiser(dit, pool, schedule, NoNoise(), run)
    for timestep in (*denoiser.schedule.timesteps, 0.0):
        # Made beforehand: it is once for all chunks, so no part of what a chunk costs.
        denoiser.moments[timestep] = dit.moment(torch.empty(1, 1, dtype=torch.float64, device=META))
    for blocks in range(most + 1) if contexts is None else contexts:
        seen, shifts = tuple(range(blocks)), (0,) * blocks
        plan = ChunkPlan((blocks * CHUNK_FRAMES,), (seen,), (shifts,), (0,), (0,), targets=(most,))
        with _counting() as denoise:
            denoiser.run(plan, noise, [text])
        with _counting() as clean:
            denoiser.clean(plan, noise, [text])
        yield DryChunk(
            blocks,
            denoise.get_total_flops(),
            shape.forward([blocks]).times(denoiser.schedule.passes).flops,
            clean.get_total_flops(),
            shape.clean([blocks]).flops,
        )


def _counting() -> FlopCounterMode:
    return FlopCounterMode(display=False)
